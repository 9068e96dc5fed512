"""Synthetic probes: noise, and CutMix of images."""

import math
from dataclasses import replace

import numpy as np

from stemma.errors import MisuseError
from stemma.probes.parameters import Parameters, check_size
from stemma.probes.probes import Probes
from stemma.types import InputSpec

COUNT = 256
"""Default number of noise probes."""

TOKENS = 64
"""Default number of tokens, if the model accepts that many."""


def noise(requested: Parameters, input_spec: InputSpec | None) -> Probes:
    """Noise: independent entries, uniform over the range of the model's inputs.

    With `kind=normal`, entries are normal around the middle of that range with a quarter of it as standard deviation,
    clipped to it; standard normal if the range is unbounded. Token ids are uniform.

    Args:
        requested: `n`, `seed`, `kind`, `shape`.
        input_spec: Input of the models. Without it, `shape` is needed and the range is [0, 1].

    Returns:
        The probes.

    Raises:
        MisuseError: If the shape is unknown, or differs from the model's input.

    """
    shape = _shape(requested.shape, input_spec)
    spec = input_spec or InputSpec("image" if len(shape) == 3 else "tensor", shape, 0.0, 1.0)
    size = (requested.n or COUNT, *shape)
    check_size("the noise", size, 8)
    draw = np.random.default_rng(requested.seed)
    description = f"noise: {requested.kind}, {size[0]} of {'x'.join(map(str, shape))}, seed {requested.seed}"
    if spec.kind == "tokens":
        if requested.kind != "uniform":
            raise MisuseError("noise for a token model is uniform over its ids. Remove kind")
        return Probes.of(draw.integers(int(spec.low), int(spec.high) + 1, size), source=description)
    ends = math.isfinite(spec.low) and math.isfinite(spec.high)
    if requested.kind == "normal":
        values = draw.standard_normal(size, np.float32)
        if ends:
            values = np.clip((spec.low + spec.high) / 2 + (spec.high - spec.low) / 4 * values, spec.low, spec.high)
    elif not ends:
        raise MisuseError("the range of the model's inputs is unbounded. Use noise with kind=normal")
    else:
        values = spec.low + (spec.high - spec.low) * draw.random(size, np.float32)
    return Probes.of(values.astype(np.float32), kind=spec.kind, source=description)


def _shape(requested: tuple[int, ...] | None, input_spec: InputSpec | None) -> tuple[int, ...]:
    if input_spec is None:
        if requested is None:
            raise MisuseError("the shape of the noise is unknown. Add it, for example noise:n=256,shape=3x32x32")
        return requested
    if input_spec.kind == "tokens":
        longest = input_spec.shape[0] or TOKENS
        shape = requested or (min(longest, TOKENS),)
        if len(shape) != 1 or (input_spec.shape[0] and shape[0] > longest):
            raise MisuseError(f"the model takes up to {longest} tokens, but noise of shape {list(shape)} was requested")
        return shape
    if requested is None:
        if 0 in input_spec.shape:
            raise MisuseError(
                f"the model takes inputs of shape {list(input_spec.shape)}, where 0 is any length. Add the shape, for "
                "example "
                f"noise:n=256,shape={'x'.join(str(n or 64) for n in input_spec.shape)}"
            )
        return input_spec.shape
    if len(requested) != len(input_spec.shape) or not all(
        n in (0, m) for n, m in zip(input_spec.shape, requested, strict=True)
    ):
        raise MisuseError(
            f"the model takes inputs of shape {list(input_spec.shape)}, but noise of shape {list(requested)} was "
            "requested"
        )
    return requested


def cutmix(images: Probes, requested: Parameters) -> Probes:
    """CutMix: each probe is an image with a box from another one.

    The box covers the share 1 - λ of the image before it is clipped at the edges, λ uniform in [0, 1], its centre a
    uniform pixel. Each image is used about equally often; labels are not kept.

    Args:
        images: At least two, of one size.
        requested: `n` (as many as there are images) and `seed`.

    Returns:
        New images, with the baseline if all share one.

    Raises:
        MisuseError: If there are too few images, or the inputs are not images.

    Source: Yun et al., "CutMix", ICCV 2019, section 3.1, with Beta(1, 1); here every image has its own box and partner.

    """
    count = len(images)
    if images.kind != "image" or images.inputs.ndim != 4 or count < 2:
        raise MisuseError(
            f"CutMix needs at least two images, but these are {count} probes of kind {images.kind} and shape "
            f"{list(images.shape)}"
        )
    n = requested.n or count
    check_size("the CutMix images", (n, *images.shape))
    height, width = images.shape[1:]
    draw = np.random.default_rng(requested.seed)
    background = np.concatenate([draw.permutation(count) for _ in range(-(-n // count))])[:n]
    foreground = (background + draw.integers(1, count, n)) % count
    kept_share, rows, columns = draw.random(n), draw.integers(0, height, n), draw.integers(0, width, n)
    out = images.inputs[background]
    for i in range(n):
        y, x = cutmix_box(kept_share[i], int(rows[i]), int(columns[i]), height, width)
        out[i, :, y, x] = images.inputs[foreground[i], :, y, x]
    shared = images.baseline is not None and images.baseline.ndim < images.inputs.ndim
    made = Probes.of(out, None, images.baseline if shared else None, kind="image")
    return replace(made, source=f"cutmix: {n} from {images.source}, seed {requested.seed}")


def cutmix_box(kept_share: float, row: int, column: int, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a CutMix box with this centre; `kept_share` is the share λ of the area outside it."""
    side = math.sqrt(1 - kept_share)
    up, left = int(height * side) // 2, int(width * side) // 2
    return (
        slice(max(row - up, 0), min(row + up, height)),
        slice(max(column - left, 0), min(column + left, width)),
    )
