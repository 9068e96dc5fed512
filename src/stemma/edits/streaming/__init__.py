"""Pruning of networks larger than memory: one block of a transformer after another, with its hidden states on disk."""
