"""Weights in and out of files: key tables, loading, saving. See `keys.py` for the names."""
