"""What a notebook calls: `stemma.trace`, `compare`, `lineage`, `distance`, `matrix`, `prune`, … as functions.

Wherever a model is taken, a `stemma.Model`, a torch module, a path, or a name or digest prefix in the default registry
does; wherever probes are, words as `--probes` takes them do as well.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stemma.types import Comparison, Distance, DistanceMatrix, Evidence, Fingerprint, Lineage, Trace

if TYPE_CHECKING:
    import torch

    from stemma.checkpoints.model import Model
    from stemma.edits.result import Edited
    from stemma.fingerprints.base import AbstractFingerprinter
    from stemma.measures.base import AbstractMeasure
    from stemma.multimodal.report import CompetitionReport
    from stemma.probes import Probes
    from stemma.workspace import Workspace

    Given = Model | torch.nn.Module | str | os.PathLike[str]
    """What stands for a model: one that is loaded, a torch module, a path, or a name or digest in the registry."""


def compare(
    a: "Given",
    b: "Given",
    probes: "Probes | str | None" = None,
    null: "Sequence[Given] | str | None" = None,
    **options: Any,
) -> Comparison:
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
    asked = _selection_or_probes(probes, first)
    return workspace.compare(first, _opened(b)[1], probes=asked, null=_references(null), **options)


def distance(
    a: "Given",
    b: "Given",
    probes: "Probes | str",
    method: "AbstractFingerprinter | None" = None,
    measure: "AbstractMeasure | None" = None,
) -> Distance:
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
    _check_kinds(method, measure)
    return workspace.distance(first, _opened(b)[1], _probes(probes, first), method, measure)


def lineage(
    models: "Sequence[Given]",
    **options: Any,
) -> Lineage:
    """Who comes from whom among some models.

    Args:
        models: Models, torch modules, paths, or names or digest prefixes in the default registry; each under a name of
            its own.
        options: As `stemma.workspace.forest.lineage` takes them: `alpha`, `progress`.

    Returns:
        The forest: edges with their evidence, roots, families, missing ancestors, and what was refused.
    """
    from stemma.workspace.forest import lineage

    return lineage([_opened(m)[1] for m in _several(models)], **options)


def trace(
    model: "Given",
    against: "Sequence[Given] | Given | None" = None,
    probes: "Probes | str | None" = None,
    null: "Sequence[Given] | str | None" = None,
    **options: Any,
) -> Trace:
    """Where a model comes from.

    Args:
        model: A model, a torch module, a path, or a name or digest prefix in the default registry.
        against: Search this checkpoint, folder of them, model or module, or these (a list), instead of the default
            registry.
        probes: What all are asked, also in words as `--probes` takes them; without, only weights are compared.
        null: Models that were trained apart from all of them, or a recipe of the zoo, as `compare` takes them.
        options: As `Workspace.trace` takes them: `alpha`, `coverage`.

    Returns:
        The answer.
    """
    workspace, suspect = _opened(model)
    searched = None if against is None else [_path_or_model(one) for one in _several(against)]
    asked = _selection_or_probes(probes, suspect)
    return workspace.trace(suspect, against=searched, probes=asked, null=_references(null), **options)


def prune(model: "Given", probes: "Probes | str", **options: Any) -> "Edited":
    """A smaller model, without labels or training.

    Args:
        model: A model, a torch module, a path, or a name or digest prefix in the default registry; it is not changed.
        probes: Unlabelled inputs like those that it is meant for.
        options: Fields of `Pruning`: `budget`, `keep_ratio`, `score`, ….

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


def fingerprint(
    model: "Given", method: "AbstractFingerprinter | None" = None, probes: "Probes | str | None" = None
) -> Fingerprint:
    """What a method extracts from one model.

    Args:
        model: A model, a torch module, a path, or a name or digest prefix in the default registry.
        method: For example `stemma.methods.ModelGiF()`; without one, the gradient field where probes are given, else
            the weight sketch that the registry searches by.
        probes: Inputs, for methods that ask the network.

    Returns:
        Named arrays, with the method's identity.

    Raises:
        MisuseError: If the method asks the network and no probes are given.
    """
    from stemma.errors import MisuseError
    from stemma.fingerprints.gradient_field import GradientField
    from stemma.fingerprints.weight_sketch import WeightSketch

    chosen = _opened(model)[1]
    if isinstance(method, WeightSketch) or (method is None and probes is None):
        return (method or WeightSketch())(chosen)  # of the weights alone
    if method is not None and (isinstance(method, type) or not (callable(method) and hasattr(method, "spec"))):
        _check_kinds(method)
    if probes is None:
        name = getattr(method, "name", type(method).__name__)
        raise MisuseError(f"{name} asks the network: give probes, for example probes='noise:n=256'")
    return (GradientField() if method is None else method)(chosen, _probes(probes, chosen))


def matrix(
    models: "Sequence[Given] | Mapping[str, Given]",
    probes: "Probes | str",
    method: "AbstractFingerprinter | None" = None,
    measure: "AbstractMeasure | None" = None,
) -> DistanceMatrix:
    """All pairwise distances of some models in what they do: a table, and a heat map in a notebook.

    Cost: every model is asked once. Memory: with a measure that is a mean over probes one block of each model, else
    the fingerprints of all models.

    Args:
        models: Models as everywhere; under names of their own where a mapping is given.
        probes: What all are asked.
        method: What is compared of them; the gradient field unless given.
        measure: How; the first that takes what the method gives unless given.

    Returns:
        The distances, in the order of the models.

    Raises:
        MisuseError: If method and measure do not go together, or there are fewer than two models.
    """
    from stemma.errors import MisuseError
    from stemma.fingerprints.gradient_field import GradientField
    from stemma.measures import ALL
    from stemma.measures.matrix import distance_matrix

    _check_kinds(method, measure)
    named = isinstance(models, Mapping)
    opened = [_opened(m)[1] for m in (models.values() if named else _several(models))]
    names = _distinct([str(n) for n in models] if named else [m.name for m in opened])
    if len(opened) < 2:
        raise MisuseError(f"a matrix of distances takes two models or more, not {len(opened)}")
    asked = _probes(probes, opened[0])
    chosen = GradientField() if method is None else method
    compares = next((kind() for kind in ALL if chosen.produces in kind.accepts), None) if measure is None else measure
    if compares is None:
        raise MisuseError(f"no measure compares what {chosen.name} gives: choose another method")
    return distance_matrix(names, opened, asked, chosen, compares)


def verify_unlearning(
    original: "Given",
    unlearned: "Given | Sequence[Given]",
    forget: "Probes | str",
    retrained: "Sequence[Given]" = (),
    retained: "Probes | str | None" = None,
    **options: Any,
) -> Evidence:
    """Whether a model behaves as if it had never seen the forget set, judged against retrained models.

    Args:
        original: The model before.
        unlearned: The model after, or several runs of one method.
        forget: Inputs of what is to be forgotten, with labels where there are any.
        retrained: Models trained in the same way without the forget set; without them the answer is inconclusive.
        retained: Inputs that are to be kept.
        options: Fields of `stemma.methods.UnlearningTest`: `alpha`, `margin`, ….

    Returns:
        The evidence, with every view's distances in `details`.
    """
    from stemma.verification.unlearning import UnlearningTest

    before = _opened(original)[1]
    after, group = ([_opened(m)[1] for m in _several(given)] for given in (unlearned, retrained))
    kept = None if retained is None else _probes(retained, before)
    return UnlearningTest(**options)(before, after, _probes(forget, before), group, kept)


def competition(
    model: "Given",
    probes: "Probes | str",
    unimodal: "Mapping[str, Given | Sequence[Given]] | None" = None,
    fit_probes: "Probes | str | None" = None,
    layer: str | None = None,
    mask: Literal["zero", "mean", "permuted"] = "zero",
    seed: int = 0,
) -> "CompetitionReport":
    """Which modality a multimodal network relies on, and how strongly its modalities compete.

    Args:
        model: A network that takes one tensor per modality.
        probes: One array per modality, with labels where there are any.
        unimodal: By modality, networks trained on it alone ("concepts"): competition strength needs them.
        fit_probes: Probes that readouts are fitted on; neither trained on nor among `probes`.
        layer: Whose input is the fused representation; the last linear layer unless given.
        mask: How a modality is hidden.
        seed: Of permutations.

    Returns:
        Contributions of every modality and, where `unimodal` is given, competition strengths.

    Raises:
        MisuseError: If only one of `unimodal` and `fit_probes` is given, or the probes are not paired.
    """
    from stemma.errors import MisuseError
    from stemma.multimodal.report import competition_report

    if unimodal is not None and not isinstance(unimodal, Mapping):
        raise MisuseError(f"unimodal networks are given by modality, as a dict, not as a {type(unimodal).__name__}")
    if (unimodal is None) != (fit_probes is None):
        raise MisuseError("competition strength takes both unimodal networks and fit_probes: give both or neither")
    chosen = _opened(model)[1]
    alone = {name: [_opened(m)[1] for m in _several(given)] for name, given in (unimodal or {}).items()}
    fitted = None if fit_probes is None else _probes(fit_probes, chosen)
    return competition_report(chosen, _probes(probes, chosen), alone, fitted, layer, mask, seed)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Names that are all different: a number is added to those that are not."""
    made: list[str] = []
    for name in names:
        count, label = 2, name
        while label in made:
            label, count = f"{name} {count}", count + 1
        made.append(label)
    return tuple(made)


def _opened(model: "Given") -> "tuple[Workspace, Model]":
    from stemma.registry import Registry
    from stemma.workspace import Workspace

    workspace = Workspace(Registry())
    return workspace, workspace.resolve(os.fspath(model)) if isinstance(model, (str, os.PathLike)) else _model(model)


def _several(given: Any) -> list[Any]:
    """Models as a list: one alone is a list of one, a folder's path too; a module may be a sequence of layers."""
    from stemma.errors import MisuseError

    if isinstance(given, Mapping):
        raise MisuseError(
            f"models are given as a list here, not as a {type(given).__name__}: give list(models.values())"
        )
    one = isinstance(given, (str, os.PathLike)) or callable(given)
    return [given] if one or not isinstance(given, Iterable) else list(given)


def _references(null: "Sequence[Given] | str | None") -> "list[Path | Model] | str | None":
    """Reference models as the workspace takes them; a text is a recipe."""
    return null if null is None or isinstance(null, str) else [_path_or_model(one) for one in _several(null)]


def _path_or_model(given: "Given") -> "Path | Model":
    from stemma.errors import MisuseError

    if not isinstance(given, (str, os.PathLike)):
        return _model(given)
    if not os.fspath(given):
        raise MisuseError("an empty text names no model: give a path")  # Path("") is the working directory
    return Path(given)


def _model(given: "Model | torch.nn.Module") -> "Model":
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


def _probes(given: "Probes | str | os.PathLike[str]", model: "Model") -> "Probes":
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


def _selection_or_probes(given: Any, model: "Model") -> Any:
    """Probes as above; None and probes that were selected for a test stay as they are."""
    from stemma.kinship.function.selection import Selection

    return given if given is None or isinstance(given, Selection) else _probes(given, model)


def _check_kinds(method: object, measure: object = None) -> None:
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
