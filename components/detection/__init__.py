"""Detectors: compositions, their exam and choice, thresholds, anomaly maps, the capsule.

It may use learning, evaluation, density and below.
"""
