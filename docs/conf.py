"""Sphinx configuration of the site: `make site`."""

from typing import Any

project = "Stemma"
extensions = ["myst_parser"]
exclude_patterns = ["templates"]
html_theme = "furo"
html_title = "Stemma"
myst_heading_anchors = 4
suppress_warnings = ["myst.xref_missing", "myst.header", "misc.highlighting_failure"]  # links to files outside of docs

SECTIONS = {"Tutorials": "tutorials", "How-to": "how-to", "Reference": "reference", "Methods": "methods"}


def _add_contents(app: Any, name: str, source: list[str]) -> None:
    if name == "index":
        trees = [f"```{{toctree}}\n:hidden:\n:glob:\n:caption: {t}\n\n{d}/*\n```" for t, d in SECTIONS.items()]
        source[0] += "\n\n" + "\n\n".join([*trees, "```{toctree}\n:hidden:\n\nlimits\nglossary\n```"]) + "\n"


def setup(app: Any) -> None:
    """Let the index list all pages in the sidebar."""
    app.connect("source-read", _add_contents)
