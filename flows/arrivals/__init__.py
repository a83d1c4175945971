"""Taking in new images, deciding on held ones, and announcing new versions; it may use data and common."""
