"""Changes of low rank: W + scale · B·A, LoRA and its kin, some rows at a time.

The product is taken in float32. DoRA gives every output unit a length of its own afterwards. PiSSA and OLoRA take part
of the base away at the start and hand it to the adapter: what is left is computed again from the base, as PEFT does
when it loads such an adapter.

Source: LoRA, arXiv:2106.09685; rank-stabilised scale, arXiv:2312.03732; DoRA, arXiv:2402.09353; AdaLoRA,
arXiv:2303.10512; VeRA, arXiv:2310.11454; PiSSA, arXiv:2404.02948; OLoRA, arXiv:2406.01775.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from stemma.checkpoints.adapters.adapter import Adapter, Changes, remade, width
from stemma.checkpoints.tensor import Tensor, decode, encode

PART = re.compile(
    r"^(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_E|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|"
    r"vera_lambda_b|vera_lambda_d)(\.weight|(?P<bias>\.bias))?$"
)
MAX_RANK = 1 << 16
ROWS = 4096

UNREAD = {
    "target_parameters": "LoRA on bare parameters (target_parameters)",
    "layer_replication": "LoRA over repeated layers (layer_replication)",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
}
"""Options of LoRA whose adapters are refused, and what to call them."""

UNMERGED = {
    "use_qalora": "QALoRA pools the inputs of its base",
    "arrow_config": "Arrow chooses among adapters for every input",
    "alora_invocation_tokens": "aLoRA acts only behind its invocation tokens",
}
"""Options of LoRA that PEFT cannot merge either, and why."""

SPLIT = {"pissa": "pissa", "olora": "olora"}
"""Initialisations that take from the base what can be computed again from it."""

LOST = ("pissa_niter", "corda", "loftq", "lora_ga")
"""Initialisations that change the base by what the files do not hold: chance, activations, codes or gradients."""


@dataclass(frozen=True)
class Update:
    """What one module's adapter adds.

    Attributes:
        adapter: Where it comes from.
        module: The module's name.
        a: Makes the right factor, `[rank, in]`.
        b: Makes the left factor, `[out, rank]`.
        sizes: Rank, inputs and outputs.
        scale: Factor of the product.
        transposed: Whether the base keeps `[in, out]`; None where its shape tells.
        magnitude: Length of each output after the change (DoRA).
        split: What was taken from the base at the start: `pissa`, `olora` or nothing.
    """

    adapter: Adapter
    module: str
    a: Callable[[], np.ndarray]
    b: Callable[[], np.ndarray]
    sizes: tuple[int, int, int]
    scale: float
    transposed: bool | None = None
    magnitude: Tensor | None = None
    split: str = ""

    def apply(self, name: str, base: Tensor) -> Tensor:
        """Change the base's tensor.

        Args:
            name: Its name in the base.
            base: The tensor.

        Returns:
            The merged tensor.

        Raises:
            UnreadableModelError: If the adapter does not fit.
        """
        turned = self._turned(name, base)
        outputs = self.sizes[2]
        if self.magnitude is not None and self.magnitude.size != outputs:
            self.adapter.refuse(f"the {self.magnitude.size} magnitudes of '{name}' do not fit {outputs} units")
        columns = base.size // base.shape[0]
        factors = functools.cache(lambda: (self.a().T, self.b().T) if turned else (self.b(), self.a()))
        taken = functools.cache(lambda: _taken(self.split, base, self.sizes[0], self.scale))
        dtype = width(base)

        def plain(start: int, stop: int) -> np.ndarray:
            weight = base.rows(start, stop).reshape(stop - start, columns).astype(np.float32)
            if self.split:
                left, right = taken()
                rest = encode(weight - (left[start:stop] @ right).astype(np.float32), dtype)
                weight = decode(rest, dtype).reshape(weight.shape).astype(np.float32)
            left, right = factors()
            return weight + (left[start:stop] @ right).astype(np.float32) * np.float32(self.scale)

        lengths = functools.cache(lambda: _column_lengths(plain, base.shape[0], columns))

        def make(start: int, stop: int) -> np.ndarray:
            weight = plain(start, stop)
            if self.magnitude is not None:
                wanted = self.magnitude.array().reshape(-1)
                wanted = wanted[None] if turned else wanted[start:stop, None]
                length = lengths()[None] if turned else np.linalg.norm(weight, axis=1, keepdims=True)
                weight = weight * np.divide(wanted, length, out=np.zeros_like(length), where=length > 0)
            return weight.reshape(stop - start, *base.shape[1:])

        return remade(name, base, make)

    def _turned(self, name: str, base: Tensor) -> bool:
        _, inputs, outputs = self.sizes
        rows = base.shape[0] if base.is_float and len(base.shape) > 1 else 0
        shape = (rows, base.size // rows if rows else 0)
        straight, turned = shape == (outputs, inputs), shape == (inputs, outputs)
        if straight and turned and self.transposed is None:
            turned = self.adapter.transposed(self.module)
        elif self.transposed is not None:
            straight = straight and not self.transposed
        if not straight and not turned:
            self.adapter.refuse(
                f"the adapter of '{name}' (from {inputs} to {outputs}) does not fit its base's {list(base.shape)}",
                "give the base that it was trained on",
            )
        if turned and self.split == "olora":
            self.adapter.refuse(f"OLoRA of the transposed '{name}' is not read")
        return turned


def _column_lengths(plain: Callable[[int, int], np.ndarray], rows: int, columns: int) -> np.ndarray:
    total = np.zeros(columns)
    for start in range(0, rows, ROWS):
        total += np.square(plain(start, min(start + ROWS, rows)).astype(np.float64)).sum(0)
    return np.sqrt(total).astype(np.float32)


def _taken(split: str, base: Tensor, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    # two factors of what was handed to the adapter; PiSSA costs the leading eigenvectors of the smaller Gram matrix
    weight = base.array().reshape(base.shape[0], -1).astype(np.float64)
    if split == "olora":  # the first columns of Q span the first columns of the matrix
        basis = np.linalg.qr(weight[:, :rank])[0]
        return scale * basis, basis.T @ weight
    from scipy.linalg import eigh

    wide = weight.shape[0] <= weight.shape[1]
    gram = weight @ weight.T if wide else weight.T @ weight
    basis = eigh(gram, subset_by_index=[max(0, len(gram) - rank), len(gram) - 1])[1]
    return (basis, basis.T @ weight) if wide else (weight @ basis, basis.T)


def lora(adapter: Adapter) -> Changes:
    """LoRA and AdaLoRA, with DoRA, rank-stabilised scales, patterns of ranks and scales, and biases.

    Args:
        adapter: The adapter.

    Returns:
        What it changes.

    Raises:
        UnreadableModelError: If it is inconsistent, or of a kind that is not read.
    """
    split = _started(adapter)
    found, rest = _parts(adapter)
    out = Changes(whole=rest)
    for module, parts in found.items():
        embedded = "lora_embedding_A" in parts
        a = parts.get("lora_embedding_A" if embedded else "lora_A")
        b = parts.get("lora_embedding_B" if embedded else "lora_B")
        if a is None or b is None or not _joined(a, b):
            adapter.refuse(f"the adapter of '{module}' lacks a half, or its halves do not fit", "save it again")
        rank = a.shape[0]
        scale = _scale(adapter, module, rank, parts)
        sizes = (rank, a.size // rank, b.size // rank)
        magnitude = parts.get("lora_magnitude_vector")
        middle = parts.get("lora_E")
        if middle is not None and middle.size != rank:
            adapter.refuse(
                f"the adapter of '{module}' has rank {rank} and {middle.size} values for it", "save it again"
            )
        update = Update(
            adapter, module, _factor(a, (rank, -1), middle), _factor(b, (-1, rank)), sizes, scale,
            True if embedded else None, magnitude, "" if embedded else split,
        )  # fmt: skip
        out.changed[f"{module}.weight"] = update.apply
        if "lora_B.bias" in parts:
            out.changed[f"{module}.bias"] = functools.partial(_with_bias, adapter, parts["lora_B.bias"], scale)
    return out


def vera(adapter: Adapter) -> Changes:
    """VeRA: two random matrices that all modules share, and two vectors of each.

    Args:
        adapter: The adapter.

    Returns:
        What it changes.

    Raises:
        UnreadableModelError: If the random matrices were not saved with it.
    """
    found, rest = _parts(adapter)
    shared_a, shared_b = rest.pop("vera_A", None), rest.pop("vera_B", None)
    if shared_a is None or shared_b is None or len(shared_a.shape) != 2 or len(shared_b.shape) != 2:
        adapter.refuse("its random matrices were not saved with it (VeRA without save_projection)")
    out = Changes(whole=rest)
    for module, parts in found.items():
        d, b = parts.get("vera_lambda_d"), parts.get("vera_lambda_b")
        if d is None or b is None or (d.size,) != shared_a.shape[:1] or (d.size,) != shared_b.shape[1:]:
            adapter.refuse(f"the adapter of '{module}' lacks a half, or its halves do not fit", "save it again")
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
        adapter.refuse(f"its random matrices are too small for '{name}'")
    update = Update(
        adapter, module, functools.cache(lambda: right[0].array()[:, :inputs] * right[1].array()[:, None]),
        functools.cache(lambda: left[0].array()[:outputs] * left[1].array()[:, None]),
        (right[1].size, inputs, outputs), 1.0,
    )  # fmt: skip
    return update.apply(name, base)


def _started(adapter: Adapter) -> str:
    """How the base was split at the start, refusing what cannot be computed again."""
    for option, called in UNREAD.items():
        if adapter.config.get(option):
            adapter.refuse(f"{called} is not read")
    for option, why in UNMERGED.items():
        if adapter.config.get(option):
            adapter.refuse(f"{why}, so that it has no merged form", "give the base instead")
    how = str(adapter.config.get("init_lora_weights") or "").lower()
    if how.startswith(LOST):
        adapter.refuse(
            f"its base was changed at the start of training (init_lora_weights='{how[:40]}') in a way that its files "
            "do not tell",
            "save it with PEFT's path_initial_model_for_weight_conversion, or merge the trained model and give that",
        )
    return SPLIT.get(how, "")


def _parts(adapter: Adapter) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, t in adapter.tensors.items():
        match = PART.match(name)
        if match:
            found.setdefault(match["module"], {})[match["kind"] + (match["bias"] or "")] = t
        else:
            rest[name] = t
    return found, rest


def _joined(a: Tensor, b: Tensor) -> bool:
    matrices = len(a.shape) > 1 and len(b.shape) > 1 and a.is_float and b.is_float
    return matrices and 0 < a.shape[0] == b.shape[1] <= MAX_RANK and a.size > 0 and b.size > 0


def _factor(t: Tensor, shape: tuple[int, int], middle: Tensor | None = None) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        values = t.array().reshape(shape)
        return values if middle is None else values * middle.array().reshape(-1, 1)

    return make


def _scale(adapter: Adapter, module: str, rank: int, parts: Mapping[str, Tensor]) -> float:
    alpha = adapter.pattern("alpha_pattern", module, adapter.config.get("lora_alpha", 8))
    adaptive = "lora_E" in parts
    declared = rank if adaptive else adapter.pattern("rank_pattern", module, adapter.config.get("r", rank))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or declared != rank:
        adapter.refuse(f"'{module}' has rank {rank}, its config says {declared!r}, alpha {alpha!r}", "save it again")
    if adaptive:
        return (alpha if alpha > 0 else float(rank)) / (rank + 1e-5)
    return alpha / math.sqrt(rank) if adapter.config.get("use_rslora") else alpha / rank


def _with_bias(adapter: Adapter, bias: Tensor, scale: float, name: str, base: Tensor) -> Tensor:
    if bias.shape != base.shape or not base.is_float:
        adapter.refuse(f"the bias of '{name}' ({list(bias.shape)}) does not fit its base's {list(base.shape)}")
    return remade(name, base, lambda i, j: base.rows(i, j) + bias.rows(i, j) * np.float32(scale))
