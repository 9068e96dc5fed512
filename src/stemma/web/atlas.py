"""What the pages show: the catalogue of the registry, its drawing, and pages that were rendered already."""

import contextlib
import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stemma.errors import RegistryError
from stemma.export.trees.drawing import Drawing, draw, key_of
from stemma.registry import Registry
from stemma.registry.family_trees import DRAWING
from stemma.types import Lineage, ModelRef
from stemma.web.settings import Settings
from stemma.workspace.catalogue import Catalogue

PAGES_KEPT = 4096
"""Rendered pages that are kept in memory."""

PATIENCE = 3.0
"""The catalogue is read again at most once in so many times as long as reading takes."""


class Atlas:
    """One registry as pages show it; what any process changes shows at once, or soon after where it is large."""

    def __init__(self, settings: Settings) -> None:
        """Open a registry; nothing is read yet."""
        self.settings = settings
        self.registry = Registry(settings.registry)
        self._lock = threading.Lock()
        self._catalogue: Catalogue | None = None
        self._drawing: tuple[tuple[int, ...], bytes] | None = None
        self._reading = False
        self._took, self._read_at = 0.0, 0.0
        self._pages: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()

    def catalogue(self) -> Catalogue:
        """The models as of now; of a large registry that changes all the time, as of some seconds ago."""
        known = self._catalogue
        if known is None:
            with self._lock:
                return self._catalogue or self._read()
        if known.state != self.registry.state() and time.monotonic() - self._read_at > PATIENCE * self._took:
            if self._took < 0.2:
                with self._lock:
                    return self._read()
            self._read_aside()
        return known

    def warm_up(self) -> None:
        """Read the registry and draw its tree before anybody asks; what is wrong is told to whoever asks."""
        with contextlib.suppress(RegistryError):
            self.drawing()

    def page(self, key: tuple[Any, ...], render: Callable[[Catalogue], bytes]) -> bytes:
        """A page, rendered once for each state of the registry."""
        catalogue = self.catalogue()
        key = (*catalogue.state, *key)
        with self._lock:
            if key in self._pages:
                self._pages.move_to_end(key)
                return self._pages[key]
        page = render(catalogue)
        with self._lock:
            self._pages[key] = page
            while len(self._pages) > PAGES_KEPT:
                self._pages.popitem(last=False)
        return page

    def drawing(self) -> bytes:
        """The family tree as the browser draws it, in JSON; the layout is kept in the registry where it can be."""
        catalogue = self.catalogue()
        known = self._drawing
        if known is None or known[0] != catalogue.state:
            known = catalogue.state, self._draw(catalogue)
            self._drawing = known
        return known[1]

    def _read(self) -> Catalogue:
        started = time.monotonic()
        self._catalogue = Catalogue(self.registry)
        self._read_at = time.monotonic()
        self._took = self._read_at - started
        return self._catalogue

    def _read_aside(self) -> None:
        with self._lock:
            if self._reading:
                return
            self._reading = True

        def read() -> None:
            try:
                self._read()
            finally:
                self._reading = False

        threading.Thread(target=read, daemon=True).start()

    def _draw(self, catalogue: Catalogue) -> bytes:
        whole = with_undrawn(catalogue)
        stored = self.registry.tree(DRAWING)
        drawing = draw(whole, None if stored is None else Drawing.of(stored.content))
        with contextlib.suppress(RegistryError):  # one that cannot be written is drawn anew each time
            if whole.models:
                self.registry.put_tree(DRAWING, drawing.to_dict(), {})
        return json.dumps(drawing_data(catalogue, whole, drawing), separators=(",", ":")).encode()


def with_undrawn(catalogue: Catalogue) -> Lineage:
    """The family tree with the models that were enrolled after it was drawn, each alone, and without those removed."""
    tree = catalogue.lineage
    stale, undrawn = catalogue.stale, set(catalogue.undrawn)
    new = [e for e in catalogue.entries if e.name in undrawn]
    return replace(
        tree,
        models=(*(m for m in tree.models if m.name not in stale), *(ModelRef(e.name, e.digest) for e in new)),
        edges=tuple(e for e in tree.edges if not stale & {e.parent, e.child}),
        families=(*(tuple(n for n in f if n not in stale) for f in tree.families), *((e.name,) for e in new)),
    )


def drawing_data(catalogue: Catalogue, tree: Lineage, drawing: Drawing) -> dict[str, Any]:
    """Columns of numbers for the browser, and the texts that they stand for.

    Args:
        catalogue: The models.
        tree: The family tree.
        drawing: Where each model stands.

    Returns:
        `names`, and for each model its place (`x`, `y`), `family` (0 for those without relatives), `relation` to the
        parent below which it is drawn, `licence` and `date` as positions in `relations`, `licences` and `dates`, and
        `kind` (0 enrolled, 1 missing, 2 not in the tree yet). `edges` holds for each edge: parent, child, relation,
        probability and share in per cent or -1. `kin` holds pairs that are related without a known direction.
    """
    missing = {str(m["name"]): [str(c) for c in m["children"]] for m in tree.missing_ancestors}
    names = [n for n in [*(m.name for m in tree.models), *missing] if key_of(n, missing) in drawing.places]
    position = {name: i for i, name in enumerate(names)}
    places = [drawing.places[key_of(n, missing)] for n in names]
    relations, licences, dates = _Words(), _Words(), _Words()
    relation = [-1] * len(names)
    share = dict.fromkeys(position, -1.0)
    edges: list[int] = []
    for edge in tree.edges:
        if edge.parent not in position or edge.child not in position:
            continue
        kind = relations.position(edge.relation)
        child = position[edge.child]
        if (edge.share or 0.0) > share[edge.child]:
            share[edge.child], relation[child] = edge.share or 0.0, kind
        edges += [position[edge.parent], child, kind, _per_cent(edge.confidence), _per_cent(edge.share)]
    family_of = {name: i for i, f in enumerate(f for f in tree.families if len(f) > 1) for name in f}
    for name, below in missing.items():
        while below and below[0] in missing:
            below = missing[below[0]]
        if below and below[0] in family_of:
            family_of[name] = family_of[below[0]]
    entries = [catalogue.by_name.get(name) for name in names]
    undrawn = set(catalogue.undrawn)
    pairs = (r["models"] for r in tree.refused if len(r["models"]) == 2)
    return {
        "names": names,
        "x": [p[0] for p in places],
        "y": [p[1] for p in places],
        "family": [family_of.get(n, -1) + 1 for n in names],
        "relation": relation,
        "licence": [licences.position((e.licence if e else None) or "not recorded") for e in entries],
        "date": [dates.position(e.added_at[:10] if e else "") for e in entries],
        "kind": [1 if n in missing else 2 if n in undrawn else 0 for n in names],
        "edges": edges,
        "kin": [position[n] for pair in pairs if all(n in position for n in pair) for n in pair],
        "relations": relations.words, "licences": licences.words, "dates": dates.words,
        "drawn_at": catalogue.drawn_at,
        "undrawn": len(catalogue.undrawn),
    }  # fmt: skip


class _Words:
    """Texts that are sent once, and numbers for them."""

    def __init__(self) -> None:
        self._positions: dict[str, int] = {}

    @property
    def words(self) -> list[str]:
        return list(self._positions)

    def position(self, word: str) -> int:
        return self._positions.setdefault(word, len(self._positions))


def _per_cent(share: float | None) -> int:
    return -1 if share is None else round(100 * share)


def question_key(kind: str, request: Mapping[str, Any], state: tuple[int, ...]) -> str:
    """What an answer is found again by: the question, and the state of the registry when it was asked."""
    content = json.dumps([kind, request, state], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
