"""Which categories to retrain, when, and the line of stages that does it; it may use arrivals, data and common."""
