"""Read image files as arrays."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stemma.errors import MissingExtraError, StemmaError, UnreadableProbesError
from stemma.probes.files import ProbeFiles
from stemma.probes.parameters import check_size
from stemma.probes.probes import Probes
from stemma.types import InputSpec

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
"""Decoders that are used; files of other formats are refused, whatever their extension."""

MAX_PIXELS = 1 << 26
"""Pixels of the largest image that is decoded."""

RGB = 3
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def read_images(files: ProbeFiles, input_spec: InputSpec | None, where: str) -> Probes:
    """Decode images to float32 `[n, channels, height, width]` in [0, 1].

    Images have one channel if all are grey, else three. EXIF rotations are applied, palettes resolved, and transparent
    pixels get a white background; CMYK and other colour spaces are converted to RGB without their profile; 16-bit grey
    keeps its precision; the first frame of animations is used. If the model has an input size, images are resized to it
    (bilinear, not keeping the aspect ratio) and converted to grey or RGB.

    Raises:
        UnreadableProbesError: If a file cannot be decoded, or sizes differ and the model gives none.
        MissingExtraError: If Pillow is not installed.

    Returns:
        The probes; `source` states what was changed.

    """
    try:
        import PIL.Image
        import PIL.ImageOps  # noqa: F401
    except ImportError as e:
        raise MissingExtraError("reading images", "pillow", "images") from e
    channels, size = _required_size(input_spec, where)
    images: list[np.ndarray] = []
    notes = {"resized": 0, "converted to grey": 0, "converted to RGB": 0}
    for path, name in zip(files.paths, files.names, strict=True):
        image = _decode(path)
        grey = image.mode in ("L", "F")
        if size is not None and image.size != size:
            image = image.resize(size, PIL.Image.Resampling.BILINEAR)
            notes["resized"] += 1
        if channels is not None and grey != (channels == 1):
            notes["converted to grey" if channels == 1 else "converted to RGB"] += 1
            image = image.convert("L") if channels == 1 else image
        array = np.asarray(image)
        if images and array.shape[:2] != images[0].shape[:2]:
            first, second = (f"{a.shape[1]} x {a.shape[0]}" for a in (images[0], array))
            raise UnreadableProbesError(
                f"images must have one size, but in {where} {files.names[0]} is {first} and {name} is {second} "
                "pixels. Resize them, or use models with a known input size"
            )
        if not images:
            check_size(f"{len(files.paths)} images of {where}", (len(files.paths), 3, *array.shape[:2]))
        images.append(array)
    return Probes.of(_stack(images, channels), files.labels, source=_describe(where, images, notes, files.classes))


def _required_size(input_spec: InputSpec | None, where: str) -> tuple[int | None, tuple[int, int] | None]:
    # channels and (width, height) of the models' input, None where unknown
    if input_spec is None:
        return None, None
    if input_spec.kind != "image" or len(input_spec.shape) != 3:
        raise UnreadableProbesError(
            f"{where} contains images, but the model takes {input_spec.kind} inputs of shape {list(input_spec.shape)}"
        )
    channels, height, width = input_spec.shape
    if channels not in (0, 1, RGB):
        raise UnreadableProbesError(
            f"{where} contains images with 1 or 3 channels, but the model takes {channels}. Use an .npz with 'inputs'"
        )
    return channels or None, (width, height) if width and height else None


def _decode(path: Path) -> "Image.Image":
    # mode L, RGB, or F with 16-bit grey in [0, 1]
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about size: the limit below is lower
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnreadableProbesError(
                        f"{path} has {image.width} x {image.height} pixels; the limit is {MAX_PIXELS}"
                    )
                return _to_grey_or_rgb(ImageOps.exif_transpose(image), path)
    except StemmaError:
        raise
    except Exception as e:  # decoders raise many kinds of error on damaged files
        why = " ".join(str(e).replace(repr(str(path)), "it").split())[:120] or type(e).__name__
        raise UnreadableProbesError(f"{path} cannot be decoded as an image: {why}. Remove or repair it") from e


def _to_grey_or_rgb(image: "Image.Image", path: Path) -> "Image.Image":
    from PIL import Image

    if image.mode in SIXTEEN_BIT_MODES:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UnreadableProbesError(f"{path} has more than 16 bits per pixel. Use an .npz with floats in [0, 1]")
        return Image.fromarray(values.astype(np.float32) / np.float32(0xFFFF))
    if image.mode == "F":
        raise UnreadableProbesError(f"{path} has float pixels of unknown range. Use an .npz with floats in [0, 1]")
    grey = image.mode in ("1", "L", "LA", "La")
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        if image.mode in ("La", "RGBa"):
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def _stack(images: list[np.ndarray], channels: int | None) -> np.ndarray:
    colour = channels == RGB or (channels is None and any(a.ndim == 3 for a in images))
    shaped = [np.repeat(a[:, :, None], 3, 2) if colour and a.ndim == 2 else a for a in images]
    if all(a.dtype == np.uint8 for a in shaped):
        return np.stack(shaped)
    floats = [a if a.dtype == np.float32 else a.astype(np.float32) / np.float32(255) for a in shaped]
    whole = np.clip(np.stack(floats), 0, 1)
    return whole.transpose(0, 3, 1, 2) if colour else whole[:, None]


def _describe(where: str, images: list[np.ndarray], notes: dict[str, int], classes: str) -> str:
    height, width = images[0].shape[:2]
    parts = [f"{len(images)} images"]
    parts += [f"{count} {what}" + (f" to {width} x {height}" if what == "resized" else "")
              for what, count in notes.items() if count]  # fmt: skip
    return f"{where}: {', '.join([*parts, classes] if classes else parts)}"
