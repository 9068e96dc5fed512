"""What every document begins with: its schema, who wrote it, when, and what was asked."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from stemma.types import jsonable

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True, slots=True)
class Schema:
    """Which schema a document follows; it is published as `docs/schemas/NAME.schema.json`.

    Attributes:
        name: Name of the schema, for example `stemma.trace`.
        version: Raised when a field is removed or changes its meaning, and not when one is added.
    """

    name: str
    version: int


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document that `--json` prints.

    Attributes:
        schema: Schema that the document follows.
        stemma_version: Version of Stemma that wrote the document.
        created: When it was written: UTC, ISO 8601; the time of SOURCE_DATE_EPOCH where that is set.
        asked: What was asked, with paths as they were given.
    """

    SCHEMA: ClassVar[Schema]
    OPTIONAL: ClassVar[tuple[str, ...]] = ()

    schema: Schema
    stemma_version: str
    created: str
    asked: Any

    @classmethod
    def of(cls, asked: Any, **values: Any) -> Self:
        """The document of an answer, with its header filled in."""
        from stemma import __version__

        if getattr(asked, "registry", None):
            from stemma.registry.database import without_password

            asked = replace(asked, registry=without_password(asked.registry))
        return cls(schema=cls.SCHEMA, stemma_version=__version__, created=_now(), asked=_without_keys(asked), **values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a field in `OPTIONAL` is left out where it is None."""
        return {k: v for k, v in jsonable(self).items() if v is not None or k not in self.OPTIONAL}


def _without_keys(asked: Any) -> Any:
    """What was asked, with addresses that hold no keys: a document is passed on."""
    from stemma.checkpoints.remote import without_queries

    if not is_dataclass(asked) or isinstance(asked, type):
        return asked
    changed: dict[str, Any] = {}
    for f in fields(asked):
        value = getattr(asked, f.name)
        if isinstance(value, str):
            changed[f.name] = without_queries(value)
        elif isinstance(value, (list, tuple)):
            changed[f.name] = type(value)(without_queries(v) if isinstance(v, str) else v for v in value)
    return replace(asked, **{name: value for name, value in changed.items() if value != getattr(asked, name)})


def _now() -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.now(UTC)
    if epoch.isascii() and epoch.isdigit():
        with contextlib.suppress(ValueError, OverflowError, OSError):  # no year has so many digits
            now = datetime.fromtimestamp(int(epoch), UTC)
    return now.isoformat(timespec="seconds").replace("+00:00", "Z")
