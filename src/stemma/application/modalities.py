"""Models and probe inputs of several modalities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stemma.errors import MisuseError

if TYPE_CHECKING:
    from stemma.application.network_options import NetworkOptions
    from stemma.checkpoints.model import Model
    from stemma.probes import Probes
    from stemma.workspace import Workspace


@dataclass(frozen=True)
class ModalitiesJoined:
    """Prepares every model that is opened: its network, and all modalities of paired probes as one input.

    Attributes:
        with_network: Gives a model its network.
        probes: Probe inputs that will be used, None if none.
    """

    with_network: "Callable[[Model], Model]"
    probes: "Probes | None" = None

    def __call__(self, model: "Model") -> "Model":
        """The model, prepared."""
        return join_modalities(self.with_network(model), self.probes)


def join_modalities(model: "Model", probes: "Probes | None") -> "Model":
    """The model with all modalities of paired probes as one input; as it is for other probes."""
    if probes is None or not probes.parts:
        return model
    from stemma.multimodal.paired_network import side_by_side

    return side_by_side(model, probes.parts)


def join_reference_models(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a comparison whose control models (`null`) take paired probes, if its probes are paired."""
    from stemma.checkpoints.model import Model

    probes, null = options.get("probes"), options.get("null")
    if probes is None or not isinstance(null, (list, tuple)):
        return options
    return {**options, "null": [join_modalities(n, probes) if isinstance(n, Model) else n for n in null]}


def unimodal_models(
    networks: "NetworkOptions", workspace: "Workspace", texts: Sequence[str], factories: Sequence[str], probes: "Probes"
) -> "dict[str, list[Model]]":
    """Models of one modality alone, by modality.

    Args:
        networks: How networks are built.
        workspace: Looks names up.
        texts: `NAME=MODEL` each.
        factories: `NAME=MODULE:FACTORY` each: the function that builds the networks of that modality.
        probes: Paired probes.

    Returns:
        One model or more for each modality that is named.

    Raises:
        MisuseError: If a text is no pair, or names no modality.
    """
    known = [p.name for p in probes.parts]
    built = {name: replace(networks, network=made) for name, made in (_pair(t, known, "factory") for t in factories)}
    found: dict[str, list[Model]] = {}
    for name, text in (_pair(t, known, "concept") for t in texts):
        found.setdefault(name, []).append(built.get(name, networks).open_model(workspace, text))
    return found


def _pair(text: str, known: Sequence[str], what: str) -> tuple[str, str]:
    name, sign, rest = text.partition("=")
    if not sign or not rest:
        raise MisuseError(
            f"a {what} is given as NAME={'MODEL' if what == 'concept' else 'MODULE:FACTORY'}, not {text!r}"
        )
    if name not in known:
        raise MisuseError(f"there is a {what} of {name!r}, but the modalities of the probes are {', '.join(known)}")
    return name, rest
