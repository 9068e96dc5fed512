"""The learned lineage detector: which of many candidates a model was made from, or none of them."""
