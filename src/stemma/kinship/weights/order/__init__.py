"""The exact test of the order of units."""
