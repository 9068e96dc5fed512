"""Model gradient fields (ModelGiF): integrated gradients of a network along paths through input space."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.base import AbstractFingerprinter, Block
from stemma.fingerprints.evaluation import as_tensor, checked_network, why_no_gradient
from stemma.fingerprints.kept_answers import KeptAnswers
from stemma.fingerprints.paths import baseline_inputs, derangement, quadrature, step_weights
from stemma.fingerprints.potentials import POTENTIALS, Potential, resolve_potential
from stemma.probes import Probes
from stemma.types.network import Network

if TYPE_CHECKING:
    import torch

CACHE_ENTRIES, MIN_POINTS, MAX_ENTRIES = 1 << 18, 16, 1 << 21
"""Target number of input entries per batch (batches that fit the CPU cache are fastest), smallest number of points per
batch, and the number of entries that this minimum may not exceed."""


PROJECTED = 1 << 15
"""Input entries that are projected at once."""


@final
@dataclass(frozen=True)
class GradientField(AbstractFingerprinter):
    """The gradient of a scalar summary of the output, integrated along straight paths from a baseline to each probe.

    For probe x, baseline b, nodes a_s with weights w_s and potential phi, step t of the curve is
    `(x - b) * sum over s <= t of w_s * grad phi(b + a_s (x - b))`, one number per input coordinate. Gradients are with
    respect to the raw input, so networks of any architecture, head and task can be compared. Token networks are
    evaluated on relaxed one-hot vectors `[length, vocabulary]`, whose gradient is centred over the vocabulary; their
    zero baseline is the uniform distribution. For a network without gradients (a black box), finite differences along
    `sketch` random directions estimate projections of the same curve.

    Cost: one forward and backward pass per probe, baseline and step, and two forward passes per probe and baseline;
    for a black box 2 x `sketch` forward passes per probe, baseline and step. Memory is that of `batch` points,
    whatever the number of probes.

    Attributes:
        steps: Nodes per path.
        quadrature: Their positions and weights (see `paths.QUADRATURES`).
        potential: The scalar summary (see `potentials.POTENTIALS`); `auto` takes the log-probability of the probes'
            labels (of all classes on average where there are none), of the next tokens, or `difference` for maps and
            hidden states.
        cumulative: Integrate up to each node; otherwise the gradient at each node is used.
        times_input: Multiply by x - b.
        baseline: Start of the paths, unless the probes have their own baselines: `zero`, `normalised-zero` (what a
            network that normalises raw inputs turns into zero, the mean colour), `mean`, `probe` (another probe), or
            several joined by `+`, over which distances are averaged.
        uniform: Average over the path's length; otherwise over the steps, whatever their positions.
        channel_mean: Average the curve over the channels of an image.
        keep_undefined: Treat a field that is exactly zero as orthogonal to all others, as published, instead of leaving
            it out.
        sketch: Keep this many random sign projections per step, scaled to length one in half precision, instead of
            the curve; 0 keeps the curve.
        seed: Of the projections and of the choice of other probes.
        contrast: Length of the differences for a black box, as a share of x - b (of the input's unit where
            `times_input` is off).
        batch: Largest number of points per forward pass; changes results only by rounding.

    Source: Song et al., ModelGiF, ICCV 2023; `official` is the published method. Departures of the default: a potential
    invariant to a common shift of all logits, paths between probes (nearer to the training data than those from a blank
    input), the uniform average over the path, few steps, and undefined probes are left out and counted.
    """

    steps: int = 8
    quadrature: str = "riemann-middle"
    potential: str = "auto"
    cumulative: bool = True
    times_input: bool = True
    baseline: str = "probe"
    uniform: bool = True
    channel_mean: bool = False
    keep_undefined: bool = False
    sketch: int = 0
    seed: int = 0
    contrast: float = 0.01
    batch: int = field(default=256, compare=False)

    name = "gradient-field"
    version = 2
    produces = "field"

    def __post_init__(self) -> None:
        quadrature(self.quadrature, self.steps)
        if self.potential != "auto" and self.potential not in POTENTIALS:
            raise MisuseError(f"unknown potential '{self.potential}'. Potentials: auto, {', '.join(POTENTIALS)}")
        if min(self.sketch, self.seed) < 0 or self.batch < 1 or not 0 < self.contrast < float("inf"):
            raise MisuseError("sketch and seed must be 0 or more, batch 1 or more and contrast a number above 0")

    @classmethod
    def official(
        cls,
        steps: int = 50,
        quadrature: str = "gauss-legendre",
        potential: str = "own-argmax",
        cumulative: bool = True,
        times_input: bool = True,
        channel_mean: bool = False,
        baseline: str = "normalised-zero",
        seed: int = 0,
    ) -> Self:
        """The published method with the published defaults.

        Args:
            steps: Nodes per path.
            quadrature: As the field.
            potential: As the field; published: `own-argmax` for property protection, `label` for unlearning,
                `channel-max` of the encoder for task relatedness.
            cumulative: As the field.
            times_input: As the field.
            channel_mean: As the field; published for task relatedness.
            baseline: As the field; published: zero after normalisation, and `probe` for task relatedness.
            seed: As the field.

        Returns:
            The method; compare its fingerprints with `FieldCosine.official()`.
        """
        return cls(steps, quadrature, potential, cumulative, times_input, baseline,
                   uniform=False, channel_mean=channel_mean, keep_undefined=True, seed=seed)  # fmt: skip

    def blocks(self, model: Model, probes: Probes, from_probe: int = 0) -> Iterator[Block]:
        """The field in probe order.

        Yields:
            `curve` `[k, steps, d]` (with several baselines one after the other along the steps; `[k, steps, sketch]`
            half-precision unit vectors for a sketch), `weights` and `defined` `[k, steps]`, and except for black boxes
            `gap` `[k]`, the difference of the integral from the potential's `change` `[k]` from baseline to probe.
        """
        network = checked_network(model, probes)
        self._check_supported(network, probes)
        paths = _Paths.of(self, network, probes)
        count = max(1, paths.points // self.steps)
        span = count * max(1, paths.points // count)  # endpoints are evaluated in full batches
        for start in range(from_probe, len(probes), span):
            endpoints = [paths.endpoints(slice(start, start + span), *baseline) for baseline in paths.baseline_inputs]
            for at in range(0, len(endpoints[0][0]), count):
                yield Block(
                    start + at, _concatenate([paths.curves(*(e[at : at + count] for e in end)) for end in endpoints])
                )

    def _check_supported(self, network: Network, probes: Probes) -> None:
        if self.channel_mean and probes.inputs.ndim != 4:
            raise MisuseError(
                f"channel_mean needs images [n, channels, height, width], not inputs of shape {list(probes.shape)}"
            )
        if probes.kind == "tokens" and network.from_one_hot is None:
            raise StemmaError(
                f"{network.name} takes tokens but not relaxed one-hot vectors, and embedding spaces of two models are "
                "not comparable. Compare outputs instead (--method outputs)"
            )
        if not network.differentiable and not self.sketch:
            raise MisuseError(
                f"{network.name} has outputs but no gradients, so its field can only be estimated along random "
                "directions. Use sketch=64 for all models, or compare outputs"
            )


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate the paths from several baselines along the steps."""
    values = {name: np.concatenate([p[name] for p in parts], 1) for name in ("curve", "weights", "defined")}
    values["weights"] = values["weights"] / len(parts)
    return values | {n: np.mean([p[n] for p in parts], 0) for n in ("gap", "change") if n in parts[0]}


@dataclass(frozen=True, eq=False)
class _Paths:
    """All paths of one network."""

    method: GradientField
    network: Network
    probes: Probes
    baseline_inputs: list[tuple[str, np.ndarray]]
    labels: np.ndarray | None
    vocabulary: int
    potential: Potential
    partners: np.ndarray | None
    nodes: "torch.Tensor"
    weights: "torch.Tensor"
    shares: np.ndarray
    projection: "torch.Tensor | None"
    points: int

    @classmethod
    def of(cls, method: GradientField, network: Network, probes: Probes) -> "_Paths":
        import torch

        few = as_tensor(network, probes.inputs[:1])
        with torch.no_grad():
            out = network(few)
        tokens = probes.kind == "tokens"
        vocabulary = _vocabulary(network, out) if tokens else 0
        name = resolve_potential(
            method.potential, out, labelled=probes.labels is not None, tokens=tokens, vocabulary=vocabulary,
            scores=network.scores,
        )  # fmt: skip
        nodes, weights = quadrature(method.quadrature, method.steps)
        shares = step_weights(nodes, weights, cumulative=method.cumulative, uniform=method.uniform)
        entries = int(np.prod(probes.shape)) * max(1, vocabulary)
        width = entries // probes.shape[0] if method.channel_mean else entries
        projection = _random_signs(width, method.sketch, method.seed).to(few.device) if method.sketch else None
        real = network.parameter.dtype if network.parameter is not None else torch.float32
        real = real if not few.is_floating_point() else few.dtype
        return cls(
            method, network, probes, baseline_inputs(probes, method.baseline, method.seed, _blank(network)),
            probes.inputs if name == "next-tokens" else probes.labels, vocabulary, POTENTIALS[name],
            _partners(len(probes), method.seed) if POTENTIALS[name].paired else None,
            torch.from_numpy(nodes).to(few.device, real), torch.from_numpy(weights).to(few.device), shares, projection,
            max(1, min(method.batch, max(MIN_POINTS, CACHE_ENTRIES // entries), MAX_ENTRIES // entries)),
        )  # fmt: skip

    def endpoints(self, rows: slice, name: str, start: np.ndarray) -> "tuple[torch.Tensor, ...]":
        """End points, baselines, frozen choices and change of the potential for some paths."""
        import torch

        x, b = self._to_input(self.probes.inputs[rows]), self._baseline(rows, name, start)
        with torch.no_grad():
            outputs = self._forward(x)
            labels = None if self.labels is None else torch.tensor(self.labels[rows], device=x.device)
            reference = outputs
            if self.partners is not None:
                reference = outputs - self._forward(self._to_input(self.probes.inputs[self.partners[rows]]))
            frozen = self.potential.freeze(reference, labels)
            unique = b[:1] if start.strides[0] == 0 else b  # a shared baseline is evaluated once
            baseline_outputs = self._forward(unique).expand_as(outputs)
            phi = [self.potential.value(end, frozen).double() for end in (outputs, baseline_outputs)]
        return x, b, frozen, phi[0] - phi[1]

    def curves(
        self, x: "torch.Tensor", b: "torch.Tensor", frozen: "torch.Tensor", change: "torch.Tensor"
    ) -> dict[str, np.ndarray]:
        """The curves of some probes from one kind of baseline."""
        if not self.network.differentiable:
            return self._to_arrays(self._central_differences(x, b, frozen), {})
        gradients = self._gradients(x, b, frozen)
        if self.vocabulary:
            gradients -= gradients.mean(-1, keepdim=True)
        delta = (x - b).double()[:, None]
        curve = gradients.mul_(self.weights.view(-1, *[1] * (gradients.ndim - 2)))
        gap = ((curve.sum(1) * delta[:, 0]).flatten(1).sum(1) - change).abs()
        if self.method.cumulative:
            for t in range(1, curve.shape[1]):  # along an inner axis several times faster than cumsum
                curve[:, t] += curve[:, t - 1]
        curve = curve.mul_(delta) if self.method.times_input else curve
        curve = (curve.mean(2) if self.method.channel_mean else curve).flatten(2)
        if self.projection is not None:
            curve = _projected(curve, self.projection)
        return self._to_arrays(curve, {"gap": gap.cpu().numpy(), "change": change.abs().cpu().numpy()}, x.dtype)

    def _to_arrays(
        self, curve: "torch.Tensor", endpoints: dict[str, np.ndarray], dtype: "torch.dtype | None" = None
    ) -> dict[str, np.ndarray]:
        import torch

        if self.projection is None and dtype is not torch.float64:
            curve = curve.float()  # first, so that values that underflow count as undefined
        largest = curve.abs().amax(2, keepdim=True)
        if not torch.isfinite(largest).all():
            raise StemmaError(
                f"{self.network.name} has NaN or infinite gradients at some probes, so nothing can be measured"
            )
        defined = torch.ones_like(largest[..., 0], dtype=torch.bool)
        if not self.method.keep_undefined:
            defined = largest[..., 0] > 0
        if self.projection is not None:
            curve = torch.nn.functional.normalize(curve / largest.where(largest > 0, 1), dim=2).half()
        shares = np.broadcast_to(self.shares, tuple(defined.shape))
        return {"curve": curve.cpu().numpy(), "weights": shares, "defined": defined.cpu().numpy(), **endpoints}

    def _to_input(self, inputs: np.ndarray) -> "torch.Tensor":
        import torch

        x = as_tensor(self.network, inputs)
        if not self.vocabulary:
            return x
        blank = torch.zeros(*x.shape, self.vocabulary, dtype=self.nodes.dtype, device=x.device)
        return blank.scatter_(-1, x[..., None], 1)

    def _baseline(self, rows: slice, name: str, start: np.ndarray) -> "torch.Tensor":
        if not self.vocabulary:
            return as_tensor(self.network, start[rows])
        if name in ("probe", "given"):
            return self._to_input(start[rows])
        import torch

        shape = (len(self.probes.inputs[rows]), *self.probes.shape, self.vocabulary)
        if name == "mean":
            share = np.bincount(self.probes.inputs.reshape(-1), minlength=self.vocabulary) / self.probes.inputs.size
            return torch.from_numpy(share).to(self.nodes.device, self.nodes.dtype).expand(shape)
        return torch.full(shape, 1 / self.vocabulary, dtype=self.nodes.dtype, device=self.nodes.device)

    def _forward(self, points: "torch.Tensor") -> "torch.Tensor":
        return self.network.relaxed(points) if self.vocabulary else self.network(points)

    def _path_points(self, x: "torch.Tensor", b: "torch.Tensor", frozen: "torch.Tensor") -> Iterator[tuple]:
        """Points on the paths and the frozen choice for each, one batch at a time."""
        n = len(self.nodes)
        nodes = self.nodes.view(1, n, *[1] * (x.ndim - 1))
        whole = b[:, None] + nodes * (x - b)[:, None]
        points, frozen_points = whole.flatten(0, 1), frozen[:, None].expand(len(x), n, *frozen.shape[1:]).flatten(0, 1)
        for at in range(0, len(points), self.points):
            yield points[at : at + self.points], frozen_points[at : at + self.points]

    def _gradients(self, x: "torch.Tensor", b: "torch.Tensor", frozen: "torch.Tensor") -> "torch.Tensor":
        import torch

        found = []
        for points, frozen_points in self._path_points(x, b, frozen):
            with torch.enable_grad():
                leaf = points.detach().requires_grad_()
                outputs = self._forward(leaf.clone())
                value = self.potential.value(outputs, frozen_points).sum()
                gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
            if gradient is None:
                raise StemmaError(
                    f"the outputs of {self.network.name} do not depend differentiably on its inputs, so it has no "
                    f"gradient field ({why_no_gradient(outputs)}). Compare outputs, or pass it as a callable and use "
                    "sketch=64"
                )
            found.append(gradient)
        return torch.cat(found).double().unflatten(0, (len(x), len(self.nodes)))

    def _central_differences(self, x: "torch.Tensor", b: "torch.Tensor", frozen: "torch.Tensor") -> "torch.Tensor":
        """Projections of the curve, estimated by central differences."""
        import torch

        signs = self.projection
        assert signs is not None
        h, n, width = self.method.contrast, len(self.nodes), signs.shape[1]
        signs = signs.double() / width**0.5
        moves = signs.T * width**0.5  # [sketch, coordinates] of plus and minus one
        if self.method.channel_mean:
            moves = moves[:, None].expand(-1, x.shape[1], -1).reshape(width, -1) / x.shape[1]
        moves = moves.to(x.dtype).view(width, *x.shape[1:])
        scale = (x - b) if self.method.times_input else torch.ones_like(x)
        scale = scale[:, None].expand(len(x), n, *x.shape[1:]).flatten(0, 1)
        found, done = [], 0
        with torch.no_grad():
            for points, frozen_points in self._path_points(x, b, frozen):
                step = scale[done : done + len(points)] * h
                done += len(points)
                along = [
                    self.potential.value(self._forward(points + step * move), frozen_points)
                    - self.potential.value(self._forward(points - step * move), frozen_points)
                    for move in moves
                ]
                found.append(torch.stack(along, 1).double() / (2 * h * width**0.5))
        weighted = torch.cat(found).view(len(x), n, width) * self.weights[:, None]
        return weighted.cumsum(1) if self.method.cumulative else weighted


def _blank(network: Network) -> tuple[float, ...]:
    """The raw value of each channel that the network's own normalisation turns into zero."""
    mean = (0.0,) if network.input_spec is None else network.input_spec.mean
    inside = network.forward.asked.forward if isinstance(network.forward, KeptAnswers) else network.forward
    return mean[::-1] if getattr(inside, "flip_channels", False) else mean


def _partners(count: int, seed: int) -> np.ndarray:
    """Another probe for every probe; with three or more, not the one that its path starts from."""
    following = derangement(count, seed)
    return following[following] if count > 2 else following


def _vocabulary(network: Network, out: "torch.Tensor") -> int:
    if network.input_spec is not None:
        return int(network.input_spec.high) + 1
    return int(out.shape[-1])


def _random_signs(rows: int, columns: int, seed: int) -> "torch.Tensor":
    """The signs of the shared random projection, `int8 [rows, columns]`, the same on every machine."""
    import torch

    bits = np.random.default_rng([seed, rows, columns]).integers(0, 2, (rows, columns), np.int8)
    bits *= 2
    bits -= 1
    return torch.from_numpy(bits)


def _projected(curve: "torch.Tensor", signs: "torch.Tensor") -> "torch.Tensor":
    """A curve `[k, steps, d]` projected to `[k, steps, columns]`, by signs over the root of the columns."""
    import torch

    # In units of the largest entry, float32 loses nothing that half precision keeps.
    largest = torch.linalg.vector_norm(curve, float("inf"), 2, keepdim=True)
    total = torch.zeros(*curve.shape[:2], signs.shape[1], dtype=torch.float64, device=curve.device)
    for at in range(0, len(signs), PROJECTED):
        part = (curve[..., at : at + PROJECTED] / largest.where(largest > 0, 1)).float()
        total += part @ signs[at : at + PROJECTED].float()
    return total * largest / signs.shape[1] ** 0.5
