"""One function per use case: looks up or computes, then stores. No method lives here."""

from stemma.workspace.enrol import AddResult
from stemma.workspace.workspace import ALPHA, LIMIT, Workspace

__all__ = ["ALPHA", "LIMIT", "AddResult", "Workspace"]
