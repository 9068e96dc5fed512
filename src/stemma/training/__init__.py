"""Learned parts, trained on a zoo: what a detector of lineage has to learn before it can answer."""
