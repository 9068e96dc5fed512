"""Provenance from hard labels alone: does a suspect share more of a model's partition of the probes than controls?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import log10
from typing import Any, Literal

import numpy as np

from stemma.errors import MisuseError, StemmaError
from stemma.kinship.function.evidence import CLAIM, Progress
from stemma.kinship.function.label_observations import PartitionView, among, asked_of, mute, recorded, thinned
from stemma.kinship.function.null_comparison import TASK_MARGIN, same_task
from stemma.kinship.function.null_models import NullModels, Party, again, check_level, floor_sentence, needed
from stemma.kinship.function.observations import MUTE, Sight, agreement, identity
from stemma.kinship.function.partitions import PARTS, adjusted_rand
from stemma.kinship.function.selection import Selection
from stemma.kinship.function.sketches import FunctionalSketch
from stemma.probes import Probes
from stemma.types import Axis, Evidence, Null, Spec, Verdict

SMALLEST = 5e-324
"""No p-value is below the smallest double."""

POSITIONS = 32
"""Positions of a sequence that are looked at, evenly spaced: neighbours tell little more."""


@dataclass(frozen=True)
class PartitionAgreement:
    """The black-box test of provenance, for classifiers of any label space and for next tokens.

    A model's hard labels cut the probes into classes. The suspect observes; the candidate and the controls, which stand
    in for it, are compared by how much of the suspect's partition theirs predicts, probe by probe. Names of classes
    mean nothing, so a new head with other classes can be tested. There are two p-values:

    - over models: the rank among the controls, exact if the candidate is exchangeable with them, whatever the probes;
    - over probes: one-sided paired tests that *every* control would be beaten on further probes, too. The largest of
      them is the p-value of that claim (all must be rejected: intersection and union); `holm` corrects them
      for their number as the source does, which costs power and buys nothing for this claim.

    The first speaks of independent models in general, the second of these very controls: with m of them, an independent
    candidate beats all with probability 1 / (m + 1), and enough probes make that significant. Provenance is claimed
    only where all controls are beaten. Only controls that answer in a model's shape stand in for it, of its
    architecture where there are enough.

    Cost: one forward pass per model; then linear in models times probes.

    Attributes:
        alpha: Level of the decision.
        parts: What is counted per probe, names out of `partitions.PARTS`: `common-errors`, `information`, and
            `agreement` for heads whose labels mean the same (the published statistic).
        correction: `largest` or `holm`, of the p-values over probes.
        over: `models`, `probes` or `both`, the larger p-value: what the reported one speaks of.
        stands_for: `first`: controls stand for the first model, the candidate, and the second observes (they change
            places where no control can stand for the first). `either`: both observe in turn, and the larger p-value
            counts, which is valid if either is exchangeable with the controls.
        task_margin: How far below a model's accuracy the median of its controls may lie, and what share of the probes a
            renaming of labels may win: where it wins more, they mean something else, and controls are no stand-in.
        positions: Positions of a sequence that are looked at.

    Source: Nikolic, Baluta and Saxena 2025, arXiv:2502.00706. Departures: tests are paired; partitions, not labels,
    are compared; the test over models, which decides unless told otherwise. Berger 1982 for the largest p.
    """

    alpha: float = 0.01
    parts: tuple[str, ...] = ("common-errors", "information")
    correction: Literal["largest", "holm"] = "largest"
    over: Literal["models", "probes", "both"] = "models"
    stands_for: Literal["first", "either"] = "first"
    task_margin: float = TASK_MARGIN
    positions: int = POSITIONS

    name = "partition-agreement"
    version = 1

    def __post_init__(self) -> None:
        check_level(self.alpha)
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise MisuseError(f"parts are one or more of {', '.join(PARTS)}, not {', '.join(self.parts) or 'none'}")
        if self.correction not in ("largest", "holm"):
            raise MisuseError(f"correction is 'largest' or 'holm', not {self.correction!r}")
        if self.over not in ("models", "probes", "both") or self.stands_for not in ("first", "either"):
            raise MisuseError(
                f"over is 'models', 'probes' or 'both' and stands_for 'first' or 'either', not {self.over!r} and "
                f"{self.stands_for!r}"
            )
        if self.positions < 1:
            raise MisuseError("positions is 1 or more")

    @property
    def spec(self) -> Spec:
        """Identity of the test with its parameters."""
        return Spec(self.name, self.version, {f.name: getattr(self, f.name) for f in fields(self)})

    def __call__(
        self, a: Party, b: Party, probes: Probes | Selection, null: NullModels, progress: Progress | None = None
    ) -> Evidence:
        """Test a pair.

        Args:
            a: The candidate.
            b: The suspect, what may come from it.
            probes: What all models are asked; a selection refuses controls that it was made on.
            null: The controls: independent models of the same task.
            progress: Told which model is asked, how many are done and of how many.

        Returns:
            `SUPPORTED` where p <= alpha and all controls are beaten, else `INCONCLUSIVE`: agreeing no more than
            independent models do is no proof of independence.

        Raises:
            MisuseError: If the controls chose the probes.
            StemmaError: If a or b cannot be asked these probes.
        """
        selection = probes if isinstance(probes, Selection) else None
        given = probes.probes if isinstance(probes, Selection) else probes
        sketched = any(p.load is None for p in (a, b, *null))
        asked = FunctionalSketch.of(given).probes(given) if sketched else given
        one, two = (asked_of(p, given, asked) for p in (a, b))
        seen, left_out, known = [], list(null.left_out), {identity(s): s.name for s in (one, two)}
        for i, n in enumerate(null):
            if progress is not None:
                progress(f"asking {n.name}", i, len(null))
            try:
                found = asked_of(n, given, asked)
            except StemmaError as e:
                left_out.append(f"{n.name}: {e}")
                continue
            if why := again(n.name, identity(found), known):
                left_out.append(why)
            elif found.classes is None:
                left_out.append(f"{n.name}: its answers are no choice among classes")
            else:
                seen.append(found)
        if selection is not None:
            selection.refuse_used([(s.name, s.digest) for s in seen])
        return self.judged(one, two, seen, asked, NullModels(null.source, (), tuple(left_out)))

    def of_labels(
        self,
        a: np.ndarray,
        b: np.ndarray,
        controls: Mapping[str, np.ndarray],
        names: tuple[str, str] = ("a", "b"),
        source: str = "labels given",
    ) -> Evidence:
        """Test recorded answers: nothing but labels is needed, as a service gives them.

        Args:
            a: Labels `[n]` of the candidate, or `[n, t]` for t positions of each probe.
            b: Labels of the suspect, for the same probes.
            controls: Labels of independent models by their names; those with the same answers to all probes count once.
            names: Of a and b.
            source: Where the controls come from, for people.

        Returns:
            The evidence, as for models.

        Raises:
            MisuseError: If these are no labels of the same probes.
        """
        if twice := sorted({n for n in names if [*names, *controls].count(n) > 1}):
            raise MisuseError(f"every model needs a name of its own, but {twice[0]} is there twice")
        one, two, *others = (recorded(n, v, np.shape(a)) for n, v in ((names[0], a), (names[1], b), *controls.items()))
        seen, left_out, known = [], [], {}
        for s in others:
            if why := again(s.name, np.asarray(s.classes, np.int64).tobytes().hex(), known):
                left_out.append(why)
            else:
                seen.append(s)
        probes = Probes.of(np.zeros((len(np.asarray(a)), 1), np.float32))
        return self.judged(one, two, seen, probes, NullModels(source, (), tuple(left_out)))

    def judged(self, a: Sight, b: Sight, seen: Sequence[Sight], probes: Probes, null: NullModels) -> Evidence:
        """The evidence, once everything was asked.

        Args:
            a: What was seen of the candidate.
            b: Of the suspect.
            seen: Of the controls.
            probes: What was asked.
            null: Where the controls come from, and which were left out.

        Returns:
            The evidence.
        """
        pair = thinned(a, self.positions), thinned(b, self.positions)
        views = self._views(pair, [thinned(s, self.positions) for s in seen], probes)
        deciding = max(views, key=self.p_value) if views else None
        p = None if deciding is None else self.p_value(deciding)
        least = min((len(v.controls) for v in views), default=0)
        verdict, reason = self._decided(a, b, views, deciding, null)
        if verdict is Verdict.SUPPORTED and mute(a, b):
            verdict, reason = Verdict.INCONCLUSIVE, MUTE
        value = adjusted_rand(*(s.classes.ravel() for s in pair)) if views else 0.0  # ty: ignore
        details: dict[str, Any] = {
            "adjusted_rand": value, "agreement": agreement(a, b), "n_probes": len(probes),
            "views": [v.to_dict() for v in views], "controls": [s.name for s in seen],
            "null_models_missing": max(0, needed(self.alpha) - least), "left_out": list(null.left_out),
        }  # fmt: skip
        size = 0 if deciding is None else len(deciding.controls)
        floor = 0.0 if self.over == "probes" else 1 / (size + 1)
        kept = Null(null.source, size, floor, tuple(sorted(deciding.statistics)) if deciding else ())
        effect = min((v.effect for v in views), default=0.0)
        return Evidence(CLAIM, Axis.FUNCTION, self.name, value, kept, p, None if p is None else log10(p), effect,
                        verdict, reason, self.spec, (a.digest, b.digest), details)  # fmt: skip

    def _views(self, pair: tuple[Sight, Sight], controls: Sequence[Sight], probes: Probes) -> list[PartitionView]:
        """The views that count, the one in which controls stand for the first model before the other."""
        how = controls, probes, self.parts, needed(self.alpha), self.task_margin
        first = among(*pair, *how)
        if self.stands_for == "first" and first is not None and first.hard is not False:
            return [first]
        found = [v for v in (first, among(*pair[::-1], *how)) if v is not None]
        if any(v.hard for v in found):
            found = [v for v in found if v.hard is not False]
        return found[:1] if self.stands_for == "first" else found

    def p_value(self, view: PartitionView) -> float:
        """The p-value of one view.

        Returns:
            Over models, over probes or the larger of both.
        """
        probes = max(view.beats_all(self.correction), SMALLEST)
        return {"models": view.by_model, "probes": probes, "both": max(view.by_model, probes)}[self.over]

    def _decided(
        self, a: Sight, b: Sight, views: Sequence[PartitionView], deciding: PartitionView | None, null: NullModels
    ) -> tuple[Verdict, str]:
        for s in (a, b):
            if s.classes is None:
                return Verdict.INCONCLUSIVE, f"the answers of {s.name} are no choice among classes"
        if deciding is None:
            why = f" ({len(null.left_out)} were left out)" if null.left_out else ""
            return Verdict.INCONCLUSIVE, (
                f"no independent model to compare with{why}: {needed(self.alpha)} are needed for alpha {self.alpha:g}"
            )
        least, size = min(len(v.controls) for v in views), len(deciding.controls)
        lacking, further = needed(self.alpha) - least, deciding.beats_all(self.correction)
        if self.over != "probes" and lacking > 0:
            told = f"{deciding.beaten} of {size} independent models share less of the partition"
            return Verdict.INCONCLUSIVE, f"{told}; {floor_sentence(least, 1 / (least + 1), lacking, self.alpha)}"
        if deciding.beaten < size:
            return Verdict.INCONCLUSIVE, (
                f"{size - deciding.beaten} of {size} independent models share as much of the partition, which does not "
                "show independence either"
            )
        found = f"all {size} independent models share less of the partition"
        if further > self.alpha and self.over != "models":
            return Verdict.INCONCLUSIVE, (
                f"{found}, but on further probes one of them might not (p = {further:.2g}): ask more probes, or such "
                "as models differ about"
            )
        if further > self.alpha:
            found += f" (on further probes one of them might not: p = {further:.2g})"
        return self._explained(views, found, lacking)

    def _explained(self, views: Sequence[PartitionView], found: str, lacking: int) -> tuple[Verdict, str]:
        """Whether task or architecture alone may be what is shared."""
        tasks = [same_task(v.accuracies[0], v.accuracies[1], v.accuracies[2], self.task_margin) for v in views]
        known = [t for t in tasks if t is not None]
        if known and not any(known):
            return Verdict.INCONCLUSIVE, (
                f"{found}, but these do the task otherwise well, so it may be the task alone: give null models of the "
                "same task"
            )
        if all(v.hard is False for v in views):
            return Verdict.INCONCLUSIVE, (
                f"{found}, but these are of other architectures, so it may be the architecture alone"
            )
        if lacking > 0:
            found += f"; that holds against these alone, {lacking} more are needed to speak of models in general"
        return Verdict.SUPPORTED, found
