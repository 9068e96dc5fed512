"""Competition strength of a model's modalities, from its concepts and two sets of probes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.multimodal.competition_strength import CompetitionStrength, CompetitionTest, over_concepts
from stemma.multimodal.contribution import LeaningTest, batch_of
from stemma.multimodal.paired_network import module_of
from stemma.probes import Probes


@dataclass(frozen=True)
class StrengthTest:
    """How competition strength is measured on models.

    Attributes:
        layer: Whose input is the fused representation, several with commas between them; the linear layer that is
            called last if None.
        mask: How modalities are hidden, where a concept is the multimodal network trained with the others hidden.
        fit: The readout and its test.
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
            concepts: Networks of that modality alone, trained apart.
            modality: Its name.
            fit_probes: Paired probes that the readout is fitted on: none that the network was trained on.
            probes: Others, that it is tested on.

        Returns:
            The strength, averaged over concepts, and the layer whose input was read.

        Raises:
            MisuseError: If the two sets of probes overlap or differ in their modalities, or the layer does not see the
                modality.
        """
        from stemma.multimodal.concepts import concept_outputs, fused_representation
        from stemma.multimodal.masks import hidden

        self._check(fit_probes, probes, modality)
        twice = [c.name for i, c in enumerate(concepts) if c.digest in {k.digest for k in concepts[:i]}]
        if twice:
            raise MisuseError(
                f"the concept {twice[0]} of {modality} is there twice: give networks that were trained apart"
            )
        module, masks = module_of(model), LeaningTest(self.mask).masks(probes)
        batches = [batch_of(module, p) for p in (fit_probes, probes)]
        (fit_features, layer), (features, _) = (fused_representation(module, b, self.layer) for b in batches)
        unseen = fused_representation(module, hidden(batches[1], masks, [modality]), self.layer)[0]
        if np.array_equal(unseen, features):
            raise MisuseError(
                f"what enters {layer!r} does not change when {modality} is hidden, so it is no representation of all: "
                "name another layer (layer=, --layer), or where a network adds the outputs of several heads, name all "
                "of them with commas between them"
            )
        found = []
        for concept in concepts:
            alone = module_of(concept)
            parts = [batch_of(alone, p) for p in (fit_probes, probes)]
            fitted, tested = (concept_outputs(alone, b, modality, masks) for b in parts)
            found.append(self.fit(fit_features, fitted, features, tested))
        return over_concepts(found), layer

    def _check(self, fit_probes: Probes, probes: Probes, modality: str) -> None:
        if fit_probes.parts != probes.parts or not probes.parts:
            ours, theirs = (", ".join(f"{p.name} {list(p.shape)}" for p in x.parts) for x in (probes, fit_probes))
            raise MisuseError(f"probes and fit probes have to be of the same modalities, but they are {ours}; {theirs}")
        if modality not in {p.name for p in probes.parts}:
            raise MisuseError(f"the probes have no modality {modality!r}")
        shared = _rows(fit_probes.inputs) & _rows(probes.inputs)
        if shared:
            raise MisuseError(
                f"{len(shared)} of the fit probes are among the probes: a readout is tested on others than it was "
                "fitted on"
            )


def _rows(inputs: np.ndarray) -> set[bytes]:
    return {hashlib.sha256(np.ascontiguousarray(row).data).digest() for row in inputs.astype(np.float32)}
