"""Answers as pages in HTML."""

from typing import TYPE_CHECKING

from stemma.application.command_lines import command_line

if TYPE_CHECKING:
    from stemma.application.trace import TraceAnswer


def trace_page(answer: "TraceAnswer") -> bytes:
    """The page that `stemma trace --html` writes."""
    from stemma.export.pages import render_page

    return render_page(answer.document(), command_line("trace", answer.request))
