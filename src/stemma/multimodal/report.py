"""Which modality a network relies on, and how strongly its modalities compete: one answer with both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stemma.checkpoints.model import Model
from stemma.multimodal.competition_strength import CompetitionStrength
from stemma.multimodal.contribution import ContributionTest, ModalityContribution
from stemma.multimodal.strength_test import StrengthTest
from stemma.probes import Probes
from stemma.types import jsonable


@dataclass(frozen=True, kw_only=True, repr=False)
class CompetitionReport:
    """What one network does with its modalities.

    Attributes:
        contributions: Share of the output and accuracies of every modality.
        strengths: Competition strength by modality, as far as unimodal networks were given.
        layer: Whose input is the fused representation; empty where no strength was measured.
    """

    contributions: ModalityContribution
    strengths: Mapping[str, CompetitionStrength] = field(default_factory=dict)
    layer: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form.

        Returns:
            Plain JSON values: those of the contributions, with `strength` by modality and `layer`.
        """
        strength = {
            n: jsonable(self.strengths[n]) if n in self.strengths else None for n in self.contributions.modalities
        }
        return {**self.contributions.to_dict(), "strength": strength, "layer": self.layer or None}

    def __repr__(self) -> str:
        lines = []
        for name, modality in self.contributions.modalities.items():
            low, high = modality.share.interval
            found = self.strengths.get(name)
            strength = "" if found is None else f", competition strength {found.whitened:.2f}"
            lines.append(f"{name}: {modality.share.value:.2f} [{low:.2f}, {high:.2f}] of the output{strength}")
        return "\n".join(lines)


def competition_report(
    model: Model,
    probes: Probes,
    unimodal: Mapping[str, Sequence[Model]],
    fit_probes: Probes | None,
    layer: str | None = None,
    mask: str = "zero",
    seed: int = 0,
) -> CompetitionReport:
    """Measure contributions, and strengths for the modalities that unimodal networks are given for.

    Args:
        model: A network that takes one tensor per modality.
        probes: Paired probes.
        unimodal: By modality, networks trained on it alone.
        fit_probes: What readouts are fitted on; None where no strength is asked for.
        layer: Whose input is the fused representation.
        mask: How a modality is hidden.
        seed: Of permutations.

    Returns:
        The report.
    """
    test = ContributionTest(mask=mask, seed=seed)
    contributions = test(model, probes)
    strengths, read = {}, ""
    if fit_probes is not None:
        measure = StrengthTest(layer, test.mask)
        for name, models in unimodal.items():
            strengths[name], read = measure(model, models, name, fit_probes, probes)
    return CompetitionReport(contributions=contributions, strengths=strengths, layer=read)
