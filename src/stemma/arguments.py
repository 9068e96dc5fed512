"""What stands for models, probes and methods in Python: turned into them, or refused in one sentence."""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from stemma.checkpoints.model import Model
    from stemma.probes import Probes
    from stemma.workspace import Workspace

    Given = Model | torch.nn.Module | str | os.PathLike[str]
    """What stands for a model: one that is loaded, a torch module, a path, or a name or digest in the registry."""


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names that are all different: a number is added to those that are not."""
    made: list[str] = []
    for name in names:
        count, label = 2, name
        while label in made:
            label, count = f"{name} {count}", count + 1
        made.append(label)
    return tuple(made)


def opened(model: "Given") -> "tuple[Workspace, Model]":
    """The default registry's workspace, and the model that is meant."""
    from stemma.registry import Registry
    from stemma.workspace import Workspace

    workspace = Workspace(Registry())
    return workspace, workspace.resolve(os.fspath(model)) if isinstance(model, (str, os.PathLike)) else as_model(model)


def as_list(given: Any) -> list[Any]:
    """Models as a list: one alone is a list of one, a folder's path too; a module may be a sequence of layers."""
    from stemma.errors import MisuseError

    if isinstance(given, Mapping):
        raise MisuseError(
            f"models are given as a list here, not as a {type(given).__name__}: give list(models.values())"
        )
    one = isinstance(given, (str, os.PathLike)) or callable(given)
    return [given] if one or not isinstance(given, Iterable) else list(given)


def reference_models(null: "Sequence[Given] | str | None") -> "list[Path | Model] | str | None":
    """Reference models as the workspace takes them; a text is a recipe."""
    return null if null is None or isinstance(null, str) else [path_or_model(one) for one in as_list(null)]


def path_or_model(given: "Given") -> "Path | Model":
    """A path as it is, for what is searched; anything else as a model."""
    from stemma.errors import MisuseError

    if not isinstance(given, (str, os.PathLike)):
        return as_model(given)
    if not os.fspath(given):
        raise MisuseError("an empty text names no model: give a path")  # Path("") is the working directory
    return Path(given)


def as_model(given: "Model | torch.nn.Module") -> "Model":
    """A model as it is; a torch module as one, under its class's name."""
    from stemma.checkpoints.model import Model
    from stemma.errors import MisuseError

    if isinstance(given, Model):
        return given
    if isinstance(given, type):
        raise MisuseError(f"{given.__name__} is a class, not a model: give an instance of it")
    if not callable(given):
        raise MisuseError(f"a model is a stemma.Model, a path, a name or a torch module, not {type(given).__name__}")
    from stemma.networks.from_module import from_module

    return from_module(given, type(given).__name__)


def as_probes(given: "Probes | str | os.PathLike[str]", model: "Model") -> "Probes":
    """Probes as they are; words and paths as `--probes` takes them."""
    from stemma.errors import MisuseError, UnreadableModelError
    from stemma.probes import Probes, read_probes

    if isinstance(given, Probes):
        return given
    if not isinstance(given, (str, os.PathLike)):
        raise MisuseError(
            f"probes are a stemma.Probes or words as --probes takes them (noise:n=256), not {type(given).__name__}: "
            "use stemma.Probes.of(inputs, labels=…)"
        )
    spec = None
    with contextlib.suppress(UnreadableModelError):  # arrays need no input space; whatever does says so
        spec = model.network.input_spec
    return read_probes(os.fspath(given), spec)


def selection_or_probes(given: Any, model: "Model") -> Any:
    """Probes as above; None and probes that were selected for a test stay as they are."""
    from stemma.kinship.function.selection import Selection

    return given if given is None or isinstance(given, Selection) else as_probes(given, model)


def check_kinds(method: object, measure: object = None) -> None:
    """Refuse what is no method and what is no measure, such as their names."""
    from stemma.errors import MisuseError
    from stemma.fingerprints.base import AbstractFingerprinter
    from stemma.measures.base import AbstractMeasure

    for what, given, kind, example in (
        ("method", method, AbstractFingerprinter, "stemma.methods.ModelGiF()"),
        ("measure", measure, AbstractMeasure, "stemma.measures.LinearCka()"),
    ):
        if given is not None and not isinstance(given, kind):
            is_class = isinstance(given, type) and issubclass(given, kind)
            said = f"the class {given.__name__}: give an instance" if is_class else f"a {type(given).__name__}"
            raise MisuseError(f"a {what} is an object such as {example}, not {said}")
