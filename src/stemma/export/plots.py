"""Results drawn with matplotlib."""

from typing import TYPE_CHECKING, Any

from stemma.export.answers import compare_answer, lineage_answer, short, trace_answer
from stemma.export.markup import cut
from stemma.types import Comparison, Distance, Lineage, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 15
"""Models that the plot of a trace has at most."""

COLOURS = {"related": "#b26a00", "independent": "#2e7d5b", "inconclusive": "#7a5ca8"}
"""By verdict."""

BLUE = "#2f6fd6"
"""What is measured."""

ARROW = {"arrowstyle": "->", "color": "grey", "lw": 1, "shrinkA": 0, "shrinkB": 3}
"""From parent to child."""

TITLE = 80
"""Columns of text in a title."""


def _axes(axes: "Axes | None", width: float, height: float) -> "Axes":
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1] if axes is None else axes


def _titled(axes: "Axes", title: object) -> None:
    axes.set_title(cut(title, TITLE), loc="left", fontsize=10, parse_math=False)


def plot_trace(result: Trace, axes: "Axes | None" = None) -> "Axes":
    """How much of the weights of each model compared in detail agrees, as bars, the closest first.

    Args:
        result: A trace.
        axes: Where it is drawn; new axes unless given.

    Returns:
        The axes.
    """
    shown = result.candidates[:SHOWN]
    axes = _axes(axes, 7, 1.6 + 0.32 * max(len(shown), 2))
    for i, row in enumerate(shown):
        effect = row["weights"]["effect"]
        axes.barh(i, effect, color=COLOURS.get(row["verdict"], "grey"))
        words = row["relation"] or "not decided"
        axes.text(effect + 0.01, i, f"{short(effect)}  {words}", va="center", fontsize=8, parse_math=False)
    axes.set_yticks(range(len(shown)), [cut(row["name"], 32) for row in shown], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("share of the weights that agrees")
    if not shown:
        axes.text(0.5, 0.5, "nothing was compared in detail", ha="center", transform=axes.transAxes)
    _titled(axes, trace_answer(result.to_dict()))
    return axes


def plot_comparison(result: Comparison, axes: "Axes | None" = None) -> "Axes":
    """Where the pair stands on the two axes; a band where an axis was not decided or not looked at.

    Args:
        result: A comparison.
        axes: Where it is drawn; new axes unless given.

    Returns:
        The axes.
    """
    from matplotlib.patches import Rectangle

    from stemma.export.pages.pictures.axes import QUADRANTS, span

    document = result.to_dict()
    axes = _axes(axes, 6.4, 4.8)
    (left, right), (low, high) = span(document["weights"]), span(document["function"])
    axes.add_patch(Rectangle((left, low), right - left, high - low, color=BLUE, alpha=0.25, lw=0))
    if right - left < 1 and high - low < 1:
        axes.plot((left + right) / 2, (low + high) / 2, "o", color=BLUE)
    for (weights, function), lines in QUADRANTS.items():
        x, y = 0.75 if weights == "related" else 0.25, 0.97 if function == "related" else 0.47
        axes.text(x, y, "\n".join(lines), ha="center", va="top", fontsize=8)
    axes.axhline(0.5, color="grey", ls=":", lw=1)
    axes.axvline(0.5, color="grey", ls=":", lw=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks([0.25, 0.75], ["independent", "related"])
    axes.set_yticks([0.25, 0.75], ["apart", "alike"], rotation=90, va="center")
    axes.tick_params(length=0)
    axes.set_xlabel("weights")
    axes.set_ylabel("function" if document["function"] else "function (not looked at)")
    _titled(axes, compare_answer(document))
    return axes


def plot_lineage(result: Lineage, axes: "Axes | None" = None) -> "Axes":
    """The family trees: roots on the left, families one below the other.

    Args:
        result: A lineage.
        axes: Where it is drawn; new axes unless given.

    Returns:
        The axes.
    """
    from stemma.export.trees.layout import layout

    document = result.to_dict()
    found = layout(document)
    places = {place.name: place for family in found.families for place in family.places}
    deep = max((place.column for place in places.values()), default=0)
    rows = max((place.row for place in places.values()), default=0) + 1
    axes = _axes(axes, min(3 + 2.4 * (deep + 1), 30), min(1 + 0.42 * rows, 60))
    for family in found.families:
        for edge in family.edges:
            a, b = places[edge["parent"]], places[edge["child"]]
            axes.annotate("", (b.column, b.row), (a.column, a.row), arrowprops=ARROW, zorder=1)
            axes.text(b.column - 0.06, b.row + 0.34, edge["relation"], fontsize=6.5, ha="right", va="center",
                      color="grey", parse_math=False)  # fmt: skip
    for place in places.values():
        box: dict[str, Any] = {"boxstyle": "round", "fc": "white", "ec": "grey", "ls": "--" if place.missing else "-"}
        axes.text(place.column, place.row, cut(place.name, 24), fontsize=7.5, va="center", color="black", bbox=box,
                  parse_math=False, zorder=2)  # fmt: skip
    axes.set_xlim(-0.3, deep + 1.1)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_axis_off()
    left_out = f"; {found.left_out:,} models left out" if found.left_out else ""
    _titled(axes, f"{lineage_answer(document)}{left_out}")
    return axes


def plot_distance(result: Distance, axes: "Axes | None" = None) -> "Axes":
    """The distances of single probes as a histogram, with the mean and its interval.

    Args:
        result: A distance.
        axes: Where it is drawn; new axes unless given.

    Returns:
        The axes.
    """
    axes = _axes(axes, 6.4, 3.6)
    known = [value for value in result.per_probe if value is not None]
    if known:
        axes.hist(known, bins=min(40, max(5, len(known) // 4)), color=BLUE, alpha=0.5)
        axes.set_ylabel("probes")
    else:
        axes.set_yticks([])
    axes.axvline(result.value, color="black", lw=1.5)
    if result.interval is not None:
        axes.axvspan(*result.interval, color="black", alpha=0.15)
    axes.set_xlim(left=min(0.0, result.value))
    axes.set_xlabel(f"{result.measure.name} of {result.fingerprint.name} (0 is the same)")
    _titled(axes, f"distance {short(result.value)}")
    return axes
