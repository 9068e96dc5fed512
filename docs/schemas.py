"""Writes the JSON schema of every document into `docs/schemas`, from the dataclass of the document.

Titles and descriptions come from the docstrings. Run by `make schemas`; needs pydantic.
"""

import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import stemma.application
from stemma.application.document import Document

FOLDER = Path(__file__).parent / "schemas"

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def documents() -> list[type[Document]]:
    """The documents of all commands, by name of their schema."""
    for module in pkgutil.iter_modules(stemma.application.__path__):
        importlib.import_module(f"stemma.application.{module.name}")
    kinds = [kind for kind in _below(Document) if "SCHEMA" in vars(kind)]
    return sorted(kinds, key=lambda kind: kind.SCHEMA.name)


def _below(kind: type[Document]) -> Iterator[type[Document]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from _below(inner)


def schema_of(kind: type[Document]) -> dict[str, Any]:
    """The JSON schema of one document."""
    schema = TypeAdapter(kind).json_schema(mode="serialization", ref_template="#/$defs/{model}")
    described = {part.__name__: part for part in _parts(kind)}
    for name, part in (*((n, p) for n, p in schema.get("$defs", {}).items()), (kind.__name__, schema)):
        if name in described:
            _describe(part, described[name])
    schema["required"] = [name for name in schema["required"] if name not in kind.OPTIONAL]
    for name, value in dataclasses.asdict(kind.SCHEMA).items():
        schema["$defs"]["Schema"]["properties"][name]["const"] = value
    head = {"$schema": DIALECT, "$id": f"{kind.SCHEMA.name}.schema.json", "title": kind.SCHEMA.name}
    return head | {name: value for name, value in schema.items() if name != "title"}


def _parts(kind: Any) -> Iterator[type]:
    """The dataclasses that a document is made of, itself included."""
    waiting, known = [kind], set()
    while waiting:
        one = waiting.pop()
        waiting += typing.get_args(one)
        if dataclasses.is_dataclass(one) and isinstance(one, type) and one not in known:
            known.add(one)
            waiting += typing.get_type_hints(one).values()
            yield one


def _describe(schema: dict[str, Any], kind: type) -> None:
    """Add what the docstrings of a dataclass, and of those that it extends, say of it and of its fields."""
    schema["description"] = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
    fields: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        fields |= dict(_attributes(one.__doc__ or ""))
    for name, part in schema.get("properties", {}).items():
        part.pop("title", None)
        if name in fields:
            part["description"] = fields[name]


def _attributes(doc: str) -> Iterator[tuple[str, str]]:
    """The section `Attributes:` of a docstring."""
    section = inspect.cleandoc(doc).partition("Attributes:\n")[2]
    for found in re.finditer(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, re.MULTILINE):
        yield found[1], " ".join(found[2].split())


def text_of(kind: type[Document]) -> str:
    """The file of one schema."""
    return json.dumps(schema_of(kind), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all of them, and remove those of documents that are no more."""
    FOLDER.mkdir(exist_ok=True)
    files = {FOLDER / f"{kind.SCHEMA.name}.schema.json": text_of(kind) for kind in documents()}
    for old in set(FOLDER.glob("*.schema.json")) - set(files):
        old.unlink()
    for file, text in files.items():
        file.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{len(files)} schemas in {FOLDER.name}\n")


if __name__ == "__main__":
    main()
