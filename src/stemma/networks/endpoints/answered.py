"""A model of which only answers are known: to these inputs, and to no others."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import UnreadableModelError
from stemma.networks.endpoints.kept_answers import input_key
from stemma.types import Digest
from stemma.types.network import Network

if TYPE_CHECKING:
    import torch

MOST_BYTES = 4 << 30
"""Largest array of recorded answers."""


def answered_model(
    name: str, source: str, inputs: np.ndarray, outputs: np.ndarray, notes: tuple[str, ...] = ()
) -> Model:
    """A black box with known answers.

    Args:
        name: Its name.
        source: Where the answers come from.
        inputs: Raw inputs `[n, …]`.
        outputs: Its answers `[n, …]`.
        notes: What a person should know.

    Returns:
        A model without weights; it is `blackbox:NAME`, never kept, and has no gradients.
    """
    answers = {input_key(row): outputs[i] for i, row in enumerate(inputs)}

    def forward(x: "torch.Tensor") -> "torch.Tensor":
        import torch

        try:
            rows = [answers[input_key(row)] for row in x.detach().cpu().numpy()]
        except KeyError:
            raise UnreadableModelError(
                f"{name} is known by its answers to these probes only, and this method asks other inputs"
            ) from None
        return torch.from_numpy(np.stack(rows))

    def build(model: Model) -> Network:
        return Network(model.name, Digest(f"blackbox:{model.name}"), None, forward, differentiable=False)

    return Model(name, source, {}, notes=notes, network_builder=build, black_box=True)


def read_recorded(path: Path, count: int, probes: Digest) -> np.ndarray:
    """Recorded answers from an `.npz`.

    Args:
        path: The file: `outputs` `[n, …]` or `labels` `[n]`, and `probes_digest` where it is known.
        count: Number of probes.
        probes: Their digest.

    Returns:
        The answers `[n, …]`.

    Raises:
        UnreadableModelError: If the file holds something else, or answers to other probes.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            held = list(file.files)
            key = next((k for k in ("outputs", "labels") if k in held), None)
            found: Any = None if key is None else _array(file, key, path)
            digest = str(file["probes_digest"]) if "probes_digest" in held else ""
    except UnreadableModelError:
        raise
    except Exception as error:  # a damaged archive raises many kinds
        why = " ".join(str(error).split())[:160]
        raise UnreadableModelError(f"{path} holds no recorded answers: it cannot be read as an .npz ({why})") from error
    if found is None:
        raise UnreadableModelError(f"{path} holds no recorded answers: an array 'outputs' or 'labels' is needed")
    if digest and digest != probes:
        raise UnreadableModelError(
            f"{path} holds answers to other probes than these ({digest[:17]}…, not {probes[:17]}…)"
        )
    if found.dtype.kind not in "iuf" or len(found) != count or found.ndim < (1 if key == "labels" else 2):
        raise UnreadableModelError(f"{path} holds {key} {found.dtype} {list(found.shape)}: one row of numbers for each "
                                   f"of {count:,} probes is needed")  # fmt: skip
    if key == "labels" and (found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0):
        raise UnreadableModelError(f"{path} holds labels that are no class numbers")
    if not np.isfinite(found).all():
        raise UnreadableModelError(f"{path} holds answers that are NaN or infinite")
    return found[:, None].astype(np.float64) if key == "labels" else found.astype(np.float32)


def _array(file: Any, key: str, path: Path) -> np.ndarray:
    member = next((m for m in file.zip.infolist() if m.filename in (key, f"{key}.npy")), None)
    if member is None or member.file_size > MOST_BYTES:
        raise UnreadableModelError(f"{path} holds an array '{key}' of more than {MOST_BYTES >> 30} GiB")
    found = np.asarray(file[key])
    if not found.ndim or not found.size:
        raise UnreadableModelError(f"{path} holds an empty array '{key}'")
    return found
