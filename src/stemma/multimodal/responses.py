"""Responses: a fused output split into one part per modality, by Shapley values over masked passes."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import factorial

import numpy as np
import torch

from stemma.errors import MisuseError
from stemma.multimodal.masks import AbstractMask, Batch, hidden, masks_of

EXACT = 4
"""Number of modalities up to which every coalition is evaluated; beyond, orders are sampled."""

PERMUTATIONS = 4
"""Default number of sampled orders, each with its reverse."""


@dataclass(frozen=True, eq=False)
class CoalitionSplit:
    """Which coalitions of modalities are evaluated, and how their outputs combine into responses.

    Attributes:
        coalitions: Each the positions of the modalities that are present; the full one comes first.
        weights: `[modalities, coalitions]`; the columns sum to 1 for the full coalition and to 0 for the others, so
            that the responses sum to the fused output.
    """

    coalitions: tuple[tuple[int, ...], ...]
    weights: np.ndarray

    @property
    def masked(self) -> tuple[tuple[int, ...], ...]:
        """The coalitions that lack a modality."""
        return self.coalitions[1:]


@cache
def exact_split(count: int) -> CoalitionSplit:
    """Every coalition but the empty one: `2^count - 1` passes."""
    # phi_m = sum over S without m of |S|! (count - |S| - 1)! / count! (f(S with m) - [S not empty] f(S)), Li et al.,
    # ICCV 2023. The output with nothing present counts as 0, so the responses sum to the fused output.
    coalitions = [s for size in range(count, 0, -1) for s in combinations(range(count), size)]
    column = {s: i for i, s in enumerate(coalitions)}
    weights = np.zeros((count, len(coalitions)))
    for m in range(count):
        for without in (s for size in range(count) for s in combinations([k for k in range(count) if k != m], size)):
            share = factorial(len(without)) * factorial(count - len(without) - 1) / factorial(count)
            weights[m, column[tuple(sorted((*without, m)))]] += share
            if without:
                weights[m, column[without]] -= share
    return CoalitionSplit(tuple(coalitions), weights)


def sampled_split(count: int, permutations: int = PERMUTATIONS, seed: int = 0) -> CoalitionSplit:
    """Coalitions along sampled orders, each with its reverse: an unbiased estimate of the exact split."""
    # At most `2 * permutations * (count - 1) + 1` passes; responses sum to the fused output for any sample. Castro et
    # al. 2009 (sampled orders); Mitchell et al. 2022 (each with its reverse).
    draw = np.random.default_rng(seed)
    orders = [list(map(int, draw.permutation(count))) for _ in range(permutations)]
    orders += [order[::-1] for order in orders]
    column: dict[tuple[int, ...], int] = {tuple(range(count)): 0}
    steps = []
    for order in orders:
        before: tuple[int, ...] = ()
        for m in order:
            after = tuple(sorted((*before, m)))
            column.setdefault(after, len(column))
            steps.append((m, after, before))
            before = after
    weights = np.zeros((count, len(column)))
    for m, after, before in steps:
        weights[m, column[after]] += 1 / len(orders)
        if before:
            weights[m, column[before]] -= 1 / len(orders)
    return CoalitionSplit(tuple(column), weights)


def choose_split(count: int, permutations: int | None = None, seed: int = 0) -> CoalitionSplit:
    """The exact split up to `EXACT` modalities, a sampled one beyond or where `permutations` are given."""
    if permutations is None and count <= EXACT:
        return exact_split(count)
    return sampled_split(count, permutations or PERMUTATIONS, seed)


def responses_of_outputs(
    outputs: torch.Tensor, split: CoalitionSplit, present: torch.Tensor | None = None
) -> torch.Tensor:
    """Responses `[modalities, n, …]` from the outputs `[coalitions, n, …]`; their sum is the fused output."""
    # A modality that a sample lacks (`present [n, modalities]`) has to be hidden in the inputs already; its response
    # is 0, and the others share the output.
    return weighted_sum(masked_by_presence(outputs, split, present), split.weights)


def masked_by_presence(outputs: torch.Tensor, split: CoalitionSplit, present: torch.Tensor | None) -> torch.Tensor:
    """Outputs in float32 or wider, 0 where a coalition has no modality that the sample has."""
    wide = outputs if outputs.dtype == torch.float64 else outputs.float()
    if present is None:
        return wide
    member = torch.zeros(len(split.coalitions), split.weights.shape[0], device=wide.device)
    for row, coalition in zip(member, split.coalitions, strict=True):
        row[list(coalition)] = 1
    anyone = (member @ present.to(wide.device, member.dtype).T > 0).to(wide.dtype)  # [coalitions, n]
    return wide * anyone.reshape(*anyone.shape, *[1] * (wide.ndim - 2))


def weighted_sum(outputs: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
    """Weighted sums `[sums, n, …]` of outputs `[coalitions, n, …]` by `[sums, coalitions]`, without autocast."""
    kind = outputs.device.type
    exactly = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()
    with exactly:
        found = torch.as_tensor(weights, dtype=outputs.dtype, device=outputs.device) @ outputs.flatten(1)
    return found.reshape(-1, *outputs.shape[1:])


def shapley_responses(
    forward: Callable[[Batch], torch.Tensor],
    inputs: Batch,
    masks: str | AbstractMask | Mapping[str, str | AbstractMask] = "zero",
    modalities: Sequence[str] | None = None,
    present: torch.Tensor | None = None,
    permutations: int | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """One response per modality; they sum to the fused output.

    Cost: `2^M - 1` passes for up to four modalities, else `2 * permutations * (M - 1) + 1` at most.

    Args:
        forward: From a batch to outputs `[n, …]` in a space where sums make sense (logits, not probabilities).
        inputs: Tensors by name.
        masks: How a modality is hidden; one way for all, or one each.
        modalities: Names of the inputs that are modalities; all inputs if None.
        present: `[n, modalities]`, which modalities each sample has.
        permutations: Sample that many orders (and their reverses) instead of evaluating every coalition.
        seed: Of these orders.

    Returns:
        By modality, `[n, …]`, with the graph of all passes.

    Raises:
        MisuseError: If there are fewer than two modalities, or one is not among the inputs.
    """
    names = check_names(list(inputs) if modalities is None else modalities, inputs)
    how = masks_of(masks, names)
    inputs = without_missing(inputs, names, how, present)
    split = choose_split(len(names), permutations, seed)
    outputs = torch.stack([forward(hidden(inputs, how, absent(names, c))) for c in split.coalitions])
    return dict(zip(names, responses_of_outputs(outputs, split, present), strict=True))


def absent(names: Sequence[str], coalition: Sequence[int]) -> list[str]:
    """The modalities that are not in a coalition."""
    return [name for i, name in enumerate(names) if i not in coalition]


def without_missing(
    inputs: Batch, names: Sequence[str], masks: Mapping[str, AbstractMask], present: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """The batch with each sample's missing modalities hidden; `MisuseError` if `present [n, modalities]` is invalid."""
    if present is None:
        return dict(inputs)
    count = len(inputs[names[0]])
    fits = isinstance(present, torch.Tensor) and present.dtype == torch.bool
    if not fits or tuple(present.shape) != (count, len(names)):
        given = (
            f"{present.dtype} {list(present.shape)}" if isinstance(present, torch.Tensor) else type(present).__name__
        )
        raise MisuseError(
            f"present has to be a boolean tensor of {count} samples and {len(names)} modalities, but it is {given}"
        )
    if not bool(present.any(1).all()):
        raise MisuseError("a sample has no modality at all, so it has no response: leave it out of the batch")
    out = dict(inputs)
    for i, name in enumerate(names):
        filled = masks[name].fill_missing(inputs, name, present[:, i])
        for key, value in filled.items():
            if value is not inputs[key]:
                kept = present[:, i].to(value.device).reshape(-1, *[1] * (value.ndim - 1))
                out[key] = torch.where(kept, out[key], value)
    return out


def check_names(modalities: Sequence[str], inputs: Batch) -> list[str]:
    """The names of two or more modalities, each once and among the inputs; `MisuseError` if they are not."""
    names = list(modalities)
    if len(names) < 2 or len(set(names)) < len(names):
        raise MisuseError(f"two or more modalities with different names are needed, but {names} were given")
    missing = [name for name in names if name not in inputs]
    if missing:
        raise MisuseError(f"the batch has no {missing[0]!r}. It has {', '.join(map(str, inputs))}")
    return names
