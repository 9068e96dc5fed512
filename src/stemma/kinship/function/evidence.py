"""Is B closer to A in function than models that were trained apart are?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

import numpy as np

from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.evaluation import compute_outputs
from stemma.kinship.function import combined
from stemma.kinship.function.null_comparison import TASK_MARGIN, Standing, View, figures, null_figures, same_task, view
from stemma.kinship.function.null_models import NullModels, Party, again, check_level, floor_sentence, needed
from stemma.kinship.function.observations import MUTE, Methods, Sight, agreement, distance, identity, look, mute, row
from stemma.kinship.function.selection import Selection
from stemma.kinship.function.sketches import FunctionalSketch, looked
from stemma.probes import Probes
from stemma.types import Axis, Evidence, Fingerprint, Null, Spec, Verdict

CLAIM = "the function of the one comes from the other"

MEMORY = 1 << 30
"""Bytes that the fields of one model may take; larger ones are compared by sketches."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Eyes:
    """How models are looked at for one question: the same way for all of them.

    Attributes:
        methods: Fingerprinters and measures.
        probes: What is asked.
        sketch: Look at sketches instead of the models' whole fields; None for the whole.
        labelled: Use the labels.
    """

    methods: Methods
    probes: Probes
    sketch: FunctionalSketch | None
    labelled: bool

    @classmethod
    def of(cls, probes: Probes, *, sketched: bool, labelled: bool) -> "Eyes":
        """The methods of the verdict, whole or as sketches.

        Returns:
            The eyes.
        """
        if not sketched:
            return cls(combined.METHODS, probes, None, labelled)
        sketch = FunctionalSketch.of(probes)
        return cls(sketch.methods, sketch.probes(probes), sketch, labelled)

    def on(self, party: Party, probes: Probes) -> Sight:
        """Look at one model.

        Args:
            party: The model.
            probes: All probes, as given.

        Returns:
            What was seen.

        Raises:
            StemmaError: If it cannot be asked, or is gone without a sketch.
        """
        if self.sketch is None:
            if party.load is None:
                raise StemmaError(f"{party.name} is gone and only its sketch is left")
            return look(party.load(), probes, self.methods, labelled=self.labelled)
        return looked(self.sketched(party, probes), party.name, probes.kind, labelled=self.labelled)

    def sketched(self, party: Party, probes: Probes) -> Fingerprint:
        """The functional sketch of a model: the kept one where it fits, else made now.

        Args:
            party: The model.
            probes: All probes, as given.

        Returns:
            The sketch.

        Raises:
            StemmaError: If the model cannot be asked, or is gone without a sketch.
        """
        method, kept = self.sketch or FunctionalSketch.of(probes), party.sketch
        if kept is not None and kept.spec.digest == method.spec.digest and kept.probes == probes.digest:
            return kept
        if party.load is None:
            raise StemmaError(f"{party.name} is gone, and no functional sketch for these probes is kept")
        return method(party.load(), probes)


def head(party: Party, probes: Probes) -> tuple[int, ...]:
    """Shape of one answer.

    Returns:
        The shape.
    """
    if party.load is not None:
        return compute_outputs(party.load(), probes.take(slice(0, 1))).shape[1:]
    kept = party.sketch
    return () if kept is None else tuple(int(s) for s in np.asarray(kept.values["shape"]))


def labels_fit(a: tuple[int, ...], b: tuple[int, ...], probes: Probes) -> bool:
    """Whether labels mean the same to two models: both answer in one shape, one score per class of the labels.

    Returns:
        False too where there are no labels.
    """
    return probes.labels is not None and a == b and len(a) == 1 and int(probes.labels.max(initial=0)) < a[0]


def _refuse_labels(a: tuple[int, ...], b: tuple[int, ...], probes: Probes, names: str) -> None:
    """Two heads of one size that lack classes of the labels are no case for going on without them.

    Raises:
        MisuseError: If a label is out of range.
    """
    if probes.labels is not None and a == b and len(a) == 1 and not labels_fit(a, b, probes):
        raise MisuseError(
            f"the probes have labels up to {int(probes.labels.max())}, but {names} have {a[0]} outputs: "
            "give probes whose labels they know, or leave the labels out"
        )


def too_large(probes: Probes, *parties: Party) -> bool:
    """Whether whole fields would not fit into memory.

    Args:
        probes: What is asked.
        parties: Who is asked: token networks are seen in a space of one axis per token of the vocabulary.

    Returns:
        By the size of inputs and steps.
    """
    steps = sum(getattr(f, "steps", 1) for f, _ in combined.METHODS if f.produces == "field")
    width = 1
    if probes.kind == "tokens":
        specs = [p.load().network.input_spec for p in parties if p.load is not None]
        width = 1 + int(max([probes.inputs.max(initial=0), *(s.high for s in specs if s is not None)]))
    return 4 * steps * probes.inputs.size * width > MEMORY


@dataclass(frozen=True)
class CloserThanIndependent:
    """The conformal test of functional kinship: a rank among models that were trained apart.

    If b was made without a, it is one more independent model, so its distance from a is exchangeable with the null
    models' distances from a; or, seen from b, a is. Each view gives an exact p-value, and the larger of the two is
    reported: it is valid if either assumption holds. Only null models that answer in a model's shape stand in for it.
    They must be of its architecture in one of the views (which then decides, where only one is so), and where true
    labels are known do its task about as well; else nothing is concluded, for either alone brings models nearer.

    Several distances are joined to one number by `combined.statistics`, which treats the m + 1 models alike.
    Cost: all fingerprints of the pair and of every null model.

    Attributes:
        alpha: Level of the decision.
        task_margin: How far below a model's accuracy the median of its null may lie.
    """

    alpha: float = 0.01
    task_margin: float = TASK_MARGIN

    name = "closer-than-independent"
    version = 1

    def __post_init__(self) -> None:
        check_level(self.alpha)

    @property
    def spec(self) -> Spec:
        """Identity of the test, its level and all methods."""
        return Spec(self.name, self.version, combined.identity(self))

    def __call__(
        self, a: Party, b: Party, probes: Probes | Selection, null: NullModels, progress: Progress | None = None
    ) -> Evidence:
        """Test a pair.

        Args:
            a: The one model.
            b: The other.
            probes: What all models are asked; a selection refuses null models that it was made on.
            null: Independent models.
            progress: Told which model is asked, how many are done and of how many.

        Returns:
            `SUPPORTED` where p <= alpha, else `INCONCLUSIVE`: not being closer than independent models are is no proof
            of independence.

        Raises:
            MisuseError: If the probes have labels that both heads lack, or the null models chose the probes.
            StemmaError: If a or b cannot be asked these probes.
        """
        selection = probes if isinstance(probes, Selection) else None
        probes = probes.probes if isinstance(probes, Selection) else probes
        sketched = too_large(probes, a, b) or any(p.load is None for p in (a, b, *null))
        heads = head(a, probes), head(b, probes)
        _refuse_labels(*heads, probes, f"{a.name} and {b.name}")
        eyes = Eyes.of(probes, sketched=sketched, labelled=labels_fit(*heads, probes))
        one, two = eyes.on(a, probes), eyes.on(b, probes)
        seen, left_out, known = [], list(null.left_out), {identity(s): s.name for s in (one, two)}
        for i, n in enumerate(null):
            if progress is not None:
                progress(f"asking {n.name}", i, len(null))
            try:
                found = eyes.on(n, probes)
            except StemmaError as e:
                left_out.append(f"{n.name}: {e}")
            else:
                if why := again(n.name, identity(found), known):
                    left_out.append(why)
                    continue
                seen.append(Standing(found, row(one, found, eyes.methods), row(found, two, eyes.methods)))
        if selection is not None:
            selection.refuse_used([(s.sight.name, s.sight.digest) for s in seen])
        return self.judged(eyes, one, two, seen, NullModels(null.source, (), tuple(left_out)))

    def judged(self, eyes: Eyes, a: Sight, b: Sight, seen: Sequence[Standing], null: NullModels) -> Evidence:
        """The evidence, once everything was looked at.

        Args:
            eyes: How.
            a: What was seen of the one.
            b: Of the other.
            seen: Of the null models, with their distances.
            null: Where they come from, and which were left out.

        Returns:
            The evidence.
        """
        pair = row(a, b, eyes.methods)
        views = (
            view(b, a, pair, [(s.sight, s.from_a) for s in seen], eyes.probes, needed(self.alpha)),
            view(a, b, pair, [(s.sight, s.from_b) for s in seen], eyes.probes, needed(self.alpha)),
        )
        tested = [v for v in views if v.p_value is not None]
        if any(v.hard for v in tested):
            tested = [v for v in tested if v.hard is not False]
        deciding = max(tested, key=lambda v: v.p_value or 0.0) if tested else views[0]
        p, size = deciding.p_value, deciding.size if tested else 0
        least = min((v.size for v in tested), default=0)
        shown = [distance(a, b, f, m) for f, m in eyes.methods]
        value = next((d.value for d in shown if d is not None), 0.0)
        verdict, reason = self._decided(p, size, least, tested, null)
        if verdict is Verdict.SUPPORTED and mute(a, b, eyes.methods):
            verdict, reason = Verdict.INCONCLUSIVE, MUTE
        missing = {**a.missing, **b.missing}
        if not np.isfinite(pair).any():
            reason = (
                f"no measure applies to both models: {'; '.join(missing.values()) or 'every distance is undefined'}"
            )
        entries = [{**figures(d), **null_figures(deciding.null[:, i])} for i, d in enumerate(shown) if d is not None]
        details: dict[str, Any] = {
            "measures": entries, "n_probes": len(eyes.probes), "labels": _labels(eyes),
            "agreement": agreement(a, b), "accuracy": [views[1].accuracies[0], views[0].accuracies[0]],
            "null_agreement": deciding.agreements[1], "null_accuracy": deciding.accuracies[1],
            "views": [v.to_dict() for v in views], "null_models": [s.sight.name for s in seen],
            "left_out": list(null.left_out), "missing_measures": missing, "sketched": eyes.sketch is not None,
            "null_models_missing": max(0, needed(self.alpha) - least),
            "same_task": _same_task(tested, self.task_margin), "same_architecture": [v.hard for v in tested],
        }  # fmt: skip
        kept = Null(null.source, size, 1 / (size + 1), tuple(sorted(deciding.statistics)))
        effect = min((v.effect for v in tested), default=0.0)
        return Evidence(CLAIM, Axis.FUNCTION, self.name, value, kept, p, None if p is None else log10(p), effect,
                        verdict, reason, self.spec, (a.digest, b.digest), details)  # fmt: skip

    def _decided(
        self, p: float | None, size: int, least: int, tested: Sequence[View], null: NullModels
    ) -> tuple[Verdict, str]:
        lacking = needed(self.alpha) - least
        if p is None:
            why = f" ({len(null.left_out)} were left out)" if null.left_out else ""
            return Verdict.INCONCLUSIVE, (
                f"no independent model to compare with{why}: {lacking} are needed for alpha {self.alpha:g}"
            )
        if lacking > 0:
            return Verdict.INCONCLUSIVE, floor_sentence(least, 1 / (least + 1), lacking, self.alpha)
        near = f"{round(p * (size + 1)) - 1 or 'none'} of {size} independent models {{}} as near"
        if p > self.alpha:
            return Verdict.INCONCLUSIVE, f"{near.format('are')}, which does not show independence either"
        if _same_task(tested, self.task_margin) is False:
            rates = ", ".join(f"{v.model} {v.accuracies[0]:.0%} against {v.accuracies[1]:.0%}" for v in tested)
            return Verdict.INCONCLUSIVE, (
                f"{near.format('is')}, but these do the task {_how_well(tested)} ({rates}), so it may be the "
                "task alone: give null models of the same task"
            )
        if all(v.hard is False for v in tested):
            return Verdict.INCONCLUSIVE, (
                f"{near.format('is')}, but these are of other architectures, so it may be the architecture alone: give "
                f"{needed(self.alpha)} null models of the architecture of {tested[0].model} or {tested[0].observer}"
            )
        return Verdict.SUPPORTED, near.format("is")


def _same_task(views: Sequence[View], margin: float) -> bool | None:
    """Whether the null models of at least one view do the task about as well; None where no labels tell."""
    each = [same_task(v.accuracies[0], v.observed, v.accuracies[1], margin) for v in views]
    known = [found for found in each if found is not None]
    return any(known) if known else None


def _how_well(views: Sequence[View]) -> str:
    own, null = views[0].accuracies
    return "better" if (null or 0.0) > (own or 0.0) else "less well"


def _labels(eyes: Eyes) -> str:
    if eyes.labelled:
        return f"frozen answers of {eyes.probes.labelled}" if eyes.probes.labelled else "of the probes"
    return "none" if eyes.probes.labels is None else "not used: the heads differ"
