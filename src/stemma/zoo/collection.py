"""A zoo: models whose history is known, and what is therefore true of every pair."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from stemma.checkpoints.model import Model
from stemma.errors import UnknownNameError
from stemma.types import RelationKind as R
from stemma.zoo.disguises import write
from stemma.zoo.recipe import Recipe

EQUIVALENCES: tuple[tuple[tuple[R, ...], str], ...] = (
    ((R.COPY, R.REFORMATTED), "a copy under other names or in another file differs in nothing but form"),
    ((R.SAME_RUN, R.FINETUNED), "further training of a checkpoint is fine-tuning on the same data"),
    ((R.UNLEARNED, R.FINETUNED), "training on wrong answers is fine-tuning, unless the forgotten class is probed"),
    ((R.PRUNED, R.UNLEARNED), "zeroed units are pruned or unlearned, unless the forgotten class is probed"),
    ((R.HEAD_REPLACED, R.FINETUNED), "a fresh head of the same shape, trained with everything else"),
    ((R.HEAD_REPLACED, R.PART_INHERITED), "a replaced head is a part that was not inherited"),
    ((R.LORA, R.FINETUNED), "a merged adapter is fine-tuning, unless its rank shows"),
    ((R.MERGED, R.FINETUNED, R.SIBLINGS), "the average of fine-tunes of one root lies among them"),
    ((R.DISTILLED, R.UNRELATED), "a distilled student shares no weights: only the function shows it"),
)  # fmt: skip
"""Relations that cannot be told apart from weights alone, and why."""

_NO_WEIGHTS = frozenset({R.DISTILLED})


@dataclass(frozen=True)
class Member:
    """One model of a zoo.

    Attributes:
        name: Path-like and unique, `mlp/permuted`; its path below the folder that it is written to.
        model: The weights.
        recipe: How it was made.
        parents: Names of the models it was made from.
        relation: Its relation to them.
        form: How it is written, one of `stemma.zoo.disguises.FORMATS`.
    """

    name: str
    model: Model
    recipe: Recipe
    parents: tuple[str, ...] = ()
    relation: R | None = None
    form: str = "folder"


@dataclass(frozen=True)
class Zoo:
    """Models with known history.

    Attributes:
        members: Parents before children.
        history: Parents by name, also of ancestors that are no members.
    """

    members: tuple[Member, ...]
    history: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Member:
        found = self._by_name.get(name)
        if found is None:
            raise UnknownNameError(f"the zoo has no member {name!r}. There are: {', '.join(self._by_name)}.")
        return found

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        return {m.name: m for m in self.members}

    @property
    def models(self) -> list[Model]:
        """The members' models."""
        return [m.model for m in self.members]

    def ancestors(self, name: str) -> tuple[str, ...]:
        """Names of everything a model descends from in any way, members or not, nearest first."""
        if name not in self._above:
            nearest_first: dict[str, None] = {}
            pending = list(self.history.get(name, ()))
            while pending:
                parent = pending.pop(0)
                if parent not in nearest_first:
                    nearest_first[parent] = None
                    pending += self.history.get(parent, ())
            self._above[name] = tuple(nearest_first)
        return self._above[name]

    @cached_property
    def _above(self) -> dict[str, tuple[str, ...]]:
        """Ancestors found so far."""
        return {}

    @cached_property
    def _starts(self) -> dict[str, frozenset[str]]:
        return {m.name: _starts(m.recipe) for m in self.members}

    def starts(self, name: str) -> frozenset[str]:
        """Labels of the random starts whose weights a model carries; related models have a common label."""
        return self._starts[self[name].name]

    def relation(self, a: str, b: str) -> R:
        """The relation of a pair, by the broadest correct name.

        Returns:
            `copy` for two copies of one model; the edge's relation where one was made from the other directly;
            `same-run`, `same-init`; `siblings` for a common ancestor; `related` for a more distant ancestor;
            `distilled` where only function was handed down; else `unrelated`.
        """
        a, b = self._original(a), self._original(b)
        if a == b:
            return R.COPY
        first, second = self[a], self[b]
        for child, parent in ((first, b), (second, a)):
            if parent in child.parents and child.relation is not None:
                return child.relation
        if self._starts[a].isdisjoint(self._starts[b]):
            line_a, line_b = {a, *self.ancestors(a)}, {b, *self.ancestors(b)}
            return R.DISTILLED if line_a & line_b else R.UNRELATED
        if a in self.ancestors(b) or b in self.ancestors(a):
            return R.RELATED
        if first.recipe.operation == second.recipe.operation == "train":
            return R.SAME_RUN if _run_key(first.recipe) == _run_key(second.recipe) else R.SAME_INIT
        return R.SIBLINGS if set(self.ancestors(a)) & set(self.ancestors(b)) else R.RELATED

    def _quarter(self, name: str) -> int:
        return int(self[name].recipe.parameters.get("quarter", 4))

    def _original(self, name: str) -> str:
        member = self[name]
        copied = member.relation == R.COPY and member.parents[0] in self._by_name
        return self._original(member.parents[0]) if copied else name

    @cached_property
    def truth(self) -> dict[str, Any]:
        """What is known: `relations`, `not_related`, `same_init`, `same_run`, `hidden_ancestors`, `equivalences`.

        `not_related` lists pairs without any link, not even distillation; `weights_independent` the pairs that a
        distillation links, whose weights have nothing in common.
        """
        pairs = {(a.name, b.name): self.relation(a.name, b.name) for a, b in combinations(self.members, 2)}
        by_kind: dict[R, list[list[str]]] = {k: [] for k in R}
        for pair, found in pairs.items():
            by_kind[found].append(list(pair))
        return {
            "relations": self._relations(),
            "not_related": [{"models": p, "why": _why(self[p[0]], self[p[1]])} for p in by_kind[R.UNRELATED]],
            "hidden_ancestors": self._hidden_ancestors(),
            "related_but_undocumented": [],
            "same_init": [
                {"models": p, "why": "one random start, trained on different data: no descent"}
                for p in by_kind[R.SAME_INIT]
            ],
            "same_run": [
                {"models": sorted(p, key=self._quarter), "why": "an earlier and a later checkpoint of one training run"}
                for p in by_kind[R.SAME_RUN]
            ],
            "weights_independent": [
                {"models": p, "why": "only outputs were passed on (distillation)"} for p in by_kind[R.DISTILLED]
            ],
            "equivalences": [{"relations": [r.value for r in rs], "why": why} for rs, why in EQUIVALENCES],
            "ancestors": {m.name: list(self.ancestors(m.name)) for m in self.members},
        }

    def _relations(self) -> list[dict[str, Any]]:
        out = []
        for m in self.members:
            for parent in m.parents:
                if parent in self._by_name and m.relation is not None:
                    out.append(
                        {
                            "kind": m.relation.value,
                            "parent": parent,
                            "child": m.name,
                            "parents": list(m.parents),
                            "basis": "recipe",
                            "evidence": m.recipe.digest,
                            "parameters": dict(m.recipe.parameters),
                        }
                    )
        return out

    def _hidden_ancestors(self) -> list[dict[str, Any]]:
        children: dict[str, list[str]] = {}
        for m in self.members:
            for ancestor in self.ancestors(m.name):
                if ancestor not in self._by_name and m.relation not in _NO_WEIGHTS:
                    children.setdefault(ancestor, []).append(m.name)
        return [{"ancestor": f"absent: {a}", "scope": "all tensors", "children": c} for a, c in children.items()]

    def without(self, *names: str) -> "Zoo":
        """The zoo without some members; its truth then names them as hidden ancestors."""
        removed = {self[n].name for n in names}
        return Zoo(tuple(m for m in self.members if m.name not in removed), self.history)

    def write(self, folder: Path | str, *, replace: bool = False) -> Path:
        """Write every member as a checkpoint below a folder, and `truth.json`; returns the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for m in self.members:
            write(m.model, folder / m.name, m.form, replace=replace)
        (folder / "truth.json").write_text(json.dumps(self.truth, indent=1) + "\n")
        return folder


def _run_key(recipe: Recipe) -> tuple[Any, ...]:
    parameters = {k: v for k, v in recipe.parameters.items() if k != "quarter"}
    return (recipe.kind, json.dumps(parameters, sort_keys=True), recipe.seed, recipe.part)


def _starts(recipe: Recipe) -> frozenset[str]:
    if recipe.operation == "train":
        start = recipe.parameters.get("start", recipe.seed)
        return frozenset({f"{recipe.kind}:{bool(recipe.parameters.get('other'))}:{start}"})
    if recipe.operation == "distill":
        return frozenset({str(recipe.digest)})
    return frozenset().union(*(_starts(p) for p in recipe.parents))


def _why(a: Member, b: Member) -> str:
    if a.recipe.kind != b.recipe.kind:
        return "different architectures, trained independently"
    apart = [m for m in (a, b) if m.recipe.parameters.get("untrained")]
    if apart:
        return "one of them was never trained, and has its own random start"
    if a.recipe.part != b.recipe.part:
        return "trained independently from different random starts on different data"
    return "trained independently from different random starts on the same data"
