"""What a caller refuses, and what closes a gate: relations, licences, and whatever could not be tested."""

from stemma.application.policies.licences import why_unclear
from stemma.application.policies.policy import Policy, Ruling, judge_comparison, judge_lineage, judge_trace

__all__ = ["Policy", "Ruling", "judge_comparison", "judge_lineage", "judge_trace", "why_unclear"]
