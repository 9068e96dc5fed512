"""Probes: inputs on which models are run."""

from stemma.probes.modalities import pair_modalities as pair_modalities
from stemma.probes.parse import read_probes as read_probes
from stemma.probes.probes import Probes as Probes
