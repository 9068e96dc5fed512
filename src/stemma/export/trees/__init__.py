"""Family trees as pictures: a lineage document to SVG."""

from stemma.export.trees.picture import tree_file, tree_style, tree_svg

__all__ = ["tree_file", "tree_style", "tree_svg"]
