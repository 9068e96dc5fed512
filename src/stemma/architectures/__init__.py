"""Which tensor axes carry the same hidden units? From families, names, shapes."""
