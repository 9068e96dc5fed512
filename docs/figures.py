"""Writes measured figures into the documents: every tag takes its value from a file under benchmarks/results.

A tag reads `<!-- results: FILE#KEY FORMAT -->figure<!-- / -->`. KEY is a path of names and indices separated by `/` (a
space is `%20`), FORMAT, which may be left out, a Python format. Run it after a benchmark (`make figures`); a test
compares every figure with its file.
"""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
TAG = re.compile(r"(<!-- results: ([\w./-]+)#([^\s#]+)(?: (\S+))? -->)([^<|\n]*)(<!-- / -->)")


def pages(root: Path = ROOT) -> list[Path]:
    """The documents.

    Returns:
        Markdown files, the README first.
    """
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def figure(file: str, key: str, form: str | None, root: Path = ROOT) -> str:
    """One figure as its result file has it.

    Args:
        file: Name under `benchmarks/results`.
        key: Path inside it.
        form: A Python format.
        root: The repository.

    Returns:
        The figure as text.

    Raises:
        KeyError: If the file has nothing there.
    """
    value: Any = json.loads((root / "benchmarks" / "results" / file).read_text())
    for word in map(unquote, key.split("/")):
        try:
            value = value[int(word)] if isinstance(value, list) else value[word]
        except (KeyError, IndexError, TypeError, ValueError):
            raise KeyError(f"{file} has nothing at {key} (from '{word}' on)") from None
    return format(value, form or "")


def filled(text: str, root: Path = ROOT) -> str:
    """A document with every figure as measured.

    Args:
        text: The document.
        root: The repository.

    Returns:
        The same with the figures replaced; code blocks and inline code are left alone.
    """
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)
    for i in range(0, len(parts), 2):
        parts[i] = TAG.sub(lambda m: m[1] + figure(m[2], m[3], m[4], root) + m[6], parts[i])
    return "".join(parts)


PANEL, GAP, KINDS = (
    180,
    26,
    {"mlp": "perceptron", "cnn": "residual CNN", "vit": "vision transformer", "lm": "language model"},
)


def null_picture(root: Path = ROOT) -> str:
    """Distribution of p-values between independent networks, one panel a kind; the diagonal is what is wanted.

    Args:
        root: The repository.

    Returns:
        An SVG.
    """
    kinds = json.loads((root / "benchmarks" / "results" / "null.json").read_text())["kinds"]
    width, height = len(KINDS) * (PANEL + GAP) + GAP, PANEL + 72
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        'font-family="sans-serif" font-size="12">',
    ]
    out.append(f'<rect width="{width}" height="{height}" fill="#fff"/>')
    for i, (kind, title) in enumerate(KINDS.items()):
        left, top = GAP + i * (PANEL + GAP), 26
        quantiles = kinds[kind]["randomised_quantiles"]
        line = " ".join(
            f"{left + PANEL * p:.1f},{top + PANEL * (1 - k / (len(quantiles) - 1)):.1f}"
            for k, p in enumerate(quantiles)
        )
        out += [
            f'<text x="{left}" y="16" fill="#333">{title}: {kinds[kind]["pairs"]:,} pairs</text>',
            f'<rect x="{left}" y="{top}" width="{PANEL}" height="{PANEL}" fill="none" stroke="#bbb"/>',
            f'<path d="M{left} {top + PANEL}L{left + PANEL} {top}" stroke="#c33" stroke-dasharray="4 4"/>',
            f'<polyline points="{line}" fill="none" stroke="#246" stroke-width="2"/>',
            f'<text x="{left + PANEL / 2}" y="{top + PANEL + 18}" text-anchor="middle" fill="#555">p-value</text>',
        ]
    said = "Share of pairs with a p-value up to p. Dashed: an exact test."
    out.append(f'<text x="{GAP}" y="{height - 6}" fill="#555">{said}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "null.svg").write_text(null_picture())
    for page in pages():
        page.write_text(filled(page.read_text()))
