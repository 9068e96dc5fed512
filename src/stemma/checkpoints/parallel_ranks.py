"""Model-parallel (tensor-parallel) checkpoints: each rank holds a slice of most tensors, which are concatenated here.

The split axis is known for Meta's Llama layout (own and Hugging Face names) and for Megatron's: column-parallel layers
along the first axis, row-parallel layers along the second. Gate and up projections in one Megatron tensor are halves
of each rank's slice. An embedding is split along its tokens or its width, which the width of the norms decides.
Tensors without a rule must be equal in all ranks.

Source: the parallel layers of Megatron-LM (arXiv:1909.08053), as published checkpoints use them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from stemma.checkpoints.assemble import read_file
from stemma.checkpoints.formats.base import Contents
from stemma.checkpoints.formats.views import ColumnConcatStorage, ConcatStorage, OffsetStorage
from stemma.checkpoints.tensor import ITEMSIZE, Tensor
from stemma.errors import NotAModelError, UnreadableModelError

_RANKS = (
    re.compile(r"^(?P<stem>consolidated)\.(?P<i>\d{2,5})\.(?P<ending>pth|pt|safetensors)$"),
    re.compile(r"^(?P<stem>mp_rank)_(?P<i>\d{2,5})(?P<ending>_model_states\.pt|\.pt|\.pth)?$"),
)
_STAGE = re.compile(r"^mp_rank_(?P<i>\d{2})_(?P<stage>\d{3})(_\d{3})?$")
"""Rank folders of pipeline or expert parallelism, which hold only some of the layers or experts."""

_ROW_PARALLEL = re.compile(
    r"(^|\.)(wq|wk|wv|w1|w3|output|[qkv]_proj|gate_proj|up_proj|lm_head|query_key_value|linear_qkv|linear_q|linear_kv|"
    r"dense_h_to_4h|linear_fc1|output_layer|final_linear)\.(weight|bias)$"
)
_COLUMN_PARALLEL = re.compile(
    r"(^|\.)(wo|w2|o_proj|down_proj|linear_proj|dense_4h_to_h|linear_fc2|(self_|inter_)?attention\.dense)\.weight$"
)
_TOKENS = re.compile(r"(^|\.)(tok_embeddings|embed_tokens|word_embeddings)\.weight$")
_NORM = re.compile(r"(norm[^.]*\.|layer_norm_)weight$")
_GATED = {"linear_fc1": "linear_fc2", "dense_h_to_4h": "dense_4h_to_h"}
"""Layers that may hold gate and up projections in one tensor, and the layer that follows."""

_RANK_FILES = ("model_optim_rng.pt", "model_rng.pt", "model_states.pt")
"""Weight files in a folder of one of Megatron's ranks."""


def rank_of(name: str) -> tuple[str, int] | None:
    """The name pattern that all ranks share and the rank number in a file's name; None if it is not a rank."""
    if (stage := _STAGE.match(name)) is not None:
        return "mp_rank of a stage", 1000 * int(stage["i"]) + int(stage["stage"])
    for pattern in _RANKS:
        match = pattern.match(name)
        if match:
            return match["stem"] + (match["ending"] or ""), int(match["i"])
    return None


def find(folder: Path) -> tuple[str, ...]:
    """File names of a model-parallel checkpoint by rank; empty if there are fewer than two."""
    found: dict[str, dict[int, str]] = {}
    for path in folder.iterdir():
        rank = rank_of(path.name)
        if rank is not None:
            found.setdefault(rank[0], {})[rank[1]] = path.name
    most = max(found.values(), key=len, default={})
    return tuple(most[i] for i in sorted(most)) if len(most) > 1 else ()


def read(folder: Path, names: Sequence[str]) -> Contents:
    """Concatenate the ranks of a model-parallel checkpoint."""
    if any(_STAGE.match(n) for n in names):
        raise NotAModelError(
            f"{folder} holds {len(names)} ranks of a Megatron checkpoint with pipeline stages. Merge them with "
            "Megatron's tools/checkpoint/convert.py (target sizes 1) and use the result"
        )
    numbers = [rank_of(n) for n in names]
    lacking = [i for i in range(len(names)) if numbers[i] is None or numbers[i][1] != i]  # ty: ignore
    if lacking:
        raise UnreadableModelError(
            f"{folder}: rank {lacking[0]} of a model-parallel checkpoint is missing, but {names[-1]} exists. Copy all "
            "ranks"
        )
    parts = [read_file(_file(folder / n)) for n in names]
    ranks = [{t.name: t for t in p.parts.get("", ())} for p in parts]
    if any(r.keys() != ranks[0].keys() for r in ranks):
        raise UnreadableModelError(f"{folder}: its {len(names)} rank files do not contain the same tensors")
    width = _width(ranks[0])
    joined = {n: _concatenated(folder, [r[n] for r in ranks], width, gated=_is_gated(n, ranks[0])) for n in ranks[0]}
    if all(t.shape == ranks[0][n].shape for n, t in joined.items()):
        raise NotAModelError(f"{folder} holds {len(names)} files with the same tensors. Use the path of one of them")
    note = f"{len(names)} model-parallel ranks were merged"
    return Contents({"": tuple(joined.values())}, parts[0].metadata, (note, *parts[0].notes))


def _file(path: Path) -> Path:
    """The weights of one rank: a file, or the file in its folder."""
    return next((path / n for n in _RANK_FILES if (path / n).is_file()), path) if path.is_dir() else path


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


def _concatenated(folder: Path, slices: list[Tensor], width: int, *, gated: bool) -> Tensor:
    first = slices[0]
    if any(t.shape != first.shape or t.dtype != first.dtype for t in slices):
        raise UnreadableModelError(f"{folder}: the ranks hold '{first.name}' in several shapes or dtypes")
    axis = _axis(first, len(slices), width)
    if axis is None and all(_equal_bytes(first, t) for t in slices[1:]):
        return first  # norms are replicated in every rank
    if axis is None:
        raise NotAModelError(
            f"{folder} holds {len(slices)} model-parallel ranks of unknown layout (split axis of '{first.name}'). "
            "Merge them with the program that wrote them (Megatron: tools/checkpoint/convert.py) and use the result"
        )
    shape = tuple(n * len(slices) if i == axis else n for i, n in enumerate(first.shape))
    if gated:
        half = first.nbytes // 2
        halves = tuple((OffsetStorage(t.storage, start), half) for start in (0, half) for t in slices)
        return Tensor(first.name, first.dtype, shape, ConcatStorage(halves))
    if axis == 0:
        return Tensor(first.name, first.dtype, shape, ConcatStorage(tuple((t.storage, t.nbytes) for t in slices)))
    row = ITEMSIZE[first.dtype] * first.shape[1]
    return Tensor(first.name, first.dtype, shape, ColumnConcatStorage(tuple((t.storage, row) for t in slices)))


def _equal_bytes(a: Tensor, b: Tensor) -> bool:
    return all(bytes(x) == bytes(y) for x, y in zip(a.chunks(), b.chunks(), strict=True))


def _axis(tensor: Tensor, ranks: int, width: int) -> int | None:
    """The axis along which a tensor was split, from its name and the width of the network."""
    if len(tensor.shape) not in (1, 2) or not tensor.size:
        return None
    rows, columns = (*tensor.shape, width)[:2]  # a bias is split like the rows of its matrix
    if _TOKENS.search(tensor.name):
        return 0 if columns == width else 1 if columns * ranks == width else None
    if _ROW_PARALLEL.search(tensor.name):
        return 0 if columns == width else None
    return 1 if len(tensor.shape) == 2 and _COLUMN_PARALLEL.search(tensor.name) and rows == width else None
