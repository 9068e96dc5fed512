"""Findings in the formats of other tools: every function takes `ExportedFindings` and returns bytes."""

from collections.abc import Callable, Mapping

from stemma.export.standards import cyclonedx, intoto, model_card, sarif, spdx
from stemma.export.standards.findings import ExportedFindings

Written = tuple[str, bytes]
"""A media type, and the bytes of it."""

FORMATS: Mapping[str, Callable[[ExportedFindings], Written]] = {
    "cyclonedx": lambda findings: (cyclonedx.MEDIA_TYPE, cyclonedx.cyclonedx(findings)),
    "spdx": lambda findings: (spdx.MEDIA_TYPE, spdx.spdx(findings)),
    "intoto": lambda findings: (intoto.MEDIA_TYPE, intoto.intoto(findings)),
    "model-card": lambda findings: (model_card.MEDIA_TYPE, model_card.model_card(findings)),
    "sarif": lambda findings: (sarif.MEDIA_TYPE, sarif.sarif(findings)),
}
"""By name of a format: what writes it."""
