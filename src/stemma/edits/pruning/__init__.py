"""Structured pruning: which units go (ModHiFi-P), planned and carried out."""
