"""Fingerprints and measures by name, with parameters given as `name=value`."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stemma.application.suggestions import did_you_mean
from stemma.deprecation import current_names
from stemma.errors import MisuseError

if TYPE_CHECKING:
    from stemma.fingerprints.base import AbstractFingerprinter
    from stemma.measures.base import AbstractMeasure

DEFAULT = "gradient-field"
"""Fingerprint of a distance where none is named."""

PUBLISHED = "official-"
"""Prefix of the name of a method's published form."""


def network_methods() -> dict[str, Any]:
    """Factories of the fingerprints that run the network on probe inputs, and of their published forms, by name."""
    from stemma.fingerprints import ALL
    from stemma.fingerprints.base import AbstractFingerprinter

    kinds = [kind for kind in ALL if issubclass(kind, AbstractFingerprinter)]
    published = {PUBLISHED + kind.name: kind.official for kind in kinds if hasattr(kind, "official")}
    return {kind.name: kind for kind in kinds} | published


def method_label(method: "AbstractFingerprinter") -> str:
    """Name of a method on the command line: `official-NAME` where its parameters are those of the published form."""
    from inspect import signature

    maker = network_methods().get(PUBLISHED + method.name)
    if maker is None:
        return method.name
    published = maker(**{name: getattr(method, name) for name in signature(maker).parameters})
    return (PUBLISHED if published.spec == method.spec else "") + method.name


def choose_methods(
    method: str | None, measure: str | None, given: Sequence[str] | None, seed: int | None
) -> "tuple[AbstractFingerprinter, AbstractMeasure]":
    """A fingerprint and a measure that go together.

    Args:
        method: Name of a fingerprint that runs the network; the default if None.
        measure: Name of a measure; the first that takes the fingerprint if None.
        given: Parameters of either as `name=value`.
        seed: Of whatever is random in the fingerprint.

    Returns:
        Both, with their parameters.

    Raises:
        MisuseError: If a name or parameter is unknown, a value has the wrong type, or the two do not go together.
    """
    makers, name = network_methods(), method or DEFAULT
    if name not in makers:
        raise MisuseError(f"no method is called '{name}'.{did_you_mean(name, makers)} There are: {', '.join(makers)}")
    asks, compares = makers[name], _fitting(name, _kind(makers[name]).produces, measure)
    of_method, of_measure = _fields(asks), _fields(compares)
    owners = f"neither {name} nor {_kind(compares).name} has"
    values = _values(given, {**of_method, **of_measure, **of_method}, owners, seed if "seed" in of_method else None)
    return (
        asks(**{n: v for n, v in values.items() if n in of_method}),
        compares(**{n: v for n, v in values.items() if n not in of_method}),
    )


def _fitting(name: str, gives: str, measure: str | None) -> Any:
    """Factory of the measure of this name that takes what a fingerprint gives, in its published form if that is one."""
    from stemma.measures import ALL

    fitting = {kind.name: kind for kind in ALL if gives in kind.accepts}
    if measure is not None and measure not in {kind.name for kind in ALL}:
        meant = did_you_mean(measure, fitting)
        raise MisuseError(f"no measure is called '{measure}'.{meant} For {name} there are: {', '.join(fitting)}")
    if measure is not None and measure not in fitting:
        raise MisuseError(f"{measure} does not take what {name} gives ({gives}). Those that do: {', '.join(fitting)}")
    kind = fitting[measure or next(iter(fitting))]
    return getattr(kind, "official", kind) if name.startswith(PUBLISHED) else kind


def make_fingerprinter(name: str, given: Sequence[str] | None, seed: int | None) -> Any:
    """A fingerprint of any kind by name, with parameters as `name=value` and the seed of whatever is random in it."""
    from stemma.fingerprints import ALL

    makers = {kind.name: kind for kind in ALL} | network_methods()
    if name not in makers:
        meant = did_you_mean(name, makers)
        raise MisuseError(f"no fingerprint is called '{name}'.{meant} There are: {', '.join(makers)}")
    return makers[name](**_values(given, _fields(makers[name]), f"{name} does not have", seed))


def parse_fields(kind: type, given: Sequence[str] | None, seed: int | None = None) -> dict[str, Any]:
    """Values of the fields of a method's dataclass, from parameters given as `name=value`."""
    return _values(given, _fields(kind), "there is not", seed, kind)


def _values(
    given: Sequence[str] | None, known: Mapping[str, Any], owners: str, seed: int | None, kind: type | None = None
) -> dict[str, Any]:
    """Parameters given as `name=value`, each of the type of its field; earlier names of a field are known."""
    parameters = _parsed(given) if kind is None else current_names(kind, _parsed(given), warn=True)
    for name, text in parameters.items():
        if name not in known:
            raise MisuseError(
                f"-P {name}={text}: {owners} a parameter '{name}'.{did_you_mean(name, known)} "
                f"Known are: {', '.join(known) or 'none'}"
            )
    if seed is not None and "seed" in known:
        parameters.setdefault("seed", str(seed))
    return _typed(parameters, known)


def _parsed(given: Sequence[str] | None) -> dict[str, str]:
    """Words of the form `name=value`; dashes in names become underscores."""
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
    """Text as a type says, `none` where that is allowed; a ValueError if it is not of the type."""
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
