"""What Model DNA says of a bed, with sources of the same data as controls."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stemma.fingerprints.dna import DNA
from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.kinship.function.model_dna import CloserDnaThanIndependent
from stemma.probes import Probes
from stemma.types import Verdict
from testbeds.held_back.members import GRANDCHILDREN, KINDS, Member
from testbeds.held_back.rates import area, over_sources, rate

ALPHA, CONTROLS, OTHERS = 0.05, 20, 5
BINS = 10


def asked(
    members: Sequence[Member], probes: Probes, encoder: FragmentEncoder, every: int = 1, seed: int = 3
) -> list[dict[str, Any]]:
    """Every child against its source and `OTHERS` other ones, each with `CONTROLS` sources that made neither.

    Where no control can stand in for a child because heads differ, the children of the same kind of those sources are
    the controls.
    """
    look, test = DNA(encoder=encoder), CloserDnaThanIndependent(ALPHA, encoder)
    needed = [m for m in members if not m.source % every or m.kind in ("source", "new width")]
    codes = {(m.source, m.kind): look(m.model, probes) for m in needed}
    sources = sorted({m.source for m in members})
    rows = []
    for s in sources[::every]:
        rng = np.random.default_rng([seed, s])
        for kind in (*KINDS, *GRANDCHILDREN):
            for other in (s, *rng.choice([i for i in sources if i != s], OTHERS, replace=False).tolist()):
                far = [i for i in sources if i not in (s, other)]
                chosen = rng.choice(far, min(CONTROLS, len(far)), replace=False)
                pair = codes[other, "source"], codes[s, kind]
                found = test(*pair, [codes[int(i), "source"] for i in chosen])
                if found.p_value is None:
                    found = test(*pair, [codes[int(i), kind] for i in chosen])
                known = found.details.get("log_odds")
                rows.append({"kind": kind, "source": s, "own": other == s, "p": found.p_value,
                             "supported": found.verdict is Verdict.SUPPORTED,
                             "score": -found.value if known is None else known,
                             "probability": found.details.get("probability")})  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Area, support and level by kind, and calibration over all."""
    kinds = dict.fromkeys(r["kind"] for r in rows)
    return {
        "all": _cell(rows),
        "calibration error": calibration_error(rows),
        "kinds": {k: _cell([r for r in rows if r["kind"] == k]) for k in kinds},
    }


def _cell(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    score, own = np.array([r["score"] for r in rows]), np.array([r["own"] for r in rows])
    sources = np.array([r["source"] for r in rows])
    mine, theirs = ([r for r in rows if r["own"] == yes] for yes in (True, False))
    return {
        "area": over_sources((score, own), sources, lambda x, o: area(x[o], x[~o])),
        f"own source supported at {ALPHA}": rate([r["supported"] for r in mine], [r["source"] for r in mine]),
        f"other source supported at {ALPHA}": rate([r["supported"] for r in theirs], [r["source"] for r in theirs]),
    }


def calibration_error(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How far stated probabilities are from observed shares, own and other pairs weighing the same; None without."""
    if any(r["probability"] is None for r in rows):
        return None
    p, own = np.array([r["probability"] for r in rows]), np.array([r["own"] for r in rows])
    return over_sources((p, own), np.array([r["source"] for r in rows]), _calibration)


def _calibration(p: np.ndarray, own: np.ndarray) -> float:
    weight = np.where(own, 0.5 / own.sum(), 0.5 / (~own).sum())
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    return float(sum(abs((weight[bins == b] * (p - own)[bins == b]).sum()) for b in np.unique(bins)))
