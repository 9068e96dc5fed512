"""What an erasure costs and buys, by strength: what the others keep as a line, steps of relearning as bars."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stemma.export.edit_answers import lost

LEFT, TOP, SIDE_X, SIDE_Y = 52, 14, 440, 220
"""Left and upper edge of the field, and its width and height, in units of the picture."""

WIDTH, HEIGHT = LEFT + SIDE_X + 52, TOP + SIDE_Y + 48


def erasure_curve(curve: Mapping[str, Any]) -> str:
    """The curve of an erasure.

    Args:
        curve: Of the document that `stemma unlearn --curve --json` prints.

    Returns:
        One `svg` element.
    """
    points = curve["points"]
    said = f"What the others keep and how long relearning takes, at {len(points)} strengths of the erasure"
    marks = [*_field(), *_bars(points, curve), *_line(points, curve), *_names(points, curve)]
    return (f'<svg class="axes" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">'
            f"<title>{said}</title>{''.join(marks)}</svg>")  # fmt: skip


def _x(i: int, count: int) -> float:
    return LEFT + SIDE_X * (i + 0.5) / count


def _y(share: float) -> float:
    return TOP + SIDE_Y * (1 - min(max(share, 0.0), 1.0))


def _field() -> Iterator[str]:
    yield f'<rect class="axes-field" x="{LEFT}" y="{TOP}" width="{SIDE_X}" height="{SIDE_Y}" rx="8"/>'
    for share in (0.0, 0.5, 1.0):
        yield f'<text x="{LEFT - 6}" y="{_y(share) + 4:.0f}" text-anchor="end">{share:.0%}</text>'


def _bars(points: Sequence[Mapping[str, Any]], curve: Mapping[str, Any]) -> Iterator[str]:
    """Steps of relearning, and the mean of retrained models."""
    top = curve["steps"] + 1
    for i, point in enumerate(points):
        if point["relearning"] is not None:
            y = _y(point["relearning"] / top)
            yield (f'<rect class="axes-spread" x="{_x(i, len(points)) - 14:.1f}" y="{y:.1f}" width="28" '
                   f'height="{TOP + SIDE_Y - y:.1f}"/>')  # fmt: skip
    if curve["retrained"]:
        y = _y(sum(curve["retrained"]) / len(curve["retrained"]) / top)
        yield f'<path class="axes-cross" d="M{LEFT} {y:.1f}h{SIDE_X}"/>'
        yield f'<text x="{LEFT + 6}" y="{y - 5:.1f}">retrained</text>'
    for steps in (0, curve["steps"]):
        yield f'<text x="{LEFT + SIDE_X + 6}" y="{_y(steps / top) + 4:.0f}">{steps}</text>'


def _line(points: Sequence[Mapping[str, Any]], curve: Mapping[str, Any]) -> Iterator[str]:
    """What the others keep."""
    places = [(_x(i, len(points)), _y(1 - lost(p["kept"], curve["before"], p["same"]))) for i, p in enumerate(points)]
    yield f'<path fill="none" stroke="currentColor" d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>'
    for point, (x, y) in zip(points, places, strict=True):
        if point["verdict"] == "refuted":
            yield f'<circle fill="none" stroke="currentColor" cx="{x:.1f}" cy="{y:.1f}" r="10"/>'
        yield f'<circle class="axes-point" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'


def _names(points: Sequence[Mapping[str, Any]], curve: Mapping[str, Any]) -> Iterator[str]:
    for i, point in enumerate(points):
        place = f'x="{_x(i, len(points)):.0f}" y="{TOP + SIDE_Y + 18}"'
        yield f'<text {place} text-anchor="middle">{point["strength"]}</text>'
    yield f'<text class="axes-title" x="{LEFT + SIDE_X / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">strength</text>'
    kept = "unchanged answers" if curve["before"] is None else "1 minus the loss of the others"
    for place, word in ((f"14 {TOP + SIDE_Y / 2:.0f}", kept), (f"{WIDTH - 10} {TOP + SIDE_Y / 2:.0f}", "relearning")):
        yield f'<text class="axes-title" transform="translate({place}) rotate(-90)" text-anchor="middle">{word}</text>'
