"""Detects merged models: their parents, the merging method and its coefficients."""
