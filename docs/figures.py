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


if __name__ == "__main__":
    for page in pages():
        page.write_text(filled(page.read_text()))
