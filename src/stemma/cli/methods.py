"""Which method and which measure a person means, with the parameters given as `name=value`."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stemma.deprecation import current_names
from stemma.errors import MisuseError

if TYPE_CHECKING:
    from stemma.fingerprints.base import AbstractFingerprinter
    from stemma.measures.base import AbstractMeasure

DEFAULT = "gradient-field"
"""The fingerprint that distances are taken with where none is named."""

PUBLISHED = "official-"
"""Put before the name of a method that has a published form of its own."""


def questioning() -> dict[str, Any]:
    """The fingerprinters that ask a network with probes, by name; the published forms too.

    Returns:
        What makes the method from its parameters.
    """
    from stemma.fingerprints import ALL
    from stemma.fingerprints.base import AbstractFingerprinter

    kinds = [kind for kind in ALL if issubclass(kind, AbstractFingerprinter)]
    published = {PUBLISHED + kind.name: kind.official for kind in kinds if hasattr(kind, "official")}
    return {kind.name: kind for kind in kinds} | published


def label(method: "AbstractFingerprinter") -> str:
    """What a method is called on the command line.

    Returns:
        Its name; with `official-` before it where its parameters are those of the published form.
    """
    from inspect import signature

    maker = questioning().get(PUBLISHED + method.name)
    if maker is None:
        return method.name
    published = maker(**{name: getattr(method, name) for name in signature(maker).parameters})
    return (PUBLISHED if published.spec == method.spec else "") + method.name


def chosen(
    method: str | None, measure: str | None, given: Sequence[str] | None, seed: int | None
) -> "tuple[AbstractFingerprinter, AbstractMeasure]":
    """The method and the measure that go together.

    Args:
        method: Name of a fingerprint that asks networks.
        measure: Name of a measure; the first that takes what the method gives if None.
        given: Parameters as `name=value`, of the method or of the measure.
        seed: Of whatever is random in the method.

    Returns:
        Both, with their parameters.

    Raises:
        MisuseError: If a name is unknown, the two do not go together, or a parameter misfits.
    """
    makers, name = questioning(), method or DEFAULT
    if name not in makers:
        raise MisuseError(f"no method is called '{name}'. There are: {', '.join(makers)}")
    asks, compares = makers[name], _fitting(name, _kind(makers[name]).produces, measure)
    label = _kind(compares).name
    parameters, of_method, of_measure = parsed(given), _fields(asks), _fields(compares)
    for unknown in parameters.keys() - of_method.keys() - of_measure.keys():
        known = ", ".join(dict.fromkeys([*of_method, *of_measure])) or "none"
        raise MisuseError(f"-P {unknown}={parameters[unknown]}: neither {name} nor {label} has a parameter "
                          f"'{unknown}'. Known are: {known}")  # fmt: skip
    if seed is not None and "seed" in of_method:
        parameters.setdefault("seed", str(seed))
    first = {n: v for n, v in parameters.items() if n in of_method}
    second = {n: v for n, v in parameters.items() if n not in of_method}
    return asks(**_typed(first, of_method)), compares(**_typed(second, of_measure))


def _fitting(name: str, gives: str, measure: str | None) -> Any:
    """What makes the measure of this name that takes what a method gives; its published form for a published method."""
    from stemma.measures import ALL

    fitting = {kind.name: kind for kind in ALL if gives in kind.accepts}
    if measure is not None and measure not in {kind.name for kind in ALL}:
        raise MisuseError(f"no measure is called '{measure}'. For {name} there are: {', '.join(fitting)}")
    if measure is not None and measure not in fitting:
        raise MisuseError(f"{measure} does not take what {name} gives ({gives}). Those that do: {', '.join(fitting)}")
    kind = fitting[measure or next(iter(fitting))]
    return getattr(kind, "official", kind) if name.startswith(PUBLISHED) else kind


def made(name: str, given: Sequence[str] | None, seed: int | None) -> Any:
    """One fingerprinter, of any kind, with its parameters.

    Args:
        name: As in `fingerprints.ALL`, or a published form.
        given: Parameters as `name=value`.
        seed: Of whatever is random in it.

    Returns:
        The method.

    Raises:
        MisuseError: If the name is unknown or a parameter misfits.
    """
    from stemma.fingerprints import ALL

    makers = {kind.name: kind for kind in ALL} | questioning()
    if name not in makers:
        raise MisuseError(f"no fingerprint is called '{name}'. There are: {', '.join(makers)}")
    parameters, known = parsed(given), _fields(makers[name])
    for unknown in parameters.keys() - known.keys():
        raise MisuseError(f"-P {unknown}={parameters[unknown]}: {name} has no parameter '{unknown}'. Known are: "
                          f"{', '.join(known) or 'none'}")  # fmt: skip
    if seed is not None and "seed" in known:
        parameters.setdefault("seed", str(seed))
    return makers[name](**_typed(parameters, known))


def typed(kind: type, given: Sequence[str] | None, seed: int | None = None) -> dict[str, Any]:
    """Parameters of a method that is chosen already.

    Args:
        kind: Its dataclass.
        given: Parameters as `name=value`.
        seed: Of whatever is random in it.

    Returns:
        Values by field.

    Raises:
        MisuseError: If a parameter is unknown or misfits.
    """
    parameters, known = current_names(kind, parsed(given), warn=True), _fields(kind)
    for unknown in parameters.keys() - known.keys():
        raise MisuseError(f"-P {unknown}={parameters[unknown]}: there is no parameter '{unknown}'. Known are: "
                          f"{', '.join(known)}")  # fmt: skip
    if seed is not None and "seed" in known:
        parameters.setdefault("seed", str(seed))
    return _typed(parameters, known)


def parsed(given: Sequence[str] | None) -> dict[str, str]:
    """Words of the form `name=value`.

    Args:
        given: The words.

    Returns:
        Values by name; dashes in names become underscores.

    Raises:
        MisuseError: If a word has another form, or a name comes twice.
    """
    out: dict[str, str] = {}
    for word in given or ():
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise MisuseError(f"-P takes name=value, for example -P steps=50, but was given '{word}'")
        key = name.strip().replace("-", "_")
        if key in out:
            raise MisuseError(f"-P {name} is given twice")
        out[key] = value.strip()
    return out


def _kind(maker: Any) -> Any:
    return maker if isinstance(maker, type) else maker.__self__


def _fields(maker: Any) -> Mapping[str, Any]:
    """The parameters of a dataclass or of a classmethod that makes one, with their types."""
    if isinstance(maker, type):
        hints = typing.get_type_hints(maker)
        return {f.name: hints[f.name] for f in dataclasses.fields(maker) if f.init and not f.metadata.get("learnt")}
    return {name: hint for name, hint in typing.get_type_hints(maker).items() if name != "return"}


def _typed(given: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, Any]:
    out = {}
    for name, text in given.items():
        try:
            out[name] = _value(text, known[name])
        except ValueError:
            raise MisuseError(f"-P {name}={text}: {name} is {_words(known[name])}, not '{text}'") from None
    return out


def _value(text: str, hint: Any) -> Any:
    """Text as a type says; `none` where that is allowed.

    Raises:
        ValueError: If it is not of the type.
    """
    options = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in options and text.lower() == "none":
            return None
        return _value(text, next(option for option in options if option is not type(None)))
    if origin is typing.Literal:
        return next((o for o in options if str(o) == text), None) or _refuse(text)
    if origin is tuple:
        return tuple(_value(part, options[0]) for part in text.split(",") if part)
    if hint is bool:
        word = text.lower()
        return word in _YES if word in _YES | _NO else _refuse(text)
    value = hint(text)
    return value if hint is not float or math.isfinite(value) else _refuse(text)


_YES, _NO = frozenset({"true", "yes", "1", "on"}), frozenset({"false", "no", "0", "off"})


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _words(hint: Any) -> str:
    named = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, options))}"
    inner = next((named[o] for o in options if o in named), str(hint))
    return named.get(hint, inner)
