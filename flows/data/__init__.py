"""Data under git and DVC: versions, history, stores, transfer; it may use common."""
