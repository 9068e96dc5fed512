"""What can be said about hidden units where no family fits."""

from collections.abc import Mapping

from stemma.models.structure import Structure, unknown


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Structure:
    """Nothing is claimed: every axis is fixed.

    Args:
        shapes: Shape by tensor.

    Returns:
        A structure without groups.
    """
    return Structure("inferred:shapes", False, {n: unknown(s) for n, s in shapes.items()}, ())
