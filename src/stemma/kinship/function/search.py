"""The functional verdict on one suspect and many candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

import numpy as np

from stemma.errors import StemmaError
from stemma.kinship.function import combined
from stemma.kinship.function.evidence import CLAIM, Eyes, Progress, labels_fit
from stemma.kinship.function.multiple_testing import Corrected, corrected
from stemma.kinship.function.null_comparison import TASK_MARGIN, alike, figures, null_figures, same_task
from stemma.kinship.function.null_models import NullModels, Party, again, check_level, floor_sentence, needed
from stemma.kinship.function.observations import MUTE, Sight, accuracy, agreement, distance, identity, mute, row
from stemma.probes import Probes
from stemma.types import Axis, Evidence, Null, Spec, Verdict


@dataclass(frozen=True, eq=False)
class _Asked:
    """A model as its sketch shows it, through the labels and without them."""

    labelled: Sight
    free: Sight

    def through(self, labelled: bool) -> Sight:
        return self.labelled if labelled else self.free


@dataclass(frozen=True)
class ClosestOfMany:
    """Is the suspect closer to a candidate than a stranger comes to the closest of all candidates?

    The null models play the suspect's part (see `corrected`), so they have to be independent of suspect and
    candidates, answer in the suspect's shape, be of its architecture, and, where true labels are known, do its task
    about as well. Everything is compared by functional sketches, those that are kept and those made now.

    Attributes:
        alpha: Level of the whole search.
        task_margin: How far below the suspect's accuracy the median of the null may lie.
    """

    alpha: float = 0.01
    task_margin: float = TASK_MARGIN

    name = "closest-of-many"
    version = 1

    def __post_init__(self) -> None:
        check_level(self.alpha)

    @property
    def spec(self) -> Spec:
        """Identity of the test, its level and all methods."""
        return Spec(self.name, self.version, combined.identity(self))

    def __call__(
        self,
        suspect: Party,
        candidates: Sequence[Party],
        probes: Probes,
        null: NullModels,
        progress: Progress | None = None,
    ) -> list[Evidence | str]:
        """Test a suspect against all candidates.

        Args:
            suspect: The model in question.
            candidates: What it may come from.
            probes: What all are asked.
            null: Independent models.
            progress: Told which model is asked, how many are done and of how many.

        Returns:
            For each candidate the evidence, with p-values that hold for all of them together, or why there is none.

        Raises:
            StemmaError: If the suspect cannot be asked.
        """
        total, done = 1 + len(candidates) + len(null), iter(range(1 + len(candidates) + len(null)))

        def asked(party: Party) -> _Asked | str:
            if progress is not None:
                progress(f"asking {party.name}", next(done), total)
            try:
                free = Eyes.of(probes, sketched=True, labelled=False)
                kept = Party(party.name, party.load, free.sketched(party, probes))
                through = Eyes.of(probes, sketched=True, labelled=probes.labels is not None)
                return _Asked(through.on(kept, probes), free.on(kept, probes))
            except StemmaError as e:
                return str(e)

        own = asked(suspect)
        if isinstance(own, str):
            raise StemmaError(own)
        others = [asked(c) for c in candidates]
        shape = own.free.shape
        standing, left_out, known = [], list(null.left_out), {identity(own.free): suspect.name}
        for n in null:
            found = asked(n)
            if isinstance(found, str):
                left_out.append(f"{n.name}: {found}")
            elif found.free.shape != shape:
                left_out.append(
                    f"{n.name}: answers with shape {list(found.free.shape)}, {suspect.name} with {list(shape)}"
                )
            elif why := again(n.name, identity(found.free), known):
                left_out.append(why)
            else:
                standing.append(found)
        kept, hard = alike(own.free, [(s.free, s) for s in standing], needed(self.alpha))
        left_out += [f"{s.free.name}: another architecture" for s in standing if s not in [k for _, k in kept]]
        nulls = NullModels(null.source, (), tuple(left_out))
        return self._judged(own, others, [s for _, s in kept], probes, nulls, hard)

    def _judged(
        self,
        own: _Asked,
        others: Sequence[_Asked | str],
        standing: Sequence[_Asked],
        probes: Probes,
        null: NullModels,
        hard: bool | None,
    ) -> list[Evidence | str]:
        known = [c for c in others if not isinstance(c, str)]
        eyes = [
            Eyes.of(probes, sketched=True, labelled=labels_fit(own.free.shape, c.free.shape, probes)) for c in known
        ]
        methods = Eyes.of(probes, sketched=True, labelled=False).methods

        def distances(query: _Asked) -> np.ndarray:
            rows = [
                row(c.through(e.labelled), query.through(e.labelled), methods) for c, e in zip(known, eyes, strict=True)
            ]
            return np.array(rows).reshape(len(known), len(methods))

        suspect = distances(own)
        table = np.array([distances(s) for s in standing]).reshape(len(standing), len(known), len(methods))
        for i, s in enumerate(standing):
            for j, c in enumerate(known):
                if identity(s.free) == identity(c.free):
                    table[i, j] = suspect[j]
        result = corrected(suspect, table, self.alpha)
        tasks = _tasks(own, standing, eyes[0].probes if eyes else probes)
        evidence = iter([
            self._evidence(j, own, c, e, methods, suspect, table, result, (tasks, hard), null)
            for j, (c, e) in enumerate(zip(known, eyes, strict=True))
        ])  # fmt: skip
        return [c if isinstance(c, str) else next(evidence) for c in others]

    def _evidence(
        self, j: int, own: _Asked, c: _Asked, eyes: Eyes, methods: Any, suspect: np.ndarray, table: np.ndarray,
        result: Corrected, known: tuple[tuple[float | None, float | None], bool | None], null: NullModels,
    ) -> Evidence:  # fmt: skip
        tasks, hard = known
        a, b = c.through(eyes.labelled), own.through(eyes.labelled)
        size = len(table)
        p = float(result.p_values[j]) if np.isfinite(result.p_values[j]) else None
        shown = [(d, i) for i, (f, m) in enumerate(methods) if (d := distance(a, b, f, m)) is not None]
        measures, gone = [], []
        for d, i in shown:
            beside = table[:, j, i]
            measures.append({**figures(d), **null_figures(beside)})
            middle = measures[-1].get("null_median")
            gone += [1 - d.value / middle] if middle else []
        same = same_task(tasks[0], accuracy(a, eyes.probes), tasks[1], self.task_margin)
        verdict, reason = self._decided(p, size, result, (*tasks, same), hard)
        if verdict is Verdict.SUPPORTED and mute(a, b, methods):
            verdict, reason = Verdict.INCONCLUSIVE, MUTE
        single = result.uncorrected[j]
        details = {
            "measures": measures, "corrected_for": len(suspect), "correction": result.method,
            "uncorrected_p_value": float(single) if np.isfinite(single) else None,
            "agreement": agreement(a, b), "accuracy": [accuracy(a, eyes.probes), tasks[0]], "null_accuracy": tasks[1],
            "missing_measures": {**a.missing, **b.missing}, "same_task": same,
            "labels_used": eyes.labelled, "n_probes": len(eyes.probes),
            "same_architecture": hard, "left_out": list(null.left_out),
            "null_models_missing": max(0, needed(self.alpha) - size), "sketched": True,
        }  # fmt: skip
        effect = float(np.clip(np.mean(gone), 0, 1)) if gone else 0.0
        kept = Null(null.source, size, result.floor, tuple(sorted(v for v in result.null[:, j].tolist() if v == v)))
        value = shown[0][0].value if shown else 0.0
        return Evidence(CLAIM, Axis.FUNCTION, self.name, value, kept, p, None if p is None else log10(p), effect,
                        verdict, reason, self.spec, (a.digest, b.digest), details)  # fmt: skip

    def _decided(
        self, p: float | None, size: int, result: Corrected, tasks: tuple[Any, Any, bool | None], hard: bool | None
    ) -> tuple[Verdict, str]:
        lacking = needed(self.alpha) - size
        if size == 0:
            return Verdict.INCONCLUSIVE, f"no independent model to compare with: {lacking} are needed"
        if p is None:
            return Verdict.INCONCLUSIVE, "no measure applies to both models"
        if lacking > 0:
            return Verdict.INCONCLUSIVE, floor_sentence(size, result.floor, lacking, self.alpha)
        if p > self.alpha:
            return Verdict.INCONCLUSIVE, f"independent models come as near to one of the candidates (p = {p:.3g})"
        near = f"nearer than {size} independent models come to any candidate (p = {p:.3g})"
        if tasks[2] is False:
            how = "better" if tasks[1] > tasks[0] else "less well"
            return Verdict.INCONCLUSIVE, (
                f"{near}, but these do the task {how} ({tasks[1]:.0%} against {tasks[0]:.0%}), so it may be the "
                "task alone: give null models of the same task"
            )
        if hard is False:
            return Verdict.INCONCLUSIVE, (
                f"{near}, but these are of other architectures than the suspect, so it may be the architecture alone"
            )
        return Verdict.SUPPORTED, near


def _tasks(own: _Asked, standing: Sequence[_Asked], probes: Probes) -> tuple[float | None, float | None]:
    null = [found for s in standing if (found := accuracy(s.free, probes)) is not None]
    return accuracy(own.free, probes), float(np.median(null)) if null else None
