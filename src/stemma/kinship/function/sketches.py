"""Functional sketches: what is kept of a model's function, enough to compare it later without the model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.fingerprints.base import AbstractFingerprinter
from stemma.fingerprints.evaluation import compute_outputs
from stemma.fingerprints.gradient_field import GradientField
from stemma.fingerprints.outputs import hidden_states
from stemma.kinship.function import combined
from stemma.kinship.function.observations import Methods, Observation
from stemma.measures.agreement import top_answers
from stemma.probes import Probes
from stemma.types import Digest, Fingerprint, Spec

MAX_BYTES = 256 << 10
"""Largest size of the sketch of one model in bytes."""

OUTPUTS, OVERHEAD = 56 << 10, 12 << 10
"""Bytes for answers and classes, and for masks and names; the fields take the rest."""

MAX_PROBES = 256
"""Most probes that a sketch uses, evenly spaced over those given."""

MAX_WIDTH = 128
"""Most projections per step: more cost more than they improve."""


@final
@dataclass(frozen=True)
class FunctionalSketch:
    """A few projections of a model's gradient fields and its answers in half precision; at most 256 KiB.

    Fields are stored with and without labels, so that models with other outputs can be compared too. For class scores
    the log-probabilities are stored, of as many probes as fit. Cost: the fields themselves.

    Attributes:
        width: Projections per step of a field.
        rows: Number of probes.
        labelled: Whether the probes have labels.

    Source: sign projections after Achlioptas 2003; error of a distance about 0.02 with 24 projections and 256 probes.
    """

    width: int
    rows: int
    labelled: bool

    name: ClassVar[str] = "functional-sketch"
    version: ClassVar[int] = 1

    @classmethod
    def of(cls, probes: Probes) -> "FunctionalSketch":
        """The sketch that fits these probes; it depends on the probes only, so all sketches are comparable."""
        rows, ways = min(len(probes), MAX_PROBES), 1 if probes.labels is None else 2
        steps = sum(f.steps * len(f.baseline.split("+")) for f in _fields())
        free = MAX_BYTES - OUTPUTS - OVERHEAD
        width = min(MAX_WIDTH, free // max(1, 2 * ways * rows * steps))
        return cls(max(1, width), rows, probes.labels is not None)

    @property
    def spec(self) -> Spec:
        """Identity of the sketch and of the fields in it."""
        params = {"width": self.width, "rows": self.rows, "labelled": self.labelled}
        return Spec(self.name, self.version, {**params, "fields": [f.spec for f in self.fields]})

    @property
    def fields(self) -> tuple[GradientField, ...]:
        """The gradient fields that are stored."""
        return tuple(replace(f, sketch=self.width) for f in _fields())

    @property
    def methods(self) -> Methods:
        """Fingerprinters and measures of the test, as they apply to a sketch."""
        return tuple(
            (replace(f, sketch=self.width) if isinstance(f, GradientField) else f, m) for f, m in combined.METHODS
        )

    def probes(self, probes: Probes) -> Probes:
        """The evenly spaced probes (at most `MAX_PROBES`) that the sketch uses."""
        return probes.take(np.linspace(0, len(probes) - 1, self.rows).round().astype(int))

    def __call__(self, model: Model, probes: Probes) -> Fingerprint:
        """Sketch a model, under its network's digest; a network without gradients has no fields."""
        few = self.probes(probes)
        given = compute_outputs(model, few)
        form = np.frombuffer(bytes.fromhex(model.architecture), np.uint8)
        values: dict[str, np.ndarray] = {"shape": np.array(given.shape[1:], np.int64), "architecture": form}
        values.update(_answer_arrays(given, probes.kind, scores=model.network.scores))
        values.update(hidden_states(model.network, 1))
        del given  # large for language models, and fields follow
        if model.network.differentiable:
            for way in ("label", "free") if self.labelled else ("free",):
                used = few if way == "label" else few.with_labels(None)
                for i, method in enumerate(self.fields):
                    values.update({f"{way}.{i}.{n}": v for n, v in _field_arrays(method, model, used)})
        size = sum(v.nbytes for v in values.values())
        if size > MAX_BYTES:
            raise StemmaError(f"the functional sketch of {model.name} takes {size:,} bytes, more than {MAX_BYTES:,}")
        return Fingerprint(model.network.digest, probes.digest, self.spec, values)


def from_sketch(sketch: Fingerprint, name: str, kind: str, *, labelled: bool) -> Observation:
    """The observation of a model that its sketch gives, with or without the fields of the labels."""
    params = sketch.spec.params
    method = FunctionalSketch(int(params["width"]), int(params["rows"]), bool(params["labelled"]))
    seen: dict[Digest, Fingerprint] = {}
    missing: dict[str, str] = {}
    for i, one in enumerate(method.fields):
        found = dict(_field_of_sketch(sketch.values, f"{'label' if labelled else 'free'}.{i}."))
        if found:
            seen[one.spec.digest] = Fingerprint(sketch.model, sketch.probes, one.spec, found)
        else:
            missing[one.name] = f"the sketch of {name} has no gradient field"
    for f, _ in method.methods:
        if _plain_outputs(f) and "outputs" not in sketch.values:
            missing[f.name] = f"one answer of {name} is too large for a sketch"
        elif _plain_outputs(f):
            values = {"outputs": np.asarray(sketch.values["outputs"], np.float32)}
            values |= {n: np.asarray(v) for n, v in sketch.values.items() if n == "hidden"}
            seen[f.spec.digest] = Fingerprint(sketch.model, sketch.probes, f.spec, values)
    shape = tuple(int(s) for s in np.asarray(sketch.values["shape"]))
    classes = sketch.values.get("classes")
    form = bytes(np.asarray(sketch.values["architecture"])).hex()
    return Observation(name, sketch.model, shape, None if classes is None else np.asarray(classes), seen, missing, form)


def _fields() -> tuple[GradientField, ...]:
    return tuple({f.spec.digest: f for f, _ in combined.METHODS if isinstance(f, GradientField)}.values())


def _plain_outputs(method: AbstractFingerprinter) -> bool:
    return method.produces == "outputs" and not method.spec.params


def _answer_arrays(given: np.ndarray, kind: str, *, scores: bool) -> Mapping[str, np.ndarray]:
    """Classes, and answers of as many probes as fit, if any; log-probabilities where an answer is class scores."""
    found = top_answers(given, kind) if scores else None
    out: dict[str, np.ndarray] = {}
    if found is not None:
        small = found.astype(np.uint16 if given.shape[-1] <= 1 << 16 else np.uint32)
        if small.nbytes <= OUTPUTS // 2:
            out["classes"] = small
    free = OUTPUTS - sum(v.nbytes for v in out.values())
    fit = min(len(given), free // max(1, 2 * int(np.prod(given.shape[1:]))))
    if not fit:  # not one answer fits: sequences over a large vocabulary
        return out
    some = given[:fit].astype(np.float64)
    if found is not None:
        from scipy.special import log_softmax

        some = np.maximum(log_softmax(some, axis=-1), -60.0)
    limit = float(np.finfo(np.float16).max)
    return {**out, "outputs": np.clip(some, -limit, limit).astype(np.float16)}


def _field_arrays(method: GradientField, model: Model, probes: Probes) -> Iterator[tuple[str, np.ndarray]]:
    try:
        found = method(model, probes).values
    except StemmaError:  # tokens whose embedding is unknown have answers but no field
        return
    yield "curve", np.asarray(found["curve"], np.float16)
    yield "defined", np.packbits(np.asarray(found["defined"], bool))
    yield "weights", np.asarray(found["weights"], np.float32)[:1]


def _field_of_sketch(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    if f"{prefix}curve" not in values:
        return
    curve = np.asarray(values[f"{prefix}curve"])
    k, steps = curve.shape[:2]
    yield "curve", curve
    yield "defined", np.unpackbits(np.asarray(values[f"{prefix}defined"]), count=k * steps).reshape(k, steps) > 0
    yield "weights", np.broadcast_to(np.asarray(values[f"{prefix}weights"], np.float64), (k, steps))
