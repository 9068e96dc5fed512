"""Input size, range and normalisation of a checkpoint, from `config.json` and `preprocessor_config.json`."""

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
    """How raw inputs become the inputs of the network.

    Attributes:
        spec: The raw inputs, with the normalisation.
        flip_channels: Whether the channel order is reversed first.
        per_input: Whether every input is standardised separately.

    """

    spec: InputSpec
    flip_channels: bool = False
    per_input: bool = False


def read_preprocessor(folder: Path) -> Mapping[str, Any]:
    """`preprocessor_config.json` of a folder, or the image part of `processor_config.json`; empty without one."""
    found = cards.json_object(folder / "preprocessor_config.json", [])
    if found is None:
        whole = cards.json_object(folder / "processor_config.json", []) or {}
        found = whole.get("image_processor") or whole.get("feature_extractor") or {}
    return found


def image_preprocessing(config: Mapping[str, Any], settings: Any, preprocessor: Mapping[str, Any]) -> Preprocessing:
    """Images in [0, 1], `[channels, height, width]`.

    The size is that of the configuration, else of the preprocessor, else of the architecture, else free (0). Without a
    preprocessor nothing is normalised.

    Args:
        config: The configuration as stored.
        settings: The same with the architecture's defaults.
        preprocessor: The preprocessor's configuration, empty without one.

    Raises:
        UnreadableModelError: If mean or standard deviation are unusable.

    Returns:
        The preprocessing.

    """
    channels = int(getattr(settings, "num_channels", None) or 3)
    cropped = preprocessor.get("crop_size") if preprocessor.get("do_center_crop", "crop_size" in preprocessor) else None
    part = config.get("vision_config")
    own = config.get("image_size") or (part.get("image_size") if isinstance(part, Mapping) else None)
    found = (own, cropped, preprocessor.get("size"), getattr(settings, "image_size", None))
    size = next((pair for pair in map(_pair, found) if pair), (0, 0))
    factor = (
        BYTE * float(preprocessor.get("rescale_factor", 1 / BYTE)) if preprocessor.get("do_rescale", True) else BYTE
    )
    shift = 1.0 if preprocessor.get("rescale_offset") and preprocessor.get("do_rescale", True) else 0.0
    if not preprocessor:
        factor = 1.0
    mean, std = [0.0], [1.0]
    if preprocessor.get("do_normalize", "image_mean" in preprocessor):
        mean, std = (
            _channel(preprocessor.get("image_mean", 0.5), channels),
            _channel(preprocessor.get("image_std", 0.5), channels),
        )
    if not factor or any(s <= 0 for s in std):
        raise UnreadableModelError(
            f"preprocessor_config.json has an invalid divisor {0 if not factor else std} (rescale_factor or "
            "image_std). Correct it"
        )
    spec = InputSpec(
        "image", (channels, *size), 0.0, 1.0, tuple((m + shift) / factor for m in mean), tuple(s / factor for s in std)
    )
    return Preprocessing(spec, flip_channels=bool(preprocessor.get("do_flip_channel_order")))


def audio_preprocessing(settings: Any, preprocessor: Mapping[str, Any]) -> Preprocessing:
    """Waveforms of any length in [-1, 1], or spectrograms `[frames, bins]` for networks that take those.

    Spectrograms range over four standard deviations around the preprocessor's mean, and are normalised by the mean and
    twice the standard deviation.

    Args:
        settings: The configuration with the architecture's defaults.
        preprocessor: The preprocessor's configuration, empty without one.

    Returns:
        The preprocessing.

    """
    bins, frames = getattr(settings, "num_mel_bins", None), getattr(settings, "max_length", None)
    if not bins or not frames:
        return Preprocessing(
            InputSpec("audio", (0,), -1.0, 1.0), per_input=bool(preprocessor.get("do_normalize", False))
        )
    mean, std = float(preprocessor.get("mean", 0.0)), float(preprocessor.get("std", 0.5))
    low, high = mean - 4 * std, mean + 4 * std
    normalise = bool(preprocessor.get("do_normalize", False))
    spec = InputSpec("tensor", (int(frames), int(bins)), low, high)
    return Preprocessing(InputSpec("tensor", spec.shape, low, high, (mean,), (2 * std,)) if normalise else spec)


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
            f"preprocessor_config.json has {len(numbers)} means or standard deviations for {channels} channels. "
            "Correct it"
        )
    return numbers
