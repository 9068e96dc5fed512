"""Version of the weights axis, stored with results and measurements."""

VERSION = 5
"""Raised with every change that can change an answer about a pair, or what it costs: what was measured with an earlier
one is marked on the pages (`docs/figures.py`)."""
