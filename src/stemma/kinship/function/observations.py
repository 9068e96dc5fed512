"""What the methods of the functional verdict saw in one model."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.fingerprints.base import AbstractFingerprinter
from stemma.fingerprints.evaluation import compute_outputs
from stemma.measures import agreement as agreements
from stemma.measures.base import AbstractMeasure
from stemma.probes import Probes
from stemma.types import Digest, Distance, Fingerprint

Methods = Sequence[tuple[AbstractFingerprinter, AbstractMeasure]]


@dataclass(frozen=True, eq=False)
class Sight:
    """One model as all methods saw it, with the same probes.

    Attributes:
        name: The model's name.
        digest: Identity of its network.
        shape: Shape of one answer.
        classes: Class with the largest score, one per probe (per position for tokens); None for answers of other kinds.
        seen: Fingerprints by the digest of the method.
        missing: Why other methods saw nothing, by their name.
        architecture: Identity of the shapes of its matrices; empty for a black box.
    """

    name: str
    digest: Digest
    shape: tuple[int, ...]
    classes: np.ndarray | None
    seen: Mapping[Digest, Fingerprint] = field(repr=False)
    missing: Mapping[str, str] = field(default_factory=dict)
    architecture: str = ""


def identity(sight: Sight) -> str:
    """Which network was seen: its digest, and of a black box, which is only a name, its answers too.

    Returns:
        The same for the same network.
    """
    if not sight.digest.startswith("blackbox:"):
        return sight.digest
    arrays = [f.values["outputs"] for f in sight.seen.values() if "outputs" in f.values]
    return f"{sight.digest} {hashlib.sha256(b''.join(np.asarray(a).tobytes() for a in arrays)).hexdigest()}"


def look(model: Model, probes: Probes, methods: Methods, *, labelled: bool) -> Sight:
    """Ask one model everything.

    Cost: memory for all fingerprints of one model.

    Args:
        model: The model.
        probes: What it is asked.
        methods: Whose fingerprints are taken.
        labelled: Use the probes' labels; without, fields are of all classes on average.

    Returns:
        What was seen; a method that does not apply (a black box has no gradients) is under `missing`.

    Raises:
        StemmaError: If the probes do not fit, or the model answers at random or with NaN.
    """
    given = compute_outputs(model, probes)
    asked = probes if labelled or probes.labels is None else probes.with_labels(None)
    digest, seen, missing = model.network.digest, {}, {}
    for method in {f.spec.digest: f for f, _ in methods}.values():
        try:
            found = _outputs(method, digest, probes, given) or method(model, asked)
            seen[method.spec.digest] = Fingerprint(digest, probes.digest, method.spec, found.values)
        except StemmaError as e:
            missing[method.name] = str(e)
    classes = agreements.top_answers(given, probes.kind)
    return Sight(model.name, digest, given.shape[1:], classes, seen, missing, model.architecture)


def _outputs(method: AbstractFingerprinter, digest: Digest, probes: Probes, given: np.ndarray) -> Fingerprint | None:
    """Answers that are known already are not asked for again."""
    plain = method.produces == "outputs" and not method.spec.params
    return Fingerprint(digest, probes.digest, method.spec, {"outputs": given}) if plain else None


def distance(a: Sight, b: Sight, method: AbstractFingerprinter, measure: AbstractMeasure) -> Distance | None:
    """How far two models are apart by one method, with an interval over probes.

    Returns:
        The distance, None where the method or the measure does not apply to both.
    """
    try:
        return measure(a.seen[method.spec.digest], b.seen[method.spec.digest])
    except (KeyError, StemmaError):
        return None


def row(a: Sight, b: Sight, methods: Methods) -> np.ndarray:
    """The distances of a pair by all methods, without intervals.

    Returns:
        `[methods]`, NaN where one does not apply.
    """
    return np.array([_value(a, b, f, m) for f, m in methods])


def _value(a: Sight, b: Sight, method: AbstractFingerprinter, measure: AbstractMeasure) -> float:
    key = method.spec.digest
    if key not in a.seen or key not in b.seen:
        return float("nan")
    try:
        found = measure.distances(a.seen[key].values, b.seen[key].values)
    except StemmaError:
        return float("nan")
    defined = found[np.isfinite(found)]
    return float(defined.mean()) if defined.size else float("nan")


def agreement(a: Sight, b: Sight) -> float | None:
    """Share of probes that two models put in the same class.

    Returns:
        None where they do not answer with the same classes.
    """
    return agreements.share_equal(a.classes, b.classes) if a.shape == b.shape else None


def mute(a: Sight, b: Sight, methods: Methods) -> bool:
    """Whether two models agree only in never changing their answer: that is no finding.

    Returns:
        True where both name one class for all probes and nothing but the answers can be compared.
    """
    if a.classes is None or b.classes is None or any(np.ptp(s) > 0 for s in (a.classes, b.classes)):
        return False
    inside = [v for v, (f, _) in zip(row(a, b, methods), methods, strict=True) if f.produces != "outputs"]
    return not np.isfinite(inside).any()


MUTE = "both models answer every probe alike and react to none, so that they agree says nothing: ask other probes"


def accuracy(sight: Sight, probes: Probes) -> float | None:
    """Share of the probes' true labels that a model names.

    Returns:
        None where the labels are none, the frozen answers of another model, or of classes that it lacks.
    """
    return agreements.accuracy(sight.classes, sight.shape[-1] if sight.shape else 0, probes)


def plain(value: Any) -> Any:
    """Numbers for JSON: NaN and infinities become None.

    Returns:
        A Python number or None.
    """
    return float(value) if value is not None and np.isfinite(value) else None
