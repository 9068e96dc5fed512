"""What has to hold before a network's answers mean anything."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.networks.from_module import follows
from stemma.probes import Probes
from stemma.types.network import Network

if TYPE_CHECKING:
    import torch

ASKED_TWICE = 4
"""Probes on which a network is evaluated twice before anything else."""


def questioned(model: Model, probes: Probes) -> Network:
    """The model's network, once it is known that these probes can be put to it and that it answers the same twice.

    Cost: two evaluations of a few probes.

    Args:
        model: The model.
        probes: What it will be asked.

    Returns:
        The network.

    Raises:
        MisuseError: If the probes are not of the network's raw input space.
        StemmaError: If the network is in train mode, answers differently the second time, or with NaN.
    """
    import torch

    network = model.network
    _fits(network, probes)
    busy = [] if network.module is None else [n for n, m in network.module.named_modules() if m.training]
    if busy:
        raise StemmaError(
            f"{network.name} is in train mode{f' (in {busy[0]})' if busy[0] else ''}, where batch norm and dropout "
            "depend on chance and on the batch: call .eval() on it first"
        )
    few = as_tensor(network, probes.inputs[:ASKED_TWICE])
    with torch.no_grad():
        first, second = network(few.clone()), network(few.clone())  # some networks write into their input
    if not torch.isfinite(first).all():
        raise StemmaError(f"{network.name} answers NaN or infinite values to the first probes: nothing can be measured")
    if not torch.equal(first, second):
        raise StemmaError(
            f"{network.name} answers the same {len(few)} probes differently the second time: it holds random layers. "
            "Make it deterministic (dropout off, seeds fixed inside)"
        )
    if network.module is None and network.differentiable and few.is_floating_point():
        return replace(network, differentiable=_gradient_comes_back(network, few))
    return network


def together(*models: Model) -> None:
    """Refuse token models that do not read the same tokens: one id means another word to each of them.

    Models whose tokenizer is unknown pass: their token ids are taken as they are.

    Args:
        models: The models that will be compared.

    Raises:
        MisuseError: If two known tokenizers differ.
    """
    known = {m.network.tokenizer: m.name for m in models if m.network.tokenizer is not None}
    if len(known) > 1:
        one, other = list(known.values())[:2]
        raise MisuseError(
            f"{one} and {other} have different tokenizers, so the same token ids are different texts to them: compare "
            "models of one tokenizer, or give both as callables that take the same raw input"
        )


def as_tensor(network: Network, inputs: np.ndarray) -> "torch.Tensor":
    """Inputs in the network's float type and on its device; token ids stay integers.

    Returns:
        A tensor that shares no memory with `inputs` where it had to be converted.
    """
    import torch

    tensor = torch.from_numpy(np.require(inputs, requirements="CW"))
    like = network.parameter
    if like is None or not tensor.is_floating_point():
        return tensor if like is None else tensor.to(like.device)
    return tensor.to(like.device, like.dtype)


def answers(model: Model, probes: Probes, batch: int = 256) -> np.ndarray:
    """What a model answers to all probes.

    Args:
        model: The model.
        probes: What it is asked.
        batch: Probes at once.

    Returns:
        Outputs `[n, …]`.

    Raises:
        StemmaError: As `questioned`.
    """
    import torch

    network = questioned(model, probes)
    out = []
    with torch.no_grad():
        for start in range(0, len(probes), batch):
            part = network(as_tensor(network, probes.inputs[start : start + batch]))
            if not torch.isfinite(part).all():
                raise StemmaError(
                    f"{network.name} answers NaN or infinite values to probes {start} to {start + len(part) - 1}"
                )
            out.append(part.cpu().float().numpy() if part.dtype != torch.float64 else part.cpu().numpy())
    return np.concatenate(out)


def labelled_by(model: Model, probes: Probes) -> Probes:
    """The same inputs with a model's own answers as labels, frozen: they enter the probes' digest.

    Returns:
        Probes whose `labelled` names the model.

    Raises:
        MisuseError: If the model does not answer with one score per class.
    """
    scores = answers(model, probes)
    if scores.ndim != 2:
        raise MisuseError(f"{model.name} answers with shape {list(scores.shape[1:])}, not with one score per class")
    return probes.with_labels(scores.argmax(1), f"{model.name} {model.network.digest}")


def check_labels(network: Network, labels: np.ndarray, classes: int) -> None:
    """Refuse labels that the network has no output for.

    Raises:
        MisuseError: If a label is out of range.
    """
    if int(labels.max(initial=0)) >= classes:
        raise MisuseError(
            f"the probes have labels up to {int(labels.max())}, but {network.name} has {classes} outputs (0 to "
            f"{classes - 1}): give probes whose labels it knows, or leave the labels out"
        )


def _gradient_comes_back(network: Network, few: "torch.Tensor") -> bool:
    asked = few.clone().requires_grad_()
    try:
        return follows(network(asked.clone()), asked)
    except StemmaError:  # it has answered these inputs, but takes none that gradients are followed from, as NumPy does
        return False


def _fits(network: Network, probes: Probes) -> None:
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
            f"{network.name} takes raw inputs of shape {list(spec.shape)}, but the probes have {list(probes.shape)}: "
            "gradients can only be compared in one raw input space. Give probes of that shape, or wrap the network "
            "with a resize inside"
        )
