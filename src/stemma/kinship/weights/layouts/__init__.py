"""Conversion between layouts of tools: joined, split, stacked, reordered, transposed or factored tensors."""
