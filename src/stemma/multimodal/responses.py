"""How a fused output splits into one response per modality: Shapley values over passes with modalities hidden."""

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
"""Modalities up to which every coalition is asked; beyond, orders are drawn."""

PERMUTATIONS = 4
"""Orders drawn where nobody says how many, each with its reverse."""


@dataclass(frozen=True, eq=False)
class Split:
    """Which coalitions of modalities are asked, and how their outputs combine into responses.

    Attributes:
        coalitions: Each the positions of the modalities that are present; all of them come first.
        weights: `[modalities, coalitions]`; the columns sum to 1 for the whole set and to 0 for the others, so that
            the responses sum to the fused output.
    """

    coalitions: tuple[tuple[int, ...], ...]
    weights: np.ndarray

    @property
    def masked(self) -> tuple[tuple[int, ...], ...]:
        """The coalitions that lack a modality."""
        return self.coalitions[1:]


@cache
def exact_split(count: int) -> Split:
    """Every coalition but the empty one: `2^count - 1` passes.

    Args:
        count: Modalities.

    Returns:
        The split: phi_m = sum over S without m of |S|! (count - |S| - 1)! / count! (f(S with m) - [S not empty] f(S)).

    Source: Li et al., "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation", ICCV 2023. The output
    with nothing present counts as 0, so the responses sum to the fused output, not to what the modalities add to it.
    """
    coalitions = [s for size in range(count, 0, -1) for s in combinations(range(count), size)]
    column = {s: i for i, s in enumerate(coalitions)}
    weights = np.zeros((count, len(coalitions)))
    for m in range(count):
        for without in (s for size in range(count) for s in combinations([k for k in range(count) if k != m], size)):
            share = factorial(len(without)) * factorial(count - len(without) - 1) / factorial(count)
            weights[m, column[tuple(sorted((*without, m)))]] += share
            if without:
                weights[m, column[without]] -= share
    return Split(tuple(coalitions), weights)


def sampled_split(count: int, permutations: int = PERMUTATIONS, seed: int = 0) -> Split:
    """Coalitions along orders that are drawn, each order with its reverse.

    Args:
        count: Modalities.
        permutations: Orders drawn; at most `2 * permutations * (count - 1) + 1` passes.
        seed: Of the orders.

    Returns:
        The split, an unbiased estimate of the exact one. Contributions along one order add up to the fused output, so
        the responses do too, whatever was drawn: there is no remainder to spread.

    Source: Castro et al. 2009 (sampled orders); Mitchell et al. 2022 (each with its reverse).
    """
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
    return Split(tuple(column), weights)


def split_of(count: int, permutations: int | None = None, seed: int = 0) -> Split:
    """The exact split up to `EXACT` modalities, a sampled one beyond, or where orders are asked for.

    Args:
        count: Modalities, at least two.
        permutations: Orders to draw; None for the default of the number of modalities.
        seed: Of the orders.

    Returns:
        The split.
    """
    if permutations is None and count <= EXACT:
        return exact_split(count)
    return sampled_split(count, permutations or PERMUTATIONS, seed)


def combined(outputs: torch.Tensor, split: Split, present: torch.Tensor | None = None) -> torch.Tensor:
    """Responses from the outputs of all coalitions.

    Args:
        outputs: `[coalitions, n, …]`, in the order of the split.
        split: How they combine.
        present: `[n, modalities]`, which modalities each sample has; all of them if None. What is missing has to be
            hidden in the inputs already; it gets the response 0, and the others share the output among themselves.

    Returns:
        `[modalities, n, …]` in float32 or wider; their sum is the fused output.
    """
    return mixed(as_present(outputs, split, present), split.weights)


def as_present(outputs: torch.Tensor, split: Split, present: torch.Tensor | None) -> torch.Tensor:
    """Outputs in float32 or wider, 0 where a coalition has nothing of a sample that is there.

    Args:
        outputs: `[coalitions, n, …]`, in the order of the split.
        split: Which coalitions.
        present: `[n, modalities]`; None if nothing is missing.

    Returns:
        `[coalitions, n, …]`.
    """
    wide = outputs if outputs.dtype == torch.float64 else outputs.float()
    if present is None:
        return wide
    member = torch.zeros(len(split.coalitions), split.weights.shape[0], device=wide.device)
    for row, coalition in zip(member, split.coalitions, strict=True):
        row[list(coalition)] = 1
    anyone = (member @ present.to(wide.device, member.dtype).T > 0).to(wide.dtype)  # [coalitions, n]
    return wide * anyone.reshape(*anyone.shape, *[1] * (wide.ndim - 2))


def mixed(outputs: torch.Tensor, weights: np.ndarray) -> torch.Tensor:
    """Weighted sums over coalitions.

    Args:
        outputs: `[coalitions, n, …]`.
        weights: `[sums, coalitions]`.

    Returns:
        `[sums, n, …]`, in the precision of the outputs whatever autocast says: half of it would undo the sum.
    """
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
        permutations: Draw that many orders (and their reverses) instead of asking every coalition.
        seed: Of these orders.

    Returns:
        By modality, `[n, …]`, with the graph of all passes.

    Raises:
        MisuseError: If there are fewer than two modalities, or one is not among the inputs.
    """
    names = checked_names(list(inputs) if modalities is None else modalities, inputs)
    how = masks_of(masks, names)
    inputs = without_missing(inputs, names, how, present)
    split = split_of(len(names), permutations, seed)
    outputs = torch.stack([forward(hidden(inputs, how, absent(names, c))) for c in split.coalitions])
    return dict(zip(names, combined(outputs, split, present), strict=True))


def absent(names: Sequence[str], coalition: Sequence[int]) -> list[str]:
    """The modalities that are not in a coalition."""
    return [name for i, name in enumerate(names) if i not in coalition]


def without_missing(
    inputs: Batch, names: Sequence[str], masks: Mapping[str, AbstractMask], present: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """The batch with each sample's missing modalities hidden.

    Args:
        inputs: Tensors by name.
        names: The modalities.
        masks: How each is hidden.
        present: `[n, modalities]`; None if nothing is missing.

    Returns:
        Tensors by name.

    Raises:
        MisuseError: If `present` has another shape, or a sample has nothing at all.
    """
    if present is None:
        return dict(inputs)
    count = len(inputs[names[0]])
    fits = isinstance(present, torch.Tensor) and present.dtype == torch.bool
    if not fits or tuple(present.shape) != (count, len(names)):
        given = (
            f"{present.dtype} {list(present.shape)}" if isinstance(present, torch.Tensor) else type(present).__name__
        )
        raise MisuseError(
            f"present says for {count} samples and {len(names)} modalities whether they are there (a tensor of "
            f"booleans), but it is {given}"
        )
    if not bool(present.any(1).all()):
        raise MisuseError("a sample without any modality has no response: leave it out of the batch")
    out = dict(inputs)
    for i, name in enumerate(names):
        gone = masks[name].missing(inputs, name, present[:, i])
        for key, value in gone.items():
            if value is not inputs[key]:
                here = present[:, i].to(value.device).reshape(-1, *[1] * (value.ndim - 1))
                out[key] = torch.where(here, out[key], value)
    return out


def checked_names(modalities: Sequence[str], inputs: Batch) -> list[str]:
    """The names of modalities, each once and among the inputs.

    Returns:
        Them as a list.

    Raises:
        MisuseError: If they are not.
    """
    names = list(modalities)
    if len(names) < 2 or len(set(names)) < len(names):
        raise MisuseError(f"responses are of two or more modalities with different names, but {names} were given")
    missing = [name for name in names if name not in inputs]
    if missing:
        raise MisuseError(f"the batch has no {missing[0]!r}, it has {', '.join(map(str, inputs))}")
    return names
