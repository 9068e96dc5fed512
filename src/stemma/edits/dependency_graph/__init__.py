"""The dependency graph of a network: which units can be removed, and which rows of weights belong to each."""
