"""Whole tensors that two models share, whatever else differs."""

from dataclasses import asdict, dataclass
from math import log10

import numpy as np

from stemma.architectures.unit_groups import has_known_symmetries, structure
from stemma.checkpoints.digest import is_partial
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import has_content, matrices
from stemma.kinship.weights.constants.tables import is_table
from stemma.kinship.weights.contents.choices import has_arbitrary_basis
from stemma.types import Axis, Evidence, Null, Spec, Verdict

ORTHONORMAL = 1e-3
"""Largest deviation from the identity of the products of units that form a basis."""

CORNER = 256
"""Rows of a matrix that are checked."""

ARBITRARY_BASIS = "a head as wide as its input can take any values by a change of basis"
"""Why an identical matrix is no evidence."""


@dataclass(frozen=True)
class SharedTensors:
    """Search for identical matrices in two models, by digest, under any name.

    Independent training never gives identical matrices. But some matrices are public or follow from public data: masks,
    codes of few values, sampled waves, bases of principal components. Those are no evidence. A single matrix that reads
    the input (pixels, tokens) may be an unrecognised table, so two are needed, or one between hidden units.

    Attributes:
        least: Matrices that must be shared if none of them lies between hidden units.
        share: Least share of the smaller model's entries that they make up.
        distinct: Distinct values that a matrix needs.
        entries: Entries that a matrix needs.
    """

    least: int = 2
    share: float = 0.02
    distinct: int = 64
    entries: int = 256

    name = "shared-tensors"
    version = 1

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters."""
        return Spec(self.name, self.version, asdict(self))

    def evidence(self, a: Model, b: Model) -> Evidence:
        """`SUPPORTED` where enough is shared, `INCONCLUSIVE` where it may be a table, else `REFUTED`."""
        own, other = matrices(a), matrices(b)
        there = {b.tensor_digests[n] for n in other if n in b.tensor_digests and other[n].leading is None}
        same = {a.tensor_digests[n]: n for n in sorted(own, reverse=True) if a.tensor_digests.get(n) in there}
        same = {digest: n for digest, n in same.items() if own[n].size >= self.entries}
        known = structure(a)
        public_constants = {n: why for n in same.values() if (why := self.public_constant_reason(own[n]))}
        public_constants |= {n: ARBITRARY_BASIS for n in same.values() if has_arbitrary_basis(known, n, own[n].shape)}
        informative = [n for n in same.values() if n not in public_constants]
        size = sum(own[n].size for n in informative)
        totals = sum(t.size for t in own.values()), sum(t.size for t in other.values())
        effect = min(1.0, size / max(1, min(totals)))
        said = f"{len(informative)} matrices are identical ({effect:.0%} of the smaller model)"
        if public_constants:
            some = "; ".join(f"{n}: {w}" for n, w in sorted(public_constants.items())[:2])
            said += f"; {len(public_constants)} further identical matrices are no evidence ({some})"
        verdict = Verdict.REFUTED if not informative else Verdict.INCONCLUSIVE
        inner = [n for n in informative if has_known_symmetries(known) and sum(x.hidden for x in known.axes[n]) >= 2]
        if (len(informative) >= self.least or inner) and effect >= self.share:
            verdict = Verdict.SUPPORTED
        elif informative and effect >= self.share:
            said += "; a single input matrix may be a table used by both"
        log10_p = -77.0 + log10(max(1, len(own) * len(other))) if verdict is Verdict.SUPPORTED else None
        return Evidence(
            claim="parts of the weights are the same",
            axis=Axis.WEIGHTS,
            statistic=self.name,
            value=float(len(informative)),
            null=Null("collision of SHA-256"),
            p_value=None if log10_p is None else 10**log10_p,
            log10_p=log10_p,
            effect=effect,
            verdict=verdict,
            reason=said,
            spec=self.spec,
            inputs=(a.digest, b.digest),
            details={
                "shared": sorted(informative),
                "public": public_constants,
                "shares": [min(1.0, size / max(1, n)) for n in totals],
            },
        )

    def public_constant_reason(self, tensor: Tensor) -> str:
        """Why a matrix may be a public constant; empty if nothing indicates that."""
        rows = tensor.rows(0, min(tensor.readable, CORNER))
        x = np.nan_to_num(np.asarray(rows, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        values = len(np.unique(x.reshape(-1)[: 1 << 16]))
        if values < self.distinct:
            return f"{values} distinct values"
        long = x.reshape([s for s in x.shape if s > 1] or [1])
        if is_table(long):
            return "sampled waves"
        flat = x.reshape(len(x), -1)
        if len(flat) >= 2 and tensor.shape[0] <= flat.shape[1] and _orthonormal(flat):
            return "an orthogonal basis"
        return ""


def _orthonormal(rows: np.ndarray) -> bool:
    """Whether rows are orthonormal up to scale, as principal components and transforms are."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (norm > 0).all():
        return False
    unit = (rows / norm).astype(np.float64)
    return float(np.abs(unit @ unit.T - np.eye(len(unit))).max()) < ORTHONORMAL


def same_weights(a: Model, b: Model) -> Evidence:
    """Whether the digests of two models agree, with or without names; the effect is the share of equal tensors."""
    same, contents = a.digest == b.digest, a.names_free_digest == b.names_free_digest
    shared = {d for d in a.tensor_digests.values() if not is_partial(d)} & set(b.tensor_digests.values())
    size = sum(t.size for n, t in a.tensors.items() if a.tensor_digests[n] in shared) / max(1, a.parameters)
    empty = (same or contents) and not has_content(a)
    whole = a.parameters and not (a.is_partial or b.is_partial)  # samples may be equal where the rest is not
    verdict = Verdict.SUPPORTED if (same or contents) and whole and not empty else Verdict.INCONCLUSIVE
    noun = "tensor is" if len(shared) == 1 else "tensors are"
    reason = ("all tensors hold nothing but zeros, which are no evidence of an origin" if empty else
              "all tensors are identical, with equal names" if same and whole else
              "all tensors are identical, with different names" if contents and whole else
              f"{len(shared)} {noun} identical ({size:.0%} of the parameters)")  # fmt: skip
    return Evidence(
        claim="the weights are the same",
        axis=Axis.WEIGHTS,
        statistic="digest",
        value=size,
        null=Null("collision of SHA-256"),
        p_value=1e-77 if verdict is Verdict.SUPPORTED else None,
        log10_p=-77.0 if verdict is Verdict.SUPPORTED else None,
        effect=1.0 if verdict is Verdict.SUPPORTED else size,
        verdict=verdict,
        reason=reason,
        spec=Spec("digest"),
        inputs=(a.digest, b.digest),
        details={"shared_tensors": len(shared), "shared_parameters": size},
    )
