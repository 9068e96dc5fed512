"""A model's licence as it is stated, set against that of a model that its weights come from."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from stemma.application.policies.licence_expressions import Group, Term, read
from stemma.application.policies.licence_names import known_names, parse_name
from stemma.application.policies.licences import DENIED, FREE, DeniedLicence, judge_licence
from stemma.types import ClaimLine
from stemma.types.text import short_name

PERMISSIVE = frozenset({"Permissive", "Public Domain"})
"""Categories of the licence list whose licences let a changed model be passed on under other terms."""


def licence_line(
    own: str, source: Mapping[str, Any], made: Literal["copies", "same", "parents"], evidence: str
) -> ClaimLine:
    """Whether a stated licence agrees with that of a copy or parent.

    A parent under a licence that is not known to be permissive, and that the model's own licence does not repeat,
    contradicts it: the terms of the parent may apply to what was made from it.

    Args:
        own: Licence of the model as stated; empty where none is.
        source: Copy or parent, a row of a trace.
        made: Whether it is a copy, the same network in another form, or an established parent.
        evidence: Words on the evidence, in brackets.

    Returns:
        The line.
    """
    name, theirs = short_name(source["name"]), (source["licence"] or "").strip()
    said = f"Its licence is stated as {_shown(own)}" if own else "No licence is stated"
    tie = {
        "copies": f"its weights are those of {name}",
        "same": f"it is {name} in another form",
        "parents": f"its weights were made from those of {name}",
    }[made] + evidence
    names = (str(source["name"]),)

    def line(verdict: Any, rest: str) -> ClaimLine:
        ending = ": claim contradicted." if verdict == "contradicted" else "."
        return ClaimLine("licence", own, verdict, f"{said}; {tie}, {rest}{ending}", names)

    if not theirs:
        return line("not checked", "whose licence is not recorded")
    under = f"which is under {_shown(theirs)}"
    if not own:
        return line("not checked", f"{under}, whose terms may apply")
    if own.casefold() == theirs.casefold() or (included := includes(own, theirs)):
        return line("agrees", under)
    judged = judge_licence(theirs, (), stated=True), judge_licence(own, (), stated=True)
    if any(j.kind != FREE for j in judged):
        unclear = theirs if judged[0].kind != FREE else own
        return line("not checked", f"{under}, but {_shown(unclear)} is not a clear licence")
    if (free := is_permissive(theirs)) or included is None:
        why = "a permissive licence" if free else f"which {_shown(own)} may mean"
        return line("not checked", f"{under}, {why}")
    if free is None:
        return line("not checked", f"{under}, which leaves open which licence it is")
    return line("contradicted", f"{under}, whose terms may apply to it")


def _shown(licence: str) -> str:
    return short_name(" ".join(licence.split()), 60)


def includes(own: str, theirs: str) -> bool | None:
    """Whether one licence includes the other one: by the same name however it is spelt, or within an expression.

    Args:
        own: Licence of the model.
        theirs: Licence of what it was made from.

    Returns:
        Whether every alternative of `own` includes it; None where `own` leaves open whether it is meant.
    """
    tree = read(theirs)
    name = parse_name(tree.name) if isinstance(tree, Term) else None
    if not isinstance(tree, Term) or name is None:
        return False
    refused = DeniedLicence(theirs, name, parse_name(tree.exception) if tree.exception else None)
    return {DENIED: True, FREE: False}.get(judge_licence(own, (refused,), stated=True).kind)


def is_permissive(text: str) -> bool | None:
    """Whether a licence, or a choice of it, is known to let a changed model be passed on under other terms.

    Args:
        text: As a card or a person states it.

    Returns:
        None where a name stands for several licences that differ in this (`cc-by`); false for an unknown one.
    """
    tree = read(text)
    return False if tree is None else _lets(tree)


def _lets(tree: Term | Group) -> bool | None:
    if isinstance(tree, Term):
        name = parse_name(tree.name)
        words = name.words if name else ()
        return words in _permissive_names() if words in _whole_names() else _shared_answer(words)
    found = [_lets(part) for part in tree.parts]
    best = tree.choice  # one is enough of alternatives, and one is too many of licences that all apply
    return best if best in found else None if None in found else not best


@cache
def _permissive_names() -> frozenset[tuple[str, ...]]:
    """The permissive licences of the list that `license-expression` carries, each by its SPDX names."""
    from license_expression import get_license_index

    found: set[tuple[str, ...]] = set()
    for entry in get_license_index():
        if entry["category"] in PERMISSIVE and not entry["is_exception"]:
            keys = (entry["spdx_license_key"], *entry["other_spdx_license_keys"])
            spdx = [k for k in keys if k and not k.startswith("LicenseRef-")]
            found.update(name.words for k in spdx if (name := parse_name(k)))
    return frozenset(found)


@cache
def _whole_names() -> frozenset[tuple[str, ...]]:
    return frozenset(name.words for text in known_names() if (name := parse_name(text)))


def _shared_answer(words: tuple[str, ...]) -> bool | None:
    """The answer for all known names that begin so; None where they differ, and false where there are none."""
    answers = {n in _permissive_names() for n in _whole_names() if words and n[: len(words)] == words}
    return answers.pop() if len(answers) == 1 else None if answers else False
