"""Which units of a network can be removed, and which rows of weights go with each: found by running it once."""
