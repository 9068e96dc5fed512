"""Kinship as a trained network sees it: which of many candidates a model was made from, or none of them."""
