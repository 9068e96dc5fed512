"""What a caller refuses, and what closes a gate: relations, licences, and whatever could not be tested."""

from stemma.workspace.policies.gate import Policy, Ruling, on_comparison, on_trace
from stemma.workspace.policies.licences import unknown

__all__ = ["Policy", "Ruling", "on_comparison", "on_trace", "unknown"]
