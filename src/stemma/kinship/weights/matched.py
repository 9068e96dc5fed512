"""Units matched: is B the same network as A in other coordinates (permuted, rescaled, rotated, renamed)?"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from math import log10
from typing import Any

import numpy as np

from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.aligned import SHAPES
from stemma.kinship.weights.residual import SLACK, rounding
from stemma.kinship.weights.similarity import distinct
from stemma.kinship.weights.unit_map import UnitMap, equilibrated, find
from stemma.models.model import Model, Tensor
from stemma.models.structure import Structure
from stemma.models.units import structure
from stemma.types import Axis, Evidence, Null, Relation, RelationKind, Spec, Verdict

FOLDS: tuple[tuple[str, str], ...] = (
    (r"^(.*layers\.\d+\.)input_layernorm\.weight$", r"self_attn\.(q|k|v)_proj\.weight$"),
    (r"^(.*layers\.\d+\.)post_attention_layernorm\.weight$", r"mlp\.(gate|up)_proj\.weight$"),
    (r"^()(?:model\.)?norm\.weight$", r"^lm_head\.weight$"),
    (r"^(blk\.\d+\.)attn_norm\.weight$", r"attn_(q|k|v)\.weight$"),
    (r"^(blk\.\d+\.)ffn_norm\.weight$", r"ffn_(gate|up)\.weight$"),
    (r"^()output_norm\.weight$", r"^output\.weight$"),
)
"""Gains of a normalisation (first, with its layer) that may be folded into the matrices that read it (second)."""


CLOSE = 0.5
"""Least effect for a decision without an exact map."""

TELLING = 0.5
"""Smallest share of a model's matrix entries that must be able to contradict a map before it proves anything."""


@dataclass(frozen=True)
class UnitsMatched:
    """Find a map of units from A to B through the layers, apply it to A, and see what remains.

    A map whose residual lies at the rounding of the number formats, over all tensors, is a construction, not an
    inference: its p-value is quoted as the floor of the null all the same. Otherwise the mean cosine of matched units
    is compared with that of independently trained small networks (the kind with the largest p-value decides).
    Cost: one assignment per group and candidate tensor; quadratic in tensors of one size where names are lost.

    Attributes:
        max_parameters: Larger models are not searched for a map.
        max_units: Widest group that is matched.
        seed: Breaks ties.

    Source: matching of units by linear assignment, propagated through layers (Ainsworth et al., ICLR 2023,
    arXiv:2209.04836, use the same steps for merging); causal propagation, scale normalisation and rotation here.
    """

    max_parameters: int = 64_000_000
    max_units: int = 4096
    seed: int = 0

    name = "units-matched"
    version = 1

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def evidence(self, a: Model, b: Model, *, alpha: float = 0.01) -> Evidence | None:
        """Try to exhibit a map from A to B.

        Args:
            a: One model.
            b: The other one; the side whose structure is known better serves as reference.
            alpha: Level of the decision where no exact map is found.

        Returns:
            The evidence; None where the models are too large, or neither structure is known.
        """
        found = self.search(a, b)
        if found is None:
            return None
        unit_map, reference, target, variant = found
        exact = is_exact(unit_map, reference, target)
        kind, values = null_of(reference)
        middle = float(np.median(values)) if len(values) else 0.0
        effect = float(np.clip((unit_map.cosine - middle) / (1 - middle), 0, 1))
        p = _p_value(unit_map, exact, values)
        # A decision by the null alone needs most of the network to fit, not a few convergent early layers, and the fit
        # must lie above what this pair's own shapes give by chance: units of few coordinates always find near ones.
        sure = structure(reference).certain
        related = exact or (sure and p is not None and p <= alpha and effect >= CLOSE and not unit_map.lost)
        if related and not exact:
            effect = min(effect, self.beyond_chance(unit_map, reference, target))
            related = effect >= CLOSE and _telling(reference) >= TELLING
        size = len(values) or exact_null()
        null = f"independently trained {kind or 'small'} networks (benchmarks/matched_null.py)"
        return Evidence(
            "the weights share an origin, units reordered", Axis.WEIGHTS, self.name, unit_map.cosine,
            Null(null, size, 1 / (size + 1)),
            p, None if p is None else log10(p), effect, Verdict.SUPPORTED if related else Verdict.INCONCLUSIVE,
            _reason(unit_map, exact, middle, kind), self.spec, (a.digest, b.digest), _details(unit_map, exact, variant),
        )  # fmt: skip

    def search(self, a: Model, b: Model) -> tuple[UnitMap, Model, Model, str] | None:
        """The best map, with the roles that the models took.

        Returns:
            Map, reference, target and the form of the reference ("as stored" or "gains folded"); None where the search
            does not apply.
        """
        if max(a.parameters, b.parameters) > self.max_parameters:
            return None
        reference, target, known = a, b, structure(a)
        other = structure(b)
        if (_tied(other), other.certain) > (_tied(known), known.certain):
            reference, target, known = b, a, other
        if not _tied(known) or max((g.size for g in known.groups), default=0) > self.max_units:
            return None
        if not _fit(_sizes(matrices(reference)), _sizes(matrices(target))):
            return None
        names = _shared_names(reference, target)
        y = {n: _squeezed(t) for n, t in matrices(target).items()}
        best: tuple[UnitMap, str] | None = None
        for variant, x in _variants(reference, known):
            trial = find(x, known, y, names, self.seed)
            if best is None or _quality(trial) > _quality(best[0]):
                best = trial, variant
            if trial.tensors and trial.residual < 1e-3 and not trial.lost:
                break
        return (best[0], reference, target, best[1]) if best is not None and best[0].tensors else None

    def beyond_chance(self, unit_map: UnitMap, reference: Model, target: Model) -> float:
        """How far the tensor that fits worst lies above chance.

        Chance is the larger of two cosines: what the same search finds when the target's inputs and outputs (pixels,
        tokens, classes) change places, which leaves nothing to agree on but the sizes and laws of the weights; and
        how near a unit's own neighbours in the same model are, beyond which a match identifies nothing.

        Args:
            unit_map: The map that was found.
            reference: The model that the map starts from.
            target: The other model.

        Returns:
            Smallest (cosine - chance) / (1 - chance) of any tensor, in [0, 1].
        """
        known, generator = structure(reference), np.random.default_rng(self.seed)
        x = {n: _squeezed(t) for n, t in matrices(reference).items()}
        y = {n: _squeezed(t) for n, t in matrices(target).items()}
        for t in unit_map.tensors.values():
            labels = [label for label in known.axes[t.reference] if sum(s.rows for s in label.segments) > 1]
            for axis, label in zip(t.axes, labels, strict=True):
                if label.kind == "fixed":
                    y[t.target] = np.take(y[t.target], _cycle(y[t.target].shape[axis], generator), axis=axis)
        moved = find(x, known, y, {n: t.target for n, t in unit_map.tensors.items()}, self.seed).tensors
        chance = {n: moved[n].cosine if n in moved else 0.0 for n in unit_map.tensors}
        for n, t in unit_map.tensors.items():
            chance[n] = min(1 - 1e-9, chance[n] if t.tested else max(chance[n], _nearest(x[n], known, n)))
        least = min((t.cosine - chance[n]) / (1 - chance[n]) for n, t in unit_map.tensors.items())
        return float(np.clip(least, 0, 1))

    @staticmethod
    def relation(found: Evidence) -> Relation:
        """Name what the map shows.

        Args:
            found: Evidence of this method.

        Returns:
            `permuted` (units permuted, rescaled or rotated) or `reformatted` for an exact map, else `related`.
        """
        steps = tuple(found.details["steps"])
        if not found.details["exact"]:
            return Relation(RelationKind.RELATED, dict(found.details), steps, found.reason)
        moved = any(s not in ("vocabulary grown", "gains folded") for s in steps)
        kind = RelationKind.PERMUTED if moved else RelationKind.REFORMATTED
        return Relation(kind, dict(found.details), steps, found.reason)


def _p_value(unit_map: UnitMap, exact: bool, values: np.ndarray) -> float | None:
    """Exact maps are counted among all independent pairs; cosines only have a null where sizes are the same."""
    if exact:
        return 1 / (exact_null() + 1)
    if not len(values):
        return None
    # Twice, because this is the second test that the pair is put to.
    return min(1.0, 2 * (1 + int((values >= unit_map.cosine).sum())) / (len(values) + 1))


def _reason(unit_map: UnitMap, exact: bool, middle: float, kind: str) -> str:
    if exact:
        return f"a map of units exists that leaves {unit_map.residual:.1e} relative difference"
    if not kind:
        return f"matched units have mean cosine {unit_map.cosine:.2f}; no null of independent models has these sizes"
    return f"matched units have mean cosine {unit_map.cosine:.2f}; independent ones have {middle:.2f}"


def _nearest(x: np.ndarray, known: Structure, name: str) -> float:
    """Mean cosine of the units of a tensor's latest group with their nearest neighbours in the same tensor."""
    place = {g.name: g.order for g in known.groups}
    labels = [label for label in known.axes[name] if sum(s.rows for s in label.segments) > 1]
    orders = [max((place.get(s.group, -1) for s in label.segments), default=-1) for label in labels]
    u = equilibrated(np.moveaxis(x, int(np.argmax(orders)), 0))
    u = u.reshape(len(u), -1)
    norm = np.linalg.norm(u, axis=1)
    u = u[norm > 0] / norm[norm > 0, None]
    if len(u) < 2:
        return 0.0
    gram = u @ u.T
    np.fill_diagonal(gram, -1)
    return float(gram.max(axis=1).mean())


def _cycle(size: int, generator: np.random.Generator) -> np.ndarray:
    """One random cycle through all indices: a relabelling without fixed points."""
    order, out = generator.permutation(size), np.empty(size, int)
    out[order] = np.roll(order, 1)
    return out


def _tied(known: Structure) -> bool:
    """Whether axes are said to belong together; where that is a guess, an exact map proves the guess too."""
    return bool(known.groups) and known.source != SHAPES


def is_exact(unit_map: UnitMap, reference: Model, target: Model) -> bool:
    """Whether the map explains every matrix of both models down to rounding.

    Returns:
        True for an exhibited identity of weights in other coordinates.
    """
    if unit_map.lost or unit_map.left or not unit_map.tensors:
        return False
    fits = all(
        t.residual <= 4 * max(rounding(reference, t.reference), rounding(target, t.target)) + SLACK * 2.0**-24
        for t in unit_map.tensors.values()
    )
    return fits and _telling(reference) >= TELLING


def _telling(model: Model) -> float:
    """Share of a model's matrix entries that a map could get wrong.

    Zero, constant and rank-one matrices agree with any others of their size once units are rescaled, diagonal ones
    once they are permuted: they show nothing, however small the residual.

    Returns:
        A share in [0, 1].
    """
    telling = total = 0
    for tensor in matrices(model).values():
        x = equilibrated(_squeezed(tensor))
        x = x.reshape(len(x), -1)
        norm = np.linalg.norm(x, axis=1)
        alive = norm > 0
        x = x / np.where(alive, norm, 1)[:, None]
        many = np.count_nonzero(x) >= 2 * max(1, int(alive.sum()))
        total += tensor.size
        telling += tensor.size if many and 2 * int(distinct(x, alive).sum()) > len(x) else 0
    return telling / max(1, total)


def _details(unit_map: UnitMap, exact: bool, variant: str) -> dict[str, Any]:
    tested = [t for t in unit_map.tensors.values() if t.tested]
    return {
        "exact": exact, "residual": unit_map.residual, "cosine": unit_map.cosine, "reference": variant,
        "tensors_mapped": len(unit_map.tensors), "tensors_lost": len(unit_map.lost), "tensors_left": len(unit_map.left),
        "steps": [*unit_map.steps, *(["gains folded"] if variant == "gains folded" else [])],
        "tensors_that_check_the_map": len(tested),
        "names": {t.reference: t.target for t in unit_map.tensors.values() if t.reference != t.target},
    }  # fmt: skip


def _quality(unit_map: UnitMap) -> float:
    if not unit_map.tensors:
        return -1.0
    return unit_map.cosine * len(unit_map.tensors) / (len(unit_map.tensors) + len(unit_map.lost))


def _sizes(tensors: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
    return sorted(tuple(sorted(s for s in t.shape if s > 1)) for t in tensors.values())


def _fit(x: list[tuple[int, ...]], y: list[tuple[int, ...]]) -> bool:
    """Whether the two hold matrices of the same sizes, a grown vocabulary apart."""
    return len(x) == len(y) and sum(p != q for p, q in zip(x, y, strict=True)) <= min(2, len(x) // 4)


def _shared_names(a: Model, b: Model) -> dict[str, str]:
    x, y = matrices(a), matrices(b)
    return {n: n for n in x} if set(x) == set(y) else {}


def _squeezed(t: Tensor) -> np.ndarray:
    x = t.array()
    return np.nan_to_num(x.reshape([s for s in x.shape if s > 1]).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _variants(model: Model, known: Structure) -> list[tuple[str, dict[str, np.ndarray]]]:
    stored = {n: _squeezed(t) for n, t in matrices(model).items()}
    out = [("as stored", stored)]
    if any(g.rotatable for g in known.groups):
        folded = _folded(model, stored)
        if folded is not None:
            out.append(("gains folded", folded))
    return out


def _folded(model: Model, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The matrices with the gains of the preceding normalisation multiplied in; None where there are none."""
    out, any_fold = dict(stored), False
    for name, tensor in model.weights.items():
        for gain, readers in FOLDS:
            layer = re.match(gain, name)
            if layer is None:
                continue
            for other in stored:
                if other.startswith(layer.group(1)) and re.search(readers, other):
                    out[other] = out[other] * tensor.array().astype(np.float32)
                    any_fold = True
    return out if any_fold else None


@lru_cache(maxsize=1)
def shipped_null() -> Mapping[str, Any]:
    """What matched units look like between independently trained networks, as measured and shipped.

    Returns:
        By kind, mean cosines (`cosines`) and sizes of matrices (`sizes`); pairs with an exact map (`exact`) of `pairs`.
    """
    file = resources.files("stemma.kinship.weights") / "matched_null.json"
    return json.loads(file.read_text())


def null_of(model: Model) -> tuple[str, np.ndarray]:
    """The null for a model's sizes: networks of other sizes match better or worse by chance.

    Returns:
        Kind and sorted mean cosines; empty where no shipped null has these sizes.
    """
    own = _sizes(matrices(model))
    for kind, sizes in shipped_null()["sizes"].items():
        if _fit(own, [tuple(s) for s in sizes]):
            return kind, np.sort(shipped_null()["cosines"][kind])
    return "", np.zeros(0)


def exact_null() -> int:
    """Pairs of independent networks, of one kind, for which an exact map was looked for in vain.

    Returns:
        Their number.
    """
    return min((len(v) for v in shipped_null()["cosines"].values()), default=0)
