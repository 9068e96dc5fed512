"""Maps of units between two models: permutations, signs, scales, rotations; search and application."""
