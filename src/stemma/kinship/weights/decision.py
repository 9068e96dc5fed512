"""Which test decides whether weights are related: one table, read from the top; the first row that applies decides.

Three verdicts. `related` needs contents: identical weights, or matched units that are closer than units of independent
networks in their best order. The order of units alone can be forged by anybody who has the other model, so it never
supports `related`; but where it agrees, `independent` is excluded too. `independent` needs every possible kind of
relation to be tested with sufficient power; what was not tested is listed and makes the verdict `inconclusive`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import log10

from stemma.kinship.weights.contents.units_alike import UnitsAlike
from stemma.types import Evidence, Verdict

NotTested = dict[str, str]
"""A gap of the comparison: `what` in a word, `model` if it concerns one of the two, and `why` in a sentence."""


@dataclass(frozen=True)
class Findings:
    """Results of all tests on the weights of a pair, None where a test did not apply.

    Attributes:
        same: Whether the digests agree.
        exact_equality: Entry-wise equality in another format, or up to one factor per matrix.
        order: Whether units keep their places.
        contents: Agreement of the contents of units in place.
        matched: Agreement of the contents of units matched by a map that was searched.
        mapped: Whether that map leaves only rounding.
        kept: Whether input units occur identically in the other model.
        shared: Whether whole matrices are identical.
        sizes: Evidence that no tensor of one could derive from the other; None where some could.
        not_tested: What was not tested.
        alpha: Significance level.
    """

    same: Evidence
    exact_equality: Evidence | None = None
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
        name: Its name in documents and results.
        when: Whether it applies.
        verdict: The verdict.
        evidence: The evidence that it reports.
        addition: Added to the reason of that evidence.
    """

    name: str
    when: Callable[[Findings], bool]
    verdict: Verdict
    evidence: Callable[[Findings], Evidence | None]
    addition: str = ""


def _supported(e: Evidence | None) -> bool:
    return e is not None and e.verdict is Verdict.SUPPORTED


def _significant(e: Evidence | None, alpha: float) -> bool:
    """Whether a test is significant but does not support a relation."""
    return e is not None and e.log10_p is not None and e.log10_p <= log10(alpha) and not _supported(e)


def _one_tensor(e: Evidence | None, alpha: float) -> bool:
    """Whether a test would be decisive but for one tensor alone."""
    of_all = None if e is None else e.details.get("log10_p_of_all")
    return e is not None and not _supported(e) and of_all is not None and of_all <= log10(alpha)


def _large_effect_only(e: Evidence | None) -> bool:
    """Whether units agree in a large share of the model without being significant."""
    return e is not None and not _supported(e) and e.log10_p is not None and e.effect >= UnitsAlike.min_effect


def _most_significant(f: Findings) -> Evidence | None:
    """The contents test with the smaller p-value."""
    found = [e for e in (f.contents, f.matched) if e is not None and e.log10_p is not None]
    return min(found, key=lambda e: e.log10_p or 0.0) if found else f.contents or f.order or f.same


TABLE: tuple[Row, ...] = (
    Row("same digest", lambda f: _supported(f.same), Verdict.SUPPORTED, lambda f: f.same),
    Row("same numbers", lambda f: _supported(f.exact_equality), Verdict.SUPPORTED, lambda f: f.exact_equality),
    Row("exact map", lambda f: f.mapped, Verdict.SUPPORTED, lambda f: f.matched),
    Row("contents under a map", lambda f: _supported(f.matched), Verdict.SUPPORTED, lambda f: f.matched),
    Row("contents in place", lambda f: _supported(f.contents), Verdict.SUPPORTED, lambda f: f.contents),
    Row("units bit for bit", lambda f: _supported(f.kept), Verdict.SUPPORTED, lambda f: f.kept),
    Row("tensors bit for bit", lambda f: _supported(f.shared), Verdict.SUPPORTED, lambda f: f.shared),
    Row("order alone", lambda f: _supported(f.order), Verdict.INCONCLUSIVE, lambda f: f.order,
        "their contents are no closer than in independent networks, and the order of units can be forged"),
    Row("a trace of order", lambda f: _significant(f.order, f.alpha), Verdict.INCONCLUSIVE, lambda f: f.order),
    Row("one tensor", lambda f: any(_one_tensor(e, f.alpha) for e in (f.contents, f.matched)), Verdict.INCONCLUSIVE,
        lambda f: next(e for e in (f.contents, f.matched) if _one_tensor(e, f.alpha))),
    Row("a trace of contents", lambda f: any(_significant(e, f.alpha) for e in (f.contents, f.matched, f.kept)),
        Verdict.INCONCLUSIVE, lambda f: next(e for e in (f.contents, f.matched, f.kept) if _significant(e, f.alpha))),
    Row("a map without proof", lambda f: any(_large_effect_only(e) for e in (f.matched, f.contents)),
        Verdict.INCONCLUSIVE, lambda f: next(e for e in (f.matched, f.contents) if _large_effect_only(e))),
    Row("a shared table", lambda f: f.shared is not None and f.shared.verdict is Verdict.INCONCLUSIVE,
        Verdict.INCONCLUSIVE, lambda f: f.shared),
    Row("not tested", lambda f: bool(f.not_tested), Verdict.INCONCLUSIVE, _most_significant),
    Row("other sizes", lambda f: f.sizes is not None, Verdict.REFUTED, lambda f: f.sizes),
    Row("excluded", lambda f: f.contents is not None and f.contents.verdict is Verdict.REFUTED, Verdict.REFUTED,
        lambda f: f.contents),
    Row("too little", lambda f: True, Verdict.INCONCLUSIVE, _most_significant),
)  # fmt: skip
"""The order in which tests decide."""


def decide(f: Findings) -> tuple[Row, Evidence]:
    """The first row that applies, and its evidence with the row's verdict."""
    row = next(r for r in TABLE if r.when(f))
    found = row.evidence(f)
    assert found is not None
    reason = found.reason
    if row.addition:
        reason = f"{reason}; {row.addition}"
    if row.name == "not tested":
        reason = f"{reason}; not everything could be tested"
    return row, replace(found, verdict=row.verdict, reason=reason)
