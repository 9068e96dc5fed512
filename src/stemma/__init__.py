"""Where a neural network comes from, how far it is from others in what it does, and what was done to it."""

__version__ = "0.1.0"
