"""Is it gone, or only hidden? A model that was made to forget, among models that never saw what it should forget."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log10
from typing import Any, final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.probes import Probes
from stemma.types import Axis, Evidence, Null, Spec, Verdict
from stemma.verification import permutation_test as labels
from stemma.verification.distances import INSIDE, VIEWS, Progress, Questions, Seen, look
from stemma.verification.equivalence import Excess, excess_over_group

CLAIM = "the model behaves as if it had never seen the forget set"


@final
@dataclass(frozen=True)
class UnlearningTest:
    """Unlearned models against models that were retrained without the forget set, by exact label permutation.

    Under the claim an unlearned model is one more draw of the retrained ones, so the label "unlearned" could sit on
    any of them. The statistic is by how much the labelled models are further from the others than these are from each
    other, on the forget set: standardised over the labellings for each of several views, and averaged. With one
    unlearned model this is a leave-one-out rank test. Models are the unit of replication; more probes make distances
    steadier, and never a p-value smaller.

    Rejection refutes the claim. Not rejecting proves nothing: the claim is supported only where the excess lies below
    a margin set beforehand in every view, by its upper limit over models, and where the same views, put to the
    original model, do find it: a view that cannot see what the original knows counts for nothing, and one that does
    must look inside the network, because answers alone can be masked.

    Attributes:
        alpha: Level of the test and of each limit. 5 % and not the 1 % of other commands: every further retrained
            model is a training from scratch.
        margin: Largest excess that counts as none, as a share of the mean distance between two retrained models.
        combine: How the views are joined, one of `label_permutation.COMBINATIONS`. Chosen, like the views, on networks
            and a forgotten class that no reported rate uses.
        views: Names from `distances.VIEWS`; one that cannot be taken of all models is left out for all.
        steps: Nodes per path of the gradient fields.
        ridge: Of the linear probe.
        most: Most labellings that are looked at.
        seed: Of the draw where there are more.

    Source: docs/unlearning.md. The published use of gradient fields (Song et al., ICCV 2023, after Jia et al., ICLR
    2022) compares one distance between original and unlearned model with that of one retrained model, without a null.
    """

    alpha: float = 0.05
    margin: float = 0.25
    combine: str = "mean"
    views: tuple[str, ...] = VIEWS
    steps: int = 4
    ridge: float = 0.1
    most: int = 20_000
    seed: int = 0

    name = "retrained-permutation"
    version = 1

    def __post_init__(self) -> None:
        unknown = [v for v in self.views if v not in VIEWS]
        if unknown or not self.views:
            raise MisuseError(f"views are some of {', '.join(VIEWS)}, not {', '.join(unknown) or 'none'}")
        if self.combine not in labels.COMBINATIONS:
            raise MisuseError(f"views are combined by {' or '.join(labels.COMBINATIONS)}, not '{self.combine}'")
        if not 0 < self.alpha < 1 or self.margin <= 0:
            raise MisuseError("alpha lies between 0 and 1, and the margin above 0")

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def __call__(
        self,
        original: Model,
        unlearned: Sequence[Model],
        forget: Probes,
        retrained: Sequence[Model] = (),
        retained: Probes | None = None,
        progress: Progress | None = None,
    ) -> Evidence:
        """Test the claim.

        Args:
            original: The model before.
            unlearned: One model, or several runs of one method.
            forget: Inputs of the forget set, with their labels where they have any.
            retrained: Models trained in the same way without the forget set, each from its own start.
            retained: Inputs that are to be kept: they let a linear probe look for the forget set inside.
            progress: Told what happens, how much is done and of how much.

        Returns:
            The evidence. Without retrained models it is `INCONCLUSIVE`, and says how far the model went.

        Raises:
            MisuseError: If nothing was given to test, a model was given twice, or the probes do not fit.
        """
        models = [*unlearned, *retrained, original]
        _distinct(original, unlearned, retrained)
        asked = Questions(forget, retained, self.steps, self.ridge)
        seen = look(models, asked, self.views, progress)
        if not seen.distances:
            reasons = "; ".join(f"{k}: {v}" for k, v in seen.left_out.items())
            raise MisuseError(f"the models could not be compared in any view ({reasons})")
        inputs = tuple(m.network.digest for m in models)
        shown = {
            "original": original.name,
            "unlearned": [m.name for m in unlearned],
            "retrained": [m.name for m in retrained],
            "forget_probes": len(forget),
            "retained_probes": 0 if retained is None else len(retained),
            "left_out": dict(seen.left_out),
            **_accuracies(seen, asked, len(unlearned)),
        }
        return self.conclude(seen.distances, len(unlearned), inputs, shown)

    def conclude(
        self,
        distances: Mapping[str, np.ndarray],
        suspects: int,
        inputs: Sequence[Any] = (),
        details: Mapping[str, Any] | None = None,
    ) -> Evidence:
        """The evidence from distances that are known already.

        Args:
            distances: By view `[n, n]`, symmetric: the unlearned models first, the original last, the retrained ones
                between.
            suspects: How many unlearned models.
            inputs: Network digests.
            details: To show beside the figures.

        Returns:
            As the test itself.
        """
        group = len(next(iter(distances.values()))) - suspects - 1
        wanted = labels.needed(suspects, self.alpha)
        least = labels.floor(suspects, group, self.most)
        null = Null(f"{group} retrained models, labels permuted", None, least)
        shown = {**(details or {}), "alpha": self.alpha, "margin": self.margin, "missing": max(0, wanted - group)}
        if group < 2:
            shown["views"] = {v: _without_group(d, suspects) for v, d in distances.items()}
            return self._evidence(0.0, null, None, 0.0, Verdict.INCONCLUSIVE, _missing(wanted, group, self.alpha),
                                  inputs, shown)  # fmt: skip
        pool = {v: d[:-1, :-1] for v, d in distances.items()}
        last = [*range(suspects, suspects + group)]
        beside = {v: d[np.ix_([suspects + group, *last], [suspects + group, *last])] for v, d in distances.items()}
        found = labels.permuted(list(pool.values()), suspects, self.combine, self.most, self.seed)
        control = labels.permuted(list(beside.values()), 1, self.combine)
        null = Null(null.source, len(found.values), found.floor, tuple(sorted(found.values.tolist())))
        shown["control_p_value"] = control.p_value
        figures = {v: _figures(d, pool[v], beside[v], suspects, self.alpha, self.margin) for v, d in distances.items()}
        shown["views"] = figures
        counted = {v: f for v, f in figures.items() if f["sees_the_original"]}
        shares = [min(1.0, max(0.0, f["share_of_original"])) for f in counted.values()]
        effect = 1 - max(shares) if shares else 0.0
        if found.floor > self.alpha * (1 + labels.TIED):
            verdict, reason = Verdict.INCONCLUSIVE, _missing(wanted, group, self.alpha)
        elif found.p_value <= self.alpha * (1 + labels.TIED):
            over, worst = max((f["excess"], v) for v, f in figures.items())
            verdict = Verdict.REFUTED
            reason = f"further from the retrained models than they are from each other, most in {worst} (by {over:.0%})"
        else:
            verdict, reason = self._equivalent(counted, group)
        return self._evidence(found.value, null, found.p_value, effect, verdict, reason, inputs, shown)

    def _equivalent(self, counted: Mapping[str, Mapping[str, Any]], group: int) -> tuple[Verdict, str]:
        """Not rejected: is the excess shown to be small, by views that see what the original knows?"""
        untold = f"not told from {group} retrained models, but "
        if not counted:
            return Verdict.INCONCLUSIVE, untold + "neither is the original, by these probes and so many models"
        if not INSIDE & set(counted):
            return Verdict.INCONCLUSIVE, untold + "no view inside the network sees the original: it may only be hidden"
        above = [v for v, f in counted.items() if f["excess_high"] >= self.margin]
        if above:
            high = max(counted[v]["excess_high"] for v in above)
            return Verdict.INCONCLUSIVE, (
                f"{untold}the excess in {', '.join(above)} may be up to {high:.0%} of their distance: the margin is "
                f"{self.margin:.0%}"
            )
        return Verdict.SUPPORTED, (
            f"within {self.margin:.0%} of the distance between retrained models in {', '.join(counted)}, which do see "
            "what the original knows"
        )

    def _evidence(
        self, value: float, null: Null, p: float | None, effect: float, verdict: Verdict, reason: str,
        inputs: Sequence[Any], details: Mapping[str, Any],
    ) -> Evidence:  # fmt: skip
        return Evidence(CLAIM, Axis.FUNCTION, self.name, value, null, p, None if p is None else log10(p), effect,
                        verdict, reason, self.spec, tuple(inputs), details)  # fmt: skip


def _distinct(original: Model, unlearned: Sequence[Model], retrained: Sequence[Model]) -> None:
    if not unlearned:
        raise MisuseError("no unlearned model was given: there is nothing to test")
    seen: dict[str, str] = {}
    for model in (*unlearned, *retrained):
        digest = str(model.network.digest)
        if digest in seen and model.black_box:
            raise MisuseError(f"two black boxes are called '{model.name}': give each a name of its own")
        if digest in seen:
            raise MisuseError(
                f"{model.name} and {seen[digest]} are the same model: each has to be a training of its own, for models "
                "are what is counted"
            )
        seen[digest] = model.name
    if str(original.network.digest) in [str(m.network.digest) for m in retrained]:
        raise MisuseError(f"{original.name} is given as the original and among the retrained models")


def _missing(wanted: int, group: int, alpha: float) -> str:
    have = "no retrained models were given" if group == 0 else f"{group} retrained models are too few"
    return f"{have}: {wanted} are needed to reject anything at {alpha:g}, so {wanted - group} are missing"


def _without_group(distances: np.ndarray, suspects: int) -> dict[str, Any]:
    return {"to_original": float(distances[:suspects, -1].mean())}


def _figures(
    whole: np.ndarray, pool: np.ndarray, beside: np.ndarray, suspects: int, alpha: float, margin: float
) -> dict[str, Any]:
    """What one view shows; distances in the view's own unit, excess as a share of that between retrained models."""
    found, original = (_excess(d, n, alpha) for d, n in ((pool, suspects), (beside, 1)))
    sees = original is not None and original.low > margin
    group = len(pool) - suspects
    out = {
        "to_original": float(whole[:suspects, -1].mean()),
        "to_retrained": float(whole[:suspects, suspects:-1].mean()),
        "original_to_retrained": float(whole[-1, suspects:-1].mean()),
        "between_retrained": float(pool[suspects:, suspects:].sum() / (group * (group - 1))),
        "sees_the_original": sees,
    }  # fmt: skip
    if found is None or original is None:
        inside = out["between_retrained"] or 1.0
        return {**out, "excess": out["to_retrained"] / inside - 1, "excess_low": None, "excess_high": None,
                "share_of_original": 0.0}  # fmt: skip
    share = found.share / original.share if original.share > 0 else 0.0
    return {**out, "excess": found.share, "excess_low": found.low, "excess_high": found.high,
            "share_of_original": share}  # fmt: skip


def _excess(distances: np.ndarray, suspects: int, alpha: float) -> Excess | None:
    return excess_over_group(distances, suspects, alpha) if len(distances) - suspects >= 3 else None


def _accuracies(seen: Seen, asked: Questions, suspects: int) -> dict[str, Any]:
    """Share of right answers, where labels and one score per class tell, of each kind of model."""
    out: dict[str, Any] = {}
    for name, probes, answers in (
        ("forget_accuracy", asked.forget, seen.answers),
        ("retained_accuracy", asked.retained, seen.kept_answers),
    ):
        if probes is None or probes.labels is None or any(a.ndim != 2 for a in answers):
            continue
        right = np.array([(a.argmax(1) == probes.labels).mean() for a in answers])
        out[name] = {"unlearned": float(right[:suspects].mean()), "original": float(right[-1])}
        if len(right) > suspects + 1:
            out[name]["retrained"] = float(right[suspects:-1].mean())
    return out
