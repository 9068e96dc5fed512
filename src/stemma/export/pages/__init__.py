"""Pages: a document rendered with a template, as one file or as a page of the atlas."""

from stemma.export.pages.render import PAGES, render_page

__all__ = ["PAGES", "render_page"]
