"""Stemma: where a neural network comes from, worked out from the models alone.

    import stemma

    trace = stemma.trace("suspect.safetensors", against=["models/"])
    print(trace.verdict, [parent["name"] for parent in trace.parents])

Inside, each folder answers one question, and data flows from the bottom of this list to the top:

    cli            commands: the only printer
    export         pages that show a result: they return bytes
    workspace      recall or compute, then store
    training       learned parts, trained on a zoo
    zoo            families of small real networks whose history is known
    ancestry       who comes from whom?
    registry       remember it: the only writer of records
    verification   did it change as said? Before, after and a null to evidence
    kinship        does B come from A? Two models to evidence
    edits          change it, with proof: prune, unlearn; plan before, receipt after
    multimodal     which modality does a network rely on? Responses, contributions, balance while training
    measures       how far apart? Fingerprints to distances
    fingerprints   what does a model look like? The weight sketch for search, gradient fields, answers, activations
    probes         what do we ask it? Images, tokens, audio
    networks       can it be asked? Configurations, modules, exported programs, ONNX
    architectures  which axes share one set of hidden units?
    checkpoints    what is in the file? Every format, digests
    types          the nouns
    errors         what is wrong, what was given, what to do

Importing this loads neither torch nor scipy; every name below is fetched on first use.
"""

import contextlib
import importlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from stemma.checkpoints.model import Model as Model
    from stemma.edits.pruning.pruning import Pruning as Pruning
    from stemma.edits.result import Edited
    from stemma.edits.unlearning.unlearning import Unlearning as Unlearning
    from stemma.errors import StemmaError as StemmaError
    from stemma.fingerprints.base import AbstractFingerprinter
    from stemma.fingerprints.gradient_field import GradientField as GradientField
    from stemma.measures.base import AbstractMeasure
    from stemma.measures.field_cosine import FieldCosine as FieldCosine
    from stemma.networks.from_module import from_module as from_module
    from stemma.networks.load import from_arrays as from_arrays
    from stemma.networks.load import load as load
    from stemma.probes import Probes as Probes
    from stemma.registry import Registry as Registry
    from stemma.types import Comparison as Comparison
    from stemma.types import Distance as Distance
    from stemma.types import Evidence as Evidence
    from stemma.types import Fingerprint as Fingerprint
    from stemma.types import InputSpec as InputSpec
    from stemma.types import Lineage as Lineage
    from stemma.types import Plan as Plan
    from stemma.types import Receipt as Receipt
    from stemma.types import Relation as Relation
    from stemma.types import RelationKind as RelationKind
    from stemma.types import Trace as Trace
    from stemma.types import Verdict as Verdict
    from stemma.workspace import Workspace as Workspace

    Given = Model | torch.nn.Module | str | os.PathLike[str]
    """What stands for a model: one that is loaded, a torch module, a path, or a name or digest in the registry."""

__version__ = "0.1.0"

_HOME = {
    "load": "networks.load",
    "from_arrays": "networks.load",
    "from_module": "networks.from_module",
    "Model": "checkpoints.model",
    "Registry": "registry",
    "Workspace": "workspace",
    "Probes": "probes",
    "GradientField": "fingerprints.gradient_field",
    "FieldCosine": "measures.field_cosine",
    "Pruning": "edits.pruning.pruning",
    "Unlearning": "edits.unlearning.unlearning",
    "Comparison": "types",
    "Distance": "types",
    "Evidence": "types",
    "Fingerprint": "types",
    "InputSpec": "types",
    "Lineage": "types",
    "Plan": "types",
    "Receipt": "types",
    "Relation": "types",
    "RelationKind": "types",
    "Trace": "types",
    "Verdict": "types",
    "StemmaError": "errors",
}

__all__ = ["__version__", "compare", "distance", "lineage", "prune", "trace", "unlearn", *_HOME]


def compare(
    a: "Given",
    b: "Given",
    probes: "Probes | str | None" = None,
    null: "Sequence[Given] | str | None" = None,
    **options: Any,
) -> "Comparison":
    """What one model is to another.

    Args:
        a: A model, a torch module, a path, or a name or digest prefix in the default registry.
        b: The other one.
        probes: What both are asked, also in words as `--probes` takes them; without, only weights are compared.
        null: Models that were trained apart from both (models and paths), or a recipe of the zoo such as
            `cnn:n=99,seed=1`; enrolled models unless given.
        options: As `Workspace.compare` takes them: `alpha`.

    Returns:
        All evidence on the pair.
    """
    workspace, first = _opened(a)
    apart = [null] if isinstance(null, os.PathLike) else null
    others = apart if apart is None or isinstance(apart, str) else [_path_or_model(n) for n in apart]
    asked = None if probes is None else _probes(probes, first)
    return workspace.compare(first, _opened(b)[1], probes=asked, null=others, **options)


def distance(
    a: "Given",
    b: "Given",
    probes: "Probes | str",
    method: "AbstractFingerprinter | None" = None,
    measure: "AbstractMeasure | None" = None,
) -> "Distance":
    """How far apart two models are in what they do.

    Args:
        a: A model, a torch module, a path, or a name or digest prefix in the default registry.
        b: The other one.
        probes: What both are asked: probes, or words as `--probes` takes them (`noise:n=256`, a folder).
        method: What is compared of them, such as `GradientField()`.
        measure: How, such as `FieldCosine()`.

    Returns:
        The distance, with its interval over probes.
    """
    workspace, first = _opened(a)
    return workspace.distance(first, _opened(b)[1], _probes(probes, first), method, measure)


def lineage(
    models: "Sequence[Given]",
    **options: Any,
) -> "Lineage":
    """Who comes from whom among some models.

    Args:
        models: Models, torch modules, paths, or names or digest prefixes in the default registry; each under a name of
            its own.
        options: As `stemma.workspace.forest.lineage` takes them: `alpha`, `progress`.

    Returns:
        The forest: edges with their evidence, roots, families, missing ancestors, and what was refused.
    """
    from stemma.workspace.forest import lineage

    return lineage([_opened(m)[1] for m in models], **options)


def trace(
    model: "Given",
    against: "Sequence[Given] | Given | None" = None,
    **options: Any,
) -> "Trace":
    """Where a model comes from.

    Args:
        model: A model, a torch module, a path, or a name or digest prefix in the default registry.
        against: Search this checkpoint, folder of them, model or module, or these (a list), instead of the default
            registry.
        options: As `Workspace.trace` takes them: `alpha`, `probes`, `null`.

    Returns:
        The answer.
    """
    workspace, suspect = _opened(model)
    searched = None if against is None else [_path_or_model(one) for one in _several(against)]
    return workspace.trace(suspect, against=searched, **options)


def prune(model: "Given", probes: "Probes | str", **options: Any) -> "Edited":
    """A smaller model, without labels or training.

    Args:
        model: A model, a torch module, a path, or a name or digest prefix in the default registry; it is not changed.
        probes: Unlabelled inputs like those that it is meant for.
        options: Fields of `Pruning`: `budget`, `share`, `score`, ….

    Returns:
        The smaller model, its plan and its receipt; `stemma.edits.save.write` puts them into a folder.
    """
    from stemma.edits.pruning.pruning import Pruning

    chosen = _opened(model)[1]
    return Pruning(**options)(chosen, _probes(probes, chosen))


def unlearn(model: "Given", forget: "Probes | str", retain: "Probes | str | None" = None, **options: Any) -> "Edited":
    """A model that no longer answers a class, without training.

    Args:
        model: A model, a torch module, a path, or a name or digest prefix in the default registry; it is not changed.
        forget: Samples of the class, real or synthetic.
        retain: Inputs of other classes, or generic ones, unlabelled.
        options: Fields of `Unlearning`: `action`, `layers`, `target`, ….

    Returns:
        The model, its plan, its receipt, and its weights as they were.
    """
    from stemma.edits.unlearning.unlearning import Unlearning

    chosen = _opened(model)[1]
    kept = None if retain is None else _probes(retain, chosen)
    return Unlearning(**options)(chosen, _probes(forget, chosen), kept)


def _opened(model: "Given") -> "tuple[Workspace, Model]":
    from stemma.registry import Registry
    from stemma.workspace import Workspace

    workspace = Workspace(Registry())
    return workspace, workspace.resolve(os.fspath(model)) if isinstance(model, (str, os.PathLike)) else _model(model)


def _several(given: Any) -> list[Any]:
    one = isinstance(given, (str, os.PathLike)) or callable(given)  # a module may be a sequence of layers
    return [given] if one or not isinstance(given, Iterable) else list(given)


def _path_or_model(given: "Given") -> "Path | Model":
    return Path(given) if isinstance(given, (str, os.PathLike)) else _model(given)


def _model(given: "Model | torch.nn.Module") -> "Model":
    """A model as it is; a torch module as one, under its class's name."""
    from stemma.checkpoints.model import Model
    from stemma.errors import MisuseError

    if isinstance(given, Model):
        return given
    if not callable(given):
        raise MisuseError(f"a model is a stemma.Model, a path, a name or a torch module, not {type(given).__name__}")
    from stemma.networks.from_module import from_module

    return from_module(given, type(given).__name__)


def _probes(given: "Probes | str", model: "Model") -> "Probes":
    """Probes as they are; words as `--probes` takes them."""
    if not isinstance(given, str):
        return given
    from stemma.errors import UnreadableModelError
    from stemma.probes import read_probes

    spec = None
    with contextlib.suppress(UnreadableModelError):  # arrays need no input space; whatever does says so
        spec = model.network.input_spec
    return read_probes(given, spec)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stemma' has no attribute '{name}'")
    return getattr(importlib.import_module(f"stemma.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
