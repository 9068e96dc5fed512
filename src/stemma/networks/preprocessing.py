"""What a checkpoint says about its inputs: size, range and normalisation, from `config.json` and its neighbour."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.checkpoints import cards
from stemma.errors import UnreadableModelError
from stemma.types import InputSpec

BYTE = 255.0
"""A raw image of value 1 is a stored image of this value."""


@dataclass(frozen=True)
class Preprocessing:
    """How raw inputs become what the network was trained on.

    Attributes:
        spec: The raw inputs, with the normalisation.
        flip: Whether the channels are reversed first.
        each: Whether every input is brought to mean 0 and variance 1.
    """

    spec: InputSpec
    flip: bool = False
    each: bool = False


def claimed(folder: Path) -> Mapping[str, Any]:
    """The `preprocessor_config.json` of a folder, or the image part of its `processor_config.json`.

    Returns:
        As read; empty without one.
    """
    found = cards.json_object(folder / "preprocessor_config.json", [])
    if found is None:
        whole = cards.json_object(folder / "processor_config.json", []) or {}
        found = whole.get("image_processor") or whole.get("feature_extractor") or {}
    return found


def image(config: Mapping[str, Any], settings: Any, says: Mapping[str, Any]) -> Preprocessing:
    """Images in [0, 1], `[channels, height, width]`.

    Args:
        config: The configuration as stored.
        settings: The same with the architecture's defaults.
        says: The preprocessor's configuration, empty where there is none.

    Returns:
        The size is the configuration's, else the preprocessor's, else the architecture's, else any (0); without a
        preprocessor nothing is normalised.

    Raises:
        UnreadableModelError: If mean or standard deviation are unusable.
    """
    channels = int(getattr(settings, "num_channels", None) or 3)
    cropped = says.get("crop_size") if says.get("do_center_crop", "crop_size" in says) else None
    part = config.get("vision_config")
    own = config.get("image_size") or (part.get("image_size") if isinstance(part, Mapping) else None)
    found = (own, cropped, says.get("size"), getattr(settings, "image_size", None))
    size = next((pair for pair in map(_pair, found) if pair), (0, 0))
    factor = BYTE * float(says.get("rescale_factor", 1 / BYTE)) if says.get("do_rescale", True) else BYTE
    shift = 1.0 if says.get("rescale_offset") and says.get("do_rescale", True) else 0.0
    if not says:
        factor = 1.0
    mean, std = [0.0], [1.0]
    if says.get("do_normalize", "image_mean" in says):
        mean, std = _channel(says.get("image_mean", 0.5), channels), _channel(says.get("image_std", 0.5), channels)
    if not factor or any(s <= 0 for s in std):
        raise UnreadableModelError(f"the preprocessor_config.json divides by {0 if not factor else std}: correct it")
    spec = InputSpec(
        "image", (channels, *size), 0.0, 1.0, tuple((m + shift) / factor for m in mean), tuple(s / factor for s in std)
    )
    return Preprocessing(spec, flip=bool(says.get("do_flip_channel_order")))


def sound(settings: Any, says: Mapping[str, Any]) -> Preprocessing:
    """Waveforms of any length, or spectrograms `[frames, bins]` for networks that take those.

    Args:
        settings: The configuration with the architecture's defaults.
        says: The preprocessor's configuration, empty where there is none.

    Returns:
        Waveforms in [-1, 1], normalised one by one where the preprocessor says so; spectrograms within four standard
        deviations of the preprocessor's mean, normalised by mean and twice the standard deviation.
    """
    bins, frames = getattr(settings, "num_mel_bins", None), getattr(settings, "max_length", None)
    if not bins or not frames:
        return Preprocessing(InputSpec("audio", (0,), -1.0, 1.0), each=bool(says.get("do_normalize", False)))
    mean, std = float(says.get("mean", 0.0)), float(says.get("std", 0.5))
    low, high = mean - 4 * std, mean + 4 * std
    inside = bool(says.get("do_normalize", False))
    spec = InputSpec("tensor", (int(frames), int(bins)), low, high)
    return Preprocessing(InputSpec("tensor", spec.shape, low, high, (mean,), (2 * std,)) if inside else spec)


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge") or size.get("longest_edge")
        size = [size.get("height", edge), size.get("width", edge)]
    numbers = size if isinstance(size, (list, tuple)) else (size, size)
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 and all(numbers) else None


def _channel(values: Any, channels: int) -> list[float]:
    numbers = [float(v) for v in values] if isinstance(values, (list, tuple)) else [float(values)]
    if len(numbers) not in (1, channels):
        raise UnreadableModelError(
            f"the preprocessor_config.json has {len(numbers)} means or deviations for {channels} channels: correct it"
        )
    return numbers
