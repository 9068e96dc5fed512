"""Canonical tensor names: wrappers, prefixes and second names of tied tensors are removed before any comparison.

The same weights must have the same digest whatever wrote them, so everything here depends on names, shapes and bytes
only:

- nested wrappers (`{"state_dict": {…}}`) are removed; a flat name such as `model.norm.weight` stays, because Hugging
  Face names begin like that;
- a common prefix that a training framework adds (`module.`, `_orig_mod.`) is removed;
- of tied tensors one name stays. Two names are tied if dtype, shape and bytes are equal, the tensor has at least
  `MIN_TIED` real numbers that are not all equal, and the names differ in more than their numbers. So a tie stored as
  an alias, as duplicated bytes or with one name dropped gives the same result, and a duplicated layer
  (`layers.3.…`, `layers.4.…`) stays. The first sorted name stays, except that an output head gives way to its
  embedding, as in Hugging Face files.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from stemma.checkpoints import budget
from stemma.checkpoints.tensor import Tensor, decode

PREFIXES = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.", "state_dict.", "model_state_dict.")
"""Prefixes that training frameworks add to every name."""

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

EMA_COUNTERS = frozenset({"num_updates", "decay"})
"""Counters stored with averaged weights."""

NETWORK_KEYS = ("batch_stats", "buffers")
"""Keys next to a network that belong to it."""

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
    """The network in a nested checkpoint: flat tensors by part (`""` and `"ema"`), and notes on what was left out."""
    notes: list[str] = []
    ema: dict[str, Tensor] = {}
    unwrapped = False
    while True:
        nested = {k: v for k, v in tree.items() if isinstance(v, Mapping) and _has_tensors(v)}
        parts = [k for k in nested if k not in EMA and k not in NETWORK_KEYS and not TRAINING.search(k)]
        main = next((k for k in wrappers if k in parts), None)
        averaged = next((k for k in EMA if k in nested), None)
        if averaged and not ema and len(parts) <= 1:
            ema = unwrap(nested[averaged], separator, wrappers)[0][""]
            tree = {k: v for k, v in tree.items() if k != averaged}
        if main is None or len(parts) > 1:
            break
        left_out = sorted(
            k for k, v in tree.items() if k != main and k not in NETWORK_KEYS and (k in nested or isinstance(v, Tensor))
        )
        if left_out:
            names = ", ".join(left_out[:8]) + (" …" if len(left_out) > 8 else "")
            notes.append(f"only '{main}' was read, not {names}")
        unwrapped = True
        inner = nested[main]
        tree = {**{k: v for k, v in nested.items() if k in NETWORK_KEYS and k not in inner}, **inner}
    # inside a network names are arbitrary
    training = sorted(k for k in nested if TRAINING.search(k) and k in tree) if not unwrapped else []
    if training and len(training) < len(nested):
        notes.append(f"left out: {', '.join(training[:8])}")
        tree = {k: v for k, v in tree.items() if k not in training}
    flat = dict(_flatten(tree, separator))
    if not flat and ema:
        return {"": ema}, notes
    return ({"": flat, "ema": ema} if ema else {"": flat}), notes


def _has_tensors(tree: Tree | Leaf) -> bool:
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
            budget.current().text(len(path))
            yield path, node
            continue
        stack.extend((f"{path}{separator}{k}" if path else str(k), v) for k, v in node.items())


def flat_ema(names: Sequence[str]) -> dict[str, str]:
    """The name in the main network of each averaged (EMA) tensor, by its stored name; empty without EMA weights."""
    begins = {n.partition(".")[0] for n in names}
    for key in EMA:
        if key not in begins:
            continue
        prefix = f"{key}."
        averaged = [n for n in names if n.startswith(prefix)]
        if not averaged:
            continue
        others = [n for n in names if not n.startswith(prefix)]
        main = strip_prefix(others)
        words = {n: n.removeprefix(prefix) for n in averaged}
        if set(words.values()) - EMA_COUNTERS <= {*main, *main.values()}:
            return words
        undotted = _undotted(others)
        if all(w in undotted for w in words.values() if w not in EMA_COUNTERS):
            return {n: undotted.get(w, w) for n, w in words.items()}
    return {}


def _undotted(names: Sequence[str]) -> dict[str, str]:
    """Full names by their form without dots, and without their first word; ambiguous forms are left out."""
    short: dict[str, set[str]] = {}
    for n in names:
        for form in {n.replace(".", ""), n.partition(".")[2].replace(".", "")}:
            short.setdefault(form, set()).add(n)
    return {form: next(iter(found)) for form, found in short.items() if len(found) == 1 and form}


def strip_prefix(names: Sequence[str]) -> dict[str, str]:
    """Canonical name by stored name: prefixes that a framework adds and every name shares are removed."""
    cut = 0
    while names:
        first = names[0][cut:]
        prefix = next((p for p in PREFIXES if first.startswith(p)), None)
        if prefix is None or any(not n.startswith(prefix, cut) or len(n) == cut + len(prefix) for n in names):
            break
        cut += len(prefix)
    return {n: n[cut:] for n in names}


def tied_aliases(groups: Iterable[Sequence[str]], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The name that stays, by each second name of a tied tensor (rule in the module docstring)."""
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
    """The same tensors under other names; storages are shared."""
    return [t if names(t.name) == t.name else Tensor(names(t.name), t.dtype, t.shape, t.storage) for t in tensors]
