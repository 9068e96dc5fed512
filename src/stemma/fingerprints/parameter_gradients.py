"""Fingerprint by gradients with respect to activations and parameters."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, final

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.base import AbstractFingerprinter, Block
from stemma.fingerprints.evaluation import as_tensor, checked_network, why_no_gradient
from stemma.fingerprints.hashing import count_sketch, product_sketch
from stemma.fingerprints.layers import capture, find_head, find_layer, module_of
from stemma.fingerprints.recording import input_batches, to_array
from stemma.probes import Probes
from stemma.types.network import Network

if TYPE_CHECKING:
    import torch


@final
@dataclass(frozen=True)
class ParameterGradients(AbstractFingerprinter):
    """Activations together with gradients, or gradients of the parameters: a sketched vector per probe.

    The objective is the log-likelihood of a smoothed copy of the network's own prediction,
    `sum over classes c of q_c log p_c` with `q_c` proportional to `p_c ^ beta` and held fixed: no labels are needed,
    and a common shift of all logits has no effect. For outputs per position, it is the mean over positions; a single
    output is its own objective.

    With `of="features"`, for activations z at a layer and the objective's gradient g with respect to them, the vector
    is the outer product of z and g: its Gram matrix is the entrywise product of those of z and g, the published kernel.
    With `of="parameters"` it is the gradient with respect to all parameters of the layer: its Gram matrix is the
    network's tangent kernel for this objective. Compare either by `LinearCka`.
    Cost: one forward and backward pass per probe. Needs the module: not available for a black box.

    Attributes:
        of: `features` or `parameters`.
        layer: Name of a module. If empty: for features, the input of the last linear or convolution module that is run;
            for parameters, the whole network.
        beta: Smoothing: with 0 all classes have equal weight; towards 1 the gradient vanishes.
        size: Numbers kept per probe; longer vectors are hashed, which preserves inner products on average.
        seed: Seed of the hash.
        batch: Probes at once.

    Source: Tang et al. 2020, arXiv:2003.11498. Departures: the published method hashes the probes of one data set into
    a few sums, to compare different data sets; here every probe has its own vector, with hashed coordinates.
    `parameters` is an addition.
    """

    of: Literal["features", "parameters"] = "features"
    layer: str = ""
    beta: float = 0.5
    size: int = 1024
    seed: int = 0
    batch: int = field(default=64, compare=False)

    name = "parameter-gradients"
    produces = "features"

    def __post_init__(self) -> None:
        if self.of not in ("features", "parameters"):
            raise MisuseError(f"of must be features or parameters, not '{self.of}'")
        if not 0 <= self.beta < 1 or self.size < 1 or self.batch < 1:
            raise MisuseError("beta must be in [0, 1), size and batch 1 or more")

    def blocks(self, model: Model, probes: Probes, from_probe: int = 0) -> Iterator[Block]:
        """The vectors in probe order.

        Yields:
            `features` `[k, p]` with p at most `size`, float64.
        """
        network = checked_network(model, probes)
        module = module_of(network, self.name)
        last = self.of == "features" and not self.layer
        layer_module = find_head(network, module, as_tensor(network, probes.inputs[:1])) if last else \
            find_layer(network, module, self.layer)  # fmt: skip
        for start, inputs in input_batches(network, probes, from_probe, self.batch):
            if self.of == "features":
                found = self._products(network, layer_module, inputs, start, entering=last)
            else:
                found = self._gradients(network, module, layer_module, inputs, start)
            yield Block(start, {"features": to_array(network, found, start, "gradients")})

    def _products(
        self, network: Network, layer_module: "torch.nn.Module", inputs: "torch.Tensor", start: int, *, entering: bool
    ) -> "torch.Tensor":
        import torch

        def leaf(z: "torch.Tensor") -> "torch.Tensor":
            return z.detach().requires_grad_()

        with torch.enable_grad(), capture(layer_module, leaf, entering=entering) as captured:
            out = network(inputs)
            objective = self._objective(out).sum()
        to_array(network, out, start, "outputs")
        if not captured or len(captured[-1]) != len(inputs):
            raise MisuseError(
                f"the layer '{self.layer}' of {network.name} does not run with one row per probe. Name another layer"
            )
        slope = torch.autograd.grad(objective, captured[-1], allow_unused=True)[0] if objective.requires_grad else None
        if slope is None:
            where = repr(self.layer) if self.layer else "what enters its head"
            raise StemmaError(
                f"the outputs of {network.name} do not depend differentiably on {where} ({why_no_gradient(out)})"
            )
        return product_sketch(captured[-1].detach().flatten(1), slope.flatten(1), self.size, self.seed)

    def _gradients(
        self,
        network: Network,
        module: "torch.nn.Module",
        layer_module: "torch.nn.Module",
        inputs: "torch.Tensor",
        start: int,
    ) -> "torch.Tensor":
        """Gradients one probe at a time, so that they are not summed."""
        import torch

        parameters = [p for p in layer_module.parameters() if p.is_floating_point()]
        if not parameters:
            raise MisuseError(f"the layer '{self.layer}' of {network.name} has no parameters. Name another layer")
        if any(p.is_inference() for p in parameters):
            raise StemmaError(
                f"the weights of {network.name} were made under torch.inference_mode(), so they have no gradients: "
                "build and load the module outside of it"
            )
        required = [p.requires_grad for p in module.parameters()]
        rows = []
        try:
            for p in parameters:
                p.requires_grad_(True)
            for i, one in enumerate(inputs.split(1)):
                with torch.enable_grad():
                    out = network(one)
                    objective = self._objective(out).sum()
                to_array(network, out, start + i, "outputs")
                if not objective.requires_grad:
                    raise StemmaError(
                        f"the outputs of {network.name} do not depend differentiably on its parameters "
                        f"({why_no_gradient(out)})"
                    )
                slopes = torch.autograd.grad(objective, parameters, allow_unused=True, materialize_grads=True)
                whole = torch.cat([s.reshape(1, -1) for s in slopes], 1)
                rows.append(count_sketch(whole, self.size, self.seed))
        finally:
            for p, before in zip(module.parameters(), required, strict=True):
                p.requires_grad_(before)
        return torch.cat(rows)

    def _objective(self, out: "torch.Tensor") -> "torch.Tensor":
        """One number per probe from outputs `[k, classes]`, `[k, length, classes]` or maps `[k, channels, …]`."""
        scores = out if out.ndim <= 3 else out.flatten(2).mT
        if scores.shape[-1] == 1:
            return scores.flatten(1).mean(1)
        log_p = scores.log_softmax(-1)
        q = (self.beta * log_p.detach()).softmax(-1)
        return (q * log_p).sum(-1).reshape(len(out), -1).mean(1)
