"""What do we ask it? Inputs that models are questioned with."""

from stemma.probes.modalities import paired as paired
from stemma.probes.parse import read_probes as read_probes
from stemma.probes.probes import Probes as Probes
