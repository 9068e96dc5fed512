"""Models without weights: services that are asked, and answers that were recorded."""

from stemma.networks.endpoints.address import Endpoint
from stemma.networks.endpoints.answered import answered_model, read_recorded
from stemma.networks.endpoints.asking import Budget
from stemma.networks.endpoints.questions import ask

__all__ = ["Budget", "Endpoint", "answered_model", "ask", "read_recorded"]
