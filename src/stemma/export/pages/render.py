"""Renders a document with the template of its kind."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.errors import MisuseError
from stemma.export import figures
from stemma.export.pages.asked import asked_facts
from stemma.export.pages.compare import compare_view
from stemma.export.pages.edits import prune_view, unlearn_view
from stemma.export.pages.explain import explain_view
from stemma.export.pages.function import competition_view, distance_view
from stemma.export.pages.lineage import lineage_view
from stemma.export.pages.trace import trace_view
from stemma.export.pages.verification import verify_edit_view, verify_unlearning_view
from stemma.export.pages.words import words_on
from stemma.export.trees import tree_style
from stemma.types.text import plain

if TYPE_CHECKING:
    from jinja2 import Environment

Document = Mapping[str, Any]

PAGES: Mapping[str, Callable[[Document], dict[str, Any]]] = {
    "stemma.trace": trace_view,
    "stemma.compare": compare_view,
    "stemma.explain": explain_view,
    "stemma.lineage": lineage_view,
    "stemma.distance": distance_view,
    "stemma.competition": competition_view,
    "stemma.prune": prune_view,
    "stemma.unlearn": unlearn_view,
    "stemma.verify-edit": verify_edit_view,
    "stemma.verify-unlearning": verify_unlearning_view,
}
"""By schema: what a page shows of a document; the template has the name of the schema."""

FILE, ATLAS = "file.html", "atlas.html"
"""Frames of a page: one self-contained file, and a page of the atlas."""


def render_page(document: Document, command: str, frame: str = FILE, **more: Any) -> bytes:
    """A document as a page in HTML.

    The file holds no date and nothing random: the same document gives the same bytes, whenever it is rendered.

    Args:
        document: What `--json` prints.
        command: Command line that gives the same answer.
        frame: Whether the page is a file of its own or one of the atlas.
        more: What else the template shows: `claims` set against the findings, and `pictures`, sections of markup such
            as those on where in the inputs two models differ.

    Returns:
        UTF-8.

    Raises:
        MisuseError: If there is no page for documents of this schema.
    """
    schema = str(document["schema"]["name"])
    if schema not in PAGES:
        raise MisuseError(f"there is no page for a document of schema {schema}; there is one for {', '.join(PAGES)}")
    template = f"{schema.removeprefix('stemma.')}.html"
    notes = [
        f"{note['model']}: {note['note']}" if isinstance(note, Mapping) else note for note in document.get("notes", ())
    ]
    values = {
        "document": document, "command": command, "claims": (), "pictures": (), "asked": asked_facts(document),
        "notes": notes, "not_tested": document.get("not_tested", ()), "cannot_see": document.get("cannot_see", ()),
        "words": (), **PAGES[schema](document), **more,
    }  # fmt: skip
    words = words_on(render_template(template, frame, **values).decode())
    return render_template(template, frame, **{**values, "words": words})


def render_template(template: str, frame: str = FILE, **values: Any) -> bytes:
    """A template with its values; text is escaped, and unprintable characters are shown as escapes."""
    return environment().get_template(template).render(frame=frame, **values).encode()


@cache
def environment() -> "Environment":
    """Where templates are found and how values reach them: escaped, and never silently missing."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from stemma import __version__

    def shown(value: Any) -> Any:
        return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    made = Environment(
        loader=PackageLoader("stemma.export.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    globals_: dict[str, Any] = made.globals
    globals_.update({"version": __version__, "style": Markup(stylesheet())})  # the stylesheet is ours
    for function in (
        figures.number, figures.percent, figures.p_value, figures.strength, figures.odds, figures.count,
        figures.digest, figures.name, figures.said, figures.breakable,
    ):  # fmt: skip
        made.filters[function.__name__] = function
    return made


@cache
def stylesheet() -> str:
    """The stylesheet of all pages, with that of family trees."""
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8") + tree_style()
