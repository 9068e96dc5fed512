"""Recall or compute, then store. No method lives here: models go to the stages, their answers to the registry."""

from stemma.workspace.enrol import AddResult
from stemma.workspace.workspace import ALPHA, LIMIT, Workspace

__all__ = ["ALPHA", "LIMIT", "AddResult", "Workspace"]
