"""Measurements: each module is a command that prints a small table and writes JSON."""
