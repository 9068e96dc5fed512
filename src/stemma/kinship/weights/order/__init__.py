"""Units in place: the exact test of their order."""
