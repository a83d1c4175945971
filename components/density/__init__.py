"""Densities of good features: Gaussian (GDE, Mahalanobis distance), kernel, level by level; it may use foundation."""
