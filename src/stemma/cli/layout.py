"""How text is laid out: findings in columns, tables, lines that wrap at words and never inside them.

Names come from files and are not trusted: they are never read as markup, and control characters are shown, not sent.
"""

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from stemma.types.text import plain

if TYPE_CHECKING:
    from stemma.export.answers import AnswerLine

WIDTH = 120
"""Columns where the output is no terminal and COLUMNS is not set."""

_STYLES = {
    "copy": "bold red",
    "descends": "bold yellow",
    "related": "bold yellow",
    "inconclusive": "bold magenta",
    "undetermined": "bold magenta",
}


def console(stream: Any = None) -> Console:
    """A console for a stream (stdout if None) that follows the terminal's width, NO_COLOR and COLUMNS."""
    stream = (sys.stdout or io.StringIO()) if stream is None else stream  # None where stdout was closed
    asked = os.environ.get("COLUMNS", "")
    asked = asked if asked.isascii() and asked.isdigit() else ""
    width = int(asked) or WIDTH if asked else None if stream.isatty() else WIDTH  # 0 is what shells set without knowing
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


LABEL = 14
"""Columns of the labels, without the margin of two."""


def findings(rows: Iterable[tuple[str, str | Text, str]]) -> Text:
    """Findings: label, finding, evidence; text is taken literally and wraps at words, which are never broken.

    Evidence stands beside its finding where both columns hold their longest words, else below it.

    Args:
        rows: Label, finding, evidence.

    Returns:
        Text that is as wide as the terminal at most, unless one word is wider.
    """
    cells = [(label, literal(finding), literal(evidence)) for label, finding, evidence in rows]
    labels = max([LABEL, *(len(label) + 2 for label, *_ in cells)])
    room = max(console().width - labels - 2, 20)
    left = _left(cells, room)
    out = []
    for label, finding, evidence in cells:
        found, why = wrapped(finding, left), wrapped(evidence, room - 2 - left) if evidence else []
        whole = max(_longest(finding) - left, _longest(evidence) - (room - 2 - left)) <= 0
        beside = bool(why) and whole and max(len(found), len(why)) <= TALL
        if not beside:
            found, why = wrapped(finding, room), wrapped(evidence, room) if evidence else []
            if why and finding.cell_len + GAP + evidence.cell_len <= room:
                found, why = [Text.assemble(finding, " " * GAP, (evidence.plain, "dim"))], []
        for line in why:
            line.stylize("dim")
        height = max(len(found), len(why)) if beside else len(found) + len(why)
        for i in range(height):
            line = Text("  ").append(f"{label if i == 0 else '':{labels}}", style="dim")
            if i < len(found):
                line.append_text(found[i])
            at = i if beside else i - len(found)
            if 0 <= at < len(why):
                line.append(" " * (labels + 2 + left + 2 - line.cell_len) if beside else "").append_text(why[at])
            line.rstrip()
            out.append(line)
    return Text("\n").join(out)


NARROW = 60
"""Columns beside the labels from which evidence stands beside its finding."""


TALL = 2
"""Lines up to which evidence stands beside its finding."""


def _left(cells: Sequence[tuple[str, Text, Text]], room: int) -> int:
    """Columns for findings that have evidence beside them; 0 where there is no room for both."""
    both = [(f, e) for _, f, e in cells if e and _longest(f) + 2 + _longest(e) <= room and _longest(f) <= room * 2 // 3]
    if room < NARROW or not both:
        return 0
    left, right = max(f.cell_len for f, _ in both), max(e.cell_len for _, e in both)
    return min(left, max(room // 2, room - 2 - right, max(_longest(f) for f, _ in both)))


def _longest(text: Text) -> int:
    return max((len(word) for word in text.plain.split()), default=0)


_WORD = re.compile(r"(?:p [=<] )?\S+(?: [·→](?= ))?\s*")
"""What stays in one line: a word with the separator that follows it, a p-value with its sign."""


def wrapped(text: Text, width: int) -> list[Text]:
    """A text as lines that break between words only; a longer word has a line of its own."""
    breaks, used = [], 0
    for word in _WORD.finditer(text.plain):
        if used and used + cell_len(word[0].rstrip()) > width:
            breaks.append(word.start())
            used = 0
        used += cell_len(word[0])
    lines = list(text.divide(breaks))
    for line in lines:
        line.rstrip()
    return lines


def lines_of(text: Text) -> Text:
    """A text that wraps at words to the width of the terminal."""
    return Text("\n").join(wrapped(text, console().width))


def _block(titles: Sequence[str], row: Sequence[Text]) -> Iterator[Text]:
    """A record of a table that the terminal is too narrow for: its first cell, and the others below it."""
    yield row[0]
    others = [Text(f"{title} ", style="dim").append_text(cell) for title, cell in zip(titles, row, strict=True) if cell]
    for line in wrapped(Text(" · ", style="dim").join(others[1:]), console().width - GAP):
        yield Text(" " * GAP).append_text(line)


GAP = 2
"""Columns between those of a table."""


def columns(titles: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> Text:
    """A table of many records without frames, so that lines can be cut and sorted by other tools.

    Args:
        titles: Column titles.
        rows: The cells, taken literally; they wrap at words where the terminal is too narrow for them.
        right: Titles of the columns that hold numbers.

    Returns:
        A line of titles and one or more per record.
    """
    cells = [[Text(title, style="dim") for title in titles], *([literal(cell) for cell in row] for row in rows)]
    widths = [max(row[i].cell_len for row in cells) for i in range(len(titles))]
    least = [max(_longest(row[i]) for row in cells) for i in range(len(titles))]
    room = console().width - GAP * (len(widths) - 1)
    if sum(least) > room:
        return Text("\n").join(line for row in cells[1:] for line in _block(titles, row))
    while sum(widths) > room and widths != least:
        widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=lambda i: widths[i])
        widths[widest] -= 1
    out = []
    for row in cells:
        wraps = [wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        for i in range(max(map(len, wraps))):
            line = Text()
            for title, width, lines in zip(titles, widths, wraps, strict=True):
                cell = lines[i] if i < len(lines) else Text()
                space = " " * (width - cell.cell_len)
                line.append_text(Text(space).append_text(cell) if title in right else cell.copy().append(space))
                line.append(" " * GAP)
            line.rstrip()
            out.append(line)
    return Text("\n").join(out)


def literal(value: object) -> Text:
    """A value as text that is never read as markup."""
    return value if isinstance(value, Text) else Text(plain(value))


def answer_text(line: "AnswerLine") -> Text:
    """An answer in one line, its verdict coloured."""
    return Text(line.before).append_text(verdict_text(line.verdict, line.after))


def verdict_text(word: str, rest: str = "") -> Text:
    """The verdict, coloured, and what follows it.

    Returns:
        Literal text.
    """
    return Text.assemble((plain(word), _STYLES.get(word, "bold")), plain(rest))
