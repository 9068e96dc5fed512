"""Whether a licence, as cards and people state it, is one that the caller refuses: denied, free, or unclear.

An unclear licence fails a policy just as a denied one does.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from stemma.application.policies.licence_expressions import Group, Term, read
from stemma.application.policies.licence_names import Name, exceptions, known_names, parse_name
from stemma.checkpoints.cards import NO_LICENCE, PLACEHOLDER_LICENCES
from stemma.errors import MisuseError

DENIED, UNCLEAR, FREE = "denied", "unclear", "free"

_UNNAMED = re.compile(rf"({'|'.join(sorted(PLACEHOLDER_LICENCES))})\s*(?:\(.*\)|:(.*))?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class DeniedLicence:
    """One licence that the caller refuses.

    Attributes:
        word: As it was typed.
        name: The licence; None for `other` and `unknown`, which stand for what a card gives no name to.
        exception: Only with this exception (`WITH …`), None for whatever exception.
    """

    word: str
    name: Name | None
    exception: Name | None = None

    def covers(self, name: Name, exception: Name | None) -> bool:
        """Whether a licence of this name, with this exception, is refused."""
        if self.name is None or not self.name.covers(name):
            return False
        return self.exception is None or (exception is not None and exception.words == self.exception.words)


@dataclass(frozen=True)
class Judgement:
    """What is to be said of one licence.

    Attributes:
        kind: `denied`, `unclear` or `free`.
        why: What is denied, or what is unclear; empty for a free one.
        choice: Which of several alternatives it is free under; empty where there is no choice.
    """

    kind: str
    why: str = ""
    choice: str = ""


def parse_denied(words: Sequence[str]) -> tuple[DeniedLicence, ...]:
    """Read the licences that a caller refuses; an unknown one would refuse nothing, so it is a MisuseError."""
    return tuple(_denied(word) for word in words)


def _denied(word: str) -> DeniedLicence:
    if word.casefold() in PLACEHOLDER_LICENCES:
        return DeniedLicence(word.casefold(), None)
    tree = read(word)
    if isinstance(tree, Group):
        raise MisuseError(f"--deny-license takes one licence at a time, not '{_short(word)}': give each by itself")
    name = parse_name(tree.name) if tree else None
    exception = parse_name(tree.exception) if tree and tree.exception else None
    odd = tree is not None and tree.exception and tree.exception.casefold() not in exceptions()
    if name is None or odd or not (name.custom or name.known):
        raise MisuseError(
            f"--deny-license: unknown licence '{_short(word)}'.{_meant(word)} For a licence that is in no list write "
            "LicenseRef-NAME"
        )
    return DeniedLicence(word, name, exception)


def _meant(word: str) -> str:
    known = {text.casefold(): text for text in known_names()}
    close = difflib.get_close_matches(word.casefold()[:60], list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(known[c] for c in close)}?" if close else ""


def why_unclear(text: str) -> str:
    """Why a licence that a person states is not understood; empty if every licence in it is known."""
    return judge_licence(text, (), stated=True).why


def judge_licence(text: str, refused: Sequence[DeniedLicence], *, stated: bool = False) -> Judgement:
    """Whether a licence is refused.

    Of licences that all apply (AND, lists) one that is refused is enough. Of alternatives (OR) one that is free is
    enough, and it is named. "Or any later version" leaves the choice of the version that is named.

    Args:
        text: As a card or a person states it; `other: NAME` as `cards.licence` writes it.
        refused: The licences refused.
        stated: A person stated it: `LicenseRef-NAME` is then known to be another licence.

    Returns:
        The judgement.
    """
    text = text.strip()
    unnamed = _UNNAMED.fullmatch(text)
    if unnamed and any(d.name is None and d.word == unnamed[1].casefold() for d in refused):
        return Judgement(DENIED, unnamed[1].casefold())
    if unnamed and not (unnamed[2] or "").strip():
        return Judgement(UNCLEAR, f"'{_short(text)}' names no licence")
    words = unnamed[2].strip() if unnamed else text
    tree = read(words)
    return Judgement(UNCLEAR, f"'{_short(words)}' is not understood") if tree is None else _of(tree, refused, stated)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"


def _of(tree: Term | Group, refused: Sequence[DeniedLicence], stated: bool) -> Judgement:
    if isinstance(tree, Term):
        return _of_term(tree, refused, stated)
    parts = [(_of(part, refused, stated), part) for part in tree.parts]
    if not tree.choice:
        worst = next((j for kind in (DENIED, UNCLEAR) for j, _ in parts if j.kind == kind), None)
        return worst or Judgement(FREE, choice=" AND ".join(j.choice for j, _ in parts if j.choice))
    if all(j.kind == FREE and not j.choice for j, _ in parts):
        return Judgement(FREE)
    for j, part in sorted(parts, key=lambda p: bool(p[0].choice)):
        if j.kind == FREE:
            return Judgement(FREE, choice=j.choice or str(part))
    return next((j for j, _ in parts if j.kind == UNCLEAR), parts[0][0])


def _of_term(term: Term, refused: Sequence[DeniedLicence], stated: bool) -> Judgement:
    word = term.name.casefold()
    if any(d.name is None and d.word == word for d in refused):
        return Judgement(DENIED, word)
    if word in PLACEHOLDER_LICENCES | NO_LICENCE:
        return Judgement(UNCLEAR, f"'{term.name}' names no licence")
    name, exception = parse_name(term.name), parse_name(term.exception)
    if name is None:
        return Judgement(UNCLEAR, f"'{_short(term.name)}' has characters that no licence name has")
    if (d := next((d for d in refused if d.covers(name, exception)), None)) is not None:
        return Judgement(DENIED, d.word)
    if not (name.known or (stated and name.custom)):
        return Judgement(UNCLEAR, f"'{_short(term.name)}' is not a known licence")
    if term.exception and term.exception.casefold() not in exceptions():
        return Judgement(UNCLEAR, f"'{_short(term.exception)}' is not a known exception")
    if (d := next((d for d in refused if d.name is not None and name.may_be(d.name)), None)) is not None:
        return Judgement(UNCLEAR, f"'{_short(term.name)}' may mean {d.word}")
    later = any(d.name is not None and name.goes_on_to(d.name) for d in refused)
    return Judgement(FREE, choice=f"the version that '{term.name}' names" if later else "")
