"""What a question is: arrays decoded by hand, drawn by a slow twin, identified whatever their memory looks like."""

import io
import itertools
import os
import struct
import subprocess
import sys
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stemma.errors import MissingExtraError, MisuseError, StemmaError, UnreadableProbesError
from stemma.probes import Probes, read_probes
from stemma.probes.synthetic import cutmix_box
from stemma.types import InputSpec

RNG = np.random.default_rng(5)
COLOUR = RNG.integers(0, 256, (6, 5, 7, 3), np.uint8)
GREY = RNG.integers(0, 256, (6, 5, 7), np.uint8)
FLOATS = RNG.normal(size=(4, 3, 5, 7)).astype(np.float32)
IDS = RNG.integers(0, 256, (4, 9))
RGB = InputSpec("image", (3, 5, 7), 0.0, 1.0)
BYTES = InputSpec("tokens", (32,), 0, 255)
SOUND = InputSpec("audio", (0,), -1.0, 1.0)


def one_sentence(error: pytest.ExceptionInfo[StemmaError]) -> bool:
    said = str(error.value)
    return "\n" not in said and len(said) < 600 and "Traceback" not in said


def refused(
    words: str, *parts: str, input_spec: InputSpec | None = None, kind: type[StemmaError] = StemmaError
) -> None:
    with pytest.raises(kind) as error:
        read_probes(words, input_spec)
    assert one_sentence(error)
    for part in parts:
        assert part in str(error.value), str(error.value)


# Probes themselves


def layouts(array: np.ndarray) -> dict[str, np.ndarray]:
    wide = np.zeros((2 * len(array), *array.shape[1:]), array.dtype)
    wide[::2] = array
    return {
        "fortran": np.asfortranarray(array),
        "strided": wide[::2],
        "reversed": np.ascontiguousarray(array[::-1])[::-1],
        "big-endian": array.astype(array.dtype.newbyteorder(">")),
        "read-only": np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
    }


@pytest.mark.parametrize("array", [FLOATS, FLOATS.astype(np.float64), IDS, COLOUR, GREY], ids=lambda a: str(a.dtype))
def test_the_digest_is_of_the_values_not_of_their_memory(array: np.ndarray) -> None:
    labels = np.arange(len(array))
    digest = Probes.of(array, labels).digest
    for name, same in layouts(array).items():
        made = Probes.of(same, labels.astype(">i4"))
        assert made.digest == digest, name
        np.testing.assert_array_equal(made.inputs, Probes.of(array).inputs)
    assert Probes.of(torch.from_numpy(array), torch.from_numpy(labels)).digest == digest
    # Probes that were not made by `of` are held to the same.
    plain = Probes.of(array, labels)
    odd = Probes(plain.inputs.astype(plain.inputs.dtype.newbyteorder(">")), plain.kind, labels.astype(">i8"))
    assert odd.digest == digest


def test_the_digest_changes_with_whatever_changes_the_question() -> None:
    base = Probes.of(FLOATS, [0, 1, 2, 0], FLOATS[0])
    nudged = FLOATS.copy()
    nudged[3, 2, 4, 6] = np.nextafter(nudged[3, 2, 4, 6], np.float32(9))
    others = {
        "order": base.take([1, 0, 2, 3]),
        "fewer": base.take([0, 1, 2]),
        "one value": Probes.of(nudged, [0, 1, 2, 0], FLOATS[0]),
        "labels": base.with_labels([0, 1, 2, 1]),
        "no labels": base.with_labels(None),
        "whose labels": base.with_labels([0, 1, 2, 0], "a model"),
        "another's labels": base.with_labels([0, 1, 2, 0], "a model "),
        "baseline": Probes.of(FLOATS, [0, 1, 2, 0], FLOATS[1]),
        "no baseline": Probes.of(FLOATS, [0, 1, 2, 0]),
        "axes": Probes.of(FLOATS.reshape(4, 3, 7, 5), [0, 1, 2, 0], FLOATS[0].reshape(3, 7, 5)),
        "kind": Probes.of(FLOATS, [0, 1, 2, 0], FLOATS[0], kind="tensor"),
        "width": Probes.of(FLOATS.astype(float), [0, 1, 2, 0], FLOATS[0]),
    }
    digests = {name: probes.digest for name, probes in others.items()}
    assert len({base.digest, *digests.values()}) == 1 + len(others), digests
    # The control: what people read changes nothing, and no labels are nobody's.
    assert Probes.of(FLOATS, [0, 1, 2, 0], FLOATS[0], source="elsewhere").digest == base.digest
    assert base.with_labels(None, "a model").digest == base.with_labels(None).digest


def test_whoever_gave_the_arrays_cannot_change_the_probes() -> None:
    mine, labels, start = FLOATS.copy(), np.array([0, 1, 2, 3]), FLOATS[0].copy()
    probes = Probes.of(mine, labels, start)
    before = probes.digest
    mine[:], labels[:], start[:] = 0, 0, 0
    assert Probes(probes.inputs, probes.kind, probes.labels, probes.baseline).digest == before
    for held in (probes.inputs, probes.labels, probes.baseline, probes.take([1]).inputs):
        assert held is not None
        with pytest.raises(ValueError, match="read-only"):
            held[0] = 1
    assert mine.flags.writeable


def test_narrow_and_wide_numbers() -> None:
    halves = torch.arange(6.0).reshape(2, 3)
    for dtype in (torch.bfloat16, torch.float16):
        np.testing.assert_array_equal(Probes.of(halves.to(dtype).requires_grad_()).inputs, halves.numpy())
    exact = np.array([[1 / 3, 2 / 3]])
    for wide in (exact, exact.astype(">f8"), exact.astype(np.longdouble)):
        made = Probes.of(wide).inputs
        assert made.dtype == np.float64
        np.testing.assert_array_equal(made, exact)
    assert Probes.of([[1, 2], [3, 4]]).kind == "tokens"
    assert Probes.of([[1.0, 2], [3, 4]]).kind == "tensor"
    assert len(Probes.of(FLOATS[:1])) == 1


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (np.zeros((0, 3)), "[0, 3]"),
        (np.zeros((4, 0)), "[4, 0]"),
        (np.zeros(4), "[4]"),
        (np.float32(1), "[]"),
        (np.zeros((4, 3), complex), "complex128"),
        (np.zeros((4, 3), bool), "bool"),
        (np.array([["a", "b"]]), "<U1"),
        (np.array([["2020-01-01"]], "M8[D]"), "datetime64"),
        ([[1.0, 2.0], [3.0]], "one array"),
        ([[1, None]], "object"),
        (None, "object"),
        (torch.zeros(2, 3).to_sparse(), "dense"),
        (torch.zeros(2, 3, device="meta"), "dense"),
        (torch.zeros(2, 3, dtype=torch.complex64), "complex64"),
        (np.ma.masked_array(np.ones((2, 2)), [[0, 1], [0, 0]]), "masked"),
        (np.array([[1.0, np.nan]]), "NaN"),
        (np.array([[1.0, -np.inf]]), "infinite"),
        (np.array([[3, -1]]), "-1"),
        (np.array([[2**63]], np.uint64), "9223372036854775808"),
        (np.zeros((2, 4, 4), np.int32), "uint8"),
        (np.zeros((2, 3, 32, 32), np.uint8), "to the end"),
    ],
)
def test_what_is_no_probes_is_refused(inputs: object, words: str) -> None:
    with pytest.raises(MisuseError) as error:
        Probes.of(inputs)
    assert words in str(error.value)
    assert one_sentence(error)


def test_kinds_have_their_arrays() -> None:
    assert Probes.of(FLOATS[:, 0, 0], kind="audio").kind == "audio"
    assert Probes.of(FLOATS, kind="tensor").kind == "tensor"
    for array, kind in ((FLOATS, "tokens"), (IDS, "image"), (FLOATS[:, 0, 0], "image"), (FLOATS, "audio")):
        with pytest.raises(MisuseError, match="of kind"):
            Probes.of(array, kind=kind)
    with pytest.raises(MisuseError, match="unknown kind of probes 'video'"):
        Probes.of(FLOATS, kind="video")


@pytest.mark.parametrize(
    "labels",
    [[0.0, 1.0, 2.0, 3.0], [0, 1, 2], [[0], [1], [2], [3]], [0, 1, 2, -1], [True, False, True, True],
     np.array([0, 1, 2, 2**63], np.uint64), ["a", "b", "c", "d"], 3],
)  # fmt: skip
def test_labels_are_one_class_per_probe(labels: object) -> None:
    with pytest.raises(MisuseError, match="label"):
        Probes.of(FLOATS, labels)
    with pytest.raises(MisuseError, match="label"):
        Probes.of(FLOATS).with_labels(labels)
    good = Probes.of(FLOATS, np.array([0, 1, 2, 3], np.uint8)).labels
    assert good is not None
    assert good.dtype == np.int64


def test_baselines_are_in_the_units_of_the_inputs() -> None:
    assert Probes.of(COLOUR, baseline=COLOUR[0]).digest == Probes.of(COLOUR, baseline=COLOUR[0].copy()).digest
    one = Probes.of(COLOUR, baseline=COLOUR[0]).baseline
    np.testing.assert_array_equal(one, COLOUR[0].transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(Probes.of(GREY, baseline=GREY[1]).baseline, GREY[1][None].astype(np.float32) / 255)
    each = Probes.of(COLOUR, baseline=COLOUR[::-1]).baseline
    assert each is not None
    assert each.shape == (6, 3, 5, 7)
    for inputs, baseline, words in (
        (FLOATS, COLOUR[0].transpose(2, 0, 1), "raw units"),  # 0 to 255 beside inputs in [0, 1]
        (FLOATS, np.full((3, 5, 7), np.nan), "NaN"),
        (FLOATS, np.full((3, 5, 7), 1e300), "infinite"),
        (FLOATS, FLOATS[:, :, :, :3], "shape"),
        (FLOATS, np.float32(0), "shape"),
        (FLOATS, FLOATS[0].astype(complex), "complex"),
        (IDS, IDS[0] + 0.5, "token ids"),
        (IDS, IDS[0] - 300, "token ids"),
        (COLOUR, np.zeros((4, 4, 3), np.uint8), "shape"),
    ):
        with pytest.raises(MisuseError, match=words):
            Probes.of(inputs, baseline=baseline)


def test_some_of_the_probes() -> None:
    probes = Probes.of(FLOATS, [5, 6, 7, 8], FLOATS[::-1])
    by_hand = [FLOATS[3], FLOATS[0]]
    picks = ([3, 0], [-1, 0], np.array([3, -4], np.int8), (3, 0))
    for rows in picks:
        taken = probes.take(rows)
        np.testing.assert_array_equal(taken.inputs, by_hand)
        assert list(taken.labels if taken.labels is not None else []) == [8, 5]
        np.testing.assert_array_equal(taken.baseline, [FLOATS[0], FLOATS[3]])
    assert probes.take([True, False, False, True]).digest == probes.take([0, 3]).digest
    assert probes.take(slice(None, None, -1)).digest == probes.take([3, 2, 1, 0]).digest
    assert probes.take(range(4)).digest == probes.digest
    shared = Probes.of(FLOATS, baseline=FLOATS[0]).take([2, 2])
    assert shared.baseline is not None
    assert shared.baseline.shape == (3, 5, 7)
    for rows in ([4], [-5], [0.0, 1.0], [True, False], 2, [[0, 1]], [], slice(4, None), ["a"], [False] * 4):
        with pytest.raises(MisuseError) as error:
            probes.take(rows)
        assert one_sentence(error)


def test_repeated_probes_are_counted() -> None:
    twice = np.concatenate([FLOATS, FLOATS[[1, 1, 3]]])
    assert Probes.of(twice).repeated == 3
    assert Probes.of(FLOATS).repeated == 0


# Images


def save(folder: Path, pictures: np.ndarray, names: list[str] | None = None) -> Path:
    for i, picture in enumerate(pictures):
        path = folder / (names[i] if names else f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return folder


def by_hand(pictures: np.ndarray) -> np.ndarray:
    out = np.empty((len(pictures), 3, *pictures.shape[1:3]), np.float32)
    for n, c, y, x in np.ndindex(out.shape):
        out[n, c, y, x] = np.float32(pictures[n, y, x, c]) / np.float32(255)
    return out


def test_a_folder_of_images_is_the_array_of_its_pixels(tmp_path: Path) -> None:
    probes = read_probes(str(save(tmp_path / "a", COLOUR)))
    assert (probes.kind, probes.labels, probes.baseline) == ("image", None, None)
    np.testing.assert_array_equal(probes.inputs, by_hand(COLOUR))
    assert probes.digest == Probes.of(COLOUR).digest  # the same question as the same pixels in an .npz
    grey = read_probes(str(save(tmp_path / "b", GREY)))
    np.testing.assert_array_equal(grey.inputs, GREY[:, None].astype(np.float32) / np.float32(255))


def test_every_kind_of_image_file(tmp_path: Path) -> None:
    smooth = np.stack(np.meshgrid(np.arange(0, 224, 32), np.arange(0, 160, 32)), -1)
    picture = np.dstack([smooth, 255 - smooth[..., :1]]).astype(np.uint8)
    for ending, far in (
        ("png", 0),
        ("bmp", 0),
        ("tif", 0),
        ("tiff", 0),
        ("webp", 40),
        ("jpg", 60),
        ("jpeg", 60),
        ("gif", 40),
    ):
        path = tmp_path / ending / f"x.{ending.upper()}"
        path.parent.mkdir()
        Image.fromarray(picture).save(path)
        found = read_probes(str(path.parent)).inputs
        assert np.abs(found - by_hand(picture[None])).max() <= far / 255, ending
        np.testing.assert_array_equal(read_probes(str(path)).inputs, found)
    assert np.abs(by_hand(picture[None]) - by_hand(255 - picture[None])).max() > 0.5  # the control of the tolerance


def test_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((5, 7), v, np.uint8)) for v in (10, 200)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert np.allclose(read_probes(str(tmp_path)).inputs, 10 / 255)


def test_orientation_is_carried_out(tmp_path: Path) -> None:
    grey = np.arange(35, dtype=np.uint8).reshape(5, 7)
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.T, 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].T, 8: lambda a: np.rot90(a),
    }  # fmt: skip
    for orientation, right in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        Image.fromarray(grey).save(path, exif=exif)
        np.testing.assert_array_equal(read_probes(str(path)).inputs[0, 0], right(grey).astype(np.float32) / 255)


def test_palettes_transparency_inks_and_sixteen_bits(tmp_path: Path) -> None:
    few = COLOUR[0] // 128 * 128
    Image.fromarray(few).quantize(8, dither=Image.Dither.NONE).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_probes(str(tmp_path / "palette.png")).inputs, by_hand(few[None]))

    alpha = np.dstack([COLOUR[0], GREY[0]])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    share = GREY[0][..., None] / 255
    white = share * COLOUR[0] + (1 - share) * 255
    assert np.abs(read_probes(str(tmp_path / "alpha.png")).inputs[0].transpose(1, 2, 0) * 255 - white).max() <= 1
    hidden = alpha.copy()
    hidden[..., 3] = 0  # what colour lies under full transparency does not count
    Image.fromarray(hidden).save(tmp_path / "hidden.png")
    assert (read_probes(str(tmp_path / "hidden.png")).inputs == 1).all()

    grey_alpha = Image.merge("LA", [Image.fromarray(GREY[0]), Image.fromarray(np.full((5, 7), 255, np.uint8))])
    grey_alpha.save(tmp_path / "grey-alpha.png")
    np.testing.assert_array_equal(
        read_probes(str(tmp_path / "grey-alpha.png")).inputs, GREY[:1, None] / np.float32(255)
    )

    inks = np.zeros((5, 7, 4), np.uint8)
    inks[..., 0] = 255  # all cyan
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "inks.tif")
    np.testing.assert_array_equal(read_probes(str(tmp_path / "inks.tif")).inputs[0, :, 0, 0], [0, 1, 1])

    fine = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
    for name in ("fine.png", "fine.tif"):
        Image.fromarray(fine).save(tmp_path / name)
        np.testing.assert_array_equal(read_probes(str(tmp_path / name)).inputs[0, 0], fine / np.float32(65535))
    bits = GREY[0] > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_probes(str(tmp_path / "bits.png")).inputs[0, 0], bits)
    Image.fromarray(np.full((5, 7), 70000, np.int32)).save(tmp_path / "deep.tif")
    refused(str(tmp_path / "deep.tif"), "deep.tif", "16 bits")
    Image.fromarray(np.full((5, 7), 0.5, np.float32)).save(tmp_path / "float.tif")
    refused(str(tmp_path / "float.tif"), "float.tif", "unknown range")


def test_grey_among_colour_has_three_channels(tmp_path: Path) -> None:
    save(tmp_path, COLOUR[:1], ["a.png"])
    save(tmp_path, GREY[:1], ["b.png"])
    found = read_probes(str(tmp_path)).inputs
    np.testing.assert_array_equal(found[0], by_hand(COLOUR[:1])[0])
    np.testing.assert_array_equal(found[1], np.stack([GREY[0] / np.float32(255)] * 3))
    fine = np.full((5, 7), 65535, np.uint16)
    Image.fromarray(fine).save(tmp_path / "c.png")
    mixed = read_probes(str(tmp_path)).inputs
    np.testing.assert_array_equal(mixed[:2], found)
    assert (mixed[2] == 1).all()


def test_images_take_the_size_that_the_model_takes(tmp_path: Path) -> None:
    folder = str(save(tmp_path, np.repeat(np.repeat(COLOUR, 2, 1), 2, 2)))
    halved = read_probes(folder, RGB)
    assert halved.shape == (3, 5, 7)
    assert "6 resized to 7 x 5" in halved.source
    expected = [
        np.asarray(Image.open(tmp_path / f"{i}.png").resize((7, 5), Image.Resampling.BILINEAR)) for i in range(6)
    ]
    np.testing.assert_array_equal(halved.inputs, by_hand(np.stack(expected)))
    grey = read_probes(folder, InputSpec("image", (1, 5, 7), 0.0, 1.0))
    luma = COLOUR[0] @ [0.299, 0.587, 0.114]
    assert grey.shape == (1, 5, 7)
    assert "6 converted to grey" in grey.source
    same = read_probes(folder, InputSpec("image", (0, 0, 0), 0.0, 1.0))
    assert same.shape == (3, 10, 14)
    assert "resized" not in same.source
    exact = read_probes(str(save(tmp_path / "exact", COLOUR)), InputSpec("image", (1, 5, 7), 0.0, 1.0))
    assert np.abs(exact.inputs[0, 0] * 255 - luma).max() <= 1
    refused(folder, "1 or 3 channels", "takes 4", input_spec=InputSpec("image", (4, 5, 7), 0.0, 1.0))
    refused(folder + "/0.png", "takes tokens", input_spec=BYTES)


def test_sizes_that_differ_name_two_files(tmp_path: Path) -> None:
    save(tmp_path, COLOUR[:2], ["a.png", "c.png"])
    save(tmp_path, COLOUR[:1, :4], ["b.png"])
    refused(str(tmp_path), "a.png is 7 x 5", "b.png is 7 x 4", kind=UnreadableProbesError)
    assert read_probes(str(tmp_path), RGB).shape == (3, 5, 7)
    (tmp_path / "b.png").unlink()
    assert len(read_probes(str(tmp_path))) == 2


def test_subfolders_are_classes_only_where_all_files_lie_in_one(tmp_path: Path) -> None:
    names = ["dog/1.png", "cat/2.png", "dog/0.png", "bird/9.png", "cat/1.png", "Zebra/0.png"]
    probes = read_probes(str(save(tmp_path, COLOUR, names)))
    order = sorted(range(6), key=lambda i: names[i])
    np.testing.assert_array_equal(probes.inputs, by_hand(COLOUR)[order])
    assert probes.labels is not None
    assert probes.labels.tolist() == [0, 1, 2, 2, 3, 3]
    assert "0 = Zebra, 1 = bird" in probes.source
    save(tmp_path, COLOUR[:1], ["loose.png"])
    assert read_probes(str(tmp_path)).labels is None
    (tmp_path / "loose.png").unlink()
    save(tmp_path, COLOUR[:1], ["dog/deep/0.png"])
    assert read_probes(str(tmp_path)).labels is None


def test_folders_that_are_numbers_are_these_classes(tmp_path: Path) -> None:
    probes = read_probes(str(save(tmp_path, COLOUR[:3], ["10/a.png", "9/a.png", "0/a.png"])))
    assert probes.labels is not None
    assert probes.labels.tolist() == [0, 10, 9]
    np.testing.assert_array_equal(probes.inputs, by_hand(COLOUR)[[2, 0, 1]])
    mixed = read_probes(str(save(tmp_path / "b", COLOUR[:3], ["10/a.png", "9/a.png", "x/a.png"]))).labels
    assert mixed is not None
    assert mixed.tolist() == [0, 1, 2]


def test_the_order_is_that_of_names_not_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["b.png", "a/z.png", "a.png", "B.png", "é.png", "f.png"]
    folder = save(tmp_path / "a", COLOUR, names)
    expected = read_probes(str(folder)).digest
    plain = os.walk

    def shuffled(*args: object, **options: object):
        for where, folders, files in plain(*args, **options):
            folders.reverse()
            yield where, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", shuffled)
    assert read_probes(str(folder)).digest == expected
    # A disk that stores accents decomposed.
    decomposed = save(tmp_path / "b", COLOUR, [n.replace("é", "e\u0301") for n in names])
    assert read_probes(str(decomposed)).digest == expected
    assert read_probes(str(save(tmp_path / "c", COLOUR))).digest != expected


def test_hidden_and_other_files_are_not_looked_at(tmp_path: Path) -> None:
    expected = read_probes(str(save(tmp_path, COLOUR))).digest
    for name in ("._0.png", ".hidden/x.png", "__MACOSX/0.png", "README.txt", "notes.md", "sound.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"nothing")
    assert read_probes(str(tmp_path)).digest == expected
    (tmp_path / "visible").mkdir()
    (tmp_path / "visible" / "x.png").write_bytes(b"nothing")
    refused(str(tmp_path), "visible/x.png")


def test_damaged_images_are_named(tmp_path: Path) -> None:
    noisy = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    for ending in ("png", "jpg", "bmp", "webp", "gif", "tif"):
        whole = io.BytesIO()
        Image.fromarray(noisy).save(whole, {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending))
        path = tmp_path / f"x.{ending}"
        path.write_bytes(whole.getvalue())
        assert len(read_probes(str(path))) == 1
        for cut in (0, 5, 40, len(whole.getvalue()) // 2):
            path.write_bytes(whole.getvalue()[:cut])
            refused(str(path), f"x.{ending}", kind=UnreadableProbesError)


def test_an_image_that_claims_to_be_huge_is_not_decoded(tmp_path: Path) -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        import zlib

        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12000, 12000, 8, 0, 0, 0, 0))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"x" * 50) + chunk(b"IEND", b""))
    refused(str(tmp_path), "x.png", "limit")
    # An ending does not choose the decoder: PostScript would run an interpreter.
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\nshowpage\n")
    refused(str(tmp_path), "x.png", "cannot")
    Image.fromarray(COLOUR[0]).save(tmp_path / "x.ppm")
    (tmp_path / "x.ppm").replace(tmp_path / "x.png")
    refused(str(tmp_path), "x.png", "cannot")


def test_images_without_pillow_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, COLOUR)
    assert len(read_probes(str(folder))) == 6
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"stemma-ml\[images\]"):
        read_probes(str(folder))


# Arrays


def test_an_npz_is_inputs_labels_and_baseline(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    for store, array in itertools.product(
        (np.savez, np.savez_compressed), (FLOATS, FLOATS.astype(">f4"), FLOATS.T.copy().T)
    ):
        store(path, inputs=array, labels=np.arange(4, dtype=np.uint8), baseline=FLOATS[0], other=np.array(["x"]))
        assert read_probes(str(path)).digest == Probes.of(FLOATS, [0, 1, 2, 3], FLOATS[0]).digest
    np.savez(path, images=COLOUR)
    assert read_probes(str(path)).digest == Probes.of(COLOUR).digest
    np.save(tmp_path / "p.npy", IDS)
    assert read_probes(str(tmp_path / "p.npy")).digest == Probes.of(IDS).digest
    np.savez(path, inputs=FLOATS[:, 0, 0])
    assert read_probes(str(path), SOUND).kind == "audio"
    assert read_probes(str(path)).kind == "tensor"


def test_real_digits(shared: Path) -> None:
    path = shared / "data" / "mnist_test.npz"
    probes = read_probes(f"{path}#n=200,seed=1")
    raw = dict(np.load(path))
    assert probes.shape == (1, 28, 28)
    assert probes.labels is not None
    every = {raw["images"][i].tobytes(): int(raw["labels"][i]) for i in range(10000)}
    for x, label in zip(probes.inputs, probes.labels, strict=True):
        assert every[np.round(x * 255).astype(np.uint8).tobytes()] == label
    refused(str(shared / "data" / "cifar10_jpeg_test.npz"), "jpeg_header", "inputs", kind=UnreadableProbesError)
    refused(str(shared / "data" / "spoken_digits_mulaw8k.npz"), "mulaw", "inputs")


class _Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_no_pickle_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad = np.empty((2, 2), object)
    bad[:] = _Bomb()
    np.savez("a.npz", inputs=bad)
    np.save("a.npy", bad, allow_pickle=True)
    np.savez("b.npz", inputs=FLOATS, labels=bad[0, :1])
    for name in ("a.npz", "a.npy", "b.npz"):
        refused(name, "pickle")
    assert not Path("exploded").exists()
    with pytest.raises(ValueError, match="Object arrays"):
        np.load("a.npy")  # the control: it is such a file


def _header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.anywhere
def test_hostile_arrays(tmp_path: Path) -> None:
    path, npz = tmp_path / "x.npy", tmp_path / "x.npz"
    good = _header((2, 3)) + np.zeros(6, "<f4").tobytes()
    path.write_bytes(good)
    assert read_probes(str(path)).shape == (3,)
    for content in (
        b"", good[:5], good[:40], good[:-1], good + b"x", b"PK\x03\x04" + good, _header((2**40, 2**20)) + b"12",
        _header((-2, -3)) + good[-24:], _header((2, 3), "<f99") + good[-24:], _header((2, 3), "|V4") + good[-24:],
        _header((2, 3), "|S4") + good[-24:], good.replace(b"'shape'", b"'shapf'"), good.replace(b"(2, 3)", b"((2,3)"),
        b"\x93NUMPY\x01\x00\xff\xff{" + b"(" * 60000, _header((0, 3)), _header((2, 0)),
        good.replace(b"\x01\x00", b"\x07\x00", 1),
    ):  # fmt: skip
        path.write_bytes(content)
        refused(str(path), "x.npy")
        with zipfile.ZipFile(npz, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inputs.npy", content)
        refused(str(npz), "x.npz")


@pytest.mark.anywhere
def test_hostile_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, inputs=RNG.normal(size=(9, 9)))
    whole = path.read_bytes()
    assert len(read_probes(str(path))) == 9
    for cut in (0, 10, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:cut])
        refused(str(path), "x.npz", kind=UnreadableProbesError)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    path.write_bytes(flipped)
    refused(str(path), "x.npz")
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("inputs.npy", "w", force_zip64=True) as file,
    ):
        file.write(_header((300, 1 << 20), "|u1"))
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    refused(str(path), "bomb")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.npy", _header((0,)))
    refused(str(path), "'other'", "inputs")
    np.savez(path, inputs=FLOATS, images=COLOUR)
    refused(str(path), "both")
    np.savez(path, inputs=FLOATS, labels=np.zeros(4))
    refused(str(path), "x.npz", "labels must be one integer per probe")
    np.savez(path, inputs=FLOATS, labels=np.zeros(3, int))
    refused(str(path), "labels must be one integer per probe (4)")


def test_values_of_another_range_are_pointed_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", inputs=np.float32(255) * np.abs(FLOATS))
    assert "where the model takes 0 to 1" in read_probes(str(tmp_path / "p.npz"), RGB).source
    np.savez(tmp_path / "p.npz", inputs=np.clip(FLOATS, 0, 1))
    assert "takes" not in read_probes(str(tmp_path / "p.npz"), RGB).source
    np.savez(tmp_path / "p.npz", inputs=FLOATS[[0, 1, 0, 0]])
    assert "2 of them repeated" in read_probes(str(tmp_path / "p.npz")).source


# Texts


def test_lines_are_cut_into_windows_of_bytes(tmp_path: Path) -> None:
    lines = ["abcdefghij", "", "klm", "grüße an alle", "   ", "nopqrs"]
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeff".encode() + "\r\n".join(lines).encode())
    expected = []
    for line in lines:
        raw = line.encode() if line.strip() else b""
        expected += [list(raw[i : i + 4]) for i in range(0, len(raw) - 3, 4)]
    probes = read_probes(f"{path}#length=4", BYTES)
    assert probes.inputs.tolist() == expected
    assert (probes.kind, probes.inputs.dtype) == ("tokens", np.int64)
    assert "29% of the text dropped" in probes.source  # of 10, 3, 15 and 6 bytes 2, 3, 3 and 2
    # Without a length, windows are as long as the median line: of 10, 3, 15 and 6 bytes.
    assert read_probes(str(path), BYTES).shape == (8,)
    assert read_probes(str(path), InputSpec("tokens", (5,), 0, 255)).shape == (5,)
    refused(f"{path}#length=40", "takes up to 32", input_spec=BYTES, kind=MisuseError)
    refused(f"{path}#length=30", "longest has 15", "length=15", input_spec=BYTES)
    refused(str(path), "tokenizer", input_spec=InputSpec("tokens", (32,), 0, 999))
    refused(str(path), "tokenizer")
    refused(str(path), "takes image inputs", input_spec=RGB)
    path.write_bytes(b"abc\xff\xfe")
    refused(str(path), "UTF-8", "byte 3", input_spec=BYTES)
    path.write_bytes(b" \n\n")
    refused(str(path), "no text", input_spec=BYTES)


def test_a_folder_of_texts_is_cut_text_by_text(tmp_path: Path) -> None:
    for name, content in {
        "darwin/a.txt": "one two\nthree",
        "bronte/b.txt": "four five six",
        "bronte/c.txt": "x",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    probes = read_probes(f"{tmp_path}#length=5", BYTES)
    assert [bytes(row.astype(np.uint8).tolist()) for row in probes.inputs] == [b"four ", b"five ", b"one t", b"wo\nth"]
    assert probes.labels is not None
    assert probes.labels.tolist() == [0, 0, 1, 1]
    assert "0 = bronte, 1 = darwin" in probes.source


def test_a_tokenizer_of_the_model_is_used(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    words = {"[UNK]": 0, "[CLS]": 1, "the": 2, "cat": 3, "sat": 4, "mat": 5}
    tokenizer = Tokenizer(WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    path = tmp_path / "t.txt"
    path.write_text("the cat sat the mat\nmat cat\nthe dog sat the cat sat\n")
    input_spec = InputSpec("tokens", (16,), 0, 5)
    probes = read_probes(f"{path}#length=2", input_spec, tokenizer=folder)
    assert probes.inputs.tolist() == [[2, 3], [4, 2], [5, 3], [2, 0], [4, 2], [3, 4]]
    assert "tokenizer of model" in probes.source
    with pytest.raises(MisuseError, match="ids up to 5, but the model has ids up to 4"):
        read_probes(f"{path}#length=2", InputSpec("tokens", (16,), 0, 4), tokenizer=folder)
    with pytest.raises(MisuseError, match="has no tokenizer"):
        read_probes(str(path), input_spec, tokenizer=tmp_path)
    # The model's tokenizer goes before bytes; without its files a model of 256 tokens reads bytes.
    assert read_probes(f"{path}#length=2", BYTES, tokenizer=folder).inputs.max() == 5
    assert read_probes(f"{path}#length=2", BYTES, tokenizer=tmp_path).inputs.max() > 90
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UnreadableProbesError, match="tokenizer"):
        read_probes(str(path), input_spec, tokenizer=folder)


# Sounds


def save_sound(path: Path, samples: np.ndarray, width: int, rate: int = 8000) -> None:
    """Samples [n, channels] as signed integers of `width` bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(b"".join(
            (int(v) + 128).to_bytes(1, "little") if width == 1 else int(v).to_bytes(width, "little", signed=True)
            for v in samples.reshape(-1)
        ))  # fmt: skip


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_of_every_width(tmp_path: Path, width: int, channels: int) -> None:
    full = 2 ** (8 * width - 1)
    values = RNG.integers(-full, full, (50, channels))
    values[0], values[1] = -full, full - 1
    save_sound(tmp_path / "x.wav", values, width)
    expected = [sum(float(v) / full for v in row) / channels for row in values]
    found = read_probes(str(tmp_path))
    np.testing.assert_allclose(found.inputs[0], np.float32(expected), rtol=0, atol=0)
    assert (found.kind, found.inputs.dtype) == ("audio", np.float32)
    assert "8000 Hz" in found.source
    assert found.inputs.min() == -1 or channels == 2


def test_sounds_are_cut_and_filled_to_one_length(tmp_path: Path) -> None:
    values = {"cat/b.wav": 3, "cat/a.wav": 6, "ant/c.wav": 4}
    for name, n in values.items():
        save_sound(tmp_path / name, np.arange(1, n + 1)[:, None] * 1000, 2)
    rows = {n: [1000 * (i + 1) / 32768 if i < n else 0.0 for i in range(6)] for n in (3, 4, 6)}
    whole = read_probes(str(tmp_path))
    np.testing.assert_array_equal(whole.inputs, np.float32([rows[4], rows[6], rows[3]]))
    assert whole.labels is not None
    assert whole.labels.tolist() == [0, 1, 1]
    for words, input_spec in ((f"{tmp_path}#length=4", SOUND), (str(tmp_path), InputSpec("audio", (4,), -1.0, 1.0))):
        np.testing.assert_array_equal(read_probes(words, input_spec).inputs, whole.inputs[:, :4])
    assert read_probes(f"{tmp_path}#length=9").inputs[0, 4:].tolist() == [0] * 5
    refused(f"{tmp_path}#length=5", "takes 4 samples", input_spec=InputSpec("audio", (4,), -1.0, 1.0))
    refused(str(tmp_path), "no images", input_spec=RGB)
    save_sound(tmp_path / "ant/d.wav", np.ones((4, 1)), 2, rate=16000)
    refused(str(tmp_path), "ant/c.wav has 8000", "ant/d.wav has 16000", kind=UnreadableProbesError)


def test_float_sounds_and_damaged_ones(tmp_path: Path) -> None:
    from scipy.io import wavfile

    path = tmp_path / "x.wav"
    values = RNG.uniform(-1, 1, 40).astype(np.float32)
    wavfile.write(path, 8000, values)
    np.testing.assert_array_equal(read_probes(str(path)).inputs[0], values)
    values[3] = np.nan
    wavfile.write(path, 8000, values)
    refused(str(path), "NaN")
    save_sound(path, RNG.integers(-99, 99, (400, 1)), 2)
    whole = path.read_bytes()
    for cut in (0, 3, 20, 44, 300):
        path.write_bytes(whole[:cut])
        refused(str(path), "x.wav", kind=UnreadableProbesError)
    path.write_bytes(whole[:40] + b"\xff\xff\xff\x7f" + whole[44:])  # two gigabytes, it says
    refused(str(path), "x.wav")
    path.write_bytes(b"\x89PNG" + whole)
    refused(str(path), "x.wav")
    # The control: a record before the samples that happens to say so.
    path.write_bytes(whole[:12] + b"LIST\x08\x00\x00\x00data\xff\xff\xff\x7f" + whole[12:])
    assert read_probes(str(path)).shape == (400,)


# Made ones


def test_noise_is_drawn_from_the_inputs_of_the_model() -> None:
    input_spec = InputSpec("image", (2, 16, 16), -1.0, 3.0)
    probes = read_probes("noise:n=40,seed=7", input_spec)
    assert (len(probes), probes.shape, probes.kind, probes.inputs.dtype) == (40, (2, 16, 16), "image", np.float32)
    from scipy import stats

    flat = probes.inputs.reshape(-1).astype(float)
    assert stats.kstest(flat, stats.uniform(-1, 4).cdf).pvalue > 1e-3
    normal = read_probes("noise:n=40,seed=7,kind=normal", input_spec).inputs.reshape(-1).astype(float)
    inside = normal[np.abs(normal - 1) < 2]
    assert stats.kstest(inside, stats.truncnorm(-2, 2, 1, 1).cdf).pvalue > 1e-3
    assert abs(1 - len(inside) / len(normal) - 2 * stats.norm.sf(2)) < 0.005
    assert stats.kstest(normal, stats.uniform(-1, 4).cdf).pvalue < 1e-9  # the control
    assert np.abs(normal - 1).max() == 2
    ids = read_probes("noise:n=500", BYTES).inputs
    assert ids.shape == (500, 32)
    assert stats.chisquare(np.bincount(ids.reshape(-1), minlength=256)).pvalue > 1e-3
    assert read_probes("noise", RGB).inputs.shape == (256, 3, 5, 7)
    assert read_probes("noise:n=2,shape=1x8x8").kind == "image"
    assert read_probes("noise:n=2,shape=8").kind == "tensor"
    assert read_probes("noise:n=2,shape=100", SOUND).inputs.shape == (2, 100)
    endless = InputSpec("tensor", (50,), -np.inf, np.inf)
    assert abs(read_probes("noise:n=99,kind=normal", endless).inputs.std() - 1) < 0.05
    refused("noise", "kind=normal", input_spec=endless)


def test_noise_is_the_same_in_another_process() -> None:
    words = ["noise:n=5,seed=3,shape=2x3", "noise:n=5,seed=4,shape=2x3", "noise:n=5,seed=3,shape=2x3,kind=normal"]
    here = [read_probes(w).digest for w in words]
    code = "import sys; from stemma.probes import read_probes; print(*[read_probes(w).digest for w in sys.argv[1:]])"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == here
    assert len(set(here)) == 3


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("noise:n=0", "n must be an integer of at least 1, not '0'"),
        ("noise:n=-3", "n must be"),
        ("noise:n=1e3", "n must be"),
        ("noise:n=1_0", "n must be"),
        ("noise:n=٣", "n must be"),
        ("noise:n=", "n must be"),
        ("noise:seed=-1", "seed must be"),
        ("noise:n=3,n=4", "twice"),
        ("noise:m=3", "n=…, seed=…, kind=…, shape=…"),
        ("noise:n", "has no parameter 'n'"),
        ("noise:kind=pink", "uniform, normal"),
        ("noise:shape=3x0", "axis of shape"),
        ("noise:shape=axb", "axis of shape"),
        ("noise:shape=3x5x8", "[3, 5, 7]"),
        ("noise:n=999999999999", "limit"),
        ("noise:n=4#n=5", "only 4"),
        ("noise:n=4#seed=1", "no number"),
        ("noise:n=4#length=2", "length applies to"),
        ("noise:n=4#m=2", "has no parameter 'm=2'"),
        ("cutmix:nowhere,n=4", "nowhere"),
        ("cutmix:nowhere,m=4", "has no parameter 'm=4'"),
        ("nowhere.npz", "nowhere.npz"),
        ("", "no probes at"),
        ("a\0b", "no probes at"),
        ("x" * 5000, "no probes at"),
    ],
)
def test_words_that_make_no_sense(words: str, part: str) -> None:
    with pytest.raises(StemmaError) as error:
        read_probes(words, RGB)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_noise_needs_a_shape() -> None:
    refused("noise:n=4", "shape=", kind=MisuseError)
    refused("noise:n=4", "shape=64", input_spec=SOUND)
    refused("noise:n=4,kind=normal", "uniform over its ids", input_spec=BYTES)
    refused("noise:n=4,shape=33", "up to 32", input_spec=BYTES)
    assert read_probes("noise:n=4,shape=8", BYTES).shape == (8,)


def test_a_box_of_cutmix_by_counting_pixels() -> None:
    for kept, row, column in itertools.product((0.0, 0.19, 0.51, 0.99, 1.0), (0, 4, 9), (0, 7, 12)):
        side = (1 - kept) ** 0.5
        tall, wide = int(10 * side) // 2, int(13 * side) // 2
        y, x = cutmix_box(kept, row, column, 10, 13)
        covered = np.zeros((10, 13), bool)
        covered[y, x] = True
        for i, j in np.ndindex(10, 13):
            inside = row - tall <= i < row + tall and column - wide <= j < column + wide
            assert covered[i, j] == inside
    y, x = cutmix_box(0.36, 16, 16, 32, 32)  # four fifths of either side, even
    assert (y, x) == (slice(4, 28), slice(4, 28))


def test_cutmix_is_one_box_of_one_other_image(tmp_path: Path) -> None:
    flat = np.broadcast_to(np.arange(12, dtype=np.uint8)[:, None, None, None] * 20, (12, 16, 16, 3)).copy()
    np.savez(tmp_path / "p.npz", images=flat, labels=np.arange(12), baseline=flat[0])
    words = f"cutmix:{tmp_path / 'p.npz'},n=600,seed=3"
    made = read_probes(words)
    assert (made.labels, made.kind, made.inputs.shape) == (None, "image", (600, 3, 16, 16))
    assert made.baseline is not None
    values = np.round(made.inputs * 255).astype(int) // 20
    shares, pairs = [], set()
    for picture in values[:, 0]:
        found = np.unique(picture)
        assert len(found) <= 2
        corner = [v for v in found if _is_box(picture == v)]
        assert len(found) == 1 or corner
        if len(found) == 2:
            pairs.add(tuple(found))
            shares.append(min((picture == v).mean() for v in corner))
    assert (values == values[:, :1]).all()  # all channels alike
    assert len(pairs) == 66  # every pair occurs
    assert len(shares) > 570  # never an image with itself; one box in 64 is empty
    below = np.bincount([np.bincount(p.reshape(-1)).argmax() for p in values[:, 0]], minlength=12)
    assert below.min() > 25
    assert 0.15 < np.mean(shares) < 0.4  # uncut, a box covers half on average
    assert read_probes(words).digest == made.digest
    assert read_probes(words.replace("seed=3", "seed=4")).digest != made.digest
    assert len(read_probes(f"cutmix:{tmp_path / 'p.npz'}")) == 12
    comma = tmp_path / "a,b"
    assert len(read_probes(f"cutmix:{save(comma, COLOUR)},n=4")) == 4
    np.savez(tmp_path / "one.npz", images=flat[:1])
    refused(f"cutmix:{tmp_path / 'one.npz'}", "at least two")
    np.savez(tmp_path / "ids.npz", inputs=IDS)
    refused(f"cutmix:{tmp_path / 'ids.npz'}", "kind tokens")


def _is_box(mask: np.ndarray) -> bool:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return bool(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())


def test_a_part_of_the_probes(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    np.savez(path, inputs=np.arange(100.0)[:, None], labels=np.arange(100))
    part = read_probes(f"{path}#n=30,seed=5")
    rows = part.inputs[:, 0].astype(int).tolist()
    assert rows == sorted(set(rows))
    assert len(rows) == 30
    assert part.labels is not None
    assert part.labels.tolist() == rows
    assert "30 of 100" in part.source
    assert read_probes(f"{path}#n=30,seed=5").digest == part.digest
    assert read_probes(f"{path}#n=30").digest == read_probes(f"{path}#n=30,seed=0").digest != part.digest
    assert read_probes(f"{path}#n=100,seed=9").digest == read_probes(str(path)).digest
    chosen = np.concatenate([read_probes(f"{path}#n=30,seed={s}").inputs[:, 0] for s in range(200)]).astype(int)
    from scipy import stats

    assert stats.chisquare(np.bincount(chosen, minlength=100)).pvalue > 1e-3
    refused(f"{path}#n=101", "only 100")
    # A hash in a name is a name, if it is there.
    odd = save(tmp_path / "x#n=2", COLOUR)
    assert len(read_probes(str(odd))) == 6
    assert len(read_probes(f"{odd}#n=3")) == 3


def test_paths_are_looked_for_below_the_data_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "p.npz", inputs=FLOATS)
    refused("p.npz", "there are no probes at 'p.npz'")
    assert read_probes("p.npz", data=tmp_path).digest == Probes.of(FLOATS).digest
    assert len(read_probes("p.npz#n=2", data=tmp_path)) == 2
    assert len(read_probes("cutmix:p.npz,n=3", data=tmp_path)) == 3
    monkeypatch.setenv("STEMMA_DATA", str(tmp_path))
    assert len(read_probes("p.npz")) == 4
    refused("q.npz", str(tmp_path))


def test_folders_and_files_that_are_no_probes(tmp_path: Path) -> None:
    refused(str(tmp_path), "it is empty", kind=UnreadableProbesError)
    (tmp_path / "x.bin").write_bytes(b"x")
    refused(str(tmp_path), "x.bin")
    refused(str(tmp_path / "x.bin"), ".npz")
    (tmp_path / "x.npz").mkdir()
    refused(str(tmp_path / "x.npz"), "contains no")
    save(tmp_path, COLOUR[:1])
    assert len(read_probes(str(tmp_path))) == 1
