"""The two axes of a comparison: weights across, function up, and where the pair stands."""

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.export.figures import p_value

LEFT, TOP, SIDE_X, SIDE_Y = 44, 10, 440, 290
"""Left and upper edge of the field, and its width and height, in units of the picture."""

WIDTH, HEIGHT = LEFT + SIDE_X + 8, TOP + SIDE_Y + 44

QUADRANTS = {
    ("independent", "related"): ("distilled", "or copied through an API,", "or the same task and data"),
    ("related", "related"): ("the same network", "copied, re-saved, reordered,", "quantised, lightly pruned"),
    ("independent", "independent"): ("unrelated",),
    ("related", "independent"): ("the same origin", "fine-tuned away, transferred,", "unlearned"),
}
"""What a pair is, by weights and function."""

WIDE = 0.06
"""Half the width of a point, as a share of the field: a finding is not more exact than that."""


def axes(document: Mapping[str, Any]) -> str:
    """The quadrant that the pair stands in; a band where an axis was not decided or not looked at.

    Args:
        document: What `stemma compare --json` prints, or `Comparison.to_dict` gives.

    Returns:
        One `svg` element.
    """
    weights, function = document["weights"], document["function"]
    x, y = span(weights), span(function)
    marks = [*_field(), *_mark(x, y), *_names()]
    said = f"Weights: {_said(weights)}. Function: {_said(function)}."
    return (f'<svg class="axes" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">'
            f"<title>{said}</title>{''.join(marks)}</svg>")  # fmt: skip


def _said(axis: Mapping[str, Any] | None) -> str:
    if axis is None:
        return "not looked at"
    word = {"related": "related", "independent": "independent"}.get(axis["verdict"], "not decided")
    return f"{word}, {p_value(axis)}"


def span(axis: Mapping[str, Any] | None) -> tuple[float, float]:
    """Where the pair can be on an axis: from 0 (independent) to 1 (the same)."""
    if axis is None or axis["verdict"] not in ("related", "independent"):
        return 0.0, 1.0
    effect = min(max(float(axis["effect"]), 0.0), 1.0)
    middle = 0.5 + 0.5 * effect if axis["verdict"] == "related" else 0.5 * effect
    low, high = (0.5, 1.0) if axis["verdict"] == "related" else (0.0, 0.5)
    middle = min(max(middle, low + WIDE), high - WIDE)
    return middle - WIDE, middle + WIDE


def _mark(x: tuple[float, float], y: tuple[float, float]) -> Iterator[str]:
    left, right = (LEFT + SIDE_X * share for share in x)
    upper, lower = (TOP + SIDE_Y * (1 - share) for share in reversed(y))
    band = x == (0.0, 1.0) or y == (0.0, 1.0)
    yield (f'<rect class="axes-{"band" if band else "spread"}" x="{left:.1f}" y="{upper:.1f}" '
           f'width="{right - left:.1f}" height="{lower - upper:.1f}" rx="{0 if band else 22}"/>')  # fmt: skip
    if not band:
        yield f'<circle class="axes-point" cx="{(left + right) / 2:.1f}" cy="{(upper + lower) / 2:.1f}" r="7"/>'


def _field() -> Iterator[str]:
    middle_x, middle_y = LEFT + SIDE_X / 2, TOP + SIDE_Y / 2
    yield f'<rect class="axes-field" x="{LEFT}" y="{TOP}" width="{SIDE_X}" height="{SIDE_Y}" rx="8"/>'
    yield f'<path class="axes-cross" d="M{middle_x} {TOP}v{SIDE_Y}M{LEFT} {middle_y}h{SIDE_X}"/>'


def _names() -> Iterator[str]:
    for (weights, function), lines in QUADRANTS.items():
        x = LEFT + SIDE_X * (0.75 if weights == "related" else 0.25)
        y = TOP + (24 if function == "related" else SIDE_Y / 2 + 24)
        for i, line in enumerate(lines):
            kind = "axes-name" if i == 0 else "axes-more"
            yield f'<text class="{kind}" x="{x:.0f}" y="{y + 16 * i:.0f}" text-anchor="middle">{line}</text>'
    bottom = TOP + SIDE_Y
    for share, word in ((0.25, "independent"), (0.75, "related")):
        yield (f'<text class="axes-word" x="{LEFT + SIDE_X * share:.0f}" y="{bottom + 18}" text-anchor="middle">'
               f"{word}</text>")  # fmt: skip
    yield f'<text class="axes-title" x="{LEFT + SIDE_X / 2:.0f}" y="{bottom + 38}" text-anchor="middle">weights</text>'
    for share, word in ((0.25, "alike"), (0.75, "apart")):
        at = f"{LEFT - 8} {TOP + SIDE_Y * share:.0f}"
        yield f'<text class="axes-word" transform="translate({at}) rotate(-90)" text-anchor="middle">{word}</text>'
    at = f"{LEFT - 28} {TOP + SIDE_Y / 2:.0f}"
    yield f'<text class="axes-title" transform="translate({at}) rotate(-90)" text-anchor="middle">function</text>'
