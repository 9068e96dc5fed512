"""Canonical names: what a checkpoint's wrappers, prefixes and tied tensors are reduced to before anything is compared.

The same weights must have the same digest whatever wrote them, so everything here depends on names, shapes and bytes
only, never on what a format can express:

- nested wrappers (`{"state_dict": {…}}`) are removed where a format has nesting; a flat name such as
  `model.norm.weight` is left alone, because Hugging Face names begin like that;
- one common prefix that a training framework adds (`module.`, `_orig_mod.`) is removed;
- of tied tensors one name stays. Two names are tied when dtype, shape and bytes are equal, the tensor holds at least
  `MIN_TIED` real numbers that are not all equal, and the names differ in more than their numbers. So a file that
  stores the tie once under two names, a file that stores the bytes twice, and one that dropped the second name agree;
  a layer that was duplicated (`layers.3.…`, `layers.4.…`) is a difference and stays. The first sorted name stays,
  except that an output head gives way to the embedding it is tied to, which is what Hugging Face files keep.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from stemma.checkpoints.tensor import Tensor, decode

PREFIXES = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.", "state_dict.", "model_state_dict.")
"""Prefixes that training frameworks and containers put before every name of a network."""

WRAPPERS = (
    "state_dict", "model_state_dict", "model_state", "model", "params", "net", "network", "weights", "module",
    "model_weights", "target", "net_state_dict", "state",
)  # fmt: skip
"""Keys under which a checkpoint keeps the network, best first."""

EMA = (
    "ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "params_ema", "model_ema_state_dict",
    "ema_params", "model_state_dict_ema", "ema_model_state_dict",
)  # fmt: skip
"""Keys under which a checkpoint keeps averaged weights."""

COUNTS = frozenset({"num_updates", "decay"})
"""What an average counts beside its weights."""

KEPT = ("batch_stats", "buffers")
"""Keys beside a network that are part of it."""

TRAINING = re.compile(
    r"(optim|scheduler|scaler|rng|callback|hyper_parameters|hparams|opt_state|optimizer|grad_|_step$|loops$|amp$|args$)"
)
"""Keys of training state: never part of the network."""

MIN_TIED = 16
_HEADS = re.compile(r"(^|\.)(lm_head|embed_out|output_projection|decoder|output|proj_out)\.(weight|bias)$")
_DIGITS = re.compile(r"\d+")

OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|output_projection|proj_out)\.weight$")
"""Output heads over tokens that may be tied to an embedding."""

EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|shared|embed_in|tok_embeddings|token_embedding|tokens_embed)\.weight$"
)
"""Embeddings of tokens."""

Leaf = Tensor
Tree = Mapping[str, "Tree | Leaf"]


def unwrap(
    tree: Tree, separator: str = ".", wrappers: Sequence[str] = WRAPPERS
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Find the network in a nested checkpoint.

    A wrapper is removed where nothing beside it is a network's part: only averaged weights, training state and single
    tensors (an epoch, a loss). Otherwise all parts are kept, under their full names.

    Args:
        tree: Nested mappings whose leaves are tensors; anything else was left out before.
        separator: What joins nested keys in a name.
        wrappers: Keys under which the format keeps a network, best first.

    Returns:
        Flat tensors by part (`""` and, where there are averaged weights, `"ema"`), and notes on what was left out.
    """
    notes: list[str] = []
    ema: dict[str, Tensor] = {}
    unwrapped = False
    while True:
        nested = {k: v for k, v in tree.items() if isinstance(v, Mapping) and _holds(v)}
        parts = [k for k in nested if k not in EMA and k not in KEPT and not TRAINING.search(k)]
        main = next((k for k in wrappers if k in parts), None)
        averaged = next((k for k in EMA if k in nested), None)
        if averaged and not ema and len(parts) <= 1:
            ema = unwrap(nested[averaged], separator, wrappers)[0][""]
            tree = {k: v for k, v in tree.items() if k != averaged}
        if main is None or len(parts) > 1:
            break
        left_out = sorted(
            k for k, v in tree.items() if k != main and k not in KEPT and (k in nested or isinstance(v, Tensor))
        )
        if left_out:
            notes.append(f"left out beside '{main}': {', '.join(left_out[:8])}{' …' if len(left_out) > 8 else ''}")
        unwrapped = True
        inner = nested[main]
        tree = {**{k: v for k, v in nested.items() if k in KEPT and k not in inner}, **inner}
    # inside a network a part may be called anything
    training = sorted(k for k in nested if TRAINING.search(k) and k in tree) if not unwrapped else []
    if training and len(training) < len(nested):
        notes.append(f"left out: {', '.join(training[:8])}")
        tree = {k: v for k, v in tree.items() if k not in training}
    flat = dict(_flatten(tree, separator))
    if not flat and ema:
        return {"": ema}, notes
    return ({"": flat, "ema": ema} if ema else {"": flat}), notes


def _holds(tree: Tree | Leaf) -> bool:
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, Tensor):
            return True
        stack.extend(node.values())
    return False


def _flatten(tree: Tree, separator: str) -> Iterable[tuple[str, Tensor]]:
    stack: list[tuple[str, Tree | Leaf]] = [("", tree)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, Tensor):
            yield path, node
            continue
        stack.extend((f"{path}{separator}{k}" if path else str(k), v) for k, v in node.items())


def flat_ema(names: Sequence[str]) -> dict[str, str]:
    """Averaged weights among flat names: each of them has its twin in the main network.

    Some trainers leave the dots out of an averaged tensor's name, and the first word with them
    (`model_ema.diffusion_modelinput_blocks00weight` beside `model.diffusion_model.input_blocks.0.0.weight`).

    Args:
        names: Of all tensors of a file.

    Returns:
        What each averaged tensor is called in the main network, by its stored name; empty where there are none.
    """
    for key in EMA:
        prefix = f"{key}."
        averaged = [n for n in names if n.startswith(prefix)]
        if not averaged:
            continue
        others = [n for n in names if not n.startswith(prefix)]
        main = strip_prefix(others)
        words = {n: n.removeprefix(prefix) for n in averaged}
        if set(words.values()) - COUNTS <= {*main, *main.values()}:
            return words
        undotted = _undotted(others)
        if all(w in undotted for w in words.values() if w not in COUNTS):
            return {n: undotted.get(w, w) for n, w in words.items()}
    return {}


def _undotted(names: Sequence[str]) -> dict[str, str]:
    """Names by what is left of them without dots, and without their first word; those that would be one are not there.

    Returns:
        Full name by short name.
    """
    short: dict[str, set[str]] = {}
    for n in names:
        for form in {n.replace(".", ""), n.partition(".")[2].replace(".", "")}:
            short.setdefault(form, set()).add(n)
    return {form: next(iter(found)) for form, found in short.items() if len(found) == 1 and form}


def strip_prefix(names: Sequence[str]) -> dict[str, str]:
    """Remove the prefixes that every name shares and that a framework is known to add.

    Returns:
        Canonical name by stored name.
    """
    cut = 0
    while names:
        first = names[0][cut:]
        prefix = next((p for p in PREFIXES if first.startswith(p)), None)
        if prefix is None or any(not n.startswith(prefix, cut) or len(n) == cut + len(prefix) for n in names):
            break
        cut += len(prefix)
    return {n: n[cut:] for n in names}


def tied(groups: Iterable[Sequence[str]], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Which names are second names of a tied tensor (see the module's text for the rule).

    Cost: the first bytes of each tensor that occurs twice; all of it only where it is constant.

    Args:
        groups: Names whose tensors have equal dtype, shape and bytes.
        tensors: The tensors.

    Returns:
        The name that stays, by the name that goes.
    """
    out: dict[str, str] = {}
    for group in groups:
        if len(group) < 2 or not _distinctive(tensors[group[0]]):
            continue
        first, *others = sorted(group, key=lambda n: (bool(_HEADS.search(n)), n))
        pattern = _DIGITS.sub("", first)
        out.update({name: first for name in others if _DIGITS.sub("", name) != pattern})
    return out


def _distinctive(tensor: Tensor) -> bool:
    if not tensor.is_float or tensor.size < MIN_TIED:
        return False
    first: np.ndarray | None = None
    for part in tensor.chunks():
        values = decode(np.frombuffer(part, np.uint8), tensor.dtype)
        first = values[:1].copy() if first is None else first
        if not np.array_equal(values, np.broadcast_to(first, values.shape), equal_nan=True):
            return True
    return False


def rename(tensors: Iterable[Tensor], names: Callable[[str], str]) -> list[Tensor]:
    """The same tensors under other names.

    Returns:
        New values that share the storages.
    """
    return [t if names(t.name) == t.name else Tensor(names(t.name), t.dtype, t.shape, t.storage) for t in tensors]
