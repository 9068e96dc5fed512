"""Prints the descendants or ancestors of a model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.ancestry.trees.kin import Kin, KinOf

SHOWN = 40
"""Models that are listed one by one."""

NAMED = 12
"""Undecided models of one reason that are named."""


def show_kin(kin: "KinOf", licences: Mapping[str, str], paths: Sequence[str] | None) -> None:
    """Print the answer, every model with its most probable path, and what is not decided.

    Args:
        kin: Descendants or ancestors of a model.
        licences: By name, the licence that is recorded.
        paths: What was searched; the registry if None.
    """
    from stemma.cli.layout import findings, lines_of
    from stemma.cli.output import show

    rows = [*_models(kin, licences), *_undecided(kin)]
    show(lines_of(_headline(kin)), *(["", findings(rows)] if rows else []), "", findings(_closing(kin, paths)))


def _headline(kin: "KinOf") -> "Text":
    from rich.text import Text

    from stemma.cli.layout import plain

    sure, may = len(kin.established), len(kin.possible)
    one = sure == 1
    if kin.direction == "descendants":
        words = f"{sure:,} model{'' if one else 's'} descend{'s' if one else ''} from {plain(kin.of)}; {may:,} may"
    else:
        words = f"{plain(kin.of)} descends from {sure:,} model{'' if one else 's'}; {may:,} more may be ancestors"
    return Text(words, style="bold")


def _models(kin: "KinOf", licences: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    label = "descendant" if kin.direction == "descendants" else "ancestor"
    for k in kin.models[:SHOWN]:
        words = (
            _way(k, kin.of if kin.direction == "descendants" else k.name),
            _chance(k),
            _share(k),
            licences.get(k.name, ""),
        )
        what = "same weights" if k.same else "missing" if k.missing else label
        yield what, k.name, " · ".join(w for w in words if w)
    if len(kin.models) > SHOWN:
        yield "", f"and {len(kin.models) - SHOWN:,} more", "all of them with --json"


def _way(kin: "Kin", start: str) -> str:
    """The relations along the most probable path, and through which models it leads."""
    if not kin.paths:
        return ""
    edges = kin.paths[0].edges
    through = kin.paths[0].names_from(start)[1:-1]
    relations = " → ".join(e.relation for e in edges)
    steps = f"{len(edges)} steps, through {', '.join(through)}" if through else ""
    more = f"and {kin.n_paths - 1:,} more path{'s' if kin.n_paths > 2 else ''}" if kin.n_paths > 1 else ""
    return " · ".join(w for w in (relations, steps, more) if w)


def _chance(kin: "Kin") -> str:
    from stemma.cli.output import number

    low, high = kin.reached.at_least, kin.reached.at_most
    if kin.same:
        return ""
    if low == high:
        return "certain" if low == 1 else f"probability {number(low)}"
    return f"probability {number(low)} to {number(high)}"


def _share(kin: "Kin") -> str:
    from stemma.cli.output import number

    return "" if kin.share is None else f"share {number(kin.share)}"


def _undecided(kin: "KinOf") -> Iterator[tuple[str, str, str]]:
    by_reason: dict[str, list[str]] = {}
    for name, why in kin.undecided:
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        if not any(names):
            yield "not tested", why, ""
            continue
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        yield "not decided", ", ".join(names[:NAMED]) + more, why


def _closing(kin: "KinOf", paths: Sequence[str] | None) -> Iterator[tuple[str, str, str]]:
    from stemma.export.answers import path_of

    assumed = "a path is as probable as the product of its edges, which are taken to be independent"
    if kin.models:
        yield "meaning", assumed, ""
        other = kin.models[0].name
        if not kin.models[0].missing:
            pair = (kin.of, other) if kin.direction == "descendants" else (other, kin.of)
            yield "next", f"stemma explain {' '.join(path_of(x, paths) for x in pair)} shows what was changed", ""
    elif kin.undecided:
        yield "meaning", "no edge leads there, but not every model could be excluded", ""
        yield "next", f"stemma trace {path_of(kin.undecided[0][0] or kin.of, paths)} looks at one model closely", ""
    else:
        yield "meaning", "every other model is excluded", ""
        yield "next", "stemma lineage shows the whole tree", ""
