"""How anything reaches the screen: one document on stdout, progress and warnings on stderr.

Names come from files and are not trusted: they are never read as markup, and control characters are shown, not sent.
"""

import io
import json
import math
import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from stemma.types import ModelRef

WIDTH = 120
"""Columns where the output is no terminal and COLUMNS is not set."""

PATIENCE = 1.0
"""Seconds of silence before progress is shown."""

GONE = 141
"""Exit code when the reader of a pipe went away: what a shell reports for SIGPIPE."""

EXHIBITED = frozenset({"copy", "reformatted", "permuted"})
"""Relations that are shown by carrying them out, not inferred."""

_STYLES = {
    "copy": "bold red",
    "descends": "bold yellow",
    "related": "bold yellow",
    "independent": "bold green",
    "no-known-parent": "bold green",
    "inconclusive": "bold magenta",
    "undetermined": "bold magenta",
}


def plain(text: object) -> str:
    r"""Text that cannot drive a terminal: control, direction and other unprintable characters become escapes.

    Returns:
        The same text, every unprintable character written as `\x1b`, `\u202e` and so on.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def console(stream: Any = None) -> Console:
    """A console for a stream (stdout if None) that follows the terminal's width, NO_COLOR and COLUMNS."""
    stream = (sys.stdout or io.StringIO()) if stream is None else stream  # None where stdout was closed
    known = stream.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(file=stream, width=None if known else WIDTH, highlight=False, markup=False, emoji=False)


def show(*things: RenderableType) -> None:
    """Print to stdout; a reader that went away ends the program quietly.

    Raises:
        SystemExit: If stdout is a pipe that was closed.
    """
    target = console()
    with target.capture() as captured:
        for thing in things:
            target.print(thing, soft_wrap=not isinstance(thing, Table))
    _write("\n".join(line.rstrip(" ") for line in captured.get().split("\n")))


def show_json(document: Any) -> None:
    """Print one JSON document to stdout: ASCII only, no NaN."""
    _write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def _write(text: str) -> None:
    if sys.stdout is None:
        raise SystemExit(GONE)
    try:
        sys.stdout.write(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(GONE) from None


def warn(text: str) -> None:
    """One line on stderr."""
    style = "yellow" if text.startswith("warning") else "red"
    head, colon, rest = plain(text).partition(":")
    console(sys.stderr).print(Text.assemble((head + colon, style), rest), soft_wrap=True)


LABEL = 12
"""Columns of the labels, without the margin of two."""


def findings(rows: Iterable[tuple[str, str | Text, str]]) -> Text:
    """Findings, one per line: label, finding, evidence. Text is taken literally and wraps inside its column.

    A finding without evidence takes the whole width.

    Args:
        rows: Label, finding, evidence.

    Returns:
        Text as wide as the terminal at most.
    """
    screen = console()
    cells = [(label, _literal(finding), _literal(evidence)) for label, finding, evidence in rows]
    labels = max([LABEL, *(len(label) + 2 for label, *_ in cells)])
    room = max(screen.width - labels - 2, 20)
    left = max((f.cell_len for _, f, e in cells if e), default=0)
    right = max((e.cell_len for *_, e in cells), default=0)
    longest = max((len(word) for _, f, e in cells if e for word in f.plain.split()), default=0)
    left = min(left, max(room // 2, room - 2 - right, min(longest, room * 2 // 3)))
    out = []
    for label, finding, evidence in cells:
        whole = not evidence and " " not in finding.plain  # a digest or a path stays in one piece, to be copied
        found = [finding] if whole else finding.wrap(screen, left if evidence else room, overflow="fold")
        why = evidence.wrap(screen, room - 2 - left, overflow="fold")
        for i in range(max(len(found), len(why))):
            line = Text("  ").append(f"{label if i == 0 else '':{labels}}", style="dim")
            if i < len(found):
                found[i].rstrip()
                line.append_text(found[i])
            if i < len(why):
                why[i].stylize("dim")
                line.append(" " * (labels + 2 + left + 2 - line.cell_len)).append_text(why[i])
            line.rstrip()
            out.append(line)
    return Text("\n").join(out)


def columns(titles: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()) -> Table:
    """A table of many records.

    Args:
        titles: Column titles.
        rows: The cells, taken literally.
        right: Titles of the columns that hold numbers.

    Returns:
        A table without frames, so that lines can be cut and sorted by other tools.
    """
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for i, title in enumerate(titles):
        table.add_column(
            title,
            justify="right" if title in right else "left",
            overflow="fold" if i == 0 else "ellipsis",
            no_wrap=i > 0,
        )
    for row in rows:
        table.add_row(*(_literal(cell) for cell in row))
    return table


def _literal(value: object) -> Text:
    return value if isinstance(value, Text) else Text(plain(value))


def verdict_text(word: str, rest: str = "") -> Text:
    """The verdict, coloured, and what follows it.

    Returns:
        Literal text.
    """
    return Text.assemble((plain(word), _STYLES.get(word, "bold")), plain(rest))


NEGLIGIBLE = 1e-12
"""A distance below this is what rounding leaves of none."""


def number(value: float) -> str:
    """Two significant digits without a leading zero: `.97`, `.04`, `1`.

    Returns:
        The number as people write it.
    """
    text = f"{value:.2g}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def between(value: float, interval: tuple[float, float] | None) -> str:
    """A figure with its interval: `.31 [.28, .34]`.

    Returns:
        As many digits as tell the ends of the interval apart, at least two; what is zero but for rounding is `0`.
    """
    if interval is None or max(map(abs, (value, *interval))) < NEGLIGIBLE:
        return number(value if abs(value) >= NEGLIGIBLE else 0)
    width = interval[1] - interval[0]
    digits = 2 if width <= 0 else min(max(1 - math.floor(math.log10(width)), 2), 6)
    told = [f"{x:.{digits}f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:.{digits}f}" for x in (value, *interval)]
    return f"{told[0]} [{told[1]}, {told[2]}]"


def p_value(p: float | None, log10_p: float | None) -> str:
    """A p-value as a person reads it.

    Returns:
        `p = .04`, `p = 3e-12`, `p < 1e-300` (the double underflows there) or `not tested`.
    """
    if p is None:
        return "not tested"
    if log10_p is not None and log10_p < -300:
        return "p < 1e-300"
    return f"p = {p:.0e}".replace("e-0", "e-") if p < 2e-3 else f"p = {number(p)}"


FLOOR = 1e-6
"""Above this, the p-value of an exhibited map is the smallest that its null can give, not what decides."""


UNTESTED = 6
"""Things that were not tested that are listed before the rest is counted."""


def not_tested(entries: Sequence[Mapping[str, str]]) -> Generator[tuple[str, str, str]]:
    """What could not be tested, a line each.

    Args:
        entries: Each with `model`, empty where it is about none, and `why`.

    Yields:
        Label, model or reason, reason.
    """
    for entry in entries[:UNTESTED]:
        yield "not tested", *((entry["model"], entry["why"]) if entry["model"] else (entry["why"], ""))
    if len(entries) > UNTESTED:
        yield "", f"and {len(entries) - UNTESTED:,} more", "all of them with --json"


def strength(weights: Mapping[str, Any]) -> str:
    """How strong evidence is: p-value and effect.

    A map that was exhibited and re-applied (a permutation, another file format) is proof without a p-value.

    Args:
        weights: `p_value`, `log10_p` and `effect` (or `share`), and `relation`.

    Returns:
        For example `p = 3e-12 · effect .97`.
    """
    effect = weights["effect"] if "effect" in weights else weights["share"]
    chance, p = p_value(weights["p_value"], weights["log10_p"]), weights["p_value"]
    if weights.get("relation") in EXHIBITED and (p is None or p > FLOOR):
        chance = "shown by applying it" if p in {None, 1.0} else f"shown by applying it · {chance} is the floor"
    return chance if effect is None else f"{chance} · effect {number(effect)}"


def short(digest: str) -> str:
    """The algorithm and the first ten characters: enough to type back.

    Returns:
        For example `sha256:9f2c41aa03…`.
    """
    algorithm, _, value = str(digest).partition(":")
    return f"{algorithm}:{value[:10]}…"


def prefix(digest: str) -> str:
    """Ten characters that can be typed instead of a name.

    Returns:
        The start of the digest, without its algorithm.
    """
    return str(digest).partition(":")[2][:10]


def identity(model: Any) -> Text:
    """A model's headline: name, digest, size, dtype, and what its files claim.

    Returns:
        Literal text in one line.
    """
    facts = [f"{len(model.tensors):,} tensors", f"{model.parameters:,} parameters", *_dtypes(model)]
    claims = ", ".join(f"{k} {v}" for k, v in sorted(model.claims.items())) or "none"
    return Text.assemble(
        (plain(model.name), "bold"),
        f"  {short(model.digest)}  {plain(', '.join(facts))} · claims: {plain(claims)[:200]}",
    )


def named(ref: ModelRef) -> Text:
    """A headline where only the name and the digest are known.

    Returns:
        Literal text in one line.
    """
    return Text.assemble((plain(ref.name), "bold"), f"  {short(ref.digest)}")


_WORDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "U8": "uint8"}


def _dtypes(model: Any) -> list[str]:
    total: dict[str, int] = {}
    for tensor in model.tensors.values():
        total[tensor.dtype] = total.get(tensor.dtype, 0) + tensor.size
    largest = sorted(total, key=lambda code: -total[code])[:1]
    return [_WORDS.get(code, code) for code in largest]


@contextmanager
def progress(*, quiet: bool) -> Generator[Callable[..., None] | None]:
    """Progress on stderr, from the moment that work has lasted `PATIENCE` seconds; never where stderr is no terminal.

    Args:
        quiet: Show nothing.

    Yields:
        `report(what, done, total)`, or None where nobody would see it.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from threading import Timer

    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    count = TextColumn("{task.fields[count]}", markup=False)
    layout = (TextColumn("{task.description}", markup=False), BarColumn(), count, TimeElapsedColumn())
    bar = Progress(*layout, console=console(sys.stderr), transient=True)
    task = bar.add_task("", total=None, count="")
    waiting = Timer(PATIENCE, bar.start)
    waiting.daemon = True

    def report(what: str, done: int, total: int | None) -> None:
        known = f"{done:,}/{total:,}" if total else ""
        bar.update(task, description=plain(what)[:60], completed=done, total=total, count=known)

    waiting.start()
    try:
        yield report
    finally:
        waiting.cancel()
        waiting.join()
        bar.stop()
