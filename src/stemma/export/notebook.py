"""Results in a notebook: small pieces of HTML with a style of their own, and plots."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stemma.export.answers import compare_answer, lineage_answer, trace_answer
from stemma.export.figures import count, number, p_value, percent, strength
from stemma.export.markup import cut, escape
from stemma.types import Comparison, Distance, Lineage, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stemma.export.answers import AnswerLine

SHOWN = 8
"""Rows of a table in a notebook."""

DRAWN = 60
"""Models that the picture of a lineage in a notebook has at most."""

STYLE = """
.stemma-result { max-width: 900px; font-variant-numeric: tabular-nums; }
.stemma-result p { margin: 4px 0; overflow-wrap: anywhere; }
.stemma-result .stemma-soft { opacity: .75; }
.stemma-result table { border-collapse: collapse; margin: 6px 0; }
.stemma-result :is(th, td) { text-align: left; vertical-align: top; padding: 3px 14px 3px 0; background: none;
  border: 0 solid; border-bottom-width: 1px; border-color: color-mix(in srgb, currentColor 25%, transparent); }
.stemma-result thead th { font-weight: 400; opacity: .75; }
.stemma-result .stemma-scroll { overflow-x: auto; }
.stemma-result .tree { background: var(--tree-ground); }
.stemma-result .axes { max-width: 400px; display: block; }
.stemma-result :is(.axes, .chart) text { fill: currentColor; font-size: 12.5px; }
.stemma-result .axes-more { opacity: .75; }
.stemma-result .axes-field { fill: none; stroke: currentColor; stroke-opacity: .4; }
.stemma-result .axes-cross { fill: none; stroke: currentColor; stroke-opacity: .6; stroke-dasharray: 4 4; }
.stemma-result :is(.axes-band, .axes-spread) { fill: #3b82f6; fill-opacity: .22; stroke: #3b82f6; }
.stemma-result :is(.axes-point, .dot) { fill: #3b82f6; }
.stemma-result .axis { stroke: currentColor; stroke-opacity: .6; }
.stemma-result .whisker { stroke: #3b82f6; stroke-width: 6; stroke-opacity: .45; }
"""
"""For light and dark notebooks: the colours of the notebook, and blue for what is measured."""


def fragment(result: Trace | Comparison | Lineage | Distance) -> str:
    """A result as a piece of HTML.

    Args:
        result: What a function of `stemma` returned.

    Returns:
        Markup in one `div`, without scripts, that loads nothing.
    """
    makers: dict[type, Callable[[Any], Iterator[str]]] = {
        Trace: _trace, Comparison: _comparison, Lineage: _lineage, Distance: _distance,
    }  # fmt: skip
    return f'<div class="stemma-result"><style>{STYLE}</style>{"".join(makers[type(result)](result))}</div>'


def plot(result: Trace | Comparison | Lineage | Distance, axes: "Axes | None" = None) -> "Axes":
    """A result drawn with matplotlib.

    Args:
        result: What a function of `stemma` returned.
        axes: Where it is drawn; new axes unless given.

    Returns:
        The axes.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    from stemma.errors import MissingExtraError

    try:
        import matplotlib.pyplot  # noqa: F401
    except ImportError:
        raise MissingExtraError("a plot of a result", "matplotlib", "plots") from None
    from stemma.export import plots

    makers: dict[type, Callable[..., Axes]] = {
        Trace: plots.plot_trace, Comparison: plots.plot_comparison, Lineage: plots.plot_lineage,
        Distance: plots.plot_distance,
    }  # fmt: skip
    return makers[type(result)](result, axes)


def _answer(line: "AnswerLine") -> str:
    return f"<p>{escape(cut(line.before, 300))}<b>{escape(line.verdict)}</b>{escape(cut(line.after, 300))}</p>"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table whose first column names its rows."""
    if not rows:
        return ""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(cut(first, 80))}</th>'
        f"{''.join(f'<td>{escape(cut(cell, 240))}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"


def _soft(text: str) -> str:
    return f'<p class="stemma-soft">{escape(cut(text, 400))}</p>'


def _untested(entries: Sequence[Mapping[str, str]]) -> Iterator[str]:
    if entries:
        more = f" (and {len(entries) - 1:,} more)" if len(entries) > 1 else ""
        yield _soft(f"not tested: {cut(entries[0]['why'], 300)}{more}")


def _trace(result: Trace) -> Iterator[str]:
    document = result.to_dict()
    yield _answer(trace_answer(document))
    kin = [(c, "the same weights") for c in document["copies"]]
    kin += [(p, "parent" if p["direction"] == "parent" else "possible parent") for p in document["parents"]]
    kin += [(r, "relative" if r["role"] in ("relative", "unknown") else r["role"]) for r in document["relatives"]]
    rows = [(one["name"], role, one["relation"] or "related", strength(one), percent(one.get("confidence")))
            for one, role in kin[:SHOWN]]  # fmt: skip
    yield _table(("model", "is", "relation", "evidence", "probability of this role"), rows)
    if len(kin) > SHOWN:
        yield _soft(f"and {count(len(kin) - SHOWN, 'more')}")
    yield _soft(f"{count(result.n_searched, 'model')} searched, significance level {number(result.alpha)}")
    yield from _untested(result.not_tested)


def _comparison(result: Comparison) -> Iterator[str]:
    from stemma.export.pages.pictures.axes import axes

    document = result.to_dict()
    yield _answer(compare_answer(document))
    yield axes(document)
    weights = {**document["weights"], "relation": document["relation"]}
    rows = [("weights", document["weights"]["verdict"], strength(weights), document["weights"]["reason"])]
    if document["function"] is None:
        rows.append(("function", "not looked at", "", "no probe inputs were given"))
    else:
        function = document["function"]
        rows.append(("function", function["verdict"], p_value(function), function["reason"]))
    yield _table(("axis", "verdict", "evidence", "finding"), rows)
    yield from _untested(document["not_tested"])


def _lineage(result: Lineage) -> Iterator[str]:
    from stemma.export.trees import tree_style, tree_svg

    document = result.to_dict()
    yield _answer(lineage_answer(document))
    yield f'<style>{tree_style()}</style><div class="stemma-scroll">{tree_svg(document, DRAWN)}</div>'
    yield from _untested(result.not_tested)


def _distance(result: Distance) -> Iterator[str]:
    from stemma.export.answers import between, distance_scale
    from stemma.export.charts import scale

    yield f"<p>distance <b>{escape(between(result.value, result.interval))}</b></p>"
    top = max(1.0, 1.05 * result.value, *(1.05 * x for x in result.interval or ()))
    yield scale(result.value, result.interval, top)
    probes = count(len(result.per_probe), "probe") if result.per_probe else "all probes"
    what = f"{result.measure.name} of {result.fingerprint.name}, {probes}; {distance_scale(result.measure.name)}"
    partly = "" if result.coverage == 1 else f"; defined at {percent(result.coverage)} of the probes"
    yield _soft(what + partly)
