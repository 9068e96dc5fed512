"""Changes that are products of small matrices: entry by entry (LoHa) or Kronecker's (LoKr).

Source: LyCORIS, arXiv:2309.14859.
"""

import functools
import re
from collections.abc import Callable, Mapping

import numpy as np

from stemma.checkpoints.adapters.adapter import Adapter, Changes, remade
from stemma.checkpoints.tensor import Tensor

PART = re.compile(r"^(?P<module>.+)\.(?P<kind>(hada|lokr)_[wt][12](_[ab])?)$")


def hadamard(adapter: Adapter) -> Changes:
    """LoHa: two products of low rank, multiplied entry by entry.

    Args:
        adapter: The adapter.

    Returns:
        What it changes.

    Raises:
        UnreadableModelError: If it is inconsistent, or factors kernels as tensors.
    """
    return _changes(adapter, _hadamard, {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})


def kronecker(adapter: Adapter) -> Changes:
    """LoKr: a Kronecker product, either side of which may be a product of low rank.

    Args:
        adapter: The adapter.

    Returns:
        What it changes.

    Raises:
        UnreadableModelError: If it is inconsistent, or factors kernels as tensors.
    """
    return _changes(adapter, _kronecker, set())


def _changes(adapter: Adapter, change: Callable[..., Tensor], needed: set[str]) -> Changes:
    found: dict[str, dict[str, Tensor]] = {}
    out = Changes()
    for name, t in adapter.tensors.items():
        match = PART.match(name)
        if match:
            found.setdefault(match["module"], {})[match["kind"]] = t
        else:
            out.whole[name] = t
    for module, parts in found.items():
        if any("_t" in kind for kind in parts):
            adapter.refuse(f"'{module}' keeps its kernel as a factored tensor, which is not read")
        if needed - set(parts):
            adapter.refuse(f"the adapter of '{module}' lacks {min(needed - set(parts))}", "save it again")
        alpha = adapter.pattern("alpha_pattern", module, adapter.config.get("alpha", 8))
        rank = adapter.pattern("rank_pattern", module, adapter.config.get("r", 8))
        if not all(isinstance(x, (int, float)) and not isinstance(x, bool) and 0 < x < 1e9 for x in (alpha, rank)):
            adapter.refuse(f"'{module}' has rank {rank!r} and alpha {alpha!r}", "save it again")
        scale = np.float32(alpha / rank)
        out.changed[f"{module}.weight"] = functools.partial(change, adapter, parts, scale)
    return out


def _hadamard(adapter: Adapter, parts: Mapping[str, Tensor], scale: np.float32, name: str, base: Tensor) -> Tensor:
    a1, b1, a2, b2 = (parts[f"hada_{w}"] for w in ("w1_a", "w1_b", "w2_a", "w2_b"))
    shape = (base.shape[0], base.size // max(1, base.shape[0])) if base.shape else (0, 0)
    _fits(adapter, name, base, all(_product(a, b) == shape for a, b in ((a1, b1), (a2, b2))))

    def make(start: int, stop: int) -> np.ndarray:
        one, two = a1.rows(start, stop) @ b1.array(), a2.rows(start, stop) @ b2.array()
        return base.rows(start, stop) + (one * two * scale).reshape(-1, *base.shape[1:])

    return remade(name, base, make)


def _kronecker(adapter: Adapter, parts: Mapping[str, Tensor], scale: np.float32, name: str, base: Tensor) -> Tensor:
    one, two = (functools.cache(functools.partial(_side, adapter, parts, side, name)) for side in ("w1", "w2"))
    (m1, n1), (m2, n2) = one().shape, two().shape
    columns = base.size // base.shape[0] if base.shape and base.shape[0] else 0
    _fits(adapter, name, base, (m1 * m2, n1 * n2) == (base.shape[0] if base.shape else 0, columns))

    def make(start: int, stop: int) -> np.ndarray:
        row = np.arange(start, stop)
        both = one()[row // m2][:, :, None] * two()[row % m2][:, None, :]
        return base.rows(start, stop) + (both * scale).reshape(-1, *base.shape[1:])

    return remade(name, base, make)


def _product(a: Tensor, b: Tensor) -> tuple[int, int]:
    joined = len(a.shape) == 2 == len(b.shape) and a.shape[1] == b.shape[0]
    return (a.shape[0], b.shape[1]) if joined else (-1, -1)


def _side(adapter: Adapter, parts: Mapping[str, Tensor], side: str, name: str) -> np.ndarray:
    whole, a, b = (parts.get(f"lokr_{side}{end}") for end in ("", "_a", "_b"))
    if whole is not None:
        return whole.array().reshape(whole.shape[0], -1)
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) < 2 or a.shape[1] != b.shape[0]:
        adapter.refuse(f"the adapter of '{name}' lacks a half, or its halves do not fit", "save it again")
    return a.array() @ b.array().reshape(b.shape[0], -1)


def _fits(adapter: Adapter, name: str, base: Tensor, fits: bool) -> None:
    if not fits or not base.is_float or len(base.shape) < 2:
        adapter.refuse(
            f"the adapter of '{name}' does not fit its base's {list(base.shape)}",
            "give the base that it was trained on",
        )
