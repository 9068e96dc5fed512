"""One model laid out as the other, row by row: where every row of one model is found in the other.

Converters, trainers and engines write the same numbers in orders of their own: rows of rotary queries interleaved or in
halves, queries, keys and values joined per group, gates of recurrent layers in another order, experts apart or stacked,
tensors transposed, layers renumbered or repeated. A row of a matrix is a vector that none of these changes, so each row
of a tensor that does not agree where it stands is looked for among all rows of its length; nothing needs to be known
about a tool. An order that no tool would write (arbitrary, but for tokens) is left to the search for a map of units.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.layouts.pieces import Restored
from stemma.kinship.weights.layouts.rows import Gathered, Pool, Rows, directions, forms_of, normal
from stemma.kinship.weights.layouts.tool_orders import is_simple
from stemma.kinship.weights.layouts.vectors import stays, vectors_of
from stemma.kinship.weights.order.units_of_pair import finite
from stemma.networks.load import from_arrays

NEAR = 0.8
"""Cosine from which a row is taken for the same one, trained on or rounded since."""

PROBES, HITS, MISSES = 12, 0.75, 8
"""Rows of a matrix that are looked for first, share of them that must be found, and matrices of which nothing is found,
spread over the model, after which the search ends."""

SHARE = 0.005
"""Share of a model's entries that must stand elsewhere for it to be looked at."""

ONCE = 0.98
"""Share of the rows of a matrix that must come from different rows."""

TIED = 1e-4
"""Difference of cosines below which rows are compared number by number."""

LEFT = " (left)"
"""Ending of a tensor's name that another one took."""

STRIPE = 1 << 24
"""Similarities that are held at once."""

REPEATED, EXCHANGED, SPLIT, FEWER = "layers repeated", "layers reordered", "tensors split", "fewer tokens"
"""Steps; after the first two the function is another one, and the reference has fewer tokens after the last."""


def relaid(reference: Model, target: Model, *, renamed: bool = False) -> Restored | None:
    """The target in the reference's layout, made of its own rows.

    Cost: nothing where every matrix agrees with its namesake; else both models are read once, a few rows of each
    tensor are compared with all rows of their length, and those of tensors that were found with their sources.
    Memory: `NUMBERS` numbers for each row of the target.

    Args:
        reference: The model whose layout is wanted.
        target: The model that may hold the same rows elsewhere.
        renamed: Whether tensors that only have another name are worth a view.

    Returns:
        The view; None where nothing stands elsewhere in an order that a tool would write.
    """
    own, there = matrices(reference), matrices(target)
    open_ = [n for n in own if not _agree(own[n], there.get(n))]
    entries = sum(t.size for t in own.values())
    if not open_ or sum(own[n].size for n in open_) < SHARE * entries:
        return None
    pool, found, misses = Pool(there), {}, 0
    tokens, there_too = _tokens(reference, own), _tokens(target, there)
    for name in _spread(open_):
        if misses >= MISSES and not found:
            return None
        gathered = _found(own[name], pool, there_too, any_order=name in tokens)
        misses += gathered is None
        if gathered is not None:
            found[name] = gathered
            tokens |= {name} if there_too.issuperset(gathered.names) else set()
    cut = _cut(found)  # a layout cuts nothing out, but for tokens
    found = {n: g for n, g in found.items() if n in tokens or not cut & set(g.names)}
    moved = {n: g for n, g in found.items() if not g.whole or (g.names != (n,) and (n in there or g.names[0] in own))}
    settled = {n for n in own if n not in open_}
    again = _repeated(found, settled)
    if not moved and not again and not (renamed and found):
        return None
    vectors = vectors_of(reference, target, found)
    made = {n: _in_words(g) for n, g in found.items() if n in moved or n in again}
    steps = dict.fromkeys(
        REPEATED if n in again else _step(found[n], fewer=n in tokens and bool(cut & set(found[n].names))) for n in made
    )
    elsewhere = {source: (reference.weights[n], made) for n, (made, source) in vectors.items()}
    alone = reference.weights.keys() & target.weights.keys() - own.keys() - vectors.keys()
    same = {n for n in alone if stays(reference.weights[n], target.weights[n], elsewhere.get(n))}
    return Restored(_view(target, found, vectors, settled | same), made, tuple(steps))


def _cut(found: Mapping[str, Gathered]) -> set[str]:
    """Sources with rows that nothing was made of: they were taken out."""
    used: dict[tuple[str, int, tuple[int, ...]], set[int]] = {}
    counts: dict[tuple[str, int, tuple[int, ...]], int] = {}
    for g in found.values():
        for k, source in enumerate(g.sources):
            key = source.tensor.name, source.lead, source.order
            used.setdefault(key, set()).update(g.row[g.source == k].tolist())
            counts[key] = source.count
    return {key[0] for key, rows in used.items() if len(rows) < ONCE * counts[key]}


def _repeated(found: Mapping[str, Gathered], settled: set[str]) -> set[str]:
    """Tensors of the reference whose source stands for another one too."""
    uses = Counter(n for g in found.values() if g.whole for n in g.names) + Counter(settled)
    return {n for n, g in found.items() if g.whole and uses[g.names[0]] > 1}


def _step(g: Gathered, *, fewer: bool) -> str:
    """What moved the rows of a tensor, in a few words."""
    if g.whole:
        return EXCHANGED
    if fewer and len(g.sources) == 1:
        return FEWER
    if len(g.sources) > 1:
        return SPLIT
    if g.sources[0].order != g.view.order and _rising(g.row):
        return "transposed"
    return "tensors joined" if _rising(g.row) else "rows reordered"


def _view(
    target: Model, found: Mapping[str, Gathered], vectors: Mapping[str, tuple[Tensor, str]], settled: set[str]
) -> Model:  # fmt: skip
    """The target with the reference's tensors; what none of them was made of is left, aside where its name is taken."""
    used = {n for g in found.values() for n in g.names} | {n for _, n in vectors.values()}
    made = {n: g.tensor(n) for n, g in found.items()} | {n: t for n, (t, _) in vectors.items()}
    left = {n: t for n, t in target.weights.items() if n in settled or n not in used}
    tensors = {f"{n}{LEFT}" if n in made else n: t for n, t in left.items()} | made
    return from_arrays(tensors, target.name, dict(target.config) if target.config else None)


def _in_words(g: Gathered) -> str:
    names = ", ".join(g.names[:4]) + (", …" if len(g.names) > 4 else "")
    if g.whole:
        return names
    if len(g.sources) > 1:
        return f"rows of {names}"
    part = f"{g.view.count} of {g.sources[0].count} rows" if g.view.count < g.sources[0].count else "rows"
    return f"{part} of {names}{', reordered' if not _rising(g.row) else ''}"


def _rising(rows: np.ndarray) -> bool:
    return bool((np.diff(rows) == 1).all())


def _agree(own: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors of one name hold the same rows in the same places, as far as some of them show."""
    if other is None or tuple(own.shape) != tuple(other.shape):
        return False
    rows = np.unique(np.linspace(0, own.shape[0] - 1, PROBES).round().astype(int))
    x, y = (np.concatenate([finite(t.rows(r, r + 1)) for r in rows]).reshape(len(rows), -1) for t in (own, other))
    u, v = directions(x), directions(y)
    return float((u * v).sum(axis=1).mean()) >= NEAR or not u.any()


def _tokens(model: Model, own: Mapping[str, Tensor]) -> set[str]:
    """Matrices whose rows are tokens, by names, or by sizes: the longest axis of all is in front and none reads it."""
    longest = max((t.shape[0] for t in own.values()), default=0)
    longest = longest if longest > max((max(t.shape[1:]) for t in own.values()), default=0) else 0
    axes = structure(model).axes
    return {n for n, t in own.items() if t.shape[0] == longest
            or any(label.role in ("token", "expert") for label in axes.get(n, ()))}  # fmt: skip


def _spread(names: Sequence[str]) -> list[str]:
    first = names[:: max(1, len(names) // MISSES)]
    return [*first, *(n for n in names if n not in set(first))]


def _found(own: Tensor, pool: Pool, tokens: set[str], *, any_order: bool) -> Gathered | None:
    """Where the rows of a tensor are, in the first way to cut it into rows that finds them all."""
    for view in forms_of(own):
        if pool.forms(view.length):
            found = _sources(view, pool)
            if found is not None and (any_order or tokens.issuperset(found.names) or is_simple(_places(found))):
                return found
    return None


def _places(g: Gathered) -> np.ndarray:
    """Rows numbered through all sources, so that rows of different ones are never neighbours."""
    starts = np.concatenate([[0], np.cumsum([s.count + 1 for s in g.sources])])
    return starts[g.source] + g.row


def _sources(view: Rows, pool: Pool) -> Gathered | None:
    probes = np.unique(np.linspace(0, view.count - 1, PROBES).round().astype(int))
    wanted = normal(view.thinned()[probes]) if view.turned else directions(view.read(probes))
    alive = wanted.any(axis=1)
    best, hits = np.full(len(probes), -1.0), np.zeros(len(probes), int)
    forms = pool.forms(view.length)
    for k, form in enumerate(forms):
        top = (wanted @ pool.sketch(form).T).max(axis=1)
        hits[top > best + 1e-6], best = k, np.maximum(best, top)
    if alive.sum() < 2 or (best[alive] >= NEAR).mean() < HITS:
        return None
    sources = [forms[k] for k in dict.fromkeys(hits[alive & (best >= NEAR)].tolist())]
    return _assembled(view, sources, pool)


def _assembled(view: Rows, sources: Sequence[Rows], pool: Pool) -> Gathered | None:
    """Every row's nearest one among the sources; None where some are not there, or one stands for many."""
    there = np.concatenate([pool.sketch(s) for s in sources])
    raw = view.read()
    rows = directions(raw)
    everything = cache(lambda: np.concatenate([s.read() for s in sources]))
    step = max(1, STRIPE // len(there))
    nearest, cosine = np.empty(view.count, int), np.empty(view.count)
    for start in range(0, view.count, step):
        alike = rows[start : start + step] @ there.T
        before = int(nearest[start - 1]) if start else -1
        at = _nearest(alike, raw[start : start + step], everything, before)
        nearest[start : start + step] = at
        cosine[start : start + step] = alike[np.arange(len(at)), at]
    alive = rows.any(axis=1)
    if (cosine[alive] < NEAR / 2).any() or cosine[alive].mean() < NEAR:
        return None
    if len(np.unique(nearest[alive])) < ONCE * alive.sum():
        return None
    ends = np.cumsum([s.count for s in sources])
    source = np.searchsorted(ends, nearest, side="right")
    row = nearest - np.concatenate([[0], ends[:-1]])[source]
    return Gathered(view, tuple(sources), source, row)


def _nearest(
    alike: np.ndarray, raw: np.ndarray, everything: Callable[[], np.ndarray], before: int
) -> np.ndarray:  # fmt: skip
    """The nearest row of each; of several that are the same, the one behind the last row's."""
    at = alike.argmax(axis=1)
    top = alike[np.arange(len(at)), at] - TIED
    for i in np.flatnonzero((alike >= top[:, None]).sum(axis=1) > 1):
        near = np.flatnonzero(alike[i] >= top[i])
        apart = np.abs(everything()[near] - raw[i]).max(axis=1)
        near = near[apart <= apart.min()]
        follows = (at[i - 1] if i else before) + 1
        at[i] = follows if follows in near else near[0]
    return at
