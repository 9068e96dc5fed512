"""Findings in the formats of other tools: every writer takes `ExportedFindings` and returns bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stemma.export.standards import cyclonedx, intoto, model_card, sarif, spdx
from stemma.export.standards.findings import ExportedFindings


@dataclass(frozen=True, slots=True)
class Format:
    """A format.

    Attributes:
        media_type: Of what is written.
        write: Writes it.
        module: What has to be importable; empty where nothing is needed.
    """

    media_type: str
    write: Callable[[ExportedFindings], bytes]
    module: str = ""


FORMATS: Mapping[str, Format] = {
    "cyclonedx": Format(cyclonedx.MEDIA_TYPE, cyclonedx.cyclonedx, "cyclonedx"),
    "spdx": Format(spdx.MEDIA_TYPE, spdx.spdx, "spdx_python_model"),
    "intoto": Format(intoto.MEDIA_TYPE, intoto.intoto, "in_toto_attestation"),
    "model-card": Format(model_card.MEDIA_TYPE, model_card.model_card, "huggingface_hub"),
    "sarif": Format(sarif.MEDIA_TYPE, sarif.sarif),
}
"""By name."""
