"""Fingerprint by derivatives of all outputs along shared input directions."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.base import AbstractFingerprinter, Block
from stemma.fingerprints.evaluation import checked_network
from stemma.fingerprints.hashing import count_sketch
from stemma.fingerprints.recording import input_batches, to_array
from stemma.probes import Probes
from stemma.types.network import Network

if TYPE_CHECKING:
    import torch

    Function = Callable[[torch.Tensor], torch.Tensor]
    Pair = tuple[torch.Tensor, torch.Tensor]


@final
@dataclass(frozen=True)
class JacobianSketch(AbstractFingerprinter):
    """The derivatives of all outputs at each probe, along the same random directions for every model.

    A probe gives `directions` samples, one per direction v, and the sample is the vector J v of the derivatives of all
    outputs. So a rotation-invariant measure (`LinearCka`, `Procrustes`) does not depend on order, basis or number of
    the outputs: heads of any kind can be compared, without labels. It compares which input directions change the
    outputs in the same way, because the samples are shared. (With the directions as coordinates, a measure would be
    invariant to rotations of the input space too.) A map to many more outputs than directions preserves the angles
    between directions even if it is random, so networks with thousands of outputs seem similar: use more directions
    there, or compare gradient fields.

    Directions have one random sign per input coordinate and length one. Token networks are evaluated on relaxed one-hot
    vectors, along directions that preserve their sum.
    Cost: one forward pass with derivatives, about two forward passes, per probe and direction. If forward mode fails,
    reverse mode is used twice, with the same result at about twice the cost.

    Attributes:
        directions: Directions per probe.
        centred: Subtract the mean over the classes from each derivative, so that a common shift of all logits has no
            effect; maps and single outputs are unchanged.
        size: Largest number of coordinates; more outputs are hashed, which preserves inner products on average.
        seed: Seed of directions and hash.
        batch: Probes per forward pass; changes results only by rounding.

    Source: forward mode as in Baydin et al. 2018, JMLR 18; the combination is this project's.
    """

    directions: int = 16
    centred: bool = True
    size: int = 512
    seed: int = 0
    batch: int = field(default=128, compare=False)

    name = "jacobian"
    produces = "features"

    def __post_init__(self) -> None:
        if min(self.directions, self.size, self.batch) < 1:
            raise MisuseError("directions, size and batch must be 1 or more")

    def blocks(self, model: Model, probes: Probes, from_probe: int = 0) -> Iterator[Block]:
        """The derivatives in probe order.

        Yields:
            `features` `[k, directions, outputs]` with at most `size` outputs, float64.
        """
        import torch

        network = checked_network(model, probes)
        vocabulary = self._check_supported(network, probes)
        forward: Function = network.relaxed if vocabulary else network
        for start, inputs in input_batches(network, probes, from_probe, self.batch):
            x = inputs
            if vocabulary:
                like = network.parameter
                real = torch.float32 if like is None else like.dtype
                x = torch.nn.functional.one_hot(inputs, vocabulary).to(real)
            derivatives = []
            for i in range(self.directions):
                out, slope = _jvp(network, forward, x, self._direction(i, x, tokens=bool(vocabulary)))
                to_array(network, out, start, "outputs")
                derivatives.append(self._reduce(slope))
            yield Block(start, {"features": to_array(network, torch.stack(derivatives, 1), start, "derivatives")})

    def _check_supported(self, network: Network, probes: Probes) -> int:
        """Vocabulary size, 0 for inputs that are not tokens; raises if the network has no derivatives."""
        if not network.differentiable:
            raise MisuseError(
                f"{network.name} has outputs but no derivatives. Compare outputs instead (--method outputs)"
            )
        if probes.kind != "tokens":
            return 0
        if network.from_one_hot is None or network.input_spec is None:
            raise MisuseError(
                f"{network.name} takes tokens but not relaxed one-hot vectors, and embedding spaces of two models are "
                "not comparable. Compare outputs instead (--method outputs)"
            )
        return int(network.input_spec.high) + 1

    def _direction(self, index: int, x: "torch.Tensor", *, tokens: bool) -> "torch.Tensor":
        import torch

        shape = tuple(x.shape[1:])
        signs = np.random.default_rng([self.seed, index, *shape]).integers(0, 2, shape, np.int8) * 2.0 - 1
        signs = signs - signs.mean(-1, keepdims=True) if tokens else signs
        direction = torch.from_numpy(signs / np.linalg.norm(signs)).to(x.device, x.dtype)
        return direction.expand_as(x)

    def _reduce(self, derivatives: "torch.Tensor") -> "torch.Tensor":
        classes = derivatives.ndim <= 3 and derivatives.shape[-1] > 1
        if self.centred and classes:
            derivatives = derivatives - derivatives.mean(-1, keepdim=True)
        return count_sketch(derivatives.flatten(1), self.size, self.seed)


def _jvp(network: Network, forward: "Function", x: "torch.Tensor", v: "torch.Tensor") -> "Pair":
    """Outputs and their derivative along one direction per probe."""
    import torch

    try:
        with _plain_attention():
            out, slope, *_ = torch.func.jvp(forward, (x,), (v,))
            return out.detach(), slope.detach()
    except (StemmaError, RuntimeError, NotImplementedError) as error:
        try:
            with _plain_attention():
                return _jvp_by_double_reverse(forward, x, v)
        except (StemmaError, RuntimeError, NotImplementedError):
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise StemmaError(
                f"{network.name} cannot be differentiated along a direction ({reason}). Compare gradient fields or "
                "outputs instead"
            ) from error


def _jvp_by_double_reverse(forward: "Function", x: "torch.Tensor", v: "torch.Tensor") -> "Pair":
    """The same by reverse mode: the vector-Jacobian product is linear in u, with derivative J v."""
    import torch

    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        out = forward(leaf.clone())
        u = torch.zeros_like(out, requires_grad=True)
        pulled = torch.autograd.grad(out, leaf, u, create_graph=True)[0]
        return out.detach(), torch.autograd.grad(pulled, u, v)[0].detach()


@contextmanager
def _plain_attention() -> Generator[None]:
    """Attention as matrix products: the fused kernels have no forward mode."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
