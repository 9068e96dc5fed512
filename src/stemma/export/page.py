"""Markup that pages are put together from: sections, tables, lists, escaped text."""

from collections.abc import Iterable

from stemma.export.markup import escape

ROUNDING = 1e-12
"""Rounding error of double-precision sums whose exact value is 0."""


def number(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits, such as `0.610` or `1.3e-05`; rounding errors become 0."""
    return "0" if abs(value) < ROUNDING else f"{value:#.{digits}g}".rstrip(".")


def percent(share: float, digits: int) -> str:
    """A share as a percentage, such as `91.4 %`."""
    return f"{100 * share:.{digits}f} %"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and markup."""
    body = "".join(f"<tr><th scope=row>{escape(name)}</th><td>{value}</td></tr>" for name, value in rows)
    return f"<table>{body}</table>"


def section(title: str, body: str, lead: str = "") -> str:
    """A section of the page; `body` and `lead` are markup."""
    return f"<section><h2>{escape(title)}</h2>{f'<p>{lead}</p>' if lead else ''}{body}</section>"


def bullets(sentences: Iterable[str]) -> str:
    """A list of sentences, each markup."""
    return f"<ul>{''.join(f'<li>{sentence}</li>' for sentence in sentences)}</ul>"
