"""Conversion of a model whose rows are stored elsewhere, row by row, into the other model's layout.

Converters, trainers and engines write the same numbers in orders of their own: rows of rotary queries interleaved or in
halves, queries, keys and values joined per group, gates of recurrent layers in another order, experts apart or stacked,
tensors transposed, layers renumbered or repeated. None of these changes a row, so each row of a tensor that does not
agree in place is searched among all rows of its length, for any tool. An order that no tool would write (arbitrary,
except for tokens) is left to the search for a map of units.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from stemma.architectures.unit_groups import structure
from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.weights.layouts.joined_pieces import ConvertedModel
from stemma.kinship.weights.layouts.tensor_rows import (
    GatheredTensor,
    RowIndex,
    TensorRows,
    directions,
    normal,
    row_views,
)
from stemma.kinship.weights.layouts.tool_orders import is_simple
from stemma.kinship.weights.layouts.vectors import find_vectors, keeps_name
from stemma.kinship.weights.order.pair_reader import finite
from stemma.networks.load import from_arrays

NEAR = 0.8
"""Cosine from which a row counts as the same, perhaps further trained or rounded."""

PROBES, HITS, MISSES = 12, 0.75, 8
"""Rows of a matrix that are searched first, share of them that must be found, and failed matrices, spread over the
model, after which the search ends."""

SHARE = 0.005
"""Least share of a model's entries that must be elsewhere for a conversion."""

ONCE = 0.98
"""Share of the rows of a matrix that must come from different rows."""

TIED = 1e-4
"""Difference of cosines below which rows are compared number by number."""

LEFT_SUFFIX = " (left)"
"""Suffix of the name of a tensor whose name another one took."""

SAMPLE = 64
"""Rows that are looked at before all are."""

STRIPE = 1 << 24
"""Similarities that are held at once."""

REPEATED, EXCHANGED, SPLIT, FEWER = "layers repeated", "layers reordered", "tensors split", "fewer tokens"
"""Steps; the first two change the function, and after the last the reference has fewer tokens."""


def rearrange_rows(reference: Model, target: Model, *, renamed: bool = False) -> ConvertedModel | None:
    """The target in the reference's layout, made of its own rows; None where no simple rearrangement fits."""
    own, there = matrices(reference), matrices(target)
    open_ = [n for n in own if not _agree_in_place(own[n], there.get(n))]
    entries = sum(t.size for t in own.values())
    if not open_ or sum(own[n].size for n in open_) < SHARE * entries:
        return None
    pool, found, misses = RowIndex(there), {}, 0
    tokens, there_too = _token_tensors(reference, own), _token_tensors(target, there)
    for name in _spread(open_):
        if misses >= MISSES and not found:
            return None
        gathered = _gather(own[name], pool, there_too, any_order=name in tokens)
        misses += gathered is None
        if gathered is not None:
            found[name] = gathered
            tokens |= {name} if there_too.issuperset(gathered.names) else set()
    cut = _incomplete_sources(found)  # a layout removes only tokens
    found = {n: g for n, g in found.items() if n in tokens or not cut & set(g.names)}
    moved = {n: g for n, g in found.items() if not g.whole or (g.names != (n,) and (n in there or g.names[0] in own))}
    settled = {n for n in own if n not in open_}
    again = _used_twice(found, settled)
    if not moved and not again and not (renamed and found):
        return None
    vectors = find_vectors(reference, target, found)
    made = {n: _describe(g) for n, g in found.items() if n in moved or n in again}
    steps = dict.fromkeys(
        REPEATED if n in again else _step(found[n], fewer=n in tokens and bool(cut & set(found[n].names))) for n in made
    )
    elsewhere = {source: (reference.weights[n], made) for n, (made, source) in vectors.items()}
    alone = reference.weights.keys() & target.weights.keys() - own.keys() - vectors.keys()
    same = {n for n in alone if keeps_name(reference.weights[n], target.weights[n], elsewhere.get(n))}
    return ConvertedModel(_view(target, found, vectors, settled | same), made, tuple(steps))


def _incomplete_sources(found: Mapping[str, GatheredTensor]) -> set[str]:
    """Sources with unused rows."""
    used: dict[tuple[str, int, tuple[int, ...]], set[int]] = {}
    counts: dict[tuple[str, int, tuple[int, ...]], int] = {}
    for g in found.values():
        for k, source in enumerate(g.sources):
            key = source.tensor.name, source.lead, source.order
            used.setdefault(key, set()).update(g.row[g.source == k].tolist())
            counts[key] = source.count
    return {key[0] for key, rows in used.items() if len(rows) < ONCE * counts[key]}


def _used_twice(found: Mapping[str, GatheredTensor], settled: set[str]) -> set[str]:
    """Tensors of the reference whose source is used for another one too."""
    uses = Counter(n for g in found.values() if g.whole for n in g.names) + Counter(settled)
    return {n for n, g in found.items() if g.whole and uses[g.names[0]] > 1}


def _step(g: GatheredTensor, *, fewer: bool) -> str:
    """What moved the rows of a tensor, in a few words."""
    if g.whole:
        return EXCHANGED
    if fewer and len(g.sources) == 1:
        return FEWER
    if len(g.sources) > 1:
        return SPLIT
    if g.sources[0].order != g.view.order and _in_order(g.row):
        return "transposed"
    return "tensors joined" if _in_order(g.row) else "rows reordered"


def _view(
    target: Model, found: Mapping[str, GatheredTensor], vectors: Mapping[str, tuple[Tensor, str]], settled: set[str]
) -> Model:  # fmt: skip
    """The target with the reference's tensors; unused tensors stay, renamed where their name is taken."""
    used = {n for g in found.values() for n in g.names} | {n for _, n in vectors.values()}
    made = {n: g.tensor(n) for n, g in found.items()} | {n: t for n, (t, _) in vectors.items()}
    left = {n: t for n, t in target.weights.items() if n in settled or n not in used}
    tensors = {f"{n}{LEFT_SUFFIX}" if n in made else n: t for n, t in left.items()} | made
    return from_arrays(tensors, target.name, dict(target.config) if target.config else None)


def _describe(g: GatheredTensor) -> str:
    names = ", ".join(g.names[:4]) + (", …" if len(g.names) > 4 else "")
    if g.whole:
        return names
    if len(g.sources) > 1:
        return f"rows of {names}"
    part = f"{g.view.count} of {g.sources[0].count} rows" if g.view.count < g.sources[0].count else "rows"
    return f"{part} of {names}{', reordered' if not _in_order(g.row) else ''}"


def _in_order(rows: np.ndarray) -> bool:
    return bool((np.diff(rows) == 1).all())


def _agree_in_place(own: Tensor, other: Tensor | None) -> bool:
    """Whether sampled rows of two tensors of one name agree in place."""
    if other is None or tuple(own.shape) != tuple(other.shape):
        return False
    rows = np.unique(np.linspace(0, own.shape[0] - 1, PROBES).round().astype(int))
    x, y = (finite(t.take(rows)).reshape(len(rows), -1) for t in (own, other))
    u, v = directions(x), directions(y)
    return float((u * v).sum(axis=1).mean()) >= NEAR or not u.any()


def _token_tensors(model: Model, own: Mapping[str, Tensor]) -> set[str]:
    """Matrices whose rows are tokens or experts, by structure, or by the longest axis."""
    longest = max((t.shape[0] for t in own.values()), default=0)
    longest = longest if longest > max((max(t.shape[1:]) for t in own.values()), default=0) else 0
    axes = structure(model).axes
    return {n for n, t in own.items() if t.shape[0] == longest
            or any(label.role in ("token", "expert") for label in axes.get(n, ()))}  # fmt: skip


def _spread(names: Sequence[str]) -> list[str]:
    first = names[:: max(1, len(names) // MISSES)]
    return [*first, *(n for n in names if n not in set(first))]


def _gather(own: Tensor, pool: RowIndex, tokens: set[str], *, any_order: bool) -> GatheredTensor | None:
    """Where the rows of a tensor are, for the first view of it whose rows are all found."""
    for view in row_views(own):
        if pool.views_of_length(view.length):
            found = _sources(view, pool)
            if found is not None and (any_order or tokens.issuperset(found.names) or is_simple(_places(found))):
                return found
    return None


def _places(g: GatheredTensor) -> np.ndarray:
    """Rows numbered through all sources, with gaps between sources."""
    starts = np.concatenate([[0], np.cumsum([s.count + 1 for s in g.sources])])
    return starts[g.source] + g.row


def _sources(view: TensorRows, pool: RowIndex) -> GatheredTensor | None:
    probes = np.unique(np.linspace(0, view.count - 1, PROBES).round().astype(int))
    wanted = normal(view.subsampled()[probes]) if view.transposed else directions(view.read(probes))
    alive = wanted.any(axis=1)
    best, hits = np.full(len(probes), -1.0), np.zeros(len(probes), int)
    views_of_length = pool.views_of_length(view.length)
    for k, form in enumerate(views_of_length):
        top = (wanted @ pool.sketch(form).T).max(axis=1)
        hits[top > best + 1e-6], best = k, np.maximum(best, top)
    if alive.sum() < 2 or (best[alive] >= NEAR).mean() < HITS:
        return None
    sources = [views_of_length[k] for k in dict.fromkeys(hits[alive & (best >= NEAR)].tolist())]
    return _assign_rows(view, sources, pool)


def _assign_rows(view: TensorRows, sources: Sequence[TensorRows], pool: RowIndex) -> GatheredTensor | None:
    """Every row's nearest one among the sources; None where rows are missing or used too often."""
    there = np.concatenate([pool.sketch(s) for s in sources])
    raw = view.read()
    rows = directions(raw)
    first = rows[np.linspace(0, view.count - 1, SAMPLE).astype(int)] if view.count > 2 * SAMPLE else rows[:0]
    if ((first @ there.T).max(axis=1) < NEAR / 2 - TIED)[first.any(axis=1)].any():
        return None  # as below, without the similarities of all rows
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
    return GatheredTensor(view, tuple(sources), source, row)


def _nearest(
    alike: np.ndarray, raw: np.ndarray, everything: Callable[[], np.ndarray], before: int
) -> np.ndarray:  # fmt: skip
    """The nearest row of each; of equal rows the one after the previous row's."""
    at = alike.argmax(axis=1)
    top = alike[np.arange(len(at)), at] - TIED
    for i in np.flatnonzero((alike >= top[:, None]).sum(axis=1) > 1):
        near = np.flatnonzero(alike[i] >= top[i])
        apart = np.abs(everything()[near] - raw[i]).max(axis=1)
        near = near[apart <= apart.min()]
        follows = (at[i - 1] if i else before) + 1
        at[i] = follows if follows in near else near[0]
    return at
