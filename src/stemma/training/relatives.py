"""Models with known history, as learned parts are trained on them: from a zoo, or from a folder of one."""

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

UNSEEN = frozenset({R.PERMUTED, R.DISTILLED, R.MERGED, R.COPY})
"""Relations that are not asked about: their weights are elsewhere, come from several parents, or are the same."""

TWINS = frozenset({R.COPY, R.REFORMATTED, R.PERMUTED})
"""Models that are no candidates beside their parent: the two are one model in two forms."""


@dataclass(frozen=True, eq=False)
class Relative:
    """One model of a family.

    Attributes:
        name: Unique among all.
        model: Its weights.
        family: Models of one family may be related, models of two families never are.
        ancestors: Names of what it was made from, nearest first, whether they are there or not.
        child: Whether its parent may be asked for.
        candidate: Whether it may stand among the candidates.
    """

    name: str
    model: Model
    family: str
    ancestors: tuple[str, ...]
    child: bool = True
    candidate: bool = True


def of_zoo(zoo: Zoo, family: str) -> list[Relative]:
    """The members of a zoo as one family.

    Args:
        zoo: With its history.
        family: What to call it; names of members get it in front.

    Returns:
        One relative per member.
    """
    return [
        Relative(
            f"{family}:{m.name}",
            m.model,
            family,
            tuple(f"{family}:{a}" for a in zoo.ancestors(m.name)),
            m.relation not in UNSEEN,
            m.relation not in TWINS | {R.DISTILLED},
        )
        for m in zoo.members
    ]


def of_folder(folder: Path, progress: Progress | None = None) -> list[Relative]:
    """The models of a folder that `stemma zoo build` wrote; what is true of them is in its `truth.json`.

    Args:
        folder: With `truth.json` beside the models.
        progress: Told which model is read, how many are done, and of how many.

    Returns:
        One relative per model.

    Raises:
        MisuseError: If there is no truth, or it is of another form.
        NotAModelError: If a model that it names is not there.
    """
    path = folder / "truth.json"
    if not path.is_file():
        raise MisuseError(f"{folder} holds no truth.json: give a folder that `stemma zoo build` wrote")
    try:
        truth = json.loads(path.read_text())
        ancestors = {str(n): tuple(map(str, a)) for n, a in truth["ancestors"].items()}
        relations = {str(r["child"]): R(r["kind"]) for r in truth["relations"]}
        linked = list(_links(truth, ancestors))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MisuseError(f"{path} is no truth of a zoo ({error}): build the zoo again") from error
    families = components(ancestors, linked)
    earlier = {p["models"][0] for p in truth.get("same_run", ())}  # an earlier checkpoint is an ancestor in effect
    found = []
    for i, (name, above) in enumerate(ancestors.items()):
        if progress is not None:
            progress(f"reading {name}", i, len(ancestors))
        model = _open(folder, name)
        relation = relations.get(name)
        own = name not in earlier
        candidate = own and relation not in TWINS | {R.DISTILLED}
        line = tuple(f"{folder}:{a}" for a in above)
        asked = own and relation not in UNSEEN
        found.append(Relative(f"{folder}:{name}", model, f"{folder}:{families[name]}", line, asked, candidate))
    return found


def _open(folder: Path, name: str) -> Model:
    whole = folder / name
    if whole.is_dir():
        return load(whole, name)
    files = sorted(whole.parent.glob(f"{whole.name}.*"))
    if not files:
        raise NotAModelError(f"{folder / 'truth.json'} names {name}, but there is no such model: build the zoo again")
    return load(files[0], name)


def _links(truth: Mapping[str, Any], ancestors: Mapping[str, Sequence[str]]) -> Iterable[tuple[str, str]]:
    for name, above in ancestors.items():
        yield from ((name, a) for a in above)
    for key in ("same_init", "same_run"):
        for pair in truth.get(key, ()):
            yield pair["models"][0], pair["models"][1]


def components(names: Iterable[str], links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Which names are connected.

    Args:
        names: All of them.
        links: Pairs; names that occur only here connect too.

    Returns:
        For each name the first of its component.
    """
    above: dict[str, str] = {}

    def root(name: str) -> str:
        while above.get(name, name) != name:
            name = above[name]
        return name

    for a, b in links:
        above[root(b)] = root(a)
    firsts: dict[str, str] = {}
    return {name: firsts.setdefault(root(name), name) for name in names}
