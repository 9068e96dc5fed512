"""Shared tensors: parts that two models hold bit for bit, whatever else differs."""

from dataclasses import asdict, dataclass
from math import log10

import numpy as np

from stemma.architectures.unit_groups import has_known_symmetries, structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.constants.tables import is_table
from stemma.kinship.weights.contents.choices import turned_at_will
from stemma.types import Axis, Evidence, Null, Spec, Verdict

ORTHONORMAL = 1e-3
"""Largest deviation from the identity of the products of units that form a basis."""

CORNER = 256
"""Units and coordinates that are looked at."""

WILL = "a head as wide as its input can be given any contents by its basis"
"""Why a matrix proves nothing although it is the same."""


@dataclass(frozen=True)
class SharedTensors:
    """Look for matrices of one model among those of the other, by digest, under any name.

    Training never gives the same matrix twice, so one that is the same was handed on. But some matrices are public or
    follow from public data: masks, codes of few values, sampled waves, bases of principal components. Those are no
    evidence. One matrix alone that reads the input (pixels, tokens) may be such a table that is not recognised: two are
    asked for, or one that stands between hidden units.

    Attributes:
        least: Matrices that must be shared where none of them stands between hidden units.
        share: Of the smaller model's entries that they must make.
        distinct: Different numbers that a matrix needs.
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
        """Look for shared matrices.

        Cost: none beyond the digests; the first rows of the shared matrices are read.

        Args:
            a: One model.
            b: The other.

        Returns:
            The evidence: `SUPPORTED` where enough is shared, `INCONCLUSIVE` where it may be a table, `REFUTED` where no
            matrix is shared.
        """
        own, other = matrices(a), matrices(b)
        there = {b.tensor_digests[n] for n in other if n in b.tensor_digests}
        same = {a.tensor_digests[n]: n for n in sorted(own, reverse=True) if a.tensor_digests.get(n) in there}
        same = {digest: n for digest, n in same.items() if own[n].size >= self.entries}
        known = structure(a)
        public = {n: why for n in same.values() if (why := self.public(own[n]))}
        public |= {n: WILL for n in same.values() if turned_at_will(known, n, own[n].shape)}
        telling = [n for n in same.values() if n not in public]
        size = sum(own[n].size for n in telling)
        totals = sum(t.size for t in own.values()), sum(t.size for t in other.values())
        effect = min(1.0, size / max(1, min(totals)))
        said = f"{len(telling)} matrices are bit for bit the same ({effect:.0%} of the smaller model)"
        if public:
            some = "; ".join(f"{n}: {w}" for n, w in sorted(public.items())[:2])
            said += f"; {len(public)} more may be so without kinship ({some})"
        verdict = Verdict.REFUTED if not telling else Verdict.INCONCLUSIVE
        inner = [n for n in telling if has_known_symmetries(known) and sum(x.hidden for x in known.axes[n]) >= 2]
        if (len(telling) >= self.least or inner) and effect >= self.share:
            verdict = Verdict.SUPPORTED
        elif telling and effect >= self.share:
            said += "; one that reads the input may be a table that both use"
        log10_p = -77.0 + log10(max(1, len(own) * len(other))) if verdict is Verdict.SUPPORTED else None
        return Evidence(
            "parts of the weights are the same", Axis.WEIGHTS, self.name, float(len(telling)),
            Null("collision of SHA-256"), None if log10_p is None else 10**log10_p, log10_p, effect, verdict, said,
            self.spec, (a.digest, b.digest),
            {"shared": sorted(telling), "public": public, "shares": [min(1.0, size / max(1, n)) for n in totals]},
        )  # fmt: skip

    def public(self, tensor: Tensor) -> str:
        """Why a matrix may be a public constant; empty where nothing speaks for it.

        Args:
            tensor: A matrix.

        Returns:
            A few words.
        """
        rows = tensor.rows(0, min(tensor.shape[0], CORNER))
        x = np.nan_to_num(np.asarray(rows, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        values = len(np.unique(x.reshape(-1)[: 1 << 16]))
        if values < self.distinct:
            return f"{values} different numbers"
        long = x.reshape([s for s in x.shape if s > 1] or [1])
        if is_table(long):
            return "sampled waves"
        flat = x.reshape(len(x), -1)
        if len(flat) >= 2 and tensor.shape[0] <= flat.shape[1] and _orthonormal(flat):
            return "an orthogonal basis"
        return ""


def _orthonormal(rows: np.ndarray) -> bool:
    """Whether rows stand at right angles to each other, as principal components and transforms do."""
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (norm > 0).all():
        return False
    unit = (rows / norm).astype(np.float64)
    return float(np.abs(unit @ unit.T - np.eye(len(unit))).max()) < ORTHONORMAL


def same_weights(a: Model, b: Model) -> Evidence:
    """Whether the digests of two models agree, by name or without names.

    Args:
        a: One model.
        b: The other one.

    Returns:
        The evidence, `SUPPORTED` where they do; the effect is the share of parameters in equal tensors.
    """
    same, contents = a.digest == b.digest, a.names_free_digest == b.names_free_digest
    shared = set(a.tensor_digests.values()) & set(b.tensor_digests.values())
    size = sum(t.size for n, t in a.tensors.items() if a.tensor_digests[n] in shared) / max(1, a.parameters)
    verdict = Verdict.SUPPORTED if (same or contents) and a.parameters else Verdict.INCONCLUSIVE
    reason = ("every tensor is the same, under the same name" if same else
              "every tensor is the same, under another name" if contents else
              f"{len(shared)} tensors are bit for bit the same ({size:.0%} of the parameters)")  # fmt: skip
    return Evidence("the weights are the same", Axis.WEIGHTS, "digest", size, Null("collision of SHA-256"),
                    1e-77 if verdict is Verdict.SUPPORTED else None, -77.0 if verdict is Verdict.SUPPORTED else None,
                    1.0 if verdict is Verdict.SUPPORTED else size, verdict, reason, Spec("digest"),
                    (a.digest, b.digest), {"shared_tensors": len(shared), "shared_parameters": size})  # fmt: skip
