"""Comparisons to plain JSON and back, so that what was worked out once is recalled."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stemma.models.model import Model
from stemma.registry.rows import BITS
from stemma.registry.search import SketchIndex
from stemma.types import (
    Axis,
    Comparison,
    Evidence,
    Fingerprint,
    ModelRef,
    Null,
    Relation,
    RelationKind,
    Spec,
    Verdict,
    jsonable,
)


def encode(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain JSON values.

    Returns:
        All of it, the null's values included.
    """
    return _plain(jsonable(comparison))


def decode(raw: Mapping[str, Any], a: ModelRef, b: ModelRef) -> Comparison:
    """Read what `encode` wrote.

    Args:
        raw: Plain JSON values.
        a: The first model, under its present name.
        b: The second model, under its present name.

    Returns:
        The comparison; tuples inside free details have become lists.
    """
    relation = raw["relation"]
    return Comparison(
        a=a,
        b=b,
        verdict=raw["verdict"],
        relation=Relation(
            RelationKind(relation["kind"]), relation["parameters"], tuple(relation["steps"]), relation["reason"]
        ),
        direction=raw["direction"],
        weights=_evidence(raw["weights"]),
        function=None if raw["function"] is None else _evidence(raw["function"]),
        evidence=tuple(_evidence(e) for e in raw["evidence"]),
        cannot_see=tuple(raw["cannot_see"]),
    )


def _evidence(raw: Mapping[str, Any]) -> Evidence:
    null = raw["null"]
    fields: dict[str, Any] = {
        **raw,
        "axis": Axis(raw["axis"]),
        "null": Null(null["source"], null["size"], null["floor"], tuple(null["values"])),
        "verdict": Verdict(raw["verdict"]),
        "spec": Spec(**raw["spec"]),
        "inputs": tuple(raw["inputs"]),
    }
    return Evidence(**fields)


def _plain(value: Any) -> Any:
    """NumPy's scalars and arrays as Python's.

    Returns:
        The same content.
    """
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def from_sketches(a: Model, b: Model, sketches: Sequence[Fingerprint | None], missing: str) -> Comparison:
    """What can be said of a pair where weights are gone: whether it is identical, else how near the sketches are.

    Args:
        a: The first model.
        b: The second one.
        sketches: Of both; None where there is none.
        missing: What is gone.

    Returns:
        A comparison without a p-value, inconclusive unless the digests agree.
    """
    one, two = sketches
    if one is None or two is None:
        value, effect, said = 1.0, 0.0, "and there is no sketch"
    else:
        index = SketchIndex([b.digest], np.asarray(two.values[BITS])[None])
        ordered, invariant = index.distances(np.asarray(one.values[BITS]))[0]
        value = min(int(ordered), int(invariant)) / 1024
        effect = max(0.0, 1 - 2 * value)
        said = f"their sketches differ in {ordered} of 1,024 ordered and {invariant} of 1,024 invariant bits"
    reason = f"{missing}; {said}"
    same = a.digest == b.digest or a.names_free_digest == b.names_free_digest
    verdict, kind = (Verdict.SUPPORTED, RelationKind.COPY) if same else (Verdict.INCONCLUSIVE, RelationKind.RELATED)
    if same and a.digest != b.digest:
        kind = RelationKind.REFORMATTED
    weights = Evidence(
        claim="the weights have a common origin",
        axis=Axis.WEIGHTS,
        statistic="digest" if same else "sketch distance",
        value=0.0 if same else value,
        null=Null("none: a sketch is for search"),
        p_value=None,
        log10_p=None,
        effect=1.0 if same else effect,
        verdict=verdict,
        reason="the digests agree" if same else reason,
        spec=Spec("sketch-distance"),
        inputs=(a.digest, b.digest),
    )
    return Comparison(
        a=a.ref,
        b=b.ref,
        verdict="related" if same else "inconclusive",
        relation=Relation(kind, reason=weights.reason),
        direction="unknown",
        weights=weights,
        evidence=(weights,),
        cannot_see=("the weights: " + missing,),
    )
