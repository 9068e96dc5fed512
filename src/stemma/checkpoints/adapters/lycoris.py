"""LyCORIS adapters: element-wise products of low-rank products (LoHa) and Kronecker products (LoKr).

Source: LyCORIS, arXiv:2309.14859.
"""

import functools
import re
from collections.abc import Callable, Mapping

import numpy as np

from stemma.checkpoints.adapters.adapter import Adapter, Changes, lazy_tensor
from stemma.checkpoints.adapters.low_rank import check_rank
from stemma.checkpoints.tensor import Tensor

PART = re.compile(r"^(?P<module>.+)\.(?P<kind>(hada|lokr)_[wt][12](_[ab])?)$")


def loha(adapter: Adapter) -> Changes:
    """LoHa: the element-wise product of two low-rank products."""
    return _changes(adapter, _loha, {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})


def lokr(adapter: Adapter) -> Changes:
    """LoKr: a Kronecker product; either factor may itself be a low-rank product."""
    return _changes(adapter, _lokr, set())


def _changes(adapter: Adapter, change: Callable[..., Tensor], needed: set[str]) -> Changes:
    found: dict[str, dict[str, Tensor]] = {}
    out = Changes()
    for name, t in adapter.tensors.items():
        match = PART.match(name)
        if match:
            found.setdefault(match["module"], {})[match["kind"]] = t
        else:
            out.replaced[name] = t
    for module, parts in found.items():
        if any("_t" in kind for kind in parts):
            adapter.refuse(f"'{module}' factors its kernel as a tensor (Tucker form), which is not supported")
        if needed - set(parts):
            adapter.refuse(f"the adapter of '{module}' lacks {min(needed - set(parts))}", "save it again")
        alpha = adapter.option_for("alpha_pattern", module, adapter.config.get("alpha", 8))
        rank = adapter.option_for("rank_pattern", module, adapter.config.get("r", 8))
        if not all(isinstance(x, (int, float)) and not isinstance(x, bool) and 0 < x < 1e9 for x in (alpha, rank)):
            adapter.refuse(f"'{module}' has an invalid rank {rank!r} or alpha {alpha!r}", "save it again")
        scale = np.float32(alpha / rank)
        out.changed[f"{module}.weight"] = functools.partial(change, adapter, parts, scale)
    return out


def _loha(adapter: Adapter, parts: Mapping[str, Tensor], scale: np.float32, name: str, base: Tensor) -> Tensor:
    a1, b1, a2, b2 = (parts[f"hada_{w}"] for w in ("w1_a", "w1_b", "w2_a", "w2_b"))
    shape = (base.shape[0], base.size // max(1, base.shape[0])) if base.shape else (0, 0)
    _check_fit(adapter, name, base, all(_product_shape(a, b) == shape for a, b in ((a1, b1), (a2, b2))))
    for a, b in ((a1, b1), (a2, b2)):
        check_rank(adapter, name, a.shape[1], b.shape[1], a.shape[0])

    def make(start: int, stop: int) -> np.ndarray:
        one, two = a1.rows(start, stop) @ b1.array(), a2.rows(start, stop) @ b2.array()
        return base.rows(start, stop) + (one * two * scale).reshape(-1, *base.shape[1:])

    return lazy_tensor(name, base, make)


def _lokr(adapter: Adapter, parts: Mapping[str, Tensor], scale: np.float32, name: str, base: Tensor) -> Tensor:
    one, two = (functools.cache(functools.partial(_lokr_factor, adapter, parts, side, name)) for side in ("w1", "w2"))
    (m1, n1), (m2, n2) = one().shape, two().shape
    columns = base.size // base.shape[0] if base.shape and base.shape[0] else 0
    _check_fit(adapter, name, base, (m1 * m2, n1 * n2) == (base.shape[0] if base.shape else 0, columns))

    def make(start: int, stop: int) -> np.ndarray:
        row = np.arange(start, stop)
        both = one()[row // m2][:, :, None] * two()[row % m2][:, None, :]
        return base.rows(start, stop) + (both * scale).reshape(-1, *base.shape[1:])

    return lazy_tensor(name, base, make)


def _product_shape(a: Tensor, b: Tensor) -> tuple[int, int]:
    joined = len(a.shape) == 2 == len(b.shape) and a.shape[1] == b.shape[0]
    return (a.shape[0], b.shape[1]) if joined else (-1, -1)


def _lokr_factor(adapter: Adapter, parts: Mapping[str, Tensor], side: str, name: str) -> np.ndarray:
    whole, a, b = (parts.get(f"lokr_{side}{end}") for end in ("", "_a", "_b"))
    if whole is not None:
        return whole.array().reshape(whole.shape[0], -1)
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) < 2 or a.shape[1] != b.shape[0]:
        adapter.refuse(
            f"the adapter of '{name}' has a missing factor, or factors of incompatible shapes", "save it again"
        )
    check_rank(adapter, name, a.shape[1], b.size // b.shape[0], a.shape[0])
    return a.array() @ b.array().reshape(b.shape[0], -1)


def _check_fit(adapter: Adapter, name: str, base: Tensor, fits: bool) -> None:
    if not fits or not base.is_float or len(base.shape) < 2:
        adapter.refuse(
            f"the adapter of '{name}' does not fit the base's shape {list(base.shape)}",
            "use the base model that it was trained on",
        )
