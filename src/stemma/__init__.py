"""Stemma: where a neural network comes from, worked out from the models alone.

    import stemma

    trace = stemma.trace("suspect.safetensors", against=["models/"])
    print(trace.verdict, [parent["name"] for parent in trace.parents])

Inside, each folder answers one question, and data flows from the bottom of this list to the top:

    cli            commands: they parse and print, and nothing else
    web            the atlas: the same answers as pages in a browser
    api            the functions of a notebook
    application    one function per question: values in, one answer with its document out; policies
    arguments      what stands for models and probes in those functions
    methods        the methods under their published names
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
    presentation   how results show themselves in a notebook
    deprecation    old names that are still accepted, with the new ones
    errors         what is wrong, what was given, what to do

Importing this loads neither torch nor scipy; every name below is fetched on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from stemma import presentation

if TYPE_CHECKING:
    from stemma import edits as edits
    from stemma import methods as methods
    from stemma.api import compare as compare
    from stemma.api import competition as competition
    from stemma.api import distance as distance
    from stemma.api import fidelity as fidelity
    from stemma.api import fingerprint as fingerprint
    from stemma.api import lineage as lineage
    from stemma.api import matrix as matrix
    from stemma.api import prune as prune
    from stemma.api import trace as trace
    from stemma.api import unlearn as unlearn
    from stemma.api import verify_unlearning as verify_unlearning
    from stemma.checkpoints.model import Model as Model
    from stemma.edits.pruning.pruning import Pruning as Pruning
    from stemma.edits.unlearning.unlearning import Unlearning as Unlearning
    from stemma.errors import StemmaError as StemmaError
    from stemma.fingerprints.gradient_field import GradientField as GradientField
    from stemma.measures.field_cosine import FieldCosine as FieldCosine
    from stemma.networks.from_module import from_module as from_module
    from stemma.networks.load import from_arrays as from_arrays
    from stemma.networks.load import load as load
    from stemma.probes import Probes as Probes
    from stemma.registry import Registry as Registry
    from stemma.types import Comparison as Comparison
    from stemma.types import Distance as Distance
    from stemma.types import DistanceMatrix as DistanceMatrix
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
    "compare": "api",
    "competition": "api",
    "distance": "api",
    "fidelity": "api",
    "fingerprint": "api",
    "lineage": "api",
    "matrix": "api",
    "prune": "api",
    "trace": "api",
    "unlearn": "api",
    "verify_unlearning": "api",
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
    "DistanceMatrix": "types",
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

_MODULES = ("edits", "methods")

__all__ = ["__version__", *_MODULES, *_HOME]


presentation.register(lambda: importlib.import_module("stemma.export.notebook"))


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"stemma.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'stemma' has no attribute '{name}'")
    return getattr(importlib.import_module(f"stemma.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
