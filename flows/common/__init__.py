"""What all flows stand on: environment, lifetime of processes, the Prefect server, titles of figures.

It may use no other room of flows.
"""
