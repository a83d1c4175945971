"""Versions of data sets, and where data come from: demo, downloads, imports.

It may use stages and below, but not arrivals.
"""
