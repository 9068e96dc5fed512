"""Competition strength of a model's modalities, from concept networks and two sets of probes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.multimodal.competition_strength import CompetitionStrength, CompetitionTest, over_concepts
from stemma.multimodal.contribution import ContributionTest, batch_of
from stemma.multimodal.paired_network import module_of
from stemma.probes import Probes


@dataclass(frozen=True)
class StrengthTest:
    """Measures competition strength on models; `CompetitionTest` does the same on arrays.

    Attributes:
        layer: Layer whose input is the fused representation, several with commas between them; by default the linear
            layer that runs last.
        mask: How modalities are hidden, where a concept is the multimodal network trained with the others hidden.
        fit: The decoder and its test.
    """

    layer: str | None = None
    mask: str = "zero"
    fit: CompetitionTest = field(default_factory=CompetitionTest)

    def __call__(
        self, model: Model, concepts: Sequence[Model], modality: str, fit_probes: Probes, probes: Probes
    ) -> tuple[CompetitionStrength, str]:
        """Measure one modality.

        Args:
            model: The multimodal network.
            concepts: Independently trained networks of that modality alone.
            modality: Its name.
            fit_probes: Paired probes that the decoder is fitted on: none that the network was trained on.
            probes: Others, that it is tested on.

        Returns:
            The strength, averaged over concepts, and the layer whose input was used.

        Raises:
            MisuseError: If the two sets of probes overlap or differ in their modalities, or the layer does not depend
                on the modality.
        """
        from stemma.multimodal.concepts import concept_outputs, fused_representation
        from stemma.multimodal.masks import hidden

        self._check(fit_probes, probes, modality)
        repeated = [c.name for i, c in enumerate(concepts) if c.digest in {k.digest for k in concepts[:i]}]
        if repeated:
            raise MisuseError(
                f"the concept {repeated[0]} of {modality} was given twice: give independently trained networks"
            )
        module, masks = module_of(model), ContributionTest(self.mask).masks(probes)
        batches = [batch_of(module, p) for p in (fit_probes, probes)]
        (fit_features, layer), (features, _) = (fused_representation(module, b, self.layer) for b in batches)
        without_modality = fused_representation(module, hidden(batches[1], masks, [modality]), self.layer)[0]
        if np.array_equal(without_modality, features):
            raise MisuseError(
                f"the input of {layer!r} does not depend on {modality}: name another layer (layer=, --layer), or "
                "several with commas where a network adds the outputs of several heads"
            )
        found = []
        for concept in concepts:
            concept_module = module_of(concept)
            parts = [batch_of(concept_module, p) for p in (fit_probes, probes)]
            fitted, tested = (concept_outputs(concept_module, b, modality, masks) for b in parts)
            found.append(self.fit(fit_features, fitted, features, tested))
        return over_concepts(found), layer

    def _check(self, fit_probes: Probes, probes: Probes, modality: str) -> None:
        if fit_probes.parts != probes.parts or not probes.parts:
            given, fit_given = (", ".join(f"{p.name} {list(p.shape)}" for p in x.parts) for x in (probes, fit_probes))
            raise MisuseError(f"probes and fit probes need the same modalities, but have {given} and {fit_given}")
        if modality not in {p.name for p in probes.parts}:
            raise MisuseError(f"the probes have no modality {modality!r}")
        shared = _rows(fit_probes.inputs) & _rows(probes.inputs)
        if shared:
            raise MisuseError(
                f"{len(shared)} of the fit probes are among the probes: the decoder has to be tested on other probes "
                "than it was fitted on"
            )


def _rows(inputs: np.ndarray) -> set[bytes]:
    return {hashlib.sha256(np.ascontiguousarray(row).data).digest() for row in inputs.astype(np.float32)}
