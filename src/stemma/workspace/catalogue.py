"""What is enrolled, at a glance: every live model with its family, parents and children as they were drawn last."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar, get_args

import numpy as np

from stemma.checkpoints.digest import is_partial
from stemma.errors import MisuseError, RegistryError, UnknownNameError
from stemma.registry import Registry
from stemma.registry.family_trees import LINEAGE
from stemma.registry.ingest import fingerprinters
from stemma.registry.records import ModelRecord
from stemma.registry.search import SketchIndex
from stemma.types import Digest, Edge, Lineage

Item = TypeVar("Item")

Order = Literal["name", "added", "parameters", "licence", "family"]
ORDERS: tuple[Order, ...] = get_args(Order)
"""What models can be sorted by."""

CHANCE = 400
"""Differing bits of 1,024 from which two sketches are no nearer than those of independent models may be."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One live model in a list.

    Attributes:
        name: Its name.
        digest: Digest of its weights.
        names_free_digest: The same whatever tensors are called.
        parameters: Number of parameters.
        licence: Licence as stated, else as its card says; None where neither does.
        added_at: When it was enrolled.
    """

    name: str
    digest: Digest
    names_free_digest: Digest
    parameters: int
    licence: str | None
    added_at: str


@dataclass(frozen=True, slots=True)
class Near:
    """A model near another one in the search index; a hint where to look, and no evidence.

    Attributes:
        name: Its name.
        digest: Digest of its weights.
        alike: How alike the sketches are, by the better of two codes: 1 the same, about 0 independent.
    """

    name: str
    digest: Digest
    alike: float


class Catalogue:
    """The live models of a registry and their family tree, as of one state of the registry."""

    def __init__(self, registry: Registry) -> None:
        """Read a registry: about 20 microseconds a model."""
        self.registry = registry
        self.state = registry.state()
        self.entries = tuple(_entry(record) for record in registry.models())
        self.by_name = {entry.name: entry for entry in self.entries}
        stored = registry.tree(LINEAGE)
        self.drawn_at = None if stored is None else stored.added_at
        self.lineage = Lineage(models=(), edges=(), roots=(), families=()) if stored is None else stored.lineage
        drawn = {m.name: m.digest for m in self.lineage.models}
        self.undrawn = tuple(e.name for e in self.entries if drawn.get(e.name) != e.digest)
        live = {e.name: e.digest for e in self.entries}
        self.stale = frozenset(name for name, digest in drawn.items() if live.get(name) != digest)
        self.alpha = None if stored is None else stored.facts.get("alpha")

    @cached_property
    def family_of(self) -> Mapping[str, int]:
        """Position of each model's family in the lineage."""
        families = enumerate(self.lineage.families)
        return {name: i for i, family in families for name in family if name not in self.stale}

    @cached_property
    def edges(self) -> Sequence[Edge]:
        """Edges of the tree, but for those of names that were removed since, or stand for other weights now."""
        return [e for e in self.lineage.edges if not self.stale & {e.parent, e.child}]

    @cached_property
    def parents(self) -> Mapping[str, Sequence[Edge]]:
        """Edges by child."""
        return _grouped(self.edges, lambda edge: edge.child)

    @cached_property
    def children(self) -> Mapping[str, Sequence[Edge]]:
        """Edges by parent."""
        return _grouped(self.edges, lambda edge: edge.parent)

    @cached_property
    def name_of(self) -> Mapping[str, str]:
        """The first name of each digest."""
        return {entry.digest: entry.name for entry in reversed(self.entries)}

    @cached_property
    def same_contents(self) -> Mapping[str, Sequence[Entry]]:
        """Models by their contents, whatever tensors are called."""
        whole = [entry for entry in self.entries if not is_partial(entry.names_free_digest)]  # equal samples may differ
        return _grouped(whole, lambda entry: entry.names_free_digest)

    def family(self, name: str) -> tuple[str, ...]:
        """All models of a family, itself among them; alone where none is related."""
        position = self.family_of.get(name)
        members = (name,) if position is None else self.lineage.families[position]
        return tuple(member for member in members if member not in self.stale or member == name)

    def descendants(self, name: str) -> tuple[str, ...]:
        """Models below another one in the tree, sorted; missing ancestors are left out."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            for edge in self.children.get(waiting.pop(), ()):
                if edge.child not in found and edge.child != name:
                    found.add(edge.child)
                    waiting.append(edge.child)
        return tuple(sorted(n for n in found if n in self.by_name))

    def select(
        self, search: str = "", license: str | None = None, family: str | None = None,
        sort: Order = "name", *, reverse: bool = False,
    ) -> tuple[Entry, ...]:  # fmt: skip
        """Models that fit.

        Args:
            search: Words that the name or the digest holds, in any order and case.
            license: Part of the licence; `none` for models without one.
            family: A model to whose family they belong.
            sort: What they are sorted by.
            reverse: From the last to the first.

        Returns:
            The models, sorted.

        Raises:
            MisuseError: If the order is unknown, or the model is in no family tree yet.
            UnknownNameError: If there is no model of that name.
        """
        if sort not in ORDERS:
            raise MisuseError(f"{sort!r} is no order: use {', '.join(ORDERS)}")
        found: Sequence[Entry] = self.entries
        if family is not None:
            if family not in self.by_name:
                raise UnknownNameError(f"there is no model '{family}' whose family could be listed")
            if family in self.undrawn:
                raise MisuseError(
                    f"the family of '{family}' is not known: it is in no family tree yet. Draw one with: stemma lineage"
                )
            inside = set(self.family(family))
            found = [e for e in found if e.name in inside]
        for word in search.casefold().split():
            found = [e for e in found if word in e.name.casefold() or word in e.digest]
        if license is not None:
            asked = license.casefold()
            found = [e for e in found if asked in (e.licence or "none").casefold()]
        return tuple(sorted(found, key=lambda e: self._rank(e, sort), reverse=reverse))

    def near(self, digest: Digest, n: int = 8) -> tuple[Near, ...]:
        """The models nearest in the search index, nearer than independent ones are."""
        method = fingerprinters()[0]
        try:
            own = self.registry.fingerprint(digest, method.spec)
        except RegistryError:
            return ()
        if own is None:
            return ()
        names = self.name_of
        found = self._index.nearest(np.asarray(own.values["bits"]), n + 1)
        close = ((x, min(x.ordered, x.invariant)) for x in found if x.digest != digest and x.digest in names)
        return tuple(Near(names[x.digest], x.digest, round(1 - d / 512, 3)) for x, d in close if d < CHANCE)[:n]

    @cached_property
    def _index(self) -> SketchIndex:
        return self.registry.sketch_index(fingerprinters()[0].spec)

    def _rank(self, entry: Entry, sort: Order) -> tuple[object, ...]:
        if sort == "family":
            family = self.family(entry.name)
            return -len(family), family[0], entry.name
        key = {"name": entry.name, "added": entry.added_at, "parameters": entry.parameters,
               "licence": (entry.licence or "\uffff").casefold()}[sort]  # fmt: skip
        return key, entry.name


def _entry(record: ModelRecord) -> Entry:
    return Entry(
        record.name, record.digest, record.names_free_digest, record.parameters, record.licence, record.added_at
    )


def _grouped(items: Sequence[Item], key: Callable[[Item], str]) -> dict[str, list[Item]]:
    out: dict[str, list[Item]] = {}
    for item in items:
        out.setdefault(key(item), []).append(item)
    return out
