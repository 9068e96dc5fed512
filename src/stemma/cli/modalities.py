"""Models and probes of several modalities, from the options that say how."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stemma.errors import MisuseError

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.cli.asking import Asking
    from stemma.probes import Probes
    from stemma.workspace import Workspace


@dataclass(frozen=True)
class SideBySide:
    """Prepares every model that is opened for probes of several modalities; for others it does what `able` does.

    Attributes:
        able: Gives a model its network.
        probes: What will be asked, None if nothing.
    """

    able: "Callable[[Model], Model]"
    probes: "Probes | None" = None

    def __call__(self, model: "Model") -> "Model":
        """The model with its network, asked with all modalities side by side where they are several."""
        made = self.able(model)
        if self.probes is None or not self.probes.parts:
            return made
        from stemma.multimodal.paired_network import side_by_side

        return side_by_side(made, self.probes.parts)


def joint_of(models: "Sequence[Model]", options: dict[str, Any]) -> "tuple[tuple[Model, ...], dict[str, Any]]":
    """Models and null models that take paired probes, if the probes are paired.

    Args:
        models: As they were opened.
        options: `probes` and `null`, as far as they were given.

    Returns:
        The same, asked with all modalities side by side.
    """
    probes = options.get("probes")
    if probes is None or not probes.parts:
        return tuple(models), options
    from stemma.checkpoints.model import Model
    from stemma.multimodal.paired_network import side_by_side

    null = options.get("null")
    if isinstance(null, (list, tuple)):
        options = {**options, "null": [side_by_side(n, probes.parts) if isinstance(n, Model) else n for n in null]}
    return tuple(side_by_side(model, probes.parts) for model in models), options


def concepts(
    asking: "Asking", workspace: "Workspace", texts: Sequence[str], factories: Sequence[str], probes: "Probes"
) -> "dict[str, list[Model]]":
    """The mono-modal concepts that a person names.

    Args:
        asking: How networks are built.
        workspace: Looks names up.
        texts: `NAME=MODEL` each.
        factories: `NAME=MODULE:FACTORY` each: who builds the concepts of that modality.
        probes: Paired probes.

    Returns:
        By modality, one model or more.

    Raises:
        MisuseError: If a text is no pair, or names no modality.
    """
    known = [p.name for p in probes.parts]
    built = {name: replace(asking, factory=made) for name, made in (_pair(t, known, "factory") for t in factories)}
    found: dict[str, list[Model]] = {}
    for name, text in (_pair(t, known, "concept") for t in texts):
        maker = built.get(name, asking)
        found.setdefault(name, []).append(maker.able(workspace.resolve(text)))
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
