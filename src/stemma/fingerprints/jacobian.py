"""How all outputs of a network move along shared directions in input space."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.base import AbstractFingerprinter, Block
from stemma.fingerprints.evaluation import questioned
from stemma.fingerprints.hashing import count_sketch
from stemma.fingerprints.recording import batches, recorded
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
    outputs. So a measure that is blind to rotations of the coordinates (`LinearCka`, `Procrustes`) does not care in
    which order the outputs come, which basis they are in, or how many there are: heads of any kind can be compared,
    without labels. What it does see is which input direction moves the outputs alike, because the samples are shared.
    (Were the directions coordinates instead, a measure would be blind to rotations of the input space too.) A map to
    many more outputs than directions keeps the angles between directions even where it is random, so networks with
    thousands of outputs look alike: take more directions there, or compare gradient fields.

    Directions have one random sign per input coordinate and length one. Token networks are asked in the space of
    relaxed one-hot vectors, along directions that keep their sum.
    Cost: one forward pass with derivatives, about two forward passes, per probe and direction. Where forward mode
    fails, reverse mode is used twice, at about twice that cost and to the same numbers.

    Attributes:
        directions: Directions per probe.
        centred: Take the mean over the classes off each derivative, so that a common shift of all logits counts for
            nothing; maps and single outputs stay as they are.
        size: Most coordinates kept; more outputs are hashed, so that inner products are kept on average.
        seed: Of directions and hash.
        batch: Probes at once; changes no number beyond rounding.

    Source: forward mode as in Baydin et al. 2018, JMLR 18; the arrangement is this project's.
    """

    directions: int = 16
    centred: bool = True
    size: int = 512
    seed: int = 0
    batch: int = field(default=128, compare=False)

    name = "jacobian"
    gives = "features"

    def __post_init__(self) -> None:
        if min(self.directions, self.size, self.batch) < 1:
            raise MisuseError("directions, size and batch are 1 or more")

    def blocks(self, model: Model, probes: Probes, first: int = 0) -> Iterator[Block]:
        """The derivatives in probe order.

        Yields:
            `features` `[k, directions, outputs]` with at most `size` outputs, float64.
        """
        import torch

        network = questioned(model, probes)
        vocabulary = self._possible(network, probes)
        ask: Function = network.relaxed if vocabulary else network
        for start, inputs in batches(network, probes, first, self.batch):
            x = inputs
            if vocabulary:
                like = network.parameter
                real = torch.float32 if like is None else like.dtype
                x = torch.nn.functional.one_hot(inputs, vocabulary).to(real)
            moved = []
            for i in range(self.directions):
                out, slope = _along(network, ask, x, self._direction(i, x, tokens=bool(vocabulary)))
                recorded(network, out, start, "outputs")
                moved.append(self._kept(slope))
            yield Block(start, {"features": recorded(network, torch.stack(moved, 1), start, "derivatives")})

    def _possible(self, network: Network, probes: Probes) -> int:
        """Size of the vocabulary, 0 for inputs that are no tokens."""
        if not network.differentiable:
            raise MisuseError(
                f"{network.name} gives answers but no derivatives: compare outputs instead (--method outputs)"
            )
        if probes.kind != "tokens":
            return 0
        if network.from_one_hot is None or network.input_spec is None:
            raise MisuseError(
                f"{network.name} takes tokens, but not as relaxed one-hot vectors, and the embedding spaces of two "
                "models have nothing to do with one another: compare outputs instead (--method outputs)"
            )
        return int(network.input_spec.high) + 1

    def _direction(self, index: int, x: "torch.Tensor", *, tokens: bool) -> "torch.Tensor":
        import torch

        shape = tuple(x.shape[1:])
        signs = np.random.default_rng([self.seed, index, *shape]).integers(0, 2, shape, np.int8) * 2.0 - 1
        signs = signs - signs.mean(-1, keepdims=True) if tokens else signs
        direction = torch.from_numpy(signs / np.linalg.norm(signs)).to(x.device, x.dtype)
        return direction.expand_as(x)

    def _kept(self, moved: "torch.Tensor") -> "torch.Tensor":
        classes = moved.ndim <= 3 and moved.shape[-1] > 1
        if self.centred and classes:
            moved = moved - moved.mean(-1, keepdim=True)
        return count_sketch(moved.flatten(1), self.size, self.seed)


def _along(network: Network, ask: "Function", x: "torch.Tensor", v: "torch.Tensor") -> "Pair":
    """The outputs and their derivative along a direction per probe."""
    import torch

    try:
        with _plain_attention():
            out, slope, *_ = torch.func.jvp(ask, (x,), (v,))
            return out.detach(), slope.detach()
    except (StemmaError, RuntimeError, NotImplementedError) as forward:
        try:
            with _plain_attention():
                return _twice_reverse(ask, x, v)
        except (StemmaError, RuntimeError, NotImplementedError):
            reason = " ".join(str(forward.__cause__ or forward).split())[:200]
            raise StemmaError(
                f"{network.name} cannot be differentiated along a direction ({reason}): compare gradient fields or "
                "outputs instead"
            ) from forward


def _twice_reverse(ask: "Function", x: "torch.Tensor", v: "torch.Tensor") -> "Pair":
    """The same by reverse mode: the product of the transposed Jacobian with u is linear in u, with derivative J v."""
    import torch

    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        out = ask(leaf.clone())
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
