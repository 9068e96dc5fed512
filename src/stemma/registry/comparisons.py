"""Comparisons as plain JSON and back, so that stored results are reused."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

import stemma
from stemma.checkpoints.digest import is_partial
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
def _code_digest() -> str:
    """Digest of the sources that a comparison depends on, so that results of other code are not reused."""
    root, h = Path(stemma.__file__).parent, hashlib.sha256()
    for path in sorted(
        p
        for part in ("kinship", "architectures", "checkpoints", "networks", "types")
        for p in (root / part).rglob("*.py")
    ):
        h.update(path.read_bytes())
    return h.hexdigest()[:16]


def check_alpha(alpha: float) -> None:
    """Raise MisuseError unless alpha is between 0 and 1."""
    if not isinstance(alpha, Real) or not 0 < alpha < 1:
        raise MisuseError(f"{alpha!r} is not a significance level. Use a number between 0 and 1, for example 0.01")


def comparison_spec(alpha: float, *sources: str) -> Spec:
    """The key under which a comparison is stored: significance level, code, and the plans beside the models, if any."""
    from stemma.kinship.claimed_units import plan_beside

    plans = sorted(hashlib.sha256(plan).hexdigest() for plan in map(plan_beside, sources) if plan)
    return Spec("compare", params={"alpha": alpha, "code": _code_digest(), **({"plans": plans} if plans else {})})


def encode(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain JSON values."""
    return _plain(jsonable(comparison))


def decode(raw: Mapping[str, Any], a: ModelRef, b: ModelRef) -> Comparison:
    """The comparison in JSON values written by `encode`, with the current names of both models."""
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
    """NumPy scalars and arrays as Python values."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def compare_sketches(
    a: Model, b: Model, sketches: Sequence[Fingerprint | None], missing: str, alpha: float = 0.01
) -> Comparison:
    """Compare two models of which weights are missing: by digest, else by sketch; never says `independent`."""
    from stemma.kinship.weights.contents.sketched import SketchedUnitsAlike

    one, two = sketches
    same = a.digest == b.digest or a.names_free_digest == b.names_free_digest
    if same and is_partial(a.names_free_digest):  # equal samples may be of different models
        same, missing = False, f"{missing}; {SAME_SAMPLE}"
    if same or one is None or two is None:
        weights = _digest_evidence(a.ref, b.ref, same, f"{missing}, and there is no sketch")
        kind = (
            RelationKind.COPY if a.digest == b.digest else RelationKind.REFORMATTED if same else RelationKind.UNRELATED
        )
    else:
        weights = SketchedUnitsAlike().evidence(one, two, a, alpha=alpha)
        weights = replace(weights, reason=f"{missing}; {weights.reason}")
        kind = RelationKind.RELATED if weights.verdict is Verdict.SUPPORTED else RelationKind.UNRELATED
    limitation = f"{missing}; a sketch can show a relation, but not which one"
    return _comparison(a.ref, b.ref, weights, kind, limitation, WEIGHTS_GONE)


def failed_comparison(a: ModelRef, b: ModelRef, why: str) -> Comparison:
    """An inconclusive comparison of a pair whose weights cannot be compared, with the reason."""
    weights = _digest_evidence(a, b, False, why)
    return _comparison(a, b, weights, RelationKind.UNRELATED, why, "comparison-failed")


def without_weights(a: Model, b: Model) -> Comparison:
    """An inconclusive comparison of a pair of which only the answers of one or both are known."""
    names = list(dict.fromkeys(m.name for m in (a, b) if m.black_box))
    have = "has no weights, only its answers are" if len(names) == 1 else "have no weights, only their answers are"
    why = f"{' and '.join(names)} {have} known"
    found = _comparison(
        a.ref, b.ref, _digest_evidence(a.ref, b.ref, False, why), RelationKind.UNRELATED, why, WEIGHTS_GONE
    )
    return replace(found, cannot_see=("function (no probes were given)", "training data", "what the weights share"))


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


SAME_SAMPLE = "the digests of what was read are equal; whether the rest of the two agrees is not known"
"""What equal digests of samples show."""

_BY_DIGEST = (RelationKind.COPY, RelationKind.REFORMATTED)
"""Relations that are decided by digests alone."""


def _digest_evidence(a: ModelRef, b: ModelRef, same: bool, reason_if_different: str) -> Evidence:
    verdict, effect = (Verdict.SUPPORTED, 1.0) if same else (Verdict.INCONCLUSIVE, 0.0)
    reason = "the digests are equal" if same else reason_if_different
    return Evidence(
        claim="the weights are the same",
        axis=Axis.WEIGHTS,
        statistic="digest",
        value=effect,
        null=Null("collision of SHA-256"),
        p_value=None,
        log10_p=None,
        effect=effect,
        verdict=verdict,
        reason=reason,
        spec=Spec("digest"),
        inputs=(a.digest, b.digest),
    )
