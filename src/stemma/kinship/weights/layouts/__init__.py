"""The same numbers in the layout of another tool: joined, split, stacked, reordered, transposed, factored."""
