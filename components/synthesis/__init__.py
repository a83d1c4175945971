"""Synthetic defects of both papers, the tasks made of them, and the prepared category.

It may use images and foundation.
"""
