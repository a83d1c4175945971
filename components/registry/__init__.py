"""Registered versions of a category's model: aliases, journal, what decides and what is served.

It may use tracking and below.
"""
