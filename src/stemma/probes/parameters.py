"""Parameters in probe descriptions: `n=256,seed=0` after a colon or a hash."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from stemma.errors import MisuseError, UnreadableProbesError

MAX_BYTES = 4 << 30
"""Largest array of probes that is read or made."""

KINDS = ("uniform", "normal")


@dataclass(frozen=True)
class Parameters:
    """Number, selection and size of probes.

    Attributes:
        n: Number of probes; None for all, or for the default of the generator.
        seed: Seed of all random choices.
        kind: Distribution of noise.
        shape: Shape of one noise input.
        length: Tokens or audio samples of one probe.

    """

    n: int | None = None
    seed: int = 0
    kind: str = "uniform"
    shape: tuple[int, ...] | None = None
    length: int | None = None


def is_parameter_list(text: str) -> bool:
    """Whether the text consists of `name=value` pairs."""
    return bool(re.fullmatch(r"[a-z]+=[^,=/\\]*(,[a-z]+=[^,=/\\]*)*", text))


def parse_parameters(text: str, known: tuple[str, ...], where: str) -> Parameters:
    """Parse `name=value,name=value`; `known` are the allowed names, `where` is named in errors."""
    found: dict[str, str] = {}
    for pair in text.split(",") if text else ():
        name, equals, value = pair.partition("=")
        if not equals or name not in known:
            raise MisuseError(f"{where} has no parameter '{pair}'. Parameters: {', '.join(f'{k}=…' for k in known)}")
        if name in found:
            raise MisuseError(f"{where} has {name} twice: '{found[name]}' and '{value}'. Use it once")
        found[name] = value
    return _convert(found)


def check_size(what: str, shape: tuple[int, ...], itemsize: int = 4) -> None:
    """Raise before allocating memory if an array would be larger than `MAX_BYTES`."""
    size = prod(shape) * itemsize
    if size > MAX_BYTES:
        raise UnreadableProbesError(
            f"{what} would need {size / 2**30:.1f} GiB as an array {list(shape)}; the limit is {MAX_BYTES >> 30} GiB. "
            "Use fewer or smaller probes"
        )


def _convert(found: Mapping[str, str]) -> Parameters:
    values: dict[str, int | str | tuple[int, ...]] = {}
    for name, value in found.items():
        if name == "kind":
            if value not in KINDS:
                raise MisuseError(f"unknown kind of noise '{value}'. Kinds: {', '.join(KINDS)}")
            values[name] = value
        elif name == "shape":
            values[name] = tuple(_number("an axis of shape", axis, 1) for axis in value.split("x"))
        else:
            values[name] = _number(name, value, 0 if name == "seed" else 1)
    return Parameters(**values)  # ty: ignore[invalid-argument-type]


def _number(name: str, text: str, least: int) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
        example = " (for example shape=3x32x32)" if "shape" in name else ""
        raise MisuseError(f"{name} must be an integer of at least {least}, not '{text}'{example}")
    return int(text)
