"""Which test decides whether weights are related: one table, read from the top; the first row that applies decides.

Three answers. `related` needs contents: weights that are the same, or matched units that are nearer than the best
order brings those of independent networks. The order of units alone can be written by anybody who holds the other
model, so it never convicts; but where it agrees, nobody is acquitted either. `independent` needs every kind of kinship
that could have been looked for to be looked for, with the power to see it; what was not looked at is listed and makes
the answer `inconclusive`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import log10

from stemma.kinship.weights.contents.alike import UnitsAlike
from stemma.types import Evidence, Verdict

NotTested = dict[str, str]
"""What was not looked at: `what` in a word, `model` where one of the two is meant, and `why` in a sentence."""


@dataclass(frozen=True)
class Findings:
    """All that was found about the weights of a pair, None where a test did not apply.

    Attributes:
        same: Whether the digests agree.
        exhibited: Equality that is shown entry by entry: other formats, or multiples.
        order: Whether units stand in the same places.
        contents: What the units in their places contain.
        matched: The same for units that were matched by a map that was searched.
        mapped: Whether that map leaves nothing but rounding.
        kept: Whether units that read the input are bit for bit among the other's.
        shared: Whether whole matrices are bit for bit the same.
        sizes: That no tensor of the one could hold units of the other; None where some could.
        not_tested: What was not looked at.
        alpha: Level of the decision.
    """

    same: Evidence
    exhibited: Evidence | None = None
    order: Evidence | None = None
    contents: Evidence | None = None
    matched: Evidence | None = None
    mapped: bool = False
    kept: Evidence | None = None
    shared: Evidence | None = None
    sizes: Evidence | None = None
    not_tested: Sequence[NotTested] = field(default=())
    alpha: float = 0.01


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: What it is called in documents and results.
        when: Whether it applies.
        verdict: What it concludes.
        evidence: Which evidence it quotes.
        because: What is added to that evidence's sentence.
    """

    name: str
    when: Callable[[Findings], bool]
    verdict: Verdict
    evidence: Callable[[Findings], Evidence | None]
    because: str = ""


def _supported(e: Evidence | None) -> bool:
    return e is not None and e.verdict is Verdict.SUPPORTED


def _undecided(e: Evidence | None, alpha: float) -> bool:
    """Whether a test found something that it does not call kinship: only chance is acquitted."""
    return e is not None and e.log10_p is not None and e.log10_p <= log10(alpha) and not _supported(e)


def _one_tensor(e: Evidence | None, alpha: float) -> bool:
    """Whether a test would decide, but for one tensor alone."""
    of_all = None if e is None else e.details.get("log10_p_of_all")
    return e is not None and not _supported(e) and of_all is not None and of_all <= log10(alpha)


def _unproven(e: Evidence | None) -> bool:
    """Whether a map brings units nearer than chance does, in as much of the model as kinship takes."""
    return e is not None and not _supported(e) and e.log10_p is not None and e.effect >= UnitsAlike.min_effect


def _told(f: Findings) -> Evidence | None:
    """The contents test that says more."""
    found = [e for e in (f.contents, f.matched) if e is not None and e.log10_p is not None]
    return min(found, key=lambda e: e.log10_p or 0.0) if found else f.contents or f.order or f.same


TABLE: tuple[Row, ...] = (
    Row("same digest", lambda f: _supported(f.same), Verdict.SUPPORTED, lambda f: f.same),
    Row("same numbers", lambda f: _supported(f.exhibited), Verdict.SUPPORTED, lambda f: f.exhibited),
    Row("exact map", lambda f: f.mapped, Verdict.SUPPORTED, lambda f: f.matched),
    Row("contents under a map", lambda f: _supported(f.matched), Verdict.SUPPORTED, lambda f: f.matched),
    Row("contents in place", lambda f: _supported(f.contents), Verdict.SUPPORTED, lambda f: f.contents),
    Row("units bit for bit", lambda f: _supported(f.kept), Verdict.SUPPORTED, lambda f: f.kept),
    Row("tensors bit for bit", lambda f: _supported(f.shared), Verdict.SUPPORTED, lambda f: f.shared),
    Row("order alone", lambda f: _supported(f.order), Verdict.INCONCLUSIVE, lambda f: f.order,
        "their contents are no nearer than those of independent networks in the best order, and orders can be forged"),
    Row("a trace of order", lambda f: _undecided(f.order, f.alpha), Verdict.INCONCLUSIVE, lambda f: f.order),
    Row("one tensor", lambda f: any(_one_tensor(e, f.alpha) for e in (f.contents, f.matched)), Verdict.INCONCLUSIVE,
        lambda f: next(e for e in (f.contents, f.matched) if _one_tensor(e, f.alpha))),
    Row("a trace of contents", lambda f: any(_undecided(e, f.alpha) for e in (f.contents, f.matched, f.kept)),
        Verdict.INCONCLUSIVE, lambda f: next(e for e in (f.contents, f.matched, f.kept) if _undecided(e, f.alpha))),
    Row("a map without proof", lambda f: any(_unproven(e) for e in (f.matched, f.contents)), Verdict.INCONCLUSIVE,
        lambda f: next(e for e in (f.matched, f.contents) if _unproven(e))),
    Row("a shared table", lambda f: f.shared is not None and f.shared.verdict is Verdict.INCONCLUSIVE,
        Verdict.INCONCLUSIVE, lambda f: f.shared),
    Row("not tested", lambda f: bool(f.not_tested), Verdict.INCONCLUSIVE, _told),
    Row("other sizes", lambda f: f.sizes is not None, Verdict.REFUTED, lambda f: f.sizes),
    Row("excluded", lambda f: f.contents is not None and f.contents.verdict is Verdict.REFUTED, Verdict.REFUTED,
        lambda f: f.contents),
    Row("too little", lambda f: True, Verdict.INCONCLUSIVE, _told),
)  # fmt: skip
"""The order in which tests decide."""


def decide(f: Findings) -> tuple[Row, Evidence]:
    """Read the table.

    Args:
        f: What was found.

    Returns:
        The row that applies, and its evidence with the row's verdict.
    """
    row = next(r for r in TABLE if r.when(f))
    found = row.evidence(f)
    assert found is not None
    reason = found.reason
    if row.because:
        reason = f"{reason}; {row.because}"
    if row.name == "not tested":
        reason = f"{reason}; but not everything was looked at"
    return row, replace(found, verdict=row.verdict, reason=reason)
