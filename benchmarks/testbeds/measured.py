"""Which versions of the methods a result file was measured with, so that pages can tell what is older than the code."""

from stemma.kinship.weights.version import VERSION


def methods() -> dict[str, int]:
    """The versions of the stages that benchmarks of comparisons measure.

    Returns:
        By stage; a result file keeps them under `measured_with`.
    """
    return {"kinship.weights": VERSION}
