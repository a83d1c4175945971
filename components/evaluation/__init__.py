"""Figures of merit, and the pictures and pages that show them; it may use images and foundation."""
