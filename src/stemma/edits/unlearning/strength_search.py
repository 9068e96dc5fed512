"""Search for the weight edit that makes a class go at the smallest cost: which action, which layers, how strong."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from stemma.edits.dependency_graph.dependency_groups import DependencyGraph, Reader
from stemma.edits.dependency_graph.tracer import OUTPUT
from stemma.edits.editable_network import EditableNetwork
from stemma.edits.fidelity.batch_norm_recalibration import batch_norms
from stemma.edits.fidelity.statistics import Statistics, StatisticsCollector
from stemma.edits.layer_inputs import as_tensor, is_linear_or_convolution, watch_inputs
from stemma.edits.unlearning import batch_norm_prior as prior
from stemma.edits.unlearning.forget_samples import shuffled_blocks
from stemma.edits.unlearning.settings import UnlearningSettings
from stemma.edits.unlearning.weight_edits import WeightEdit
from stemma.errors import MisuseError, StemmaError
from stemma.probes import Probes

MIN_UNCHANGED = 0.95
"""Fraction of unchanged predictions on retain inputs below which more edits are tried, and the best is taken."""

MAX_DOUBLINGS, MAX_DOUBLING_LOSS = 3, 0.005
"""How often the strength of a sufficient refit is doubled, and the loss of unchanged predictions that this may cost."""

STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-6, 9))
"""Weights of the forget samples relative to the retain inputs, tried in this order by `refit`."""

Found = tuple[float, WeightEdit, float]
"""Fraction of unchanged predictions, the edit, its strength."""


@dataclass(eq=False)
class StrengthSearch:
    """One search.

    Attributes:
        method: The unlearning parameters.
        before: The network before the edit.
        after: A copy, which is edited.
        graph: Its dependency graph.
        forget: Samples of the class.
        retain: Retain inputs, if there are any.
        forget_class: The class.
        progress: Called with what happens, how much is done and of how much.
        ood_score: Out-of-distribution score of the retain inputs.
    """

    method: UnlearningSettings
    before: EditableNetwork
    after: EditableNetwork
    graph: DependencyGraph
    forget: Probes
    retain: Probes | None
    forget_class: int
    progress: Callable[[str, int, int | None], None] | None = None
    ood_score: float = 0.0
    _collected: dict[Any, Statistics] = field(default_factory=dict)

    def best(self) -> Found:
        """The edit with the most unchanged predictions, left applied; `StemmaError` if none meets the target."""
        found: list[Found] = []
        failed: StemmaError | None = None
        for action in self._actions():
            for readers in self._layer_sets(action):
                try:
                    found.append(self._search_strength(action, readers))
                except StemmaError as error:
                    failed = error
                    continue
                if found[-1][0] >= MIN_UNCHANGED or self._constraint != "other inputs":
                    break
            if found and found[-1][0] >= MIN_UNCHANGED:
                break
        if not found:
            assert failed is not None
            raise failed
        unchanged, edit, strength = max(found, key=lambda f: f[0])
        self.after.module.load_state_dict(self.before.module.state_dict())
        edit.apply(strength, self.forget, self.forget_class)
        return unchanged, edit, strength

    def _actions(self) -> list[str]:
        method = self.method
        if method.action == "refit" and not self._constraint:
            raise MisuseError("refit needs retain inputs or usable batch-norm statistics to preserve the other "
                              "classes: give retain inputs, or made=True")  # fmt: skip
        if method.action != "auto":
            return [method.action]
        if self._constraint == "other inputs":
            return ["refit"]
        first, second = ("zero", "negate") if batch_norms(self.before.module) else ("negate", "zero")
        if self._synthetic_inputs is None:
            return [first]
        return [*(["refit"] if self._constraint else []), first, second]

    def _search_strength(self, action: str, readers: list[Reader]) -> Found:
        """The smallest sufficient strength of one action on some layers."""
        forget, retain = self._statistics(self.forget, readers), None
        if action == "refit" and self._constraint == "batch norm":
            norms = self._following_norms(readers)
            readers = [r for r in readers if r.weight in norms]
            share = 1 / self.before.outputs(self.forget.inputs[:2]).shape[1]
            retain = prior.prior_statistics(forget, self.before.module, norms, share)
        elif self.retain is not None and (action == "refit" or self._constraint != "batch norm"):
            retain = self._statistics(self.retain, readers)
        self.after.module.load_state_dict(self.before.module.state_dict())  # undo what was tried on other layers
        edit = WeightEdit(self.method, self.before, self.after, readers, forget, retain, action)
        strength = self._smallest_strength(edit)
        control = self.retain if self._constraint == "other inputs" else self._synthetic_inputs
        if control is None:
            return 1.0, edit, strength
        unchanged = self._unchanged(control)
        for _ in range(MAX_DOUBLINGS if action == "refit" else 0):  # unseen samples need a stronger edit than these
            share = edit.apply(2 * strength, self.forget, self.forget_class)
            if share > self.method.target or self._unchanged(control) < unchanged - MAX_DOUBLING_LOSS:
                break
            strength *= 2
        return unchanged, edit, strength

    @cached_property
    def _constraint(self) -> str:
        """What preserves the other classes: `other inputs`, `batch norm`, or empty."""
        given = "" if self.retain is None else "other inputs"
        if self.method.action not in ("auto", "refit"):
            return given
        readers = self._layer_sets("refit")[0]
        norms, module = self._following_norms(readers), self.before.module
        forget = self._statistics(self.forget, readers)
        if not norms or prior.prior_mismatch(forget, module, norms) > prior.MAX_PRIOR_MISMATCH:
            return given
        if self.retain is None:
            return "batch norm"
        self.ood_score = prior.ood_score(self._statistics(self.retain, readers), forget, module, norms)
        return "batch norm" if self.ood_score > prior.MAX_OOD_SCORE else given

    @cached_property
    def _synthetic_inputs(self) -> Probes | None:
        """Shuffled forget samples, whose predictions show whether an edit ruins the network."""
        try:
            return shuffled_blocks(self.forget, self.method.seed)
        except MisuseError:
            return None

    def _following_norms(self, readers: list[Reader]) -> dict[str, Any]:
        few = as_tensor(self.forget.inputs[:2], self.before.like)
        return prior.following_batch_norms(self.before.module, self.before.forward, few, readers)

    def _statistics(self, probes: Probes, readers: list[Reader]) -> Statistics:
        key = (id(probes), tuple(r.weight for r in readers))
        if key not in self._collected:
            collector = StatisticsCollector(self.method.batch, self.method.positions, self.method.seed)
            a = self.before
            self._collected[key] = collector(a.module, a.forward, probes.inputs, readers, a.like, self.progress)
        return self._collected[key]

    def _unchanged(self, inputs: Probes) -> float:
        """Fraction of unchanged predictions, without inputs that were predicted as the forgotten class."""
        a, b = (x.outputs(inputs.inputs).argmax(1) for x in (self.before, self.after))
        others = a != self.forget_class
        return float((a == b)[others].double().mean()) if bool(others.any()) else 1.0

    def _layer_sets(self, action: str) -> list[list[Reader]]:
        """Sets of layers to edit, each in causal order; a later one contains the earlier ones."""
        method, graph = self.method, self.graph
        heads = {n for n, why in graph.refused.items() if why == OUTPUT}
        groups = [g for g in graph.groups if method.attention or g.name not in graph.heads]
        read = {r.weight for g in groups for r in g.readers if r.attribute == "weight"}
        found = [r for w, r in graph.readers.items() if w in read and (method.head or r.layer not in heads)]
        if not found:  # layers whose inputs cannot be pruned can still be edited
            found = [r for r in graph.readers.values() if r.layer not in heads][1:]
            found = [r for r in found if r.layer in self._watched]
        if method.only:
            found = [r for r in found if any(re.search(p, r.layer) for p in method.only)]
        if not found:
            raise MisuseError("no layer but the output's can be edited: its inputs have to be hidden units that can be "
                              "collected. Set head=True to edit the output layer")  # fmt: skip
        if method.only or method.layers:
            return [found[-method.layers :]]
        streamed = has_layer_norm(self.before.module)
        counts = (6, 12) if streamed else (2, 4, 8) if action == "refit" else (4, 8)
        return [found[-n:] for n in dict.fromkeys(min(n, len(found)) for n in (*counts, len(found)))]

    @cached_property
    def _watched(self) -> set[str]:
        """Layers whose inputs can be collected, and whose weight is one matrix: no grouped convolution."""
        module, run = self.before.module, set[str]()
        layers = {r.layer: module.get_submodule(r.layer) for r in self.graph.readers.values()}
        plain = [n for n, m in layers.items() if is_linear_or_convolution(m) and getattr(m, "groups", 1) == 1]
        with torch.no_grad(), watch_inputs(module, plain, lambda name, layer, x: run.add(name)):
            self.before.forward(as_tensor(self.forget.inputs[:2], self.before.like))
        return run

    def _smallest_strength(self, edit: WeightEdit) -> float:
        """The smallest strength that meets the target, left applied."""
        method = self.method
        refit = edit.action == "refit"
        strengths = STRENGTHS if refit else [method.max_fraction * (k + 1) / method.steps for k in range(method.steps)]
        low, best, least = 0.0, None, 1.0
        for done, strength in enumerate(strengths):
            if self.progress is not None:
                self.progress("searching the smallest edit", done, len(strengths))
            share = edit.apply(strength, self.forget, self.forget_class)
            least = min(least, share)
            if share <= method.target:
                best = strength
                break
            low = strength
        if best is None:
            raise StemmaError(
                f"{least:.1%} of the forget samples are still predicted as the class after the largest edit allowed "
                f"(target {method.target:.1%}). Raise max_fraction, layers or target"
                + (", or give retain inputs" if self.retain is None else "")
            )
        for _ in range(4):
            middle = float(np.sqrt(low * best)) if low and refit else (low + best) / 2
            if edit.apply(middle, self.forget, self.forget_class) <= method.target:
                best = middle
            else:
                low = middle
        edit.apply(best, self.forget, self.forget_class)
        return best


def has_layer_norm(module: Any) -> bool:
    """Whether a network has LayerNorm or RMSNorm layers, by class name."""
    return any(
        "layernorm" in type(m).__name__.lower() or "rmsnorm" in type(m).__name__.lower() for m in module.modules()
    )
