"""How anything reaches the screen: one document on stdout, progress and warnings on stderr.

Names come from files and are not trusted: they are never read as markup, and control characters are shown, not sent.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.text import Text

from stemma.cli.layout import console, findings, lines_of, literal, plain, wrapped
from stemma.export.answers import between as between
from stemma.export.answers import short as number

PATIENCE = 1.0
"""Seconds of silence before progress is shown."""

GONE = 141
"""Exit code when the reader of a pipe went away: what a shell reports for SIGPIPE."""

EXHIBITED = frozenset({"copy", "reformatted", "permuted"})
"""Relations that are shown by carrying them out, not inferred."""


def show(*things: Text | str) -> None:
    """Print to stdout: text as it is, strings wrapped at words; a word that is longer than a line stays whole.

    Raises:
        SystemExit: If stdout is a pipe that was closed.
    """
    target = console()
    with target.capture() as captured:
        for thing in things:
            target.print(thing if isinstance(thing, Text) else lines_of(literal(thing)), soft_wrap=True)
    _write("\n".join(line.rstrip(" ") for line in captured.get().split("\n")))


def report(answer: Text, models: Iterable[Any], rows: Iterable[tuple[str, str | Text, str]], *closing: str) -> None:
    """Print what a command found: the answer, the models, every finding, and what it means and what to do next.

    Args:
        answer: The answer in one line.
        models: Models that the answer is about.
        rows: Label, finding, evidence.
        closing: What the answer means, and what to do next.
    """
    facts = [("model", *identity(model)) for model in models]
    last = [(label, text, "") for label, text in zip(("meaning", "next"), closing, strict=False) if text]
    show(lines_of(answer), "", findings([*facts, *rows]), *(["", findings(last)] if last else []))


def show_json(document: Any) -> None:
    """Print one JSON document to stdout: ASCII only, no NaN."""
    _write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def show_bytes(content: bytes) -> None:
    """Print what was written for another program: UTF-8 text, exactly as it is where stdout can hold it."""
    _write(content.decode())


def _write(text: str) -> None:
    if sys.stdout is None:
        raise SystemExit(GONE)
    try:
        encoding = sys.stdout.encoding or "utf-8"  # none where it is kept in memory
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(GONE) from None


def warn(text: str) -> None:
    """One sentence on stderr, if it is open; it wraps at words where stderr is a terminal."""
    if sys.stderr is None:
        return
    style = "yellow" if text.startswith("warning") else "red"
    head, colon, rest = plain(text).partition(":")
    target = console(sys.stderr)
    message = Text.assemble((head + colon, style), rest)
    lines = wrapped(message, target.width) if sys.stderr.isatty() else [message]
    target.print(*lines, sep="\n", soft_wrap=True)


def tell(text: str) -> None:
    """One line of information on stderr, if it is open."""
    if sys.stderr is not None:
        console(sys.stderr).print(Text(plain(text)), soft_wrap=True)


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
"""Reasons why something was not tested that are listed before the rest is counted."""


def not_tested(entries: Sequence[Mapping[str, str]]) -> Generator[tuple[str, str, str]]:
    """What could not be tested, a row for each kind of reason: label, model or reason, reason."""
    kinds: dict[tuple[str, bool], list[Mapping[str, str]]] = {}
    for i, entry in enumerate(entries):
        kinds.setdefault((entry["what"] if entry["model"] else str(i), bool(entry["model"])), []).append(entry)
    for same in list(kinds.values())[:UNTESTED]:
        first, others = same[0], len(same) - 1
        more = f" and {others:,} more {'models' if others > 1 else 'model'}" if others else ""
        yield "not tested", *((first["model"] + more, first["why"]) if first["model"] else (first["why"], ""))
    if len(kinds) > UNTESTED:
        yield "", f"and {len(kinds) - UNTESTED:,} more reasons", "all of them with --json"


def strength(weights: Mapping[str, Any]) -> str:
    """How strong evidence is: p-value and effect, for example `p = 3e-12 · effect .97`.

    A map that was applied and compared (a permutation, another file format) is proof without a p-value.

    Args:
        weights: `p_value`, `log10_p` and `effect` (or `share`), and `relation`.

    Returns:
        Words.
    """
    effect = weights["effect"] if "effect" in weights else weights["share"]
    chance, p = p_value(weights["p_value"], weights["log10_p"]), weights["p_value"]
    if weights.get("relation") in EXHIBITED and (p is None or p > FLOOR):
        chance = "verified exactly"
    return chance if effect is None else f"{chance} · effect {number(effect)}"


def short(digest: str) -> str:
    """The algorithm and the first ten characters: enough to type back.

    Returns:
        For example `sha256:9f2c41aa03…`, or `partial:sha256:9f2c41aa03…` where only a sample was read.
    """
    algorithm, _, value = str(digest).rpartition(":")
    return f"{algorithm}:{value[:10]}…"


def prefix(digest: str) -> str:
    """Ten characters that can be typed instead of a name.

    Returns:
        The start of the digest, without its algorithm; after `partial:` where only a sample was read.
    """
    kind, _, value = str(digest).rpartition(":")
    return f"{'partial:' if kind.startswith('partial:') else ''}{value[:10]}"


def identity(model: Any) -> tuple[Text, str]:
    """A model's name and digest, and its size, number format and what its files claim."""
    facts = [f"{len(model.tensors):,} tensors", f"{model.parameters:,} parameters", *_dtypes(model)]
    claims = ", ".join(f"{k} {_SHA256.sub(_shortened, str(v))}" for k, v in sorted(model.claims.items()))
    shown = f" · claims {_clipped(claims)}" if claims else ""
    return Text.assemble((plain(model.name), "bold"), f"  {short(model.digest)}"), f"{', '.join(facts)}{shown}"


_SHA256 = re.compile(r"\b[0-9a-f]{64}\b")


def _shortened(found: re.Match[str]) -> str:
    return f"{found[0][:10]}…"


CLAIMS = 200
"""Characters of a model's claims that are shown."""


def _clipped(text: str) -> str:
    """The beginning of a long text, cut between words."""
    return text if len(text) <= CLAIMS else text[:CLAIMS].rpartition(" ")[0] + " …"


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
    if quiet or sys.stderr is None or not sys.stderr.isatty():
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
