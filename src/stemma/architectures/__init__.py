"""Which tensor axes carry the same hidden units, from families, layer names or shapes."""
