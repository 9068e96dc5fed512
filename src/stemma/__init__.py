"""Stemma: where a neural network comes from, worked out from the models alone.

    import stemma

    trace = stemma.trace("suspect.safetensors", against=["models/"])
    print(trace.verdict, [parent["name"] for parent in trace.parents])

Inside, each folder answers one question, and data flows from the bottom of this list to the top:

    cli           commands: the only printer
    export        pages that show a result: they return bytes
    workspace     recall or compute, then store
    training      learned parts, trained on a zoo
    zoo           families of small real networks whose history is known
    lineage       who comes from whom?
    registry      remember it: the only writer of records
    verification  did it change as said? Before, after and a null to evidence
    kinship       does B come from A? Two models to evidence
    edits         change it, with proof: prune, unlearn; plan before, receipt after
    multimodal    which modality does a network lean on? Modality responses, and balance while training
    measures      how far apart? Fingerprints to distances
    fingerprints  what does a model look like? The weight sketch for search, gradient fields, answers, activations
    probes        what do we ask it? Images, tokens, audio
    models        what is in the file? Every format, digests, hidden units
    types         the nouns
    errors        what is wrong, what was given, what to do

Importing this loads neither torch nor scipy; every name below is fetched on first use.
"""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.edits.edited import Edited
    from stemma.edits.forgetting import Unlearning as Unlearning
    from stemma.edits.pruning import Pruning as Pruning
    from stemma.errors import StemmaError as StemmaError
    from stemma.fingerprints.base import AbstractFingerprinter
    from stemma.fingerprints.gradient_field import GradientField as GradientField
    from stemma.measures.base import AbstractMeasure
    from stemma.measures.field_cosine import FieldCosine as FieldCosine
    from stemma.models.load import from_arrays as from_arrays
    from stemma.models.load import load as load
    from stemma.models.model import Model as Model
    from stemma.models.networks.given import from_module as from_module
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

__version__ = "0.1.0"

_HOME = {
    "load": "models.load",
    "from_arrays": "models.load",
    "from_module": "models.networks.given",
    "Model": "models.model",
    "Registry": "registry",
    "Workspace": "workspace",
    "Probes": "probes",
    "GradientField": "fingerprints.gradient_field",
    "FieldCosine": "measures.field_cosine",
    "Pruning": "edits.pruning",
    "Unlearning": "edits.forgetting",
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
    a: "Model | str | os.PathLike[str]",
    b: "Model | str | os.PathLike[str]",
    probes: "Probes | None" = None,
    null: "Sequence[Model | str | os.PathLike[str]] | str | None" = None,
    **options: Any,
) -> "Comparison":
    """What one model is to another.

    Args:
        a: A model, a path, or a name or digest prefix in the default registry.
        b: The other one.
        probes: What both are asked; without, only their weights are compared.
        null: Models that were trained apart from both (models and paths), or a recipe of the zoo such as
            `cnn:n=99,seed=1`; enrolled models unless given.
        options: As `Workspace.compare` takes them: `alpha`.

    Returns:
        All evidence on the pair.
    """
    workspace, first = _opened(a)
    apart = [null] if isinstance(null, os.PathLike) else null
    if apart is not None and not isinstance(apart, str):
        apart = [Path(n) if isinstance(n, (str, os.PathLike)) else n for n in apart]
    return workspace.compare(first, _opened(b)[1], probes=probes, null=apart, **options)


def distance(
    a: "Model | str | os.PathLike[str]",
    b: "Model | str | os.PathLike[str]",
    probes: "Probes",
    method: "AbstractFingerprinter | None" = None,
    measure: "AbstractMeasure | None" = None,
) -> "Distance":
    """How far apart two models are in what they do.

    Args:
        a: A model, a path, or a name or digest prefix in the default registry.
        b: The other one.
        probes: What both are asked.
        method: What is compared of them, such as `GradientField()`.
        measure: How, such as `FieldCosine()`.

    Returns:
        The distance, with its interval over probes.
    """
    workspace, first = _opened(a)
    return workspace.distance(first, _opened(b)[1], probes, method, measure)


def lineage(
    models: "Sequence[Model | str | os.PathLike[str]]",
    **options: Any,
) -> "Lineage":
    """Who comes from whom among some models.

    Args:
        models: Models, paths, or names or digest prefixes in the default registry; each under a name of its own.
        options: As `stemma.workspace.forest.lineage` takes them: `alpha`, `progress`.

    Returns:
        The forest: edges with their evidence, roots, families, missing ancestors, and what was refused.
    """
    from stemma.workspace.forest import lineage

    return lineage([_opened(m)[1] for m in models], **options)


def trace(
    model: "Model | str | os.PathLike[str]",
    against: "Sequence[str | os.PathLike[str]] | str | os.PathLike[str] | None" = None,
    **options: Any,
) -> "Trace":
    """Where a model comes from.

    Args:
        model: A model, a path, or a name or digest prefix in the default registry.
        against: Search these checkpoints, or folders of them, or this one, instead of the default registry.
        options: As `Workspace.trace` takes them: `alpha`, `probes`, `null`.

    Returns:
        The answer.
    """
    workspace, suspect = _opened(model)
    if isinstance(against, (str, os.PathLike)):
        against = [against]
    return workspace.trace(suspect, against=None if against is None else [Path(p) for p in against], **options)


def prune(model: "Model | str | os.PathLike[str]", probes: "Probes", **options: Any) -> "Edited":
    """A smaller model, without labels or training.

    Args:
        model: A model, a path, or a name or digest prefix in the default registry; it is not changed.
        probes: Unlabelled inputs like those that it is meant for.
        options: Fields of `Pruning`: `budget`, `share`, `score`, ….

    Returns:
        The smaller model, its plan and its receipt; `stemma.edits.saving.write` puts them into a folder.
    """
    from stemma.edits.pruning import Pruning

    return Pruning(**options)(_opened(model)[1], probes)


def unlearn(
    model: "Model | str | os.PathLike[str]", forget: "Probes", retain: "Probes | None" = None, **options: Any
) -> "Edited":
    """A model that no longer answers a class, without training.

    Args:
        model: A model, a path, or a name or digest prefix in the default registry; it is not changed.
        forget: Samples of the class, real or synthetic.
        retain: Inputs of other classes, or generic ones, unlabelled.
        options: Fields of `Unlearning`: `action`, `layers`, `target`, ….

    Returns:
        The model, its plan, its receipt, and its weights as they were.
    """
    from stemma.edits.forgetting import Unlearning

    return Unlearning(**options)(_opened(model)[1], forget, retain)


def _opened(model: "Model | str | os.PathLike[str]") -> "tuple[Workspace, Model]":
    from stemma.registry import Registry
    from stemma.workspace import Workspace

    workspace = Workspace(Registry())
    return workspace, workspace.resolve(os.fspath(model)) if isinstance(model, (str, os.PathLike)) else model


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stemma' has no attribute '{name}'")
    return getattr(importlib.import_module(f"stemma.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
