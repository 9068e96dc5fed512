"""Policies: relations and licences that the caller refuses, and what could not be tested."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stemma.application.parts import PolicyPart
from stemma.application.policies.applicable_licences import check_licences
from stemma.application.policies.descent import check_lineage, check_trace
from stemma.application.policies.licences import DeniedLicence, parse_denied
from stemma.application.suggestions import did_you_mean
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.types import Comparison, Lineage, NotTested, RelationKind, Trace
from stemma.workspace.known import own_part
from stemma.workspace.workspace import ALPHA, Workspace

KINSHIP = frozenset({"copy", "descends", "related"})
"""Verdicts that say the model is related to another: `--fail-on related` refuses all of them."""

VERDICTS = KINSHIP | {"independent", "no-known-parent", "inconclusive"}

BY_FUNCTION = RelationKind.DISTILLED.value
"""The relation that weights never show: a policy on it needs probe inputs."""


@dataclass(frozen=True)
class Policy:
    """What a caller refuses.

    Attributes:
        relations: Relations and verdicts.
        licences: Licences.
        ancestors: Models, as typed, from which nothing may descend.
        allow_untested: Let pass what could not be tested.
    """

    relations: frozenset[str] = frozenset()
    licences: tuple[DeniedLicence, ...] = ()
    ancestors: tuple[str, ...] = ()
    allow_untested: bool = False

    @classmethod
    def of(
        cls,
        relations: Sequence[str] | None = None,
        licences: Sequence[str] | None = None,
        ancestors: Sequence[str] | None = None,
        *,
        allow_untested: bool = False,
    ) -> "Policy":
        """Read the words of `--fail-on`, `--deny-license` and `--fail-on-descendant-of`; None means not given.

        Commas separate relations and licences too, but not names of models.

        Raises:
            MisuseError: If a word is not known, or an option is given without one: it would let everything pass.

        Returns:
            The policy.
        """
        known = {kind.value for kind in RelationKind} | VERDICTS
        wanted = [word.lower() for word in _split("--fail-on", relations)]
        for word in sorted(set(wanted) - known):
            meant = did_you_mean(word, known)
            raise MisuseError(f"--fail-on: unknown relation '{word}'.{meant} Use one of: {', '.join(sorted(known))}")
        denied = parse_denied(_split("--deny-license", licences))
        if ancestors is not None and not all(name.strip() for name in (*ancestors, *([""] if not ancestors else []))):
            raise MisuseError("--fail-on-descendant-of is given without a value: it would refuse nothing")
        return cls(frozenset(wanted), denied, tuple(ancestors or ()), allow_untested)

    @property
    def refuses_anything(self) -> bool:
        """Whether anything is refused."""
        return bool(self.relations or self.licences or self.ancestors)


def _split(option: str, words: Sequence[str] | None) -> list[str]:
    if words is None:
        return []
    found = [part.strip() for word in words for part in word.split(",")]
    if not found or not all(found):
        raise MisuseError(f"{option} is given without a value: it would refuse nothing")
    return found


@dataclass(frozen=True)
class Ruling:
    """What a policy says to an answer.

    Attributes:
        violations: One sentence for each finding that is refused.
        untested: One sentence for each thing that could not be tested.
        notes: Remarks that refuse nothing.
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

    @property
    def part(self) -> PolicyPart:
        """The field `policy` of a document."""
        return PolicyPart(
            closed=self.closed, violations=self.violations, not_tested=self.untested,
            allow_untested=self.allow_untested, notes=self.notes,
        )  # fmt: skip


def judge_comparison(policy: Policy, found: Comparison, alpha: float = ALPHA) -> Ruling:
    """What a policy says to a comparison at this level; an empty ruling where nothing is refused."""
    if not policy.refuses_anything:
        return Ruling()
    row = {**found.to_dict(), "name": found.b.name}
    untested = [*_sentences(found.open_questions), *_by_function(policy, [row], alpha)]
    return Ruling(tuple(_refused(policy, found.verdict, [row])), tuple(untested), (), policy.allow_untested)


def judge_trace(
    policy: Policy, found: Trace, subject: Model, workspace: Workspace, against: Sequence[str] | None = None
) -> Ruling:
    """What a policy says to a trace, with what the registry knows of licences and descent; else an empty ruling.

    What other registries tell can close a gate and never opens one: what one's own findings alone call for stays.

    Args:
        policy: The policy.
        found: The trace.
        subject: The traced model.
        workspace: Holds the registry.
        against: Files and folders that were searched instead of the registry.

    Returns:
        The ruling.
    """
    if not policy.refuses_anything:
        return Ruling()
    ruling = _ruling(policy, found, subject, workspace, against)
    if found.own_verdict is None:
        return ruling
    alone = _ruling(policy, own_part(found), subject, workspace, against)
    return Ruling(
        tuple(dict.fromkeys((*alone.violations, *ruling.violations))),
        tuple(dict.fromkeys((*alone.untested, *ruling.untested))),
        tuple(dict.fromkeys((*alone.notes, *ruling.notes))),
        policy.allow_untested,
    )


def _ruling(
    policy: Policy, found: Trace, subject: Model, workspace: Workspace, against: Sequence[str] | None
) -> Ruling:  # fmt: skip
    violations = _refused(policy, found.verdict, [*found.copies, *found.parents, *found.relatives])
    untested = [*_sentences(found.not_tested), *_by_function(policy, found.candidates, found.alpha)]
    notes: tuple[str, ...] = ()
    if policy.licences:
        licences = check_licences(found, subject, policy.licences, workspace)
        violations, untested, notes = (
            [*violations, *licences.violations],
            [*untested, *licences.untested],
            licences.notes,
        )
    if policy.ancestors:
        descent = check_trace(policy.ancestors, own_part(found), subject, workspace, against)
        violations, untested = [*violations, *descent.violations], [*untested, *descent.untested]
        untested += [
            f"it is related to {r['name']}, {r['known_from'].sentence}, whose own parents are not known here"
            for r in (*found.copies, *found.parents, *found.relatives)
            if r.get("known_from")
        ]
    return Ruling(tuple(violations), tuple(dict.fromkeys(untested)), notes, policy.allow_untested)


def judge_lineage(policy: Policy, found: Lineage, names: Mapping[str, str]) -> Ruling:
    """What a policy says to a lineage; an empty ruling where no model is named.

    Args:
        policy: The policy.
        found: The lineage.
        names: By what was typed, the name in the lineage.

    Returns:
        The ruling.
    """
    if not policy.ancestors:
        return Ruling()
    descent = check_lineage(found, [names[text] for text in policy.ancestors])
    return Ruling(descent.violations, descent.untested, (), policy.allow_untested)


def _refused(policy: Policy, verdict: str, findings: Iterable[Mapping[str, Any]]) -> list[str]:
    refused = policy.relations
    verdicts = [verdict] if verdict in refused or ("related" in refused and verdict in KINSHIP) else []
    return [
        *(f"the verdict is {v}" for v in verdicts),
        *(f"the relation to {f['name']}{_told(f)} is {f['relation']}" for f in findings if f["relation"] in refused),
    ]


def _told(row: Mapping[str, Any]) -> str:
    """Who tells of a model, where it is another registry."""
    return f" ({row['known_from'].sentence})" if row.get("known_from") else ""


def _sentences(entries: Iterable[NotTested]) -> list[str]:
    return [f"{e['model']}: {e['why']}" if e["model"] else e["why"] for e in entries]


def _by_function(policy: Policy, rows: Sequence[Mapping[str, Any]], alpha: float) -> list[str]:
    """What was not tested of distillation, which weights never show."""
    if BY_FUNCTION not in policy.relations:
        return []
    open_ = [r for r in rows if r["verdict"] != "related" and not _asked(r["function"], alpha)]
    if open_ and all(r["function"] is None for r in open_):
        return ["distillation was not tested: that takes --probes, and models whose networks can be run"]
    return [
        f"{r['name']}: distillation was not tested: {(r['function'] or {}).get('reason', 'its network was not run')}"
        for r in open_
    ]


def _asked(function: Mapping[str, Any] | None, alpha: float) -> bool:
    """Whether the function axis had enough control models to find a relation at this level."""
    return function is not None and function["p_value"] is not None and function["null"]["floor"] <= alpha
