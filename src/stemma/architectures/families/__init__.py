"""Architectures as data: one JSON file per family names its tensors and says what their axes carry.

A file holds:

- `model_types`: what a config beside the weights calls it. A claim: it decides between families that fit, nothing else.
- `requires`, `forbids`: tensor patterns of which all, respectively none, must occur.
- `tensors`: pattern → one label per axis. `{l}` in a pattern is a number. A label is a fixed role (`token`), a group
  (`mlp@{l}`, with `{l+1}` and `{l-1}` for neighbours), or several joined by `|` (fused tensors), each with an
  optional share (`kv@{l}*heads`). A trailing `~` marks units that lie next to one another instead of in blocks.
- `groups`: group → kind and flags, in causal order; `size` names the variable that counts its units.
- `heads`: head dimensions that published models of the family use, where no config says it.
- `outside`: prefix → tensors of the family that stand beside that prefix.
- `explicit`: false where other networks use the same names: without a config that claims the family, groups of one
  size may then be joined by a shortcut.
- `ties`: groups that a shortcut makes one, `unless` a tensor (the shortcut's projection) occurs.
"""

import functools
import importlib.resources
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stemma.architectures.structure import Draft, GroupRule, MisfitError, Part, group_sizes

ROLES = frozenset({"token", "class", "position", "colour", "pixel", "kernel", "one", "expert", "dimension", "unknown"})
_CONFIG = {
    "heads": ("num_attention_heads", "heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads",
              "attention.head_count"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "attention.head_count_kv"),
    "head_dim": ("head_dim", "d_kv", "attention.key_length"),
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One architecture, read from its JSON file.

    Attributes:
        name: The file's stem.
        model_types: Names in configs.
        requires: Patterns that must occur.
        forbids: Patterns that must not.
        tensors: Pattern (compiled when a model needs it) and the labels of its axes.
        groups: Compiled group name, its rule and the variable that counts its units ("" for none).
        heads: Usual head dimensions.
        ties: Groups that are one.
        explicit: Whether the names alone say which groups are distinct.
        unrotatable_if: Patterns whose presence pins the residual stream's basis.
        outside: Tensors beside the prefix (projections of a tower), by the prefix' last name.
    """

    name: str
    model_types: tuple[str, ...]
    requires: tuple[re.Pattern[str], ...]
    forbids: tuple[re.Pattern[str], ...]
    tensors: tuple[tuple[str, tuple[str, ...]], ...]
    groups: tuple[tuple[re.Pattern[str], GroupRule, str], ...]
    heads: tuple[int, ...] = ()
    ties: tuple[Mapping[str, Any], ...] = ()
    explicit: bool = True
    unrotatable_if: tuple[re.Pattern[str], ...] = ()
    outside: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """A family laid on the tensors below one prefix.

    Attributes:
        family: The family.
        prefix: What stands before the family's tensor names.
        draft: Parts by full tensor name.
        rules: Rule by group.
        sizes: Known number of units by group (heads).
        claimed: Whether the config names this family.
    """

    family: Family
    prefix: str
    draft: Draft
    rules: Mapping[str, GroupRule]
    sizes: Mapping[str, int]
    claimed: bool = field(default=False)


@functools.cache
def pattern(template: str, *, anchored: bool = False) -> re.Pattern[str]:
    """Compile a template: `{l}` is a number, `(a|b)` a choice, a dot a dot.

    Args:
        template: As in the JSON files.
        anchored: Match the whole text; otherwise anything ending in a dot may stand before.

    Returns:
        The pattern; what stands before is the group `prefix`.
    """
    text = re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>-?[0-9]{{1,9}})", template.replace(".", r"\."))
    head = "^" if anchored else r"^(?P<prefix>(?:[\w-]+\.)*?)"
    return re.compile(head + text + "$")


@functools.cache
def families() -> tuple[Family, ...]:
    """All families, in the order in which they are tried.

    Returns:
        One per JSON file in this folder.
    """
    folder = importlib.resources.files("stemma.architectures.families")
    names = sorted(p.name for p in folder.iterdir() if p.name.endswith(".json"))
    raw = {n[:-5]: json.loads((folder / n).read_text("utf-8")) for n in names}
    return tuple(_family(name, raw) for name in raw)


def _family(name: str, raw: Mapping[str, Mapping[str, Any]]) -> Family:
    data = raw[name]
    parent = raw[data["extends"]] if "extends" in data else {}
    tensors = {**data.get("tensors", {}), **{k: v for k, v in parent.get("tensors", {}).items()
                                             if k not in data.get("tensors", {})}}  # fmt: skip
    groups = {**parent.get("groups", {}), **data.get("groups", {})}
    return Family(
        name=name,
        model_types=tuple(data.get("model_types", ())),
        requires=tuple(pattern(p) for p in data["requires"]),
        forbids=tuple(pattern(p) for p in data.get("forbids", ())),
        tensors=tuple((p, tuple(labels)) for p, labels in tensors.items()),
        groups=tuple(_group_rule(g, i, spec) for i, (g, spec) in enumerate(groups.items())),
        heads=tuple(data.get("heads", parent.get("heads", ()))),
        ties=tuple(data.get("ties", ())),
        explicit=bool(data.get("explicit", True)),
        outside=data.get("outside", {}),
        unrotatable_if=tuple(pattern(p) for p in data.get("unrotatable_if", parent.get("unrotatable_if", ()))),
    )


def _group_rule(name: str, place: int, spec: Mapping[str, Any]) -> tuple[re.Pattern[str], GroupRule, str]:
    flags = {k: v for k, v in spec.items() if k not in {"size", "chunk"}}
    rule = GroupRule(**flags, position=(spec.get("chunk", place), place))
    return pattern(name, anchored=True), rule, spec.get("size", "")


def fits(shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any] | None) -> Iterator[Fit]:
    """Every way to lay a family on some of the tensors, best first.

    Args:
        shapes: Shape by tensor name.
        config: The config beside the weights, if any.

    Yields:
        Fits, those that the config claims first, then by number of tensors covered.
    """
    found = []
    for family in families():
        for prefix in _prefixes(family, shapes):
            below = [n for n in shapes if n.startswith(prefix)]
            try:
                fit = _fit(family, prefix, below, shapes, _subconfig(config, prefix))
            except MisfitError:
                continue
            found.append(fit)
    yield from sorted(found, key=lambda f: (-f.claimed, -len(f.draft), f.prefix))


def _prefixes(family: Family, names: Iterable[str]) -> list[str]:
    """Prefixes below which every required pattern occurs and no forbidden one does.

    Returns:
        Prefixes, each empty or ending in a dot.
    """
    names = list(names)

    def below(p: re.Pattern[str]) -> set[str]:
        return {m["prefix"] for n in names if (m := p.match(n))}

    good: set[str] | None = None
    for p in family.requires:  # most families lack the first already
        good = below(p) if good is None else good & below(p)
        if not good:
            return []
    assert good is not None
    return sorted(good - set().union(*(below(p) for p in family.forbids)))


def _subconfig(config: Mapping[str, Any] | None, prefix: str) -> Mapping[str, Any]:
    """The part of a composed model's config that speaks about the tensors below a prefix.

    Returns:
        A flat config, empty without one.
    """
    config = config or {}
    for key, words in {"vision_config": ("vision", "visual"), "text_config": ("text", "language")}.items():
        if isinstance(config.get(key), Mapping) and any(w in prefix for w in words):
            return config[key]
    if isinstance(config.get("text_config"), Mapping) and "num_attention_heads" not in config:
        return {**config, **config["text_config"]}
    return config


def _fit(
    family: Family, prefix: str, names: Sequence[str], shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]
) -> Fit:
    draft: dict[str, list[list[Part]]] = {}
    variables = {k: v for k in _CONFIG if (v := _claimed(config, k))}
    for name in names:
        labels, numbers = _labels(family, name[len(prefix) :])
        if labels is None:
            continue
        if len(labels) != len(shapes[name]):
            raise MisfitError(f"{name} has {len(shapes[name])} axes, the family {family.name} says {len(labels)}")
        draft[name] = [_parts(text, numbers, variables) for text in labels]
    for tower, tensors in family.outside.items():
        if prefix.endswith(tower):
            for name, labels in tensors.items():
                if (full := prefix.removesuffix(tower) + name) in shapes:
                    draft[full] = [_parts(text, {}, variables) for text in labels]
    _name_last(draft)
    _apply_ties(family, prefix, draft, shapes)
    rules, counted = _rules(family, draft, any(p.match(n) for p in family.unrotatable_if for n in names))
    sizes = _head_sizes(family, draft, shapes, counted, variables)
    return Fit(family, prefix, draft, rules, sizes, config.get("model_type") in family.model_types)


def _claimed(config: Mapping[str, Any], variable: str) -> int:
    for key in _CONFIG[variable]:
        for k, v in config.items():
            if (k == key or k.endswith("." + key)) and isinstance(v, int) and v > 0:
                return v
    return 0


def _labels(family: Family, name: str) -> tuple[tuple[str, ...] | None, dict[str, int]]:
    for p, labels in family.tensors:
        if (m := pattern(p).match(name)) and not m["prefix"]:
            return labels, {k: int(v) for k, v in m.groupdict().items() if k != "prefix" and v is not None}
    return None, {}


def _fill(text: str, numbers: Mapping[str, int]) -> str:
    return re.sub(r"\{(\w+)([+-]\d+)?\}", lambda m: str(numbers[m[1]] + int(m[2] or 0)), text)


def _parts(text: str, numbers: Mapping[str, int], variables: Mapping[str, int]) -> list[Part]:
    parts = []
    for piece in text.split("|"):
        name, _, share = _fill(piece, numbers).partition("*")
        if share and share not in variables and not (share == "kv_heads" and "heads" in variables):
            raise MisfitError(f"the number of {share} is not known")
        weight = variables.get(share) or variables.get("heads", 1) if share else 1
        parts.append(Part(name.rstrip("~"), name in ROLES, weight, name.endswith("~")))
    return parts


def _rules(family: Family, draft: Draft, pinned: bool) -> tuple[dict[str, GroupRule], dict[str, str]]:
    rules: dict[str, GroupRule] = {}
    counted: dict[str, str] = {}
    for name in {p.name for labels in draft.values() for parts in labels for p in parts if not p.fixed}:
        for place, (p, rule, size) in enumerate(family.groups):
            if m := p.match(name):
                numbers = tuple(int(v) for v in m.groupdict().values() if v is not None)
                chunk, _ = rule.position
                rules[name] = replace(
                    rule, position=(chunk, *numbers, -1, place),
                    rotatable=rule.rotatable and not pinned, sign_free=rule.sign_free,
                )  # fmt: skip
                if size:
                    counted[name] = size
                break
        else:
            raise MisfitError(f"{family.name} does not describe the group {name}")
    return rules, counted


def _head_sizes(
    family: Family, draft: Draft, shapes: Mapping[str, Sequence[int]],
    counted: Mapping[str, str], variables: Mapping[str, int],
) -> dict[str, int]:  # fmt: skip
    """Units of groups that are counted in heads: config if it fits, else norms inside a head, else usual dimensions.

    Without config the block may be a multiple of the true head: exchanging such blocks is still exchanging heads.

    Returns:
        Units by group.

    Raises:
        MisfitError: If a group's rows cannot be whole heads.
    """
    rows = group_sizes(shapes, draft, {})
    inner = {
        length for name, labels in draft.items() for length, parts in zip(shapes[name], labels, strict=True)
        if any(p.name == "dimension" for p in parts)
    }  # fmt: skip
    sizes = {}
    for group, variable in counted.items():
        smallest = rows[group]
        count = variables.get(variable) or (variables.get("heads", 0) if variable == "kv_heads" else 0)
        if count and smallest % count == 0:
            sizes[group] = count
            continue
        dims = inner or {d for d in (variables.get("head_dim", 0), *family.heads) if d and smallest % d == 0}
        block = math.lcm(*dims) if dims else smallest
        if smallest % block:
            block = smallest
        sizes[group] = smallest // block
    return sizes


def _apply_ties(
    family: Family, prefix: str, draft: dict[str, list[list[Part]]], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Replace groups that a shortcut without projection makes one, or a padded one partly so.

    Raises:
        MisfitError: If the sizes do not allow it.
    """
    sizes = group_sizes(shapes, draft, {})
    consists: dict[str, list[Part]] = {g: [Part(g, rows=n)] for g, n in sizes.items()}
    for tie in family.ties:
        later = pattern(tie["groups"][0], anchored=True)
        matches = [(g, {k: int(v) for k, v in m.groupdict().items()}) for g in sizes if (m := later.match(g))]
        for group, numbers in sorted(matches, key=lambda x: tuple(x[1].values())):
            earlier = _fill(tie["groups"][1], numbers)
            projections = [prefix + _fill(t, numbers) for t in tie.get("unless", ())]
            if earlier in consists and not any(t in shapes for t in projections):
                consists[group] = _tied(group, sizes[group], consists[earlier], tie.get("sizes", ""))
    for name, labels in draft.items():
        for axis, parts in enumerate(labels):
            if (
                len(parts) == 1
                and not parts[0].fixed
                and consists[parts[0].name] != [Part(parts[0].name, rows=sizes[parts[0].name])]
            ):
                new = consists[parts[0].name]
                whole = shapes[name][axis] == sum(int(p.rows or 0) for p in new)
                labels[axis] = list(new) if whole and len(new) > 1 else [replace(parts[0], name=new[0].name)]
                if len(new) > 1 and not whole:
                    raise MisfitError(f"a padded shortcut into the flattened axis {axis} of {name}")


def _name_last(draft: dict[str, list[list[Part]]]) -> None:
    """Resolve `stage@last` to the highest-numbered group of that kind.

    Raises:
        MisfitError: If there is none.
    """
    names = {p.name for labels in draft.values() for parts in labels for p in parts}
    for name in {n for n in names if n.endswith("@last")}:
        stem = name.removesuffix("last")
        numbers = [int(n[len(stem) :]) for n in names if re.fullmatch(re.escape(stem) + r"-?\d+", n)]
        if not numbers:
            raise MisfitError(f"no group {stem}N to be the last")
        for labels in draft.values():
            for axis, parts in enumerate(labels):
                labels[axis] = [replace(p, name=f"{stem}{max(numbers)}") if p.name == name else p for p in parts]


def _tied(group: str, size: int, earlier: list[Part], sizes: str) -> list[Part]:
    before = sum(int(p.rows or 0) for p in earlier)
    if size == before:
        return earlier
    if sizes == "equal":
        return [Part(group, rows=size)]
    if sizes == "padded" and size > before and (size - before) % 2 == 0:
        pad = (size - before) // 2
        return [Part(f"{group}.low", rows=pad), *earlier, Part(f"{group}.high", rows=pad)]
    raise MisfitError(f"a shortcut from {before} to {size} channels without projection")
