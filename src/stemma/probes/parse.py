"""From the words that name probes to the probes."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from stemma.errors import MisuseError, UnreadableProbesError
from stemma.probes.arrays import read_npy, read_npz
from stemma.probes.audio import read_sounds
from stemma.probes.files import SUFFIXES, found
from stemma.probes.images import read_images
from stemma.probes.out_of_distribution import unusual
from stemma.probes.parameters import Parameters, looks_like, parameters
from stemma.probes.probes import Probes
from stemma.probes.synthetic import cutmix, noise
from stemma.probes.text import read_texts
from stemma.types import InputSpec

SUBSET = ("n", "seed", "length")


def read_probes(
    text: str, like: InputSpec | None = None, data: Path | None = None, tokenizer: Path | None = None
) -> Probes:
    """The probes that a person means.

    Args:
        text: A folder of images, of `.wav` or of `.txt`; one such file; an `.npz` with `inputs` (or `images`) and
            optional `labels` and `baseline`; an `.npy`; `noise:n=256,seed=0,kind=uniform,shape=1x28x28`; or
            `cutmix:PATH,n=256,seed=0` or `unusual:PATH,n=4000,seed=0`. `#n=256,seed=0` behind it takes a random part,
            in the original order; `#length=64` says how long windows of text or sounds are.
        like: What the models take: it gives noise its shape and range, and images their size.
        data: Where paths are looked for that do not exist as they are; without, the folder that `STEMMA_DATA` names.
        tokenizer: Folder of a Hugging Face tokenizer, for texts.

    Returns:
        The probes, in an order that does not depend on the machine.

    Raises:
        MisuseError: If the words make no sense.
        UnreadableProbesError: If what they name cannot be read.
    """
    path = _path(text, data)
    base, _, suffix = (text, "", "") if path else text.rpartition("#") if _has_suffix(text) else (text, "", "")
    asked = parameters(suffix, SUBSET, f"'{base}#…'")
    if "#" in text and suffix and asked.n is None and "seed=" in suffix:
        raise MisuseError(f"'{text}' has a seed but no number of probes: write for example {base}#n=256,{suffix}")
    head, colon, rest = base.partition(":")
    if path is None and head == "noise" and (colon or base == "noise"):
        probes = noise(parameters(rest, ("n", "seed", "kind", "shape"), "noise"), like)
        _no_length(asked, base)
    elif path is None and head == "cutmix" and colon:
        probes = cutmix(*_mixed(rest, like, data, head))
        _no_length(asked, base)
    elif path is None and head == "unusual" and colon:
        probes = unusual(*_mixed(rest, like, data, head, asked.length, tokenizer))
    else:
        probes = _from_path(path or _path(base, data), base, like, asked, tokenizer, data)
    return _noted(probes if asked.n is None else _part(probes, asked), like)


def _has_suffix(text: str) -> bool:
    base, _, suffix = text.rpartition("#")
    return bool(base) and looks_like(suffix)


def _path(text: str, data: Path | None) -> Path | None:
    folder = data or (Path(os.environ["STEMMA_DATA"]) if os.environ.get("STEMMA_DATA") else None)
    try:
        candidates = [Path(text).expanduser(), *([] if folder is None else [folder / text])]
        return next((p for p in candidates if text and p.exists()), None)
    except (OSError, ValueError, RuntimeError):  # too long, a null character, an unknown user
        return None


def _from_path(
    path: Path | None, text: str, like: InputSpec | None, asked: Parameters, tokenizer: Path | None, data: Path | None
) -> Probes:
    if path is None:
        at = data or os.environ.get("STEMMA_DATA")
        raise UnreadableProbesError(
            f"there are no probes at '{text}'{f', nor below {at}' if at else ''}: give a folder of images or sounds, a "
            ".txt, an .npz, or noise:n=256,seed=0"
        )
    suffix = path.suffix.lower()
    if not path.is_dir() and suffix in (".npz", ".npy"):
        _no_length(asked, text)
        return (read_npz if suffix == ".npz" else read_npy)(path, like)
    if not path.is_dir() and not any(suffix in endings for endings in SUFFIXES.values()):
        raise UnreadableProbesError(
            f"'{text}' holds no probes that are known: give a folder of images or sounds, or a file ending with "
            f".npz, .npy, {', '.join(e for endings in SUFFIXES.values() for e in endings)}"
        )
    files = found(path, None if like is None or path.is_file() else like.kind)
    if files.kind == "image":
        _no_length(asked, text)
        return read_images(files, like, text)
    if files.kind == "audio":
        return read_sounds(files, like, text, asked.length)
    return read_texts(files, like, text, asked.length, tokenizer, lines=not path.is_dir())


def _mixed(
    rest: str,
    like: InputSpec | None,
    data: Path | None,
    what: str,
    length: int | None = None,
    tokenizer: Path | None = None,
) -> tuple[Probes, Parameters]:
    """What other probes are made of, and how: a path and parameters behind it."""
    pieces = rest.split(",")
    first = len(pieces)
    while first > 1 and looks_like(pieces[first - 1]):  # a path may hold commas too
        first -= 1
    where = ",".join(pieces[:first])
    asked = parameters(",".join(pieces[first:]), ("n", "seed"), what)
    return _from_path(_path(where, data), where, like, Parameters(length=length), tokenizer, data), asked


def _no_length(asked: Parameters, text: str) -> None:
    if asked.length is not None:
        raise MisuseError(f"length is for texts and sounds, but '{text}' is neither: leave it out")


def _part(probes: Probes, asked: Parameters) -> Probes:
    n, count = asked.n or 0, len(probes)
    if n > count:
        raise MisuseError(f"{n} probes were asked for, but {probes.source} has only {count}")
    rows = np.sort(np.random.default_rng(asked.seed).permutation(count)[:n])
    return replace(probes.take(rows), source=f"{probes.source}, {n} of {count} with seed {asked.seed}")


def _noted(probes: Probes, like: InputSpec | None) -> Probes:
    notes = [f"{probes.repeated} of them repeated"] if probes.repeated else []
    if like is not None and like.kind != "tokens" and probes.kind != "tokens" and like.low < like.high < np.inf:
        low, high, range_ = float(probes.inputs.min()), float(probes.inputs.max()), like.high - like.low
        if low < like.low - range_ or high > like.high + range_:
            notes.append(f"values from {low:.4g} to {high:.4g} where the model takes {like.low:.4g} to {like.high:.4g}")
    return replace(probes, source=f"{probes.source} ({', '.join(notes)})") if notes else probes
