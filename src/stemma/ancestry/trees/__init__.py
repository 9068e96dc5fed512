"""Family trees: from pairs and distances to who descends from whom."""
