"""What an erasure costs and what it buys, for every strength: one table that a person chooses on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stemma.application.document import Progress

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.edits.artefacts.result import Edited
    from stemma.edits.unlearning.erasure import Erasure
    from stemma.edits.unlearning.relearning import RelearningTask
    from stemma.probes import Probes


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One strength of an erasure.

    Attributes:
        strength: The strength; 0 replaces the classes' rows of the output layer alone, which hides and erases nothing.
        layers: Number of layers that change.
        directions: Directions that are removed per class and layer.
        forget: Share of the forget samples that are still answered as before.
        same: Share of the kept samples whose answer is unchanged.
        kept: Accuracy on the kept samples; null without labels.
        worst: Largest loss of accuracy of any kept class, by labels or else by the original's answers; null where no
            class has enough samples.
        relearning: Steps of fine-tuning on few samples until half of the class is recognised again, one more than the
            most where it never is; null for a set of samples.
        verdict: What `stemma verify unlearning` says of it with the same models and inputs.
        p_value: Of that test; null where nothing could be tested.
        reason: Of the verdict.
    """

    strength: int
    layers: int
    directions: int
    forget: float
    same: float
    kept: float | None
    worst: float | None
    relearning: int | None
    verdict: str
    p_value: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureCurve:
    """All strengths of an erasure.

    Attributes:
        points: One per strength.
        steps: Steps of fine-tuning at most.
        before: Accuracy of the original on the kept samples; null without labels.
        retrained: Steps that retrained models take to learn the class; empty where none were given.
        measured_on: Forget and kept samples that were measured on and not fitted; 0 where the same had to do.
    """

    points: tuple[CurvePoint, ...]
    steps: int
    before: float | None
    retrained: tuple[int, ...]
    measured_on: tuple[int, int]


def erasure_curve(
    method: "Erasure",
    model: "Model",
    forget: "Probes",
    retain: "Probes",
    retrained: Sequence["Model"] = (),
    progress: Progress | None = None,
) -> "tuple[ErasureCurve, Edited]":
    """Erase at every strength, and measure each.

    Cost: the erasure, a short fine-tuning and a test of unlearning for every strength.

    Args:
        method: The erasure, whose strength is that of the model that is returned.
        model: The model.
        forget: Samples of what is to be forgotten.
        retain: Samples of what is kept.
        retrained: Models that never saw what is to be forgotten.
        progress: Told what is being done.

    Returns:
        The curve, and the model at the chosen strength.
    """
    from stemma.edits.editable_network import editable_copy
    from stemma.edits.unlearning.erasure import STRENGTHS
    from stemma.edits.unlearning.erasure_samples import split_samples
    from stemma.edits.unlearning.relearning import Relearning, RelearningTask

    before, fine_tuning = editable_copy(model), Relearning()
    split = split_samples(before, forget, retain, classes=not method.samples, seed=method.seed)
    task = RelearningTask.of(before, split, fine_tuning) if split.classes else None
    references = () if task is None else tuple(task.steps(editable_copy(m)) for m in retrained)
    points, chosen, first = [], None, 1 if method.samples else 0
    for edited in method.each(model, forget, retain, range(first, len(STRENGTHS)), progress):
        points.append(_point(edited, model, (forget, retain), retrained, task))
        if edited.plan.expected["strength"] == method.strength:
            chosen = edited
    found = chosen or method(model, forget, retain, progress)
    measured = found.receipt.measured
    curve = ErasureCurve(points=tuple(points), steps=fine_tuning.steps, before=measured.get("retain", [None])[0],
                         retrained=references, measured_on=tuple(measured["held_back"]))  # fmt: skip
    return curve, found


def _point(
    edited: "Edited", model: "Model", given: "tuple[Probes, Probes]", retrained: Sequence["Model"],
    task: "RelearningTask | None",
) -> CurvePoint:  # fmt: skip
    from stemma.verification.unlearning import UnlearningTest

    forget, retain = (p.take(slice(0, most)) for p, most in zip(given, (256, 512), strict=True))
    found = UnlearningTest()(model, [edited.model], forget, retrained, retain)
    measured, plan = edited.receipt.measured, edited.plan.expected
    return CurvePoint(
        strength=plan["strength"], layers=len(plan["layers"]), directions=plan["rank"], forget=measured["forget"][1],
        same=measured["same_top_answer"], kept=measured.get("retain", [None, None])[1], worst=measured["worst"],
        relearning=None if task is None else task.steps(edited.editable), verdict=found.verdict.value,
        p_value=found.p_value, reason=found.reason,
    )  # fmt: skip
