"""What a notebook calls: `stemma.trace`, `compare`, `lineage`, `distance`, `matrix`, `prune`, … as functions.

Wherever a model is taken, a `stemma.Model`, a torch module, a path, or a name or digest prefix in the default registry
does; wherever probes are, words as `--probes` takes them do as well.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from stemma.arguments import (
    as_list,
    as_probes,
    check_kinds,
    distinct_names,
    opened,
    path_or_model,
    reference_models,
    selection_or_probes,
)
from stemma.types import Comparison, Distance, DistanceMatrix, Evidence, Fingerprint, Lineage, Trace

if TYPE_CHECKING:
    from stemma.arguments import Given
    from stemma.edits.artefacts.result import Edited
    from stemma.edits.layer_fidelity import Fidelity
    from stemma.fingerprints.base import AbstractFingerprinter
    from stemma.measures.base import AbstractMeasure
    from stemma.multimodal.report import CompetitionReport
    from stemma.probes import Probes


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
    workspace, first = opened(a)
    asked = selection_or_probes(probes, first)
    return workspace.compare(first, opened(b)[1], probes=asked, null=reference_models(null), **options)


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
    workspace, first = opened(a)
    check_kinds(method, measure)
    return workspace.distance(first, opened(b)[1], as_probes(probes, first), method, measure)


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

    return lineage([opened(m)[1] for m in as_list(models)], **options)


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
    workspace, suspect = opened(model)
    searched = None if against is None else [path_or_model(one) for one in as_list(against)]
    asked = selection_or_probes(probes, suspect)
    return workspace.trace(suspect, against=searched, probes=asked, null=reference_models(null), **options)


def fidelity(model: "Given", probes: "Probes | str", levels: Sequence[float] = (0.8, 0.9, 0.99)) -> "Fidelity":
    """How few units of each layer reproduce what the next layers compute: (k, eta)-HiFi sets.

    Args:
        model: A model, a torch module, a path, or a name or digest prefix in the default registry; it is not changed.
        probes: Unlabelled inputs like those that it is meant for.
        levels: Fidelities, between 0 and 1, that sets are sought for.

    Returns:
        The sets of every layer, and what they do to the network's outputs.
    """
    from stemma.edits.layer_fidelity import layer_fidelity

    chosen = opened(model)[1]
    return layer_fidelity(chosen, as_probes(probes, chosen), levels)


def prune(model: "Given", probes: "Probes | str", **options: Any) -> "Edited":
    """A smaller model, without labels or training.

    Args:
        model: A model, a torch module, a path, or a name or digest prefix in the default registry; it is not changed.
        probes: Unlabelled inputs like those that it is meant for.
        options: Fields of `Pruning`: `budget`, `keep_ratio`, `score`, ….

    Returns:
        The smaller model, its plan and its receipt; `stemma.edits.artefacts.save.write` puts them into a folder.
    """
    from stemma.edits.pruning.pruning import Pruning

    chosen = opened(model)[1]
    return Pruning(**options)(chosen, as_probes(probes, chosen))


def unlearn(model: "Given", forget: "Probes | str", retain: "Probes | str | None" = None, **options: Any) -> "Edited":
    """A model that no longer answers a class, without training, by ModHiFi-U.

    `stemma.edits.Erasure` removes the class from the layers too, as `stemma unlearn --retain` does.

    Args:
        model: A model, a torch module, a path, or a name or digest prefix in the default registry; it is not changed.
        forget: Samples of the class, real or synthetic.
        retain: Inputs of other classes, or generic ones, unlabelled.
        options: Fields of `Unlearning`: `action`, `layers`, `target`, ….

    Returns:
        The model, its plan, its receipt, and its weights as they were.
    """
    from stemma.edits.unlearning.unlearning import Unlearning

    chosen = opened(model)[1]
    kept = None if retain is None else as_probes(retain, chosen)
    return Unlearning(**options)(chosen, as_probes(forget, chosen), kept)


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

    chosen = opened(model)[1]
    if isinstance(method, WeightSketch) or (method is None and probes is None):
        return (method or WeightSketch())(chosen)  # of the weights alone
    if method is not None and (isinstance(method, type) or not (callable(method) and hasattr(method, "spec"))):
        check_kinds(method)
    if probes is None:
        name = getattr(method, "name", type(method).__name__)
        raise MisuseError(f"{name} asks the network: give probes, for example probes='noise:n=256'")
    return (GradientField() if method is None else method)(chosen, as_probes(probes, chosen))


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

    check_kinds(method, measure)
    named = isinstance(models, Mapping)
    loaded = [opened(m)[1] for m in (models.values() if named else as_list(models))]
    names = distinct_names([str(n) for n in models] if named else [m.name for m in loaded])
    if len(loaded) < 2:
        raise MisuseError(f"a matrix of distances takes two models or more, not {len(loaded)}")
    asked = as_probes(probes, loaded[0])
    chosen = GradientField() if method is None else method
    compares = next((kind() for kind in ALL if chosen.produces in kind.accepts), None) if measure is None else measure
    if compares is None:
        raise MisuseError(f"no measure compares what {chosen.name} gives: choose another method")
    return distance_matrix(names, loaded, asked, chosen, compares)


def verify_unlearning(
    original: "Given",
    unlearned: "Given | Sequence[Given]",
    forget: "Probes | str",
    retrained: "Sequence[Given]" = (),
    retained: "Probes | str | None" = None,
    unseen: "Probes | str | None" = None,
    **options: Any,
) -> Evidence:
    """Whether a model behaves as if it had never seen the forget set, judged against retrained models.

    With 19 retrained models the answer is exact over models. With fewer, down to none, samples of inputs are tested:
    the answer is then `refuted` or `inconclusive`, and its reason names the assumption.

    Args:
        original: The model before.
        unlearned: The model after, or several runs of one method.
        forget: Inputs of what is to be forgotten, with labels where there are any.
        retrained: Models trained in the same way without the forget set; any number, also none.
        retained: Inputs that are to be kept.
        unseen: Inputs of the same kind as the forget set that no model was trained on.
        options: Fields of `stemma.methods.UnlearningTest`: `alpha`, `margin`, ….

    Returns:
        The evidence, with every view's distances in `details`.
    """
    from stemma.verification.unlearning import UnlearningTest

    before = opened(original)[1]
    after, group = ([opened(m)[1] for m in as_list(given)] for given in (unlearned, retrained))
    kept, new = (None if given is None else as_probes(given, before) for given in (retained, unseen))
    return UnlearningTest(**options)(before, after, as_probes(forget, before), group, kept, unseen=new)


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
    chosen = opened(model)[1]
    alone = {name: [opened(m)[1] for m in as_list(given)] for name, given in (unimodal or {}).items()}
    fitted = None if fit_probes is None else as_probes(fit_probes, chosen)
    return competition_report(chosen, as_probes(probes, chosen), alone, fitted, layer, mask, seed)
