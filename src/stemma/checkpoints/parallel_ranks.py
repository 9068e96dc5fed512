"""Model-parallel checkpoints: every rank holds a slice of most tensors, and the slices are put together again.

Which axis a tensor was sliced along is known for Meta's Llama layout (its own names and Hugging Face's) and for
Megatron's: what makes new units (queries, keys, values, gates, the output head) along the first axis, what reads them
along the second. Gate and up that Megatron keeps in one tensor are halves of each rank's slice. An embedding was sliced
along its tokens or its width: the width of the norms says which. What no rule names must be the same in all ranks.

Source: the parallel layers of Megatron-LM (arXiv:1909.08053), as published checkpoints use them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from stemma.checkpoints.assemble import read_file
from stemma.checkpoints.formats.base import Contents
from stemma.checkpoints.formats.views import BesideStorage, JoinedStorage, PartStorage
from stemma.checkpoints.tensor import ITEMSIZE, Tensor
from stemma.errors import NotAModelError, UnreadableModelError

_RANKS = (
    re.compile(r"^(?P<stem>consolidated)\.(?P<i>\d{2,5})\.(?P<ending>pth|pt|safetensors)$"),
    re.compile(r"^(?P<stem>mp_rank)_(?P<i>\d{2,5})(?P<ending>_model_states\.pt|\.pt|\.pth)?$"),
)
_STAGE = re.compile(r"^mp_rank_(?P<i>\d{2})_(?P<stage>\d{3})(_\d{3})?$")
"""Folders of ranks that hold some of the layers, or some of the experts, only."""

_ROWS = re.compile(
    r"(^|\.)(wq|wk|wv|w1|w3|output|[qkv]_proj|gate_proj|up_proj|lm_head|query_key_value|linear_qkv|linear_q|linear_kv|"
    r"dense_h_to_4h|linear_fc1|output_layer|final_linear)\.(weight|bias)$"
)
_COLUMNS = re.compile(
    r"(^|\.)(wo|w2|o_proj|down_proj|linear_proj|dense_4h_to_h|linear_fc2|(self_|inter_)?attention\.dense)\.weight$"
)
_TOKENS = re.compile(r"(^|\.)(tok_embeddings|embed_tokens|word_embeddings)\.weight$")
_NORM = re.compile(r"(norm[^.]*\.|layer_norm_)weight$")
_GATED = {"linear_fc1": "linear_fc2", "dense_h_to_4h": "dense_4h_to_h"}
"""Layers that may hold gate and up in one tensor, and the layer that reads them."""

_INSIDE = ("model_optim_rng.pt", "model_rng.pt", "model_states.pt")
"""Files that hold the weights in a folder of one of Megatron's ranks."""


def place(name: str) -> tuple[str, int] | None:
    """Which rank a file's name says it is.

    Args:
        name: Of the file.

    Returns:
        What all ranks' names share, and the number; None where the name is none of a rank.
    """
    if (stage := _STAGE.match(name)) is not None:
        return "mp_rank of a stage", 1000 * int(stage["i"]) + int(stage["stage"])
    for pattern in _RANKS:
        match = pattern.match(name)
        if match:
            return match["stem"] + (match["ending"] or ""), int(match["i"])
    return None


def find(folder: Path) -> tuple[str, ...]:
    """The files of a model-parallel checkpoint in a folder.

    Args:
        folder: The folder.

    Returns:
        Their names, by rank; empty where there are fewer than two.
    """
    found: dict[str, dict[int, str]] = {}
    for path in folder.iterdir():
        rank = place(path.name)
        if rank is not None:
            found.setdefault(rank[0], {})[rank[1]] = path.name
    most = max(found.values(), key=len, default={})
    return tuple(most[i] for i in sorted(most)) if len(most) > 1 else ()


def read(folder: Path, names: Sequence[str]) -> Contents:
    """Put the ranks of a checkpoint together.

    Args:
        folder: Where they lie.
        names: As `find` returned them.

    Returns:
        The contents, with a note.

    Raises:
        UnreadableModelError: If a rank is missing, or ranks do not hold the same tensors.
        NotAModelError: If a tensor's axis is not known.
    """
    if any(_STAGE.match(n) for n in names):
        raise NotAModelError(
            f"{folder} holds {len(names)} ranks of several stages of a Megatron checkpoint: join them with "
            "Megatron's tools/checkpoint/convert.py (target sizes 1), and give the result"
        )
    numbers = [place(n) for n in names]
    lacking = [i for i in range(len(names)) if numbers[i] is None or numbers[i][1] != i]  # ty: ignore
    if lacking:
        raise UnreadableModelError(
            f"{folder} lacks rank {lacking[0]} of a model-parallel checkpoint ({names[-1]} is there)"
        )
    parts = [read_file(_file(folder / n)) for n in names]
    ranks = [{t.name: t for t in p.parts.get("", ())} for p in parts]
    if any(r.keys() != ranks[0].keys() for r in ranks):
        raise UnreadableModelError(f"{folder}: its {len(names)} files do not hold the same tensors, as ranks would")
    width = _width(ranks[0])
    joined = {n: _joined(folder, [r[n] for r in ranks], width, gated=_is_gated(n, ranks[0])) for n in ranks[0]}
    if all(t.shape == ranks[0][n].shape for n, t in joined.items()):
        raise NotAModelError(f"{folder} holds {len(names)} files with the same tensors: give one of them")
    note = f"{len(names)} model-parallel ranks were put together"
    return Contents({"": tuple(joined.values())}, parts[0].metadata, (note, *parts[0].notes))


def _file(path: Path) -> Path:
    """The weights of one rank: a file, or the file in its folder."""
    return next((path / n for n in _INSIDE if (path / n).is_file()), path) if path.is_dir() else path


def _width(tensors: Mapping[str, Tensor]) -> int:
    found = {t.shape[0] for n, t in tensors.items() if _NORM.search(n) and len(t.shape) == 1}
    return max(found, default=0)


def _is_gated(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a slice holds gate over up: it has twice as many rows as the next layer reads."""
    layer, word = name.rpartition(".")[0], name.rpartition(".")[0].rpartition(".")[2]
    if word not in _GATED:
        return False
    reads = tensors.get(f"{layer.removesuffix(word)}{_GATED[word]}.weight")
    return reads is not None and len(reads.shape) == 2 and tensors[name].shape[0] == 2 * reads.shape[1]


def _joined(folder: Path, slices: list[Tensor], width: int, *, gated: bool) -> Tensor:
    first = slices[0]
    if any(t.shape != first.shape or t.dtype != first.dtype for t in slices):
        raise UnreadableModelError(f"{folder}: the ranks hold '{first.name}' in several shapes or dtypes")
    axis = _axis(first, len(slices), width)
    if axis is None and all(_same(first, t) for t in slices[1:]):
        return first  # norms and the like lie whole in every rank
    if axis is None:
        raise NotAModelError(
            f"{folder} holds {len(slices)} ranks of a model-parallel checkpoint whose layout is not known "
            f"(how is '{first.name}' cut?): join them with the program that wrote them (of Megatron, "
            "tools/checkpoint/convert.py), and give the result"
        )
    shape = tuple(n * len(slices) if i == axis else n for i, n in enumerate(first.shape))
    if gated:
        half = first.nbytes // 2
        halves = tuple((PartStorage(t.storage, start), half) for start in (0, half) for t in slices)
        return Tensor(first.name, first.dtype, shape, JoinedStorage(halves))
    if axis == 0:
        return Tensor(first.name, first.dtype, shape, JoinedStorage(tuple((t.storage, t.nbytes) for t in slices)))
    row = ITEMSIZE[first.dtype] * first.shape[1]
    return Tensor(first.name, first.dtype, shape, BesideStorage(tuple((t.storage, row) for t in slices)))


def _same(one: Tensor, other: Tensor) -> bool:
    return all(bytes(x) == bytes(y) for x, y in zip(one.chunks(), other.chunks(), strict=True))


def _axis(tensor: Tensor, ranks: int, width: int) -> int | None:
    """The axis along which a tensor was cut, as far as its name and the width of the network tell."""
    if len(tensor.shape) not in (1, 2) or not tensor.size:
        return None
    rows, columns = (*tensor.shape, width)[:2]  # a bias is cut as the rows of its matrix are
    if _TOKENS.search(tensor.name):
        return 0 if columns == width else 1 if columns * ranks == width else None
    if _ROWS.search(tensor.name):
        return 0 if columns == width else None
    return 1 if len(tensor.shape) == 2 and _COLUMNS.search(tensor.name) and rows == width else None
