"""Architectures as data: one JSON file per family names its tensors and labels their axes.

A file contains:

- `model_types`: names in configs. A claim: it only decides between families that match.
- `requires`, `forbids`: tensor patterns of which all, respectively none, must occur.
- `tensors`: pattern → one label per axis. `{l}` in a pattern is a number. A label is a fixed role (`token`), a group
  (`mlp@{l}`, with `{l+1}` and `{l-1}` for neighbours), or several joined by `|` (fused tensors), each with an
  optional share (`kv@{l}*heads`). A trailing `~` marks interleaved units instead of blocks.
- `groups`: group → kind and flags, in causal order; `size` names the variable that counts its units.
- `heads`: head dimensions of published models of the family, used without a config.
- `outside`: prefix → tensors of the family outside that prefix.
- `explicit`: false if other networks use the same names: without a config that claims the family, groups of one size
  may then be joined by a shortcut.
- `ties`: groups that a shortcut joins, `unless` a tensor (the shortcut's projection) occurs.
"""

import functools
import importlib.resources
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stemma.architectures.structure import Draft, GroupRule, MisfitError, Part, group_sizes

ROLES = frozenset({"token", "class", "position", "colour", "pixel", "kernel", "one", "expert", "dimension", "unknown"})
_CONFIG_KEYS = {
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
        tensors: Pattern (compiled on demand) and the labels of its axes.
        groups: Compiled group name, its rule and the variable that counts its units ("" for none).
        heads: Common head dimensions.
        ties: Groups joined by shortcuts.
        explicit: Whether names alone determine which groups are distinct.
        unrotatable_if: Patterns whose presence fixes the basis of the residual stream.
        outside: Tensors outside the prefix (projections of a tower), by the prefix' last name.
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
class FamilyMatch:
    """A family matched to the tensors below one prefix.

    Attributes:
        family: The family.
        prefix: Prefix of the tensor names.
        draft: Axis parts by full tensor name.
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
    """Compile a template of the JSON files: `{l}` is a number, `(a|b)` a choice; unanchored, any prefix may precede."""
    text = re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>-?[0-9]{{1,9}})", template.replace(".", r"\."))
    head = "^" if anchored else r"^(?P<prefix>(?:[\w-]+\.)*?)"
    return re.compile(head + text + "$")


@functools.cache
def families() -> tuple[Family, ...]:
    """All families, one per JSON file in this folder, in the order in which they are tried."""
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


def _group_rule(name: str, index: int, spec: Mapping[str, Any]) -> tuple[re.Pattern[str], GroupRule, str]:
    flags = {k: v for k, v in spec.items() if k not in {"size", "chunk"}}
    rule = GroupRule(**flags, position=(spec.get("chunk", index), index))
    return pattern(name, anchored=True), rule, spec.get("size", "")


def match_families(shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any] | None) -> Iterator[FamilyMatch]:
    """Every match of a family on some of the tensors: those the config claims first, then by number of tensors."""
    found = []
    names = list(shapes)
    ends = tuple(end for f in families() for p in f.requires[:1] for end in _literal_end(p))
    likely = [n for n in names if n.endswith(ends)]
    for family in families():
        for prefix in _prefixes(family, names, likely):
            below = [n for n in shapes if n.startswith(prefix)]
            try:
                fit = _fit(family, prefix, below, shapes, _subconfig(config, prefix))
            except MisfitError:
                continue
            found.append(fit)
    yield from sorted(found, key=lambda f: (-f.claimed, -len(f.draft), f.prefix))


def _prefixes(family: Family, names: Sequence[str], likely: Sequence[str]) -> list[str]:
    """Prefixes (empty or ending in a dot) below which every required pattern occurs and no forbidden one.

    Args:
        family: The family.
        names: Of the tensors.
        likely: Those among which the first required pattern of every family is found, if it is found.

    Returns:
        The prefixes, sorted.
    """

    def below(p: re.Pattern[str]) -> set[str]:
        end, among = _literal_end(p), likely if p is family.requires[0] else names
        return {m["prefix"] for n in among if n.endswith(end) and (m := p.match(n))}

    prefixes: set[str] | None = None
    for p in family.requires:  # for most families the first is missing
        prefixes = below(p) if prefixes is None else prefixes & below(p)
        if not prefixes:
            return []
    assert prefixes is not None
    return sorted(prefixes - set().union(*(below(p) for p in family.forbids)))


@functools.cache
def _literal_end(p: re.Pattern[str]) -> tuple[str, ...]:
    """How every match of a template ends, as far as its end is plain text; with and without a last line break."""
    plain = re.search(r"((?:\\\.|[\w-])*)\$$", p.pattern)
    text = plain[1].replace("\\.", ".") if plain and "|" not in p.pattern.rpartition(")")[2] else ""
    return text, text + "\n"


def _subconfig(config: Mapping[str, Any] | None, prefix: str) -> Mapping[str, Any]:
    """The part of a composed model's config that describes the tensors below a prefix; empty without a config."""
    config = config or {}
    for key, words in {"vision_config": ("vision", "visual"), "text_config": ("text", "language")}.items():
        if isinstance(config.get(key), Mapping) and any(w in prefix for w in words):
            return config[key]
    if isinstance(config.get("text_config"), Mapping) and "num_attention_heads" not in config:
        return {**config, **config["text_config"]}
    return config


def _fit(
    family: Family, prefix: str, names: Sequence[str], shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]
) -> FamilyMatch:
    draft: dict[str, list[list[Part]]] = {}
    variables = {k: v for k in _CONFIG_KEYS if (v := _claimed(config, k))}
    for name in names:
        labels, numbers = _labels(family, name[len(prefix) :])
        if labels is None:
            continue
        if len(labels) != len(shapes[name]):
            raise MisfitError(f"{name} has {len(shapes[name])} axes, the family {family.name} expects {len(labels)}")
        draft[name] = [_parts(text, numbers, variables) for text in labels]
    for tower, tensors in family.outside.items():
        if prefix.endswith(tower):
            for name, labels in tensors.items():
                if (full := prefix.removesuffix(tower) + name) in shapes:
                    draft[full] = [_parts(text, {}, variables) for text in labels]
    _resolve_last(draft)
    _apply_ties(family, prefix, draft, shapes)
    rules, counted = _rules(family, draft, any(p.match(n) for p in family.unrotatable_if for n in names))
    sizes = _head_sizes(family, draft, shapes, counted, variables)
    return FamilyMatch(family, prefix, draft, rules, sizes, config.get("model_type") in family.model_types)


def _claimed(config: Mapping[str, Any], variable: str) -> int:
    for key in _CONFIG_KEYS[variable]:
        for k, v in config.items():
            if (k == key or k.endswith("." + key)) and isinstance(v, int) and v > 0:
                return v
    return 0


def _labels(family: Family, name: str) -> tuple[tuple[str, ...] | None, dict[str, int]]:
    for p, labels in family.tensors:
        if (m := pattern(p).match(name)) and not m["prefix"]:
            return labels, {k: int(v) for k, v in m.groupdict().items() if k != "prefix" and v is not None}
    return None, {}


def _substitute(text: str, numbers: Mapping[str, int]) -> str:
    return re.sub(r"\{(\w+)([+-]\d+)?\}", lambda m: str(numbers[m[1]] + int(m[2] or 0)), text)


def _parts(text: str, numbers: Mapping[str, int], variables: Mapping[str, int]) -> list[Part]:
    parts = []
    for piece in text.split("|"):
        name, _, share = _substitute(piece, numbers).partition("*")
        if share and share not in variables and not (share == "kv_heads" and "heads" in variables):
            raise MisfitError(f"the number of {share} is unknown")
        weight = variables.get(share) or variables.get("heads", 1) if share else 1
        parts.append(Part(name.rstrip("~"), name in ROLES, weight, name.endswith("~")))
    return parts


def _rules(family: Family, draft: Draft, pinned: bool) -> tuple[dict[str, GroupRule], dict[str, str]]:
    rules: dict[str, GroupRule] = {}
    counted: dict[str, str] = {}
    for name in {p.name for labels in draft.values() for parts in labels for p in parts if not p.fixed}:
        for index, (p, rule, size) in enumerate(family.groups):
            if m := p.match(name):
                numbers = tuple(int(v) for v in m.groupdict().values() if v is not None)
                chunk, _ = rule.position
                rules[name] = replace(
                    rule, position=(chunk, *numbers, -1, index),
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
    """Units of groups counted in heads: from the config, else from per-head norms, else from common head sizes."""
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
    """Merge groups that a shortcut without projection joins; a padded shortcut joins part of the larger group."""
    sizes = group_sizes(shapes, draft, {})
    merged: dict[str, list[Part]] = {g: [Part(g, rows=n)] for g, n in sizes.items()}
    for tie in family.ties:
        later = pattern(tie["groups"][0], anchored=True)
        matches = [(g, {k: int(v) for k, v in m.groupdict().items()}) for g in sizes if (m := later.match(g))]
        for group, numbers in sorted(matches, key=lambda x: tuple(x[1].values())):
            earlier = _substitute(tie["groups"][1], numbers)
            projections = [prefix + _substitute(t, numbers) for t in tie.get("unless", ())]
            if earlier in merged and not any(t in shapes for t in projections):
                merged[group] = _shortcut_parts(group, sizes[group], merged[earlier], tie.get("sizes", ""))
    for name, labels in draft.items():
        for axis, parts in enumerate(labels):
            if (
                len(parts) == 1
                and not parts[0].fixed
                and merged[parts[0].name] != [Part(parts[0].name, rows=sizes[parts[0].name])]
            ):
                new = merged[parts[0].name]
                whole = shapes[name][axis] == sum(int(p.rows or 0) for p in new)
                labels[axis] = list(new) if whole and len(new) > 1 else [replace(parts[0], name=new[0].name)]
                if len(new) > 1 and not whole:
                    raise MisfitError(f"a padded shortcut into the flattened axis {axis} of {name}")


def _resolve_last(draft: dict[str, list[list[Part]]]) -> None:
    """Resolve `stage@last` to the highest-numbered group of that kind."""
    names = {p.name for labels in draft.values() for parts in labels for p in parts}
    for name in {n for n in names if n.endswith("@last")}:
        stem = name.removesuffix("last")
        numbers = [int(n[len(stem) :]) for n in names if re.fullmatch(re.escape(stem) + r"-?\d+", n)]
        if not numbers:
            raise MisfitError(f"there is no group {stem}N")
        for labels in draft.values():
            for axis, parts in enumerate(labels):
                labels[axis] = [replace(p, name=f"{stem}{max(numbers)}") if p.name == name else p for p in parts]


def _shortcut_parts(group: str, size: int, earlier: list[Part], sizes: str) -> list[Part]:
    before = sum(int(p.rows or 0) for p in earlier)
    if size == before:
        return earlier
    if sizes == "equal":
        return [Part(group, rows=size)]
    if sizes == "padded" and size > before and (size - before) % 2 == 0:
        pad = (size - before) // 2
        return [Part(f"{group}.low", rows=pad), *earlier, Part(f"{group}.high", rows=pad)]
    raise MisfitError(f"a shortcut from {before} to {size} channels without projection")
