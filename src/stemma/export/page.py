"""Self-contained HTML pages without scripts or requests, for light and dark mode and for print."""

import html
from collections.abc import Iterable, Sequence

from stemma.export.pages.render import stylesheet


def escape(text: object) -> str:
    r"""Text escaped for HTML; unprintable characters are shown as `\u202e`."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return html.escape(shown)


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


def document(title: str, parts: Sequence[str]) -> bytes:
    """A complete page in UTF-8."""
    from stemma import __version__

    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        "'unsafe-inline'\">"
        f'<meta name="generator" content="Stemma {__version__}"><title>{escape(title)}</title>'
        f"<style>{stylesheet()}</style></head><body><main>"
    )
    foot = f"<footer>Stemma {__version__}</footer></main></body></html>\n"
    return "\n".join([head, *parts, foot]).encode()
