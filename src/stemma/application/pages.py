"""Answers as pages in HTML, and family trees as a picture."""

from typing import TYPE_CHECKING, Any, Protocol

from stemma.application.command_lines import command_line

if TYPE_CHECKING:
    from stemma.application.lineage import LineageAnswer


class Answer(Protocol):
    """What a question is answered with."""

    @property
    def request(self) -> Any:
        """What was asked."""

    def document(self) -> dict[str, Any]:
        """The document that `--json` prints."""


def page_of(answer: Answer) -> bytes:
    """The page that `--html` writes.

    Args:
        answer: Answer of a command that has a page.

    Returns:
        One self-contained file in UTF-8.
    """
    from markupsafe import Markup

    from stemma.export.pages import render_page

    document = answer.document()
    command = str(document["schema"]["name"]).removeprefix("stemma.").replace("-", " ")
    pictures = tuple(map(Markup, getattr(answer, "pictures", ())))  # the markup is ours
    more: dict[str, Any] = {"pictures": pictures} if pictures else {}
    return render_page(document, command_line(command, answer.request), **more)


def tree_picture(answer: "LineageAnswer") -> bytes:
    """The picture of family trees that `stemma lineage --svg` writes.

    Args:
        answer: The trees.

    Returns:
        A file in SVG with a style of its own.
    """
    from stemma.export.trees import tree_file

    return tree_file(answer.document())
