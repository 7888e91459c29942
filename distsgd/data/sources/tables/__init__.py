"""Formats of tables, and frames: which columns are what, and how their rows become arrays."""
