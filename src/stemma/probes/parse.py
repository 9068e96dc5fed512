"""Read probes from a description such as `noise:n=256,seed=0` or a path."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from stemma.errors import MisuseError, UnreadableProbesError
from stemma.probes.arrays import read_npy, read_npz
from stemma.probes.audio import read_sounds
from stemma.probes.files import SUFFIXES, find_files
from stemma.probes.images import read_images
from stemma.probes.out_of_distribution import blend_and_shuffle
from stemma.probes.parameters import Parameters, is_parameter_list, parse_parameters
from stemma.probes.probes import Probes
from stemma.probes.synthetic import cutmix, noise
from stemma.probes.text import read_texts
from stemma.types import InputSpec

SUBSET_PARAMETERS = ("n", "seed", "length")


def read_probes(
    text: str, input_spec: InputSpec | None = None, data: Path | None = None, tokenizer: Path | None = None
) -> Probes:
    """Read probes from a description.

    Args:
        text: A folder of images, of `.wav` or of `.txt`; one such file; an `.npz` with `inputs` (or `images`) and
            optional `labels` and `baseline`; an `.npy`; `noise:n=256,seed=0,kind=uniform,shape=1x28x28`; or
            `cutmix:PATH,n=256,seed=0` or `unusual:PATH,n=4000,seed=0`. `#n=256,seed=0` after it takes a random subset,
            in the original order; `#length=64` sets the length of windows of text or of sounds.
        input_spec: Input of the models: shape and range of noise, size of images.
        data: Folder for relative paths that do not exist; by default the one in `STEMMA_DATA`.
        tokenizer: Folder of a Hugging Face tokenizer, for texts.

    Returns:
        The probes, in an order that does not depend on the machine.

    Raises:
        MisuseError: If the description is invalid.
        UnreadableProbesError: If the files cannot be read.
    """
    path = _existing_path(text, data)
    base, _, suffix = (text, "", "") if path else text.rpartition("#") if _has_suffix(text) else (text, "", "")
    requested = parse_parameters(suffix, SUBSET_PARAMETERS, f"'{base}#…'")
    if "#" in text and suffix and requested.n is None and "seed=" in suffix:
        raise MisuseError(f"'{text}' has a seed but no number of probes. Use for example {base}#n=256,{suffix}")
    head, colon, arguments = base.partition(":")
    if path is None and head == "noise" and (colon or base == "noise"):
        probes = noise(parse_parameters(arguments, ("n", "seed", "kind", "shape"), "noise"), input_spec)
        _refuse_length(requested, base)
    elif path is None and head == "cutmix" and colon:
        probes = cutmix(*_base_probes(arguments, input_spec, data, head))
        _refuse_length(requested, base)
    elif path is None and head == "unusual" and colon:
        probes = blend_and_shuffle(*_base_probes(arguments, input_spec, data, head, requested.length, tokenizer))
    else:
        probes = _from_path(path or _existing_path(base, data), base, input_spec, requested, tokenizer, data)
    return _with_notes(probes if requested.n is None else _subset(probes, requested), input_spec)


def _has_suffix(text: str) -> bool:
    base, _, suffix = text.rpartition("#")
    return bool(base) and is_parameter_list(suffix)


def _existing_path(text: str, data: Path | None) -> Path | None:
    folder = data or (Path(os.environ["STEMMA_DATA"]) if os.environ.get("STEMMA_DATA") else None)
    try:
        candidates = [Path(text).expanduser(), *([] if folder is None else [folder / text])]
        return next((p for p in candidates if text and p.exists()), None)
    except (OSError, ValueError, RuntimeError):  # path too long, null character, or unknown user
        return None


def _from_path(
    path: Path | None,
    text: str,
    input_spec: InputSpec | None,
    requested: Parameters,
    tokenizer: Path | None,
    data: Path | None,
) -> Probes:
    if path is None:
        at = data or os.environ.get("STEMMA_DATA")
        raise UnreadableProbesError(
            f"there are no probes at '{text}'{f', nor below {at}' if at else ''}. Use a folder of images or sounds, a "
            ".txt, an .npz, or noise:n=256,seed=0"
        )
    suffix = path.suffix.lower()
    if not path.is_dir() and suffix in (".npz", ".npy"):
        _refuse_length(requested, text)
        return (read_npz if suffix == ".npz" else read_npy)(path, input_spec)
    if not path.is_dir() and not any(suffix in endings for endings in SUFFIXES.values()):
        raise UnreadableProbesError(
            f"'{text}' is not a supported kind of probes. Use a folder of images or sounds, or a file ending with "
            f".npz, .npy, {', '.join(e for endings in SUFFIXES.values() for e in endings)}"
        )
    files = find_files(path, None if input_spec is None or path.is_file() else input_spec.kind)
    if files.kind == "image":
        _refuse_length(requested, text)
        return read_images(files, input_spec, text)
    if files.kind == "audio":
        return read_sounds(files, input_spec, text, requested.length)
    return read_texts(files, input_spec, text, requested.length, tokenizer, lines=not path.is_dir())


def _base_probes(
    arguments: str,
    input_spec: InputSpec | None,
    data: Path | None,
    what: str,
    length: int | None = None,
    tokenizer: Path | None = None,
) -> tuple[Probes, Parameters]:
    """The base probes and the parameters of `cutmix:` or `unusual:`, from a path and the parameters after it."""
    pieces = arguments.split(",")
    first = len(pieces)
    while first > 1 and is_parameter_list(pieces[first - 1]):  # a path may hold commas too
        first -= 1
    where = ",".join(pieces[:first])
    requested = parse_parameters(",".join(pieces[first:]), ("n", "seed"), what)
    return _from_path(
        _existing_path(where, data), where, input_spec, Parameters(length=length), tokenizer, data
    ), requested


def _refuse_length(requested: Parameters, text: str) -> None:
    if requested.length is not None:
        raise MisuseError(f"length applies to texts and sounds only, not to '{text}'. Remove it")


def _subset(probes: Probes, requested: Parameters) -> Probes:
    n, count = requested.n or 0, len(probes)
    if n > count:
        raise MisuseError(f"{n} probes were requested, but {probes.source} has only {count}")
    rows = np.sort(np.random.default_rng(requested.seed).permutation(count)[:n])
    return replace(probes.take(rows), source=f"{probes.source}, {n} of {count} with seed {requested.seed}")


def _with_notes(probes: Probes, input_spec: InputSpec | None) -> Probes:
    notes = [f"{probes.repeated} of them repeated"] if probes.repeated else []
    if (
        input_spec is not None
        and input_spec.kind != "tokens"
        and probes.kind != "tokens"
        and input_spec.low < input_spec.high < np.inf
    ):
        low, high, range_ = float(probes.inputs.min()), float(probes.inputs.max()), input_spec.high - input_spec.low
        if low < input_spec.low - range_ or high > input_spec.high + range_:
            notes.append(
                f"values from {low:.4g} to {high:.4g} where the model takes {input_spec.low:.4g} to "
                f"{input_spec.high:.4g}"
            )
    return replace(probes, source=f"{probes.source} ({', '.join(notes)})") if notes else probes
