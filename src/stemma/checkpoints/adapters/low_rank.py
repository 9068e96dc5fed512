"""Low-rank adapters: W + scale · B·A, computed some rows at a time (LoRA, AdaLoRA, DoRA, PiSSA, OLoRA, VeRA).

The product is computed in float32. DoRA then rescales every output unit. PiSSA and OLoRA initialise the adapter with a
part of the base weight and subtract it from the base; the residual is recomputed from the base, as PEFT does.

Source: LoRA, arXiv:2106.09685; rank-stabilised scale, arXiv:2312.03732; DoRA, arXiv:2402.09353; AdaLoRA,
arXiv:2303.10512; VeRA, arXiv:2310.11454; PiSSA, arXiv:2404.02948; OLoRA, arXiv:2406.01775.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from stemma.checkpoints.adapters.adapter import Adapter, Changes, lazy_tensor, merged_dtype
from stemma.checkpoints.tensor import Tensor, decode, encode

PART = re.compile(
    r"^(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_E|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|"
    r"vera_lambda_b|vera_lambda_d)(\.weight|(?P<bias>\.bias))?$"
)
MAX_RANK = 1 << 16
SMALL_RANK = 1024
"""Rank that is always read; beyond it a rank above the smaller side of its layer only costs time and memory."""
ROWS = 4096

UNSUPPORTED = {
    "target_parameters": "LoRA on bare parameters (target_parameters)",
    "layer_replication": "LoRA over repeated layers (layer_replication)",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
}
"""Unsupported LoRA options and their names."""

UNMERGEABLE = {
    "use_qalora": "QALoRA pools the inputs of its base",
    "arrow_config": "Arrow chooses among adapters for every input",
    "alora_invocation_tokens": "aLoRA acts only behind its invocation tokens",
}
"""LoRA options that cannot be merged, and why."""

RESIDUAL_INITS = {"pissa": "pissa", "olora": "olora"}
"""Initialisations whose residual base weight can be recomputed."""

UNRECOVERABLE_INITS = ("pissa_niter", "corda", "loftq", "lora_ga")
"""Initialisations that change the base by something not in the files: randomness, activations, gradients."""


@dataclass(frozen=True)
class Update:
    """The update of one module.

    Attributes:
        adapter: The adapter.
        module: The module's name.
        a: Computes the right factor, `[rank, in]`.
        b: Computes the left factor, `[out, rank]`.
        sizes: Rank, inputs and outputs.
        scale: Factor of the product.
        transposed: Whether the base stores `[in, out]`; None if its shape decides.
        magnitude: Norm of each output unit after the update (DoRA).
        residual_init: Initialisation that was subtracted from the base: `pissa`, `olora` or empty.
    """

    adapter: Adapter
    module: str
    a: Callable[[], np.ndarray]
    b: Callable[[], np.ndarray]
    sizes: tuple[int, int, int]
    scale: float
    transposed: bool | None = None
    magnitude: Tensor | None = None
    residual_init: str = ""

    def apply(self, name: str, base: Tensor) -> Tensor:
        """The base's tensor with the low-rank update added."""
        transposed = self._is_transposed(name, base)
        outputs = self.sizes[2]
        if self.magnitude is not None and self.magnitude.size != outputs:
            self.adapter.refuse(f"'{name}' has {self.magnitude.size} DoRA magnitudes for {outputs} output units")
        columns = base.size // base.shape[0]
        factors = functools.cache(lambda: (self.a().T, self.b().T) if transposed else (self.b(), self.a()))
        initial = functools.cache(lambda: _initial_factors(self.residual_init, base, self.sizes[0], self.scale))
        dtype = merged_dtype(base)

        def plain(start: int, stop: int) -> np.ndarray:
            weight = base.rows(start, stop).reshape(stop - start, columns).astype(np.float32)
            if self.residual_init:
                left, right = initial()
                residual = encode(weight - (left[start:stop] @ right).astype(np.float32), dtype)
                weight = decode(residual, dtype).reshape(weight.shape).astype(np.float32)
            left, right = factors()
            return weight + (left[start:stop] @ right).astype(np.float32) * np.float32(self.scale)

        lengths = functools.cache(lambda: _column_lengths(plain, base.shape[0], columns))

        def make(start: int, stop: int) -> np.ndarray:
            weight = plain(start, stop)
            if self.magnitude is not None:
                target = self.magnitude.array().reshape(-1)
                target = target[None] if transposed else target[start:stop, None]
                length = lengths()[None] if transposed else np.linalg.norm(weight, axis=1, keepdims=True)
                weight = weight * np.divide(target, length, out=np.zeros_like(length), where=length > 0)
            return weight.reshape(stop - start, *base.shape[1:])

        return lazy_tensor(name, base, make)

    def _is_transposed(self, name: str, base: Tensor) -> bool:
        _, inputs, outputs = self.sizes
        rows = base.shape[0] if base.is_float and len(base.shape) > 1 else 0
        shape = (rows, base.size // rows if rows else 0)
        as_stored, transposed = shape == (outputs, inputs), shape == (inputs, outputs)
        if as_stored and transposed and self.transposed is None:
            transposed = self.adapter.is_transposed(self.module)
        elif self.transposed is not None:
            as_stored = as_stored and not self.transposed
        if not as_stored and not transposed:
            self.adapter.refuse(
                f"the adapter of '{name}' ({inputs} inputs, {outputs} outputs) does not fit the base's shape "
                f"{list(base.shape)}",
                "use the base model that it was trained on",
            )
        if transposed and self.residual_init == "olora":
            self.adapter.refuse(f"OLoRA on the transposed weight '{name}' is not supported")
        return transposed


def _column_lengths(plain: Callable[[int, int], np.ndarray], rows: int, columns: int) -> np.ndarray:
    total = np.zeros(columns)
    for start in range(0, rows, ROWS):
        total += np.square(plain(start, min(start + ROWS, rows)).astype(np.float64)).sum(0)
    return np.sqrt(total).astype(np.float32)


def _initial_factors(residual_init: str, base: Tensor, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    # factors of the part that was moved to the adapter; PiSSA needs leading eigenvectors of the smaller Gram matrix
    weight = base.array().reshape(base.shape[0], -1).astype(np.float64)
    if residual_init == "olora":  # the first columns of Q span the first columns of the matrix
        basis = np.linalg.qr(weight[:, :rank])[0]
        return scale * basis, basis.T @ weight
    from scipy.linalg import eigh

    more_columns = weight.shape[0] <= weight.shape[1]
    gram = weight @ weight.T if more_columns else weight.T @ weight
    basis = eigh(gram, subset_by_index=[max(0, len(gram) - rank), len(gram) - 1])[1]
    return (basis, basis.T @ weight) if more_columns else (weight @ basis, basis.T)


def lora(adapter: Adapter) -> Changes:
    """LoRA and AdaLoRA, with DoRA, rank-stabilised scales, rank and alpha patterns, and biases."""
    residual_init = _check_initialisation(adapter)
    found, others = _split_names(adapter)
    out = Changes(replaced=others)
    for module, parts in found.items():
        embedded = "lora_embedding_A" in parts
        a = parts.get("lora_embedding_A" if embedded else "lora_A")
        b = parts.get("lora_embedding_B" if embedded else "lora_B")
        if a is None or b is None or not _factors_fit(a, b):
            adapter.refuse(
                f"the adapter of '{module}' has a missing factor, or factors of incompatible shapes", "save it again"
            )
        rank = a.shape[0]
        check_rank(adapter, module, rank, a.size // rank, b.size // rank)
        scale = _scale(adapter, module, rank, parts)
        sizes = (rank, a.size // rank, b.size // rank)
        magnitude = parts.get("lora_magnitude_vector")
        middle = parts.get("lora_E")
        if middle is not None and middle.size != rank:
            adapter.refuse(
                f"the adapter of '{module}' has rank {rank} but {middle.size} singular values", "save it again"
            )
        update = Update(
            adapter, module, _factor(a, (rank, -1), middle), _factor(b, (-1, rank)), sizes, scale,
            True if embedded else None, magnitude, "" if embedded else residual_init,
        )  # fmt: skip
        out.changed[f"{module}.weight"] = update.apply
        if "lora_B.bias" in parts:
            out.changed[f"{module}.bias"] = functools.partial(_add_bias, adapter, parts["lora_B.bias"], scale)
    return out


def check_rank(adapter: Adapter, module: str, rank: int, inputs: int, outputs: int) -> None:
    """Refuse a rank that a layer cannot have: the factors would be larger than the layer, without bound."""
    if rank > max(SMALL_RANK, min(inputs, outputs)):
        adapter.refuse(
            f"the adapter of '{module}' ({inputs} inputs, {outputs} outputs) has rank {rank}", "save it again"
        )


def vera(adapter: Adapter) -> Changes:
    """VeRA: two frozen random matrices that all modules share, and two trained vectors per module."""
    found, others = _split_names(adapter)
    shared_a, shared_b = others.pop("vera_A", None), others.pop("vera_B", None)
    if shared_a is None or shared_b is None or len(shared_a.shape) != 2 or len(shared_b.shape) != 2:
        adapter.refuse("it lacks the random projection matrices (VeRA saved without save_projection)")
    out = Changes(replaced=others)
    for module, parts in found.items():
        d, b = parts.get("vera_lambda_d"), parts.get("vera_lambda_b")
        if d is None or b is None or (d.size,) != shared_a.shape[:1] or (d.size,) != shared_b.shape[1:]:
            adapter.refuse(
                f"the adapter of '{module}' has a missing factor, or factors of incompatible shapes", "save it again"
            )
        out.changed[f"{module}.weight"] = functools.partial(_vera, adapter, module, (shared_a, d), (shared_b, b))
    return out


def _vera(
    adapter: Adapter,
    module: str,
    right: tuple[Tensor, Tensor],
    left: tuple[Tensor, Tensor],
    name: str,
    base: Tensor,
) -> Tensor:
    outputs = left[1].size
    inputs = base.size // outputs if outputs else 0
    if inputs > right[0].shape[1] or outputs > left[0].shape[0]:
        adapter.refuse(f"its random projection matrices are too small for '{name}'")
    check_rank(adapter, module, right[1].size, inputs, outputs)
    update = Update(
        adapter, module, functools.cache(lambda: right[0].array()[:, :inputs] * right[1].array()[:, None]),
        functools.cache(lambda: left[0].array()[:outputs] * left[1].array()[:, None]),
        (right[1].size, inputs, outputs), 1.0,
    )  # fmt: skip
    return update.apply(name, base)


def _check_initialisation(adapter: Adapter) -> str:
    """Which part of the base was moved into the adapter at initialisation; refuses what cannot be recomputed."""
    for option, called in UNSUPPORTED.items():
        if adapter.config.get(option):
            adapter.refuse(f"{called} is not supported")
    for option, why in UNMERGEABLE.items():
        if adapter.config.get(option):
            adapter.refuse(f"{why}, so it cannot be merged", "use the base model instead")
    how = str(adapter.config.get("init_lora_weights") or "").lower()
    if how.startswith(UNRECOVERABLE_INITS):
        adapter.refuse(
            f"its base was changed at the start of training (init_lora_weights='{how[:40]}') in a way that "
            "cannot be recovered from its files",
            "save it with PEFT's path_initial_model_for_weight_conversion, or merge the trained model and use that",
        )
    return RESIDUAL_INITS.get(how, "")


def _split_names(adapter: Adapter) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, t in adapter.tensors.items():
        match = PART.match(name)
        if match:
            found.setdefault(match["module"], {})[match["kind"] + (match["bias"] or "")] = t
        else:
            others[name] = t
    return found, others


def _factors_fit(a: Tensor, b: Tensor) -> bool:
    matrices = len(a.shape) > 1 and len(b.shape) > 1 and a.is_float and b.is_float
    return matrices and 0 < a.shape[0] == b.shape[1] <= MAX_RANK and a.size > 0 and b.size > 0


def _factor(t: Tensor, shape: tuple[int, int], middle: Tensor | None = None) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        values = t.array().reshape(shape)
        return values if middle is None else values * middle.array().reshape(-1, 1)

    return make


def _scale(adapter: Adapter, module: str, rank: int, parts: Mapping[str, Tensor]) -> float:
    alpha = adapter.option_for("alpha_pattern", module, adapter.config.get("lora_alpha", 8))
    adaptive = "lora_E" in parts
    declared = rank if adaptive else adapter.option_for("rank_pattern", module, adapter.config.get("r", rank))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or declared != rank:
        adapter.refuse(
            f"'{module}' has rank {rank}, but its config says rank {declared!r} and alpha {alpha!r}", "save it again"
        )
    if adaptive:
        return (alpha if alpha > 0 else float(rank)) / (rank + 1e-5)
    return alpha / math.sqrt(rank) if adapter.config.get("use_rslora") else alpha / rank


def _add_bias(adapter: Adapter, bias: Tensor, scale: float, name: str, base: Tensor) -> Tensor:
    if bias.shape != base.shape or not base.is_float:
        adapter.refuse(
            f"the bias of '{name}' (shape {list(bias.shape)}) does not fit the base's shape {list(base.shape)}"
        )
    return lazy_tensor(name, base, lambda i, j: base.rows(i, j) + bias.rows(i, j) * np.float32(scale))
