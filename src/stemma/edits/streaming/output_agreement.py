"""How much the answers of a pruned network differ, from the states behind its last block, word by word."""

from collections.abc import Iterator

import numpy as np
import torch

from stemma.checkpoints.tensor import Tensor
from stemma.edits.artefacts.measured_effect import MAX_INPUTS
from stemma.edits.streaming.hidden_states import PRUNED, WHOLE, HiddenStates
from stemma.edits.streaming.layout import Layout
from stemma.edits.streaming.template import Template

WORDS = 4096
"""Words whose scores are computed at once."""


def measured_agreement(template: Template, states: HiddenStates, ids: np.ndarray, batch: int) -> dict[str, float]:
    """Relative squared error of the outputs, and how often their top scores agree: as for a network in memory."""
    n = min(len(ids), MAX_INPUTS)
    slices = list(_head(template.layout)) if template.layout.places.norm else []
    error = squares = same = rows = 0.0
    totals: list[torch.Tensor] = []
    for start in range(0, n, batch):
        stop = min(n, start + batch)
        ends = [template.ends(ids[start:stop], states.get(start, stop, which)) for which in (WHOLE, PRUNED)]
        best = [torch.full((0,), 0.0), torch.full((0,), 0.0)]
        chosen = [torch.zeros(0, dtype=torch.int64)] * 2
        for k, part in enumerate(slices or [None]):
            a, b = (_scores(e, part) for e in ends)
            error += float((a - b).double().square().sum())
            squares += float(a.double().square().sum())
            total = a.sum(0, dtype=torch.float64)
            totals = [*totals, total] if len(totals) <= k else [*totals[:k], totals[k] + total, *totals[k + 1 :]]
            for i, scores in enumerate((a, b)):
                top, at = scores.max(1)
                at = at + k * WORDS
                better = top > best[i] if len(best[i]) else torch.ones(len(top), dtype=torch.bool)
                chosen[i] = torch.where(better, at, chosen[i]) if len(best[i]) else at
                best[i] = torch.where(better, top, best[i]) if len(best[i]) else top
        rows += len(chosen[0])
        same += float((chosen[0] == chosen[1]).sum())
    spread = squares - sum(float(t.square().sum()) for t in totals) / rows
    return {"error": error / (spread if spread > 0 else squares or 1.0), "same_top_answer": same / rows}


def _scores(ends: torch.Tensor, part: tuple[Tensor, Tensor | None, int, int] | None) -> torch.Tensor:
    rows = ends.reshape(-1, ends.shape[-1])
    if part is None:
        return rows
    weight, bias, start, stop = part
    found = rows @ torch.from_numpy(weight.rows(start, stop)).T
    return found if bias is None else found + torch.from_numpy(bias.rows(start, stop))


def _head(layout: Layout) -> Iterator[tuple[Tensor, Tensor | None, int, int]]:
    """The head's weights and bias, and the words of one slice after another."""
    found = [t for name in layout.places.head if (t := layout.stored(f"{name}.weight")) is not None]
    if not found:  # the trunk alone, which answers with hidden states
        return
    bias = layout.stored(f"{layout.places.head[0]}.bias")
    words = found[0].shape[0]
    for start in range(0, words, WORDS):
        yield found[0], bias, start, min(words, start + WORDS)
