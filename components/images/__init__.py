"""Image files: found, decoded, measured, compared; it may use foundation."""
