"""Model-parallel checkpoints: every rank holds a slice of most tensors, and the slices are put together again.

Which axis a tensor was sliced along is known for Meta's Llama layout (its own names and Hugging Face's): what makes
new units (queries, keys, values, gates, the output head) along the first axis, what reads them along the second. An
embedding was sliced along its tokens (Llama 3) or its width (Llama 1 and 2): the width of the norms says which.

Source: the parallel layers of Megatron-LM (arXiv:1909.08053), as Meta's published checkpoints use them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from stemma.errors import NotAModelError, UnreadableModelError
from stemma.models.assemble import read_file
from stemma.models.formats.base import Contents
from stemma.models.formats.layouts import BesideStorage, JoinedStorage
from stemma.models.model import ITEMSIZE, Tensor

_RANKS = (
    re.compile(r"^(?P<stem>consolidated)\.(?P<i>\d{2,5})\.(?P<ending>pth|pt|safetensors)$"),
    re.compile(r"^(?P<stem>mp_rank)_(?P<i>\d{2,5})(?P<ending>_model_states\.pt|\.pt|\.pth)?$"),
)
_ROWS = re.compile(r"(^|\.)(wq|wk|wv|w1|w3|output|[qkv]_proj|gate_proj|up_proj|lm_head)\.weight$")
_COLUMNS = re.compile(r"(^|\.)(wo|w2|o_proj|down_proj)\.weight$")
_TOKENS = re.compile(r"(^|\.)(tok_embeddings|embed_tokens)\.weight$")
_NORM = re.compile(r"norm[^.]*\.weight$")


def place(name: str) -> tuple[str, int] | None:
    """Which rank a file's name says it is.

    Args:
        name: Of the file.

    Returns:
        What all ranks' names share, and the number; None where the name is none of a rank.
    """
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
    numbers = [place(n) for n in names]
    lacking = [i for i in range(len(names)) if numbers[i] is None or numbers[i][1] != i]  # ty: ignore
    if lacking:
        raise UnreadableModelError(
            f"{folder} lacks rank {lacking[0]} of a model-parallel checkpoint ({names[-1]} is there)"
        )
    if any((folder / n).is_dir() for n in names):
        raise NotAModelError(
            f"{folder} holds {len(names)} ranks of a Megatron checkpoint: join them with the program that wrote them "
            "(Megatron's tools/checkpoint/convert.py), and give the result"
        )
    parts = [read_file(folder / n) for n in names]
    ranks = [{t.name: t for t in p.parts.get("", ())} for p in parts]
    if any(r.keys() != ranks[0].keys() for r in ranks):
        raise UnreadableModelError(f"{folder}: its {len(names)} files do not hold the same tensors, as ranks would")
    width = _width(ranks[0])
    joined = tuple(_joined(folder, [r[n] for r in ranks], width) for n in ranks[0])
    note = f"{len(names)} model-parallel ranks were put together"
    return Contents({"": joined}, parts[0].metadata, (note, *parts[0].notes))


def _width(tensors: Mapping[str, Tensor]) -> int:
    found = {t.shape[0] for n, t in tensors.items() if _NORM.search(n) and len(t.shape) == 1}
    return max(found, default=0)


def _joined(folder: Path, slices: list[Tensor], width: int) -> Tensor:
    first = slices[0]
    if any(t.shape != first.shape or t.dtype != first.dtype for t in slices):
        raise UnreadableModelError(f"{folder}: the ranks hold '{first.name}' in several shapes or dtypes")
    if len(first.shape) < 2:
        return first  # norms and the like lie whole in every rank
    axis = _axis(first, len(slices), width)
    if axis is None:
        raise NotAModelError(
            f"{folder} holds {len(slices)} ranks of a model-parallel checkpoint whose layout is not known "
            f"(how is '{first.name}' cut?): join them with the program that wrote them, and give the result"
        )
    shape = tuple(n * len(slices) if i == axis else n for i, n in enumerate(first.shape))
    if axis == 0:
        return Tensor(first.name, first.dtype, shape, JoinedStorage(tuple((t.storage, t.nbytes) for t in slices)))
    row = ITEMSIZE[first.dtype] * first.shape[1]
    return Tensor(first.name, first.dtype, shape, BesideStorage(tuple((t.storage, row) for t in slices)))


def _axis(tensor: Tensor, ranks: int, width: int) -> int | None:
    if len(tensor.shape) != 2 or not tensor.size:
        return None
    rows, columns = tensor.shape
    if _TOKENS.search(tensor.name):
        return 0 if columns == width else 1 if columns * ranks == width else None
    if _ROWS.search(tensor.name):
        return 0 if columns == width else None
    return 1 if _COLUMNS.search(tensor.name) and rows == width else None
