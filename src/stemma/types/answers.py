"""The answers to a question: a comparison, a trace, a lineage; each is the `--json` document of its command."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemma import presentation
from stemma.types.nouns import Evidence, KnownFrom, ModelRef, Relation, RelationKind, Verdict, jsonable
from stemma.types.text import plain, short_name

NotTested = Mapping[str, str]
"""One thing that could not be tested: `what` (a short code), `model` (its name, or empty) and `why` (one sentence)."""

WEIGHTS_GONE = "weights-gone"
"""The code for weights of which only a sketch is left: kinship may show, but not what was done."""

UNREAD = "unread"
"""The code for weights of which only a sample was read: kinship may show, but not that the rest is the same."""


def _relation(finding: Mapping[str, Any]) -> str:
    relation = str(finding.get("relation") or "related")
    name = short_name(finding["name"])
    return name if relation == "related" else f"{name} ({relation})"


def _listed(label: str, items: Sequence[str], most: int = 3) -> list[str]:
    rest = f" and {len(items) - most:,} more" if len(items) > most else ""
    return [f"  {label}: {', '.join(items[:most])}{rest}"] if items else []


def _block(lines: Sequence[str]) -> str:
    """Lines of text; names and reasons come from files, and none may start a line or drive a terminal."""
    return "\n".join(map(plain, lines))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Comparison:
    """All evidence on a pair of models.

    Attributes:
        a: The first model.
        b: The second model.
        verdict: `related` if either axis is, `independent`, or `inconclusive`.
        relation: What b is to a, as far as the evidence names it.
        direction: `a->b`, `b->a` or `unknown`.
        weights: The weights axis, decided.
        function: The function axis, None where it was not looked at.
        evidence: Every test that was run, the deciding one first.
        cannot_see: What this comparison did not look at.
        direction_confidence: Calibrated probability of the direction; None where a mark shows it, or it is unknown.
        not_tested: What could not be tested although it bears on the verdict: a gate closes on it.
    """

    a: ModelRef
    b: ModelRef
    verdict: str
    relation: Relation
    direction: str
    weights: Evidence
    function: Evidence | None = None
    evidence: tuple[Evidence, ...] = ()
    cannot_see: tuple[str, ...] = ()
    direction_confidence: float | None = None
    not_tested: tuple[NotTested, ...] = ()

    def __repr__(self) -> str:
        relation = "" if self.verdict != "related" else f" ({self.relation.kind}, direction {self.direction})"
        a, b = short_name(self.a.name), short_name(self.b.name)
        lines = [f"{a} and {b}: {self.verdict}{relation}", f"  weights: {self.weights.reason}"]
        lines += [] if self.function is None else [f"  function: {self.function.reason}"]
        return _block([*lines, *_listed("not tested", [t["why"] for t in self.open_questions])])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return presentation.fragment(self)

    def plot(self, ax: Any = None) -> Any:
        """Draw where the pair stands on the two axes with matplotlib (the extra `plots`).

        Args:
            ax: Where it is drawn; new axes unless given.

        Returns:
            The axes.
        """
        return presentation.plot(self, ax)

    @property
    def undetermined(self) -> bool:
        """Whether no relation can be named because nothing was decided: `unrelated` would be an acquittal."""
        return self.verdict == "inconclusive" and self.relation.kind is RelationKind.UNRELATED

    @property
    def open_questions(self) -> tuple[NotTested, ...]:
        """What was not tested and bears on the answer: of relatives only what hides the relation, else everything."""
        if self.verdict == "related":
            return tuple(t for t in self.not_tested if t["what"] in (WEIGHTS_GONE, UNREAD))
        if self.not_tested or self.verdict != "inconclusive":
            return self.not_tested
        tested = self.weights.p_value is not None
        return ({"what": "undecided" if tested else "not-comparable", "model": "", "why": self.weights.reason},)

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document of `stemma compare`; `relation` is null where nothing was decided.

        Returns:
            Plain JSON values.
        """
        w = self.weights
        return {
            "a": jsonable(self.a),
            "b": jsonable(self.b),
            "verdict": self.verdict,
            "relation": None if self.undetermined else self.relation.kind.value,
            "steps": list(self.relation.steps),
            "relation_parameters": jsonable(self.relation.parameters),
            "relation_reason": self.relation.reason,
            "direction": self.direction,
            "direction_confidence": self.direction_confidence,
            "weights": {
                "verdict": _AXIS_WORD[w.verdict],
                "p_value": w.p_value,
                "log10_p": w.log10_p,
                "effect": w.effect,
                "reason": w.reason,
                "statistic": w.statistic,
                "details": jsonable(w.details),
            },
            "function": None if self.function is None else _function_axis(self.function),
            "evidence": [e.to_dict() for e in self.evidence],
            "cannot_see": list(self.cannot_see),
            "not_tested": jsonable(self.open_questions),
        }


def _function_axis(f: Evidence) -> dict[str, Any]:
    """The function axis in a `--json` document; the distance is null where no measure applies."""
    return {
        "verdict": _AXIS_WORD[f.verdict], "p_value": f.p_value, "log10_p": f.log10_p, "effect": f.effect,
        "distance": f.value if f.details.get("measures") else None, "reason": f.reason, "statistic": f.statistic,
        "null": {"source": f.null.source, "n": f.null.size, "floor": f.null.floor}, "details": jsonable(f.details),
    }  # fmt: skip


_AXIS_WORD = {Verdict.SUPPORTED: "related", Verdict.REFUTED: "independent", Verdict.INCONCLUSIVE: "inconclusive"}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Trace:
    """The answer about one suspect.

    Attributes:
        model: The suspect.
        verdict: `copy`, `descends`, `related`, `no-known-parent` or `inconclusive`.
        copies: Models with the same weights (by digest), with how they were recognised.
        parents: Established parents, best first.
        relatives: Related models that are not parents, or whose direction is unknown.
        candidates: Every model that was looked at closely, sorted by verdict, then effect, then residual.
        alpha: Level of the decision, after correction for `n_searched`.
        n_searched: Number of models that were searched, not only those looked at closely.
        cannot_see: What the answer does not cover.
        not_tested: What could not be tested although it bears on the verdict: a gate closes on it, and nothing is
            called `no-known-parent` beside it.
        parent_set: The smallest set of possible parents that holds the parent in the stated share of cases, each with
            its probability, `or` what hardly differs from it; an unknown common ancestor may be one of them.
        coverage: That share; None where there is no such set.
        known_from: Other registries whose word alone the verdict rests on; empty where it is this registry's finding.
        own_verdict: The verdict without what other registries tell; None where none was asked.
    """

    model: ModelRef
    verdict: str
    copies: tuple[Mapping[str, Any], ...]
    parents: tuple[Mapping[str, Any], ...]
    relatives: tuple[Mapping[str, Any], ...]
    candidates: tuple[Mapping[str, Any], ...]
    alpha: float
    n_searched: int
    cannot_see: tuple[str, ...] = ()
    not_tested: tuple[NotTested, ...] = ()
    parent_set: tuple[Mapping[str, Any], ...] = ()
    coverage: float | None = None
    known_from: tuple[KnownFrom, ...] = ()
    own_verdict: str | None = None

    def __repr__(self) -> str:
        lines = [f"{short_name(self.model.name)}: {self.verdict} ({self.n_searched:,} searched, alpha {self.alpha:g})"]
        for label, found in (("copies", self.copies), ("parents", self.parents), ("relatives", self.relatives)):
            lines += _listed(label, [_relation(f) for f in found])
        return _block([*lines, *_listed("not tested", [t["why"] for t in self.not_tested])])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return presentation.fragment(self)

    def plot(self, ax: Any = None) -> Any:
        """Draw how much of the weights of each model agrees with matplotlib (the extra `plots`).

        Args:
            ax: Where it is drawn; new axes unless given.

        Returns:
            The axes.
        """
        return presentation.plot(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document of `stemma trace`.

        Returns:
            Plain JSON values.
        """
        return jsonable(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One step of a lineage: what a model was made from.

    Attributes:
        parent: Name of the parent; `(missing 1)` and so on for one that is not among the models.
        child: Name of the child, likewise.
        relation: What the child is to the parent.
        p_value: Of the test that the weights are related; None where it was not run or one end is missing.
        log10_p: Its decimal logarithm.
        confidence: Probability that this edge runs in this direction, given that the two are adjacent.
        share: Coefficient of this parent in a merge; None for other relations.
        length: Squared relative change along the edge, as a share of the parent's or the child's squared norm.
        reason: Why, in one sentence.
    """

    parent: str
    child: str
    relation: str
    p_value: float | None = None
    log10_p: float | None = None
    confidence: float | None = None
    share: float | None = None
    length: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Lineage:
    """Who comes from whom among some models.

    Attributes:
        models: All of them.
        edges: From parent to child, sorted by child; a merge has several parents.
        roots: Names of models without a parent here.
        families: Names of models whose weights are related, each family sorted, the largest first.
        missing_ancestors: Models that distances call for and that are not here: each with its `name`, `children` and
            `parent`, None where that is unknown.
        refused: Relations that were looked at and not believed or not directed, with a `reason`.
        receipts: Edits that receipts beside the weights tell of: `parent`, `child`, `operation`, and how they are
            `drawn`: `same`, `reversed`, `elsewhere` (the child has another parent) or `not`. No edge is drawn for them.
        evidence: What the decisions were made with: by family, the noise and what was tested.
        cannot_see: What this answer does not cover.
        not_tested: Models that nothing here could be compared with, or that could not be read.
    """

    models: tuple[ModelRef, ...]
    edges: tuple[Edge, ...]
    roots: tuple[str, ...]
    families: tuple[tuple[str, ...], ...]
    missing_ancestors: tuple[Mapping[str, Any], ...] = ()
    refused: tuple[Mapping[str, Any], ...] = ()
    receipts: tuple[Mapping[str, Any], ...] = ()
    evidence: tuple[Mapping[str, Any], ...] = ()
    cannot_see: tuple[str, ...] = ()
    not_tested: tuple[NotTested, ...] = ()

    def __repr__(self) -> str:
        counts = f"{len(self.models):,} models, {len(self.families):,} families, {len(self.edges):,} edges"
        edges = [f"{short_name(e.parent)} -> {short_name(e.child)} ({e.relation})" for e in self.edges]
        missing = [short_name(m["name"]) for m in self.missing_ancestors]
        lines = [counts, *_listed("edges", edges), *_listed("missing ancestors", missing)]
        return _block([*lines, *_listed("not tested", [t["why"] for t in self.not_tested])])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return presentation.fragment(self)

    def plot(self, ax: Any = None) -> Any:
        """Draw the family trees with matplotlib (the extra `plots`).

        Args:
            ax: Where it is drawn; new axes unless given.

        Returns:
            The axes.
        """
        return presentation.plot(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """The `--json` document of `stemma lineage`.

        Returns:
            Plain JSON values.
        """
        return jsonable(self)
