"""What the methods of the functional test extract from one model, and distances between two such observations."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.fingerprints.base import AbstractFingerprinter
from stemma.fingerprints.evaluation import compute_outputs
from stemma.fingerprints.outputs import hidden_states
from stemma.kinship.function.null_models import NullModels, Subject, duplicate_reason
from stemma.measures import agreement as agreements
from stemma.measures.base import AbstractMeasure
from stemma.probes import Probes
from stemma.types import Digest, Distance, Fingerprint

Methods = Sequence[tuple[AbstractFingerprinter, AbstractMeasure]]

Progress = Callable[[str, int, int], None]
"""Called with a message, the number of models done and their total."""


@dataclass(frozen=True, eq=False)
class Observation:
    """What all methods extracted from one model on the same probes.

    Attributes:
        name: The model's name.
        digest: Identity of its network.
        shape: Shape of one answer.
        classes: Class with the largest score, one per probe (per position for tokens); None for answers of other kinds.
        fingerprints: Fingerprints by the digest of the method.
        missing: Why other methods do not apply, by their name.
        architecture: Identity of the shapes of its matrices; empty for a black box.
        roots: Square roots of its probabilities, as `consensus.roots` takes them; None until they are kept.
    """

    name: str
    digest: Digest
    shape: tuple[int, ...]
    classes: np.ndarray | None
    fingerprints: Mapping[Digest, Fingerprint] = field(repr=False)
    missing: Mapping[str, str] = field(default_factory=dict)
    architecture: str = ""
    roots: np.ndarray | None = field(default=None, repr=False)


def identity(observation: Observation) -> str:
    """The network's digest; for a black box, which is only a name, with a hash of its answers."""
    if not observation.digest.startswith("blackbox:"):
        return observation.digest
    arrays = [f.values["outputs"] for f in observation.fingerprints.values() if "outputs" in f.values]
    return f"{observation.digest} {hashlib.sha256(b''.join(np.asarray(a).tobytes() for a in arrays)).hexdigest()}"


def without_fields(observation: Observation) -> Observation:
    """The observation with only what tells whether its model is a known one; answers tell black boxes apart."""
    box = observation.digest.startswith("blackbox:")
    kept = {k: f for k, f in observation.fingerprints.items() if box and "outputs" in f.values}
    return replace(observation, fingerprints=kept)


def observe_each(
    null: NullModels, observe_one: Callable[[Subject], Observation], known: Sequence[Observation],
    progress: Progress | None,
) -> tuple[list[Observation], list[str]]:  # fmt: skip
    """Observations of all null models, and the models left out (failed, or networks already known) with the reason."""
    observations, left_out = [], list(null.left_out)
    names = {identity(o): o.name for o in known}
    for i, subject in enumerate(null):
        if progress is not None:
            progress(f"running {subject.name}", i, len(null))
        try:
            found = observe_one(subject)
        except StemmaError as e:
            left_out.append(f"{subject.name}: {e}")
            continue
        if why := duplicate_reason(subject.name, identity(found), names):
            left_out.append(why)
        else:
            observations.append(found)
    return observations, left_out


def observe(model: Model, probes: Probes, methods: Methods, *, labelled: bool) -> Observation:
    """Extract all fingerprints of one model; methods that do not apply are listed under `missing`."""
    given = compute_outputs(model, probes)
    used = probes if labelled or probes.labels is None else probes.with_labels(None)
    digest, fingerprints, missing = model.network.digest, {}, {}
    for method in {f.spec.digest: f for f, _ in methods}.values():
        try:
            found = _outputs(method, model, probes, given) or method(model, used)
            fingerprints[method.spec.digest] = Fingerprint(digest, probes.digest, method.spec, found.values)
        except StemmaError as e:
            missing[method.name] = str(e)
    classes = agreements.top_answers(given, probes.kind) if model.network.scores else None
    return Observation(model.name, digest, given.shape[1:], classes, fingerprints, missing, model.architecture)


def _outputs(method: AbstractFingerprinter, model: Model, probes: Probes, given: np.ndarray) -> Fingerprint | None:
    if method.produces != "outputs" or method.spec.params:
        return None
    values = {"outputs": given} | hidden_states(model.network, len(given))
    return Fingerprint(model.network.digest, probes.digest, method.spec, values)


def distance(
    a: Observation, b: Observation, method: AbstractFingerprinter, measure: AbstractMeasure
) -> Distance | None:
    """Distance of two models by one method, with its interval over probes; None where it does not apply."""
    try:
        return measure(a.fingerprints[method.spec.digest], b.fingerprints[method.spec.digest])
    except (KeyError, StemmaError):
        return None


def mean_distances(a: Observation, b: Observation, methods: Methods) -> np.ndarray:
    """Mean distances over probes by all methods `[methods]`, without intervals; NaN where one does not apply."""
    return np.array([_mean_distance(a, b, f, m) for f, m in methods])


def _mean_distance(a: Observation, b: Observation, method: AbstractFingerprinter, measure: AbstractMeasure) -> float:
    key = method.spec.digest
    if key not in a.fingerprints or key not in b.fingerprints:
        return float("nan")
    try:
        found = measure.distances(a.fingerprints[key].values, b.fingerprints[key].values)
    except StemmaError:
        return float("nan")
    defined = found[np.isfinite(found)]
    return float(defined.mean()) if defined.size else float("nan")


def agreement(a: Observation, b: Observation) -> float | None:
    """Share of probes that both models put in the same class; None if their answers have different shapes."""
    return agreements.share_equal(a.classes, b.classes) if a.shape == b.shape else None


def constant_answers(a: Observation, b: Observation, methods: Methods) -> bool:
    """Whether both models answer every probe with one class and no other method applies."""
    if a.classes is None or b.classes is None or any(np.ptp(s) > 0 for s in (a.classes, b.classes)):
        return False
    inside = [v for v, (f, _) in zip(mean_distances(a, b, methods), methods, strict=True) if f.produces != "outputs"]
    return not np.isfinite(inside).any()


CONSTANT_ANSWERS = (
    "both models give the same constant answer to all probes, so their agreement is no evidence: use other probes"
)


def accuracy(observation: Observation, probes: Probes) -> float | None:
    """Share of the true labels that the model predicts; None where the probes have none for it."""
    return agreements.accuracy(observation.classes, observation.shape[-1] if observation.shape else 0, probes)


def json_number(value: Any) -> Any:
    """A float for JSON; None for NaN and infinities."""
    return float(value) if value is not None and np.isfinite(value) else None
