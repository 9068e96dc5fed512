"""The change that makes a class go and spares most: which action, which layers, how strong."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from stemma.edits.dependency_graph.groups import Network, Reader
from stemma.edits.dependency_graph.tracer import OUTPUT
from stemma.edits.editable_network import Asked
from stemma.edits.fidelity.batch_norm import norms
from stemma.edits.fidelity.statistics import Collecting, Statistics
from stemma.edits.layer_inputs import batch_of
from stemma.edits.unlearning.batch_norm_prior import STRANGE, UNLIKE, following, strange, supposed, unlike
from stemma.edits.unlearning.samples import scrambled
from stemma.edits.unlearning.settings import UnlearningSettings
from stemma.edits.unlearning.weight_edits import Change
from stemma.errors import MisuseError, StemmaError
from stemma.probes import Probes

SPARED = 0.95
"""Share of the other inputs that should be answered as before; below it more is tried, and the best taken."""

DOUBLED, COSTLESS = 3, 0.005
"""How often the strength of a refit that suffices is doubled, and what that may cost of the other inputs."""

STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-6, 9))
"""Weights of the forget samples beside the other inputs, tried in this order by `refit`."""

Found = tuple[float, Change, float]
"""Share of the other inputs that are answered as before, the change, its strength."""


@dataclass(eq=False)
class Seeking:
    """A search.

    Attributes:
        method: The unlearning.
        before: The network as it was.
        after: A copy, which is changed.
        net: What reads hidden units.
        forget: Samples of the class.
        others: Other inputs, if there are any.
        forgotten: The class.
        progress: Told how far it is.
        unlike: How far the other inputs are from what batch norm remembers.
    """

    method: UnlearningSettings
    before: Asked
    after: Asked
    net: Network
    forget: Probes
    others: Probes | None
    forgotten: int
    progress: Callable[[str, int, int | None], None] | None = None
    unlike: float = 0.0
    _collected: dict[Any, Statistics] = field(default_factory=dict)

    def best(self) -> Found:
        """The change that spares most, left applied.

        Returns:
            How much is spared, the change and its strength.

        Raises:
            MisuseError: If the action needs other inputs.
            StemmaError: If no change meets the target.
        """
        found: list[Found] = []
        failed: StemmaError | None = None
        for action in self._actions():
            for readers in self._readers(action):
                try:
                    found.append(self._tried(action, readers))
                except StemmaError as error:
                    failed = error
                    continue
                if found[-1][0] >= SPARED or self._held != "other inputs":
                    break
            if found and found[-1][0] >= SPARED:
                break
        if not found:
            assert failed is not None
            raise failed
        kept, change, strength = max(found, key=lambda f: f[0])
        self.after.module.load_state_dict(self.before.module.state_dict())
        change.tried(strength, self.forget, self.forgotten)
        return kept, change, strength

    def _actions(self) -> list[str]:
        method = self.method
        if method.action == "refit" and not self._held:
            raise MisuseError("refit holds other inputs in place while a class goes, and no batch norm remembers any: "
                              "give some, or made=True")  # fmt: skip
        if method.action != "auto":
            return [method.action]
        if self._held == "other inputs":
            return ["refit"]
        first, second = ("zero", "negate") if norms(self.before.module) else ("negate", "zero")
        if self._judge is None:
            return [first]
        return [*(["refit"] if self._held else []), first, second]

    def _tried(self, action: str, readers: list[Reader]) -> Found:
        """The smallest strength of one action on some layers."""
        mine = self._seen(self.forget, readers)
        rest = None
        if action == "refit" and self._held == "batch norm":
            remembered = self._following(readers)
            readers = [r for r in readers if r.weight in remembered]
            share = 1 / self.before.answers(self.forget.inputs[:2]).shape[1]
            rest = supposed(mine, self.before.module, remembered, share)
        elif self.others is not None and (action == "refit" or self._held != "batch norm"):
            rest = self._seen(self.others, readers)
        self.after.module.load_state_dict(self.before.module.state_dict())  # what was tried on other layers goes
        change = Change(self.method, self.before, self.after, readers, mine, rest, action)
        strength = self._strength(change)
        judge = self.others if self._held == "other inputs" else self._judge
        if judge is None:
            return 1.0, change, strength
        kept = self._kept(judge)
        for _ in range(DOUBLED if action == "refit" else 0):  # unseen samples of the class go less surely than these
            share = change.tried(2 * strength, self.forget, self.forgotten)
            if share > self.method.target or self._kept(judge) < kept - COSTLESS:
                break
            strength *= 2
        return kept, change, strength

    @cached_property
    def _held(self) -> str:
        """What tells how the other classes are: `other inputs`, `batch norm`, or nothing."""
        given = "" if self.others is None else "other inputs"
        if self.method.action not in ("auto", "refit"):
            return given
        readers = self._readers("refit")[0]
        remembered = self._following(readers)
        mine = self._seen(self.forget, readers)
        if not remembered or strange(mine, self.before.module, remembered) > STRANGE:
            return given
        if self.others is None:
            return "batch norm"
        self.unlike = unlike(self._seen(self.others, readers), mine, self.before.module, remembered)
        return "batch norm" if self.unlike > UNLIKE else given

    @cached_property
    def _judge(self) -> Probes | None:
        """Inputs made of the samples, on which a change that ruins the network is seen."""
        try:
            return scrambled(self.forget, self.method.seed)
        except MisuseError:
            return None

    def _following(self, readers: list[Reader]) -> dict[str, Any]:
        few = batch_of(self.forget.inputs[:2], self.before.like)
        return following(self.before.module, self.before.forward, few, readers)

    def _seen(self, probes: Probes, readers: list[Reader]) -> Statistics:
        key = (id(probes), tuple(r.weight for r in readers))
        if key not in self._collected:
            collecting = Collecting("full", self.method.batch, self.method.positions, self.method.seed)
            asked = self.before
            self._collected[key] = collecting(
                asked.module, asked.forward, probes.inputs, readers, asked.like, self.progress
            )
        return self._collected[key]

    def _kept(self, inputs: Probes) -> float:
        """Share of some inputs that are answered as before, those that were given to the forgotten class apart."""
        a, b = (x.answers(inputs.inputs).argmax(1) for x in (self.before, self.after))
        rest = a != self.forgotten
        return float((a == b)[rest].double().mean()) if bool(rest.any()) else 1.0

    def _readers(self, action: str) -> list[list[Reader]]:
        """Sets of layers that are edited, each in causal order; a later one holds the earlier ones."""
        method, net = self.method, self.net
        heads = {n for n, why in net.refused.items() if why == OUTPUT}
        read = {r.weight for g in net.groups for r in g.readers if method.attention or g.name not in net.heads}
        found = [r for w, r in net.readers.items() if w in read and (method.head or r.layer not in heads)]
        if not found:  # hidden units that nothing can remove can still be forgotten with
            found = [r for r in net.readers.values() if r.layer not in heads][1:]
        if method.only:
            found = [r for r in found if any(re.search(p, r.layer) for p in method.only)]
        if not found:
            raise MisuseError("no layer reads hidden units but the output layer: say head=True to edit that")
        if method.only or method.layers:
            return [found[-method.layers :]]
        streamed = has_layer_norm(self.before.module)
        counts = (6, 12) if streamed else (2, 4, 8) if action == "refit" else (4, 8)
        return [found[-n:] for n in dict.fromkeys(min(n, len(found)) for n in (*counts, len(found)))]

    def _strength(self, change: Change) -> float:
        """The smallest strength that meets the target, left applied."""
        method = self.method
        refit = change.action == "refit"
        tried = STRENGTHS if refit else [method.most * (k + 1) / method.steps for k in range(method.steps)]
        low, best, least = 0.0, None, 1.0
        for done, strength in enumerate(tried):
            if self.progress is not None:
                self.progress("looking for the smallest change", done, len(tried))
            share = change.tried(strength, self.forget, self.forgotten)
            least = min(least, share)
            if share <= method.target:
                best = strength
                break
            low = strength
        if best is None:
            raise StemmaError(
                f"{least:.0%} of the forget samples are still answered after the largest change that is allowed: the "
                f"target is {method.target:.0%}. Allow more (most, layers), or give other inputs too"
            )
        for _ in range(4):
            middle = float(np.sqrt(low * best)) if low and refit else (low + best) / 2
            if change.tried(middle, self.forget, self.forgotten) <= method.target:
                best = middle
            else:
                low = middle
        change.tried(best, self.forget, self.forgotten)
        return best


def has_layer_norm(module: Any) -> bool:
    """Whether a network normalises each position of a stream (LayerNorm, RMSNorm under any name)."""
    return any(
        "layernorm" in type(m).__name__.lower() or "rmsnorm" in type(m).__name__.lower() for m in module.modules()
    )
