"""Expressions of licences as trees: `MIT OR (Apache-2.0 AND GPL-2.0-only WITH Classpath-exception-2.0)`, and lists.

The package `license-expression` reads the expression, with a number in the place of every name: the names that people
write hold spaces, and words such as "or" of their own.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stemma.application.policies.licence_names import LONGEST

_OPERATOR = re.compile(r"\(|\)|(?<![\w.+-])(?:and|or|with)(?![\w.+-])", re.IGNORECASE)
_NO_OPERATOR = re.compile(
    r"\bor[ -]+(?:any[ -]+)?(?:later|newer|above|greater|higher)\b|\bnew[\"”]? or [\"“]?revised\b", re.IGNORECASE
)
_LIST = re.compile(r"[,;/&\n]+")
_VERSION_AFTER_COMMA = re.compile(r",\s*(?=v(?:er|ersion)?\.?\s*\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Term:
    """One licence of an expression.

    Attributes:
        name: As it is written.
        exception: What is written after WITH; empty without.
    """

    name: str
    exception: str = ""

    def __str__(self) -> str:
        return f"{self.name} WITH {self.exception}" if self.exception else self.name


@dataclass(frozen=True)
class Group:
    """Licences that belong together.

    Attributes:
        choice: Whether one of them may be chosen (OR); else all apply (AND, lists).
        parts: Two or more.
    """

    choice: bool
    parts: tuple["Term | Group", ...]

    def __str__(self) -> str:
        return f"({(' OR ' if self.choice else ' AND ').join(map(str, self.parts))})"


def read(text: str) -> Term | Group | None:
    """Read an expression or a list.

    A list, whatever divides it (comma, semicolon, slash, "&"), says that all its licences apply: who means a choice
    can write OR.

    Args:
        text: As a card or a person writes it.

    Returns:
        The tree, None where the text is neither, or longer than a name can be.
    """
    if not text.strip() or len(text) > LONGEST:
        return None
    parts = [p for p in _LIST.split(_VERSION_AFTER_COMMA.sub(" ", text)) if p.strip()]
    if len(parts) == 1:
        return _expression(parts[0])
    found = [_expression(part) for part in parts]
    known = tuple(p for p in found if p is not None)
    return Group(False, known) if known and len(known) == len(found) else None


def _expression(text: str) -> Term | Group | None:
    from boolean import ParseError
    from license_expression import ExpressionError, Licensing

    names: list[str] = []
    masked, at = "", 0
    for start, end, operator in [*_operators(text), (len(text), len(text), "")]:
        if name := text[at:start].strip():
            names.append(name)
            masked += f" n{len(names) - 1}"
        masked, at = f"{masked} {operator}", end
    try:
        return _tree(Licensing().parse(masked, simple=True), names)
    except (ExpressionError, ParseError, RecursionError, TypeError, ValueError):
        return None


def _operators(text: str) -> Iterator[tuple[int, int, str]]:
    held = [range(*m.span()) for m in _NO_OPERATOR.finditer(text)]
    for m in _OPERATOR.finditer(text):
        if not any(m.start() in span for span in held):
            yield *m.span(), m[0].upper()


def _tree(node: Any, names: Sequence[str]) -> Term | Group | None:
    """What the package read, with the names in their places."""
    from license_expression import OR

    if hasattr(node, "license_symbol"):
        return Term(_name(node.license_symbol, names), _name(node.exception_symbol, names))
    if hasattr(node, "key"):
        return Term(_name(node, names))
    parts = [_tree(part, names) for part in getattr(node, "args", ())]
    known = tuple(p for p in parts if p is not None)
    return Group(isinstance(node, OR), known) if known and len(known) == len(parts) else None


def _name(symbol: Any, names: Sequence[str]) -> str:
    return names[int(symbol.key.removeprefix("n"))]
