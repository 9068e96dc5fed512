"""Run networks on probes, after checking mode, determinism and input space."""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.kept_answers import KeptAnswers
from stemma.networks.from_module import has_gradient
from stemma.probes import Probes
from stemma.types.asking import asked_plainly
from stemma.types.network import Network

if TYPE_CHECKING:
    import torch

TOKEN_BATCH = 8
"""Sequences per forward pass: each answer has a score for every word of the vocabulary at every position."""

DETERMINISM_PROBES = 4
"""Number of probes on which a network is first run twice."""


@asked_plainly
def checked_network(model: Model, probes: Probes) -> Network:
    """The network of a model, after checking that it takes these probes, is in eval mode, finite and deterministic.

    Where its code turns gradients off, the network that is returned keeps them (see `networks.kept_gradients`).

    Returns:
        The network; of a model that keeps its answers, one that does so too, and is checked once.

    Raises:
        StemmaError: If it is in train mode, random, or not finite.
        MisuseError: If the probes are not of its input space.
    """
    network = model.network
    if not isinstance(network.forward, KeptAnswers):
        return _checked(network, probes)
    answers = network.forward
    key = probes.shape, probes.kind, int(probes.inputs.max(initial=0)) if probes.kind == "tokens" else 0
    if key not in answers.checked:
        answers.network = _checked(answers.asked, probes)
        answers.checked.add(key)
    return replace(answers.network, forward=answers, from_one_hot=network.from_one_hot)


def _checked(network: Network, probes: Probes) -> Network:
    import torch

    from stemma.networks.kept_gradients import GradientsKept, with_gradients_kept

    _check_input_spec(network, probes)
    busy = [] if network.module is None else [n for n, m in network.module.named_modules() if m.training]
    if busy:
        raise StemmaError(
            f"{network.name} is in train mode{f' (in {busy[0]})' if busy[0] else ''}, so its outputs are random or "
            "depend on the batch. Call .eval() on it first"
        )
    few = as_tensor(network, probes.inputs[:DETERMINISM_PROBES])
    with torch.no_grad():
        with GradientsKept() as kept:
            first = network(few.clone())  # some networks write into their input
        second = network(few.clone())
    if not torch.isfinite(first).all():
        raise StemmaError(
            f"{network.name} returns NaN or infinite values for the first probes, so nothing can be measured"
        )
    if not torch.equal(first, second):
        raise StemmaError(
            f"{network.name} is not deterministic: two runs on the same {len(few)} probes differ. Turn dropout off or "
            "fix its seeds"
        )
    if kept.met and network.differentiable:
        relaxed = None if network.from_one_hot is None else with_gradients_kept(network.from_one_hot)
        network = replace(network, forward=with_gradients_kept(network.forward), from_one_hot=relaxed)
    if network.module is None and network.differentiable and few.is_floating_point():
        return replace(network, differentiable=_has_input_gradient(network, few))
    return network


def keeping_answers(model: Model, probes: Probes) -> Model:
    """The same model, whose answers to the probes are kept as long as the model that is returned is held.

    Args:
        model: The model; black boxes are returned as they are, since their answers are kept elsewhere.
        probes: The inputs.

    Returns:
        A model with the same weights and a network that keeps its answers.
    """
    if model.black_box:
        return model
    network = model.network
    kept = KeptAnswers(network, lambda: as_tensor(network, probes.inputs))
    relaxed = None if network.from_one_hot is None else kept.relaxed
    found = copy.copy(model)
    vars(found)["network"] = replace(network, forward=kept, from_one_hot=relaxed)
    return found


def require_one_tokenizer(*models: Model) -> None:
    """Raise if two models have different tokenizers; models with an unknown tokenizer pass."""
    known = {m.network.tokenizer: m.name for m in models if m.network.tokenizer is not None}
    if len(known) > 1:
        one, other = list(known.values())[:2]
        raise MisuseError(
            f"{one} and {other} have different tokenizers, so token ids mean different texts. Compare models with one "
            "tokenizer, or pass both as callables on the same raw input"
        )


def as_tensor(network: Network, inputs: np.ndarray) -> "torch.Tensor":
    """Inputs in the network's float type and on its device; token ids stay integers."""
    import torch

    tensor = torch.from_numpy(np.require(inputs, requirements="CW"))
    like = network.parameter
    if like is None or not tensor.is_floating_point():
        return tensor if like is None else tensor.to(like.device)
    return tensor.to(like.device, like.dtype)


def why_no_gradient(out: "torch.Tensor") -> str:
    """Why outputs have no gradient, as far as the outputs show it."""
    if out.is_inference():
        return "its code runs under torch.inference_mode(): remove that"
    return "its code rounds, detaches or leaves torch"


@asked_plainly
def compute_outputs(model: Model, probes: Probes, batch: int = 256) -> np.ndarray:
    """Outputs `[n, …]` of a model for all probes."""
    import torch

    network = checked_network(model, probes)
    batch = min(batch, TOKEN_BATCH) if probes.kind == "tokens" else batch
    out: np.ndarray | None = None
    with torch.no_grad():
        for start in range(0, len(probes), batch):
            part = network(as_tensor(network, probes.inputs[start : start + batch]))
            if not torch.isfinite(part).all():
                raise StemmaError(
                    f"{network.name} returns NaN or infinite values for probes {start} to {start + len(part) - 1}"
                )
            found = part.cpu().float().numpy() if part.dtype != torch.float64 else part.cpu().numpy()
            if out is None:
                out = np.empty((len(probes), *found.shape[1:]), found.dtype)
            out[start : start + len(found)] = found
    assert out is not None  # there is at least one probe
    return out


def _has_input_gradient(network: Network, few: "torch.Tensor") -> bool:
    inputs = few.clone().requires_grad_()
    try:
        return has_gradient(network(inputs.clone()), inputs)
    except StemmaError:  # it accepts these inputs, but none that require gradients (NumPy code)
        return False


def _check_input_spec(network: Network, probes: Probes) -> None:
    spec = network.input_spec
    if spec is None:
        return
    if (spec.kind == "tokens") != (probes.kind == "tokens"):
        raise MisuseError(f"{network.name} takes {spec.kind} inputs, but the probes are of kind {probes.kind}")
    if spec.kind == "tokens":
        longest, ids = probes.shape[0], int(probes.inputs.max(initial=0))
        if 0 < spec.shape[0] < longest or ids > spec.high:
            raise MisuseError(
                f"{network.name} takes up to {spec.shape[0]} tokens with ids up to {spec.high:.0f}, but the probes "
                f"have {longest} with ids up to {ids}"
            )
    elif len(spec.shape) != len(probes.shape) or not all(
        n in (0, m) for n, m in zip(spec.shape, probes.shape, strict=True)
    ):
        raise MisuseError(
            f"{network.name} takes raw inputs of shape {list(spec.shape)}, but the probes have {list(probes.shape)}. "
            "Use probes of that shape, or wrap the network with a resize"
        )
