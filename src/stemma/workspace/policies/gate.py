"""What closes a gate: a relation or a licence that the caller refuses, and whatever could not be tested."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.types import Comparison, NotTested, RelationKind, Trace
from stemma.workspace.policies.licences import Denied, denied
from stemma.workspace.policies.obligations import obligations
from stemma.workspace.workspace import ALPHA, Workspace

KINSHIP = frozenset({"copy", "descends", "related"})
"""Verdicts that say the model is related to another: `--fail-on related` refuses all of them."""

VERDICTS = KINSHIP | {"independent", "no-known-parent", "inconclusive"}

BY_FUNCTION = RelationKind.DISTILLED.value
"""The relation that weights never show: to refuse it takes probes."""


@dataclass(frozen=True)
class Policy:
    """What a caller refuses.

    Attributes:
        relations: Relations and verdicts.
        licences: Licences.
        allow_untested: Let pass what could not be tested.
    """

    relations: frozenset[str] = frozenset()
    licences: tuple[Denied, ...] = ()
    allow_untested: bool = False

    @classmethod
    def of(
        cls,
        relations: Sequence[str] | None = None,
        licences: Sequence[str] | None = None,
        *,
        allow_untested: bool = False,
    ) -> "Policy":
        """Read what a caller refuses.

        Args:
            relations: Words of `--fail-on`; commas separate too. None where the option is not given.
            licences: Words of `--deny-license`, likewise.
            allow_untested: Let pass what could not be tested.

        Returns:
            The policy.

        Raises:
            MisuseError: If a word is not known, or an option is given without one: it would let everything pass.
        """
        known = {kind.value for kind in RelationKind} | VERDICTS
        wanted = [word.lower() for word in _split("--fail-on", relations)]
        for word in sorted(set(wanted) - known):
            raise MisuseError(f"--fail-on knows no relation '{word}'. Use one of: {', '.join(sorted(known))}")
        return cls(frozenset(wanted), denied(_split("--deny-license", licences)), allow_untested)

    @property
    def given(self) -> bool:
        """Whether anything is refused."""
        return bool(self.relations or self.licences)


def _split(option: str, words: Sequence[str] | None) -> list[str]:
    if words is None:
        return []
    found = [part.strip() for word in words for part in word.split(",")]
    if not found or not all(found):
        raise MisuseError(f"{option} is given without a word: it would refuse nothing")
    return found


@dataclass(frozen=True)
class Ruling:
    """What a policy says to an answer.

    Attributes:
        violations: One sentence for each finding that is refused.
        untested: One sentence for each thing that could not be tested.
        notes: What is to be told besides, and closes nothing.
        allow_untested: Whether the caller lets pass what could not be tested.
    """

    violations: tuple[str, ...] = ()
    untested: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    allow_untested: bool = False

    @property
    def closed(self) -> bool:
        """Whether the answer is refused."""
        return bool(self.violations or (self.untested and not self.allow_untested))

    def to_dict(self) -> dict[str, Any]:
        """The field `policy` of a `--json` document.

        Returns:
            Plain JSON values.
        """
        return {
            "closed": self.closed, "violations": list(self.violations), "not_tested": list(self.untested),
            "allow_untested": self.allow_untested, "notes": list(self.notes),
        }  # fmt: skip


def on_comparison(policy: Policy, found: Comparison, alpha: float = ALPHA) -> Ruling:
    """What a policy says to a comparison.

    Args:
        policy: The policy.
        found: The comparison.
        alpha: The level that it was made at.

    Returns:
        The ruling; an empty one where nothing is refused.
    """
    if not policy.given:
        return Ruling()
    row = {**found.to_dict(), "name": found.b.name}
    untested = [*_sentences(found.open_questions), *_by_function(policy, [row], alpha)]
    return Ruling(tuple(_refused(policy, found.verdict, [row])), tuple(untested), (), policy.allow_untested)


def on_trace(policy: Policy, found: Trace, subject: Model, workspace: Workspace) -> Ruling:
    """What a policy says to a trace.

    Args:
        policy: The policy.
        found: The trace.
        subject: The model that was traced.
        workspace: Knows the licences of enrolled models.

    Returns:
        The ruling; an empty one where nothing is refused.
    """
    if not policy.given:
        return Ruling()
    violations = _refused(policy, found.verdict, [*found.copies, *found.parents, *found.relatives])
    untested = [*_sentences(found.not_tested), *_by_function(policy, found.candidates, found.alpha)]
    if not policy.licences:
        return Ruling(tuple(violations), tuple(untested), (), policy.allow_untested)
    told = obligations(found, subject, policy.licences, workspace)
    return Ruling(
        (*violations, *told.violations), (*untested, *told.untested), told.notes, policy.allow_untested
    )  # fmt: skip


def _refused(policy: Policy, verdict: str, findings: Iterable[Mapping[str, Any]]) -> list[str]:
    refused = policy.relations
    verdicts = [verdict] if verdict in refused or ("related" in refused and verdict in KINSHIP) else []
    return [
        *(f"the verdict is {v}" for v in verdicts),
        *(f"the relation to {f['name']} is {f['relation']}" for f in findings if f["relation"] in refused),
    ]


def _sentences(entries: Iterable[NotTested]) -> list[str]:
    return [f"{e['model']}: {e['why']}" if e["model"] else e["why"] for e in entries]


def _by_function(policy: Policy, rows: Sequence[Mapping[str, Any]], alpha: float) -> list[str]:
    """Weights never show that a model was distilled: whoever refuses that has to ask the models."""
    if BY_FUNCTION not in policy.relations:
        return []
    open_ = [r for r in rows if r["verdict"] != "related" and not _asked(r["function"], alpha)]
    if open_ and all(r["function"] is None for r in open_):
        return ["whether it is distilled was not tested: that takes --probes, and models that can be asked"]
    return [
        f"{r['name']}: whether it is distilled was not tested: {(r['function'] or {}).get('reason', 'not asked')}"
        for r in open_
    ]


def _asked(function: Mapping[str, Any] | None, alpha: float) -> bool:
    """Whether the function axis was able to say yes."""
    return function is not None and function["p_value"] is not None and function["null"]["floor"] <= alpha
