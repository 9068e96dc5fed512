"""Kinship in weights: units in place, units matched, and what no disguise changes."""
