"""Comparisons to plain JSON and back, so that what was worked out once is recalled."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import stemma
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.types import (
    WEIGHTS_GONE,
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


@cache
def _code() -> str:
    """Identity of the code that compares, so that no answer of other code is recalled.

    Returns:
        A short digest over the sources of what a comparison rests on.
    """
    home, h = Path(stemma.__file__).parent, hashlib.sha256()
    for path in sorted(
        p
        for part in ("kinship", "architectures", "checkpoints", "networks", "types")
        for p in (home / part).rglob("*.py")
    ):
        h.update(path.read_bytes())
    return h.hexdigest()[:16]


def check_level(alpha: float) -> None:
    """Refuse what is no level of a decision.

    Args:
        alpha: A chance.

    Raises:
        MisuseError: If it does not lie between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise MisuseError(f"{alpha} is no level: give a number between 0 and 1, for example 0.01")


def spec(alpha: float) -> Spec:
    """Under which a comparison is kept: its level, and the code that worked it out.

    Returns:
        The spec.
    """
    return Spec("compare", params={"alpha": alpha, "code": _code()})


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
        direction_confidence=raw.get("direction_confidence"),
        not_tested=tuple(raw.get("not_tested", ())),
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


def from_sketches(
    a: Model, b: Model, sketches: Sequence[Fingerprint | None], missing: str, alpha: float = 0.01
) -> Comparison:
    """What can be said of a pair where weights are gone: whether it is identical, else what the sketches show.

    Args:
        a: The first model.
        b: The second one.
        sketches: Of both; None where there is none.
        missing: What is gone.
        alpha: Level of the decision.

    Returns:
        A comparison that names no relation beyond `related`, and never says `independent`.
    """
    from stemma.kinship.weights.contents.sketched import SketchedUnitsAlike

    one, two = sketches
    same = a.digest == b.digest or a.names_free_digest == b.names_free_digest
    if same or one is None or two is None:
        weights = _by_digest(a.ref, b.ref, same, f"{missing}; and there is no sketch")
        kind = (
            RelationKind.COPY if a.digest == b.digest else RelationKind.REFORMATTED if same else RelationKind.UNRELATED
        )
    else:
        weights = SketchedUnitsAlike().evidence(one, two, a, alpha=alpha)
        weights = replace(weights, reason=f"{missing}; {weights.reason}")
        kind = RelationKind.RELATED if weights.verdict is Verdict.SUPPORTED else RelationKind.UNRELATED
    left = f"{missing}; a sketch may show kinship, but not what was done"
    return _comparison(a.ref, b.ref, weights, kind, left, WEIGHTS_GONE)


def unanswered(a: ModelRef, b: ModelRef, why: str) -> Comparison:
    """What can be said of a pair whose weights cannot be compared.

    Args:
        a: The first model.
        b: The second one.
        why: What went wrong.

    Returns:
        An inconclusive comparison.
    """
    weights = _by_digest(a, b, False, why)
    return _comparison(a, b, weights, RelationKind.UNRELATED, why, "comparison-failed")


def _comparison(a: ModelRef, b: ModelRef, weights: Evidence, kind: RelationKind, missing: str, what: str) -> Comparison:
    return Comparison(
        a=a,
        b=b,
        verdict="related" if weights.verdict is Verdict.SUPPORTED else "inconclusive",
        relation=Relation(kind, reason=weights.reason),
        direction="unknown",
        weights=weights,
        evidence=(weights,),
        not_tested=() if kind in _BY_DIGEST else ({"what": what, "model": "", "why": missing},),
    )


_BY_DIGEST = (RelationKind.COPY, RelationKind.REFORMATTED)
"""Relations that digests show: no weights are missed."""


def _by_digest(a: ModelRef, b: ModelRef, same: bool, otherwise: str) -> Evidence:
    verdict, effect = (Verdict.SUPPORTED, 1.0) if same else (Verdict.INCONCLUSIVE, 0.0)
    reason = "the digests agree" if same else otherwise
    return Evidence("the weights are the same", Axis.WEIGHTS, "digest", effect, Null("collision of SHA-256"),
                    None, None, effect, verdict, reason, Spec("digest"), (a.digest, b.digest))  # fmt: skip
