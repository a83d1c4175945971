"""Runs in MLflow: their identity, figures and pictures, kept while the server is away.

It may use detection and below.
"""
