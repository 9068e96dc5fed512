"""Family trees of many models, from pairwise comparisons and weight distances."""
