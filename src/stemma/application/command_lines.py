"""The command line that asks a request: what a page says gives the same answer."""

import shlex
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, replace
from typing import Any

from stemma.application.network_options import NetworkOptions
from stemma.checkpoints.remote import without_queries
from stemma.types.text import plain

POSITIONAL = {
    "trace": ("model",),
    "compare": ("a", "b"),
    "distance": ("a", "b"),
    "competition": ("model",),
    "explain": ("parent", "child"),
    "lineage": ("paths",),
    "prune": ("model",),
    "unlearn": ("model",),
    "verify edit": ("folder",),
    "verify unlearning": (),
    "show": ("name",),
    "list": (),
}
"""By command: the fields of its request that are typed without an option name, in their order."""

SPELLED = {
    "parameters": "-P",
    "concepts": "--concept",
    "concept_networks": "--concept-network",
    "retained": "--retained-probes",
    "unseen": "--unseen-probes",
}
"""By field: its option, where the two differ."""

LEFT_OUT = frozenset({"html", "svg", "dot", "jobs", "cluster", "quiet"})
"""Fields that change where an answer is written or how fast it comes, and not the answer."""


def command_line(command: str, request: Any) -> str:
    """What is typed for a request, quoted for a shell; options at their defaults and passwords are left out.

    Args:
        command: Words of the command, for example `verify edit`.
        request: Frozen dataclass whose fields are named as the options are.

    Returns:
        One line that begins with `stemma`.
    """
    from stemma.registry.database import without_password

    if getattr(request, "registry", None):
        request = replace(request, registry=without_password(request.registry))
    places, given = [], []
    for field in fields(request):
        value = getattr(request, field.name)
        if field.name in POSITIONAL[command]:
            places += value if isinstance(value, tuple) else [] if value is None else [value]
        elif isinstance(value, NetworkOptions):
            given += [word for inner in fields(value) for word in _option(inner, getattr(value, inner.name))]
        elif field.name not in LEFT_OUT:
            given += _option(field, value)
    ended = ["--"] if any(str(place).startswith("-") for place in places) else []
    return " ".join(["stemma", command, *map(_quoted, given), *ended, *map(_quoted, places)])


def _option(field: Field[Any], value: object) -> Iterator[str]:
    default = field.default if field.default is not MISSING else None
    if value is None or value == default:
        return
    name = SPELLED.get(field.name, "--" + field.name.replace("_", "-"))
    if isinstance(value, bool):
        yield name if value else f"--no-{name[2:]}"
    elif isinstance(value, tuple):
        for one in value:
            yield from (name, str(one))
    else:
        yield from (name, str(value))


def _quoted(word: object) -> str:
    """A word as a shell takes it; what cannot be printed is written as an escape (ANSI-C quoting)."""
    text = without_queries(str(word))
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{plain(escaped)}'"
