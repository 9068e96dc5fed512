"""Models with known history for training learned parts, from a zoo or from a folder that holds one."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, NotAModelError
from stemma.networks.load import load
from stemma.types import RelationKind as R
from stemma.zoo.collection import Zoo

Progress = Callable[[str, int, int | None], None]

EXCLUDED_CHILDREN = frozenset({R.PERMUTED, R.DISTILLED, R.MERGED, R.COPY})
"""Relations that are not asked about: weights in other coordinates, from several parents, or the same."""

SAME_NETWORK = frozenset({R.COPY, R.REFORMATTED, R.PERMUTED})
"""Models that are no candidates beside their parent: the two are one network in two forms."""


@dataclass(frozen=True, eq=False)
class Relative:
    """One model of a family.

    Attributes:
        name: Unique among all.
        model: Its weights.
        family: Models of one family may be related, models of two families never are.
        ancestors: Names of its ancestors, nearest first, available or not.
        child: Whether its parent may be asked for.
        candidate: Whether it may be among the candidates.
    """

    name: str
    model: Model
    family: str
    ancestors: tuple[str, ...]
    child: bool = True
    candidate: bool = True


def relatives_from_zoo(zoo: Zoo, family: str) -> list[Relative]:
    """The members of a zoo as one family, whose name is put before theirs."""
    return [
        Relative(
            f"{family}:{m.name}",
            m.model,
            family,
            tuple(f"{family}:{a}" for a in zoo.ancestors(m.name)),
            m.relation not in EXCLUDED_CHILDREN,
            m.relation not in SAME_NETWORK | {R.DISTILLED},
        )
        for m in zoo.members
    ]


def relatives_from_folder(folder: Path, progress: Progress | None = None) -> list[Relative]:
    """The models of a folder that `stemma zoo build` wrote; the truth is in its `truth.json`.

    Args:
        folder: With `truth.json` beside the models.
        progress: Called with which model is read, how many are done, and of how many.

    Returns:
        One relative per model.

    Raises:
        MisuseError: If there is no truth, or it is of another form.
        NotAModelError: If a model that it names is missing.
    """
    path = folder / "truth.json"
    if not path.is_file():
        raise MisuseError(f"{folder} holds no truth.json: give a folder that `stemma zoo build` wrote")
    try:
        truth = json.loads(path.read_text())
        ancestors = {str(n): tuple(map(str, a)) for n, a in truth["ancestors"].items()}
        relations = {str(r["child"]): R(r["kind"]) for r in truth["relations"]}
        links = list(_linked_pairs(truth, ancestors))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MisuseError(f"{path} is not a valid truth file of a zoo ({error}): build the zoo again") from error
    families = components(ancestors, links)
    # an earlier checkpoint is an ancestor in effect
    earlier_checkpoints = {p["models"][0] for p in truth.get("same_run", ())}
    found = []
    for i, (name, above) in enumerate(ancestors.items()):
        if progress is not None:
            progress(f"reading {name}", i, len(ancestors))
        model = _open(folder, name)
        relation = relations.get(name)
        is_final = name not in earlier_checkpoints
        candidate = is_final and relation not in SAME_NETWORK | {R.DISTILLED}
        ancestor_names = tuple(f"{folder}:{a}" for a in above)
        is_child = is_final and relation not in EXCLUDED_CHILDREN
        found.append(
            Relative(f"{folder}:{name}", model, f"{folder}:{families[name]}", ancestor_names, is_child, candidate)
        )
    return found


def _open(folder: Path, name: str) -> Model:
    path_without_suffix = folder / name
    if path_without_suffix.is_dir():
        return load(path_without_suffix, name)
    files = sorted(path_without_suffix.parent.glob(f"{path_without_suffix.name}.*"))
    if not files:
        raise NotAModelError(f"{folder / 'truth.json'} names {name}, but there is no such model: build the zoo again")
    return load(files[0], name)


def _linked_pairs(truth: Mapping[str, Any], ancestors: Mapping[str, Sequence[str]]) -> Iterable[tuple[str, str]]:
    for name, above in ancestors.items():
        yield from ((name, a) for a in above)
    for key in ("same_init", "same_run"):
        for pair in truth.get(key, ()):
            yield pair["models"][0], pair["models"][1]


def components(names: Iterable[str], links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each name the first of its connected component; names that occur only in links connect too."""
    parent_of: dict[str, str] = {}

    def root(name: str) -> str:
        while parent_of.get(name, name) != name:
            name = parent_of[name]
        return name

    for a, b in links:
        parent_of[root(b)] = root(a)
    firsts: dict[str, str] = {}
    return {name: firsts.setdefault(root(name), name) for name in names}
