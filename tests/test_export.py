"""Where two models differ: the maps sum to the distance, point at the right place, and are shown on a safe page."""

import base64
import re
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.export import charts, raster
from stemma.export.difference import LEAST_DIFFERENT, MOST_DIFFERENT, Difference, difference_page
from stemma.fingerprints.gradient_field import GradientField
from stemma.measures.agreement import agreement
from stemma.measures.difference_map import accumulate_maps, difference_map, reliance
from stemma.measures.field_cosine import FieldCosine
from stemma.networks.open import from_module
from stemma.probes import Probes

RNG = np.random.default_rng


def _field(seed: int, k: int = 5, steps: int = 3, d: int = 12, undefined: tuple[tuple[int, int], ...] = ()) -> Any:
    rng = RNG(seed)
    curve = rng.normal(size=(k, steps, d))
    defined = np.ones((k, steps), bool)
    for at in undefined:
        curve[at], defined[at] = 0, False
    weights = np.tile([0.5, 0.3, 0.2], (k, 1))
    return {"curve": curve, "weights": weights, "defined": defined}


@pytest.mark.parametrize("measure", [FieldCosine(), FieldCosine.official()], ids=["default", "official"])
def test_a_map_sums_to_the_distance_of_its_probe(measure: FieldCosine) -> None:
    a, b = _field(0, undefined=((1, 0), (4, 0), (4, 1), (4, 2))), _field(1, undefined=((2, 1),))
    maps = difference_map(a, b, (3, 4), measure)
    wanted = measure.distances(a, b)
    assert maps.shape == (5, 3, 4)
    assert np.isnan(wanted[4])
    assert np.isnan(maps[4]).all()
    np.testing.assert_allclose(maps[:4].sum((1, 2)), wanted[:4], rtol=0, atol=1e-9)
    assert maps[:4].min() >= 0
    np.testing.assert_allclose(reliance(a, (3, 4))[:4].sum((1, 2)), 1, rtol=0, atol=1e-12)


def test_a_zero_field_that_is_counted_is_spread_evenly() -> None:
    a, b = _field(0), _field(1)
    a["curve"][0] = b["curve"][0] = 0  # as the published method counts it: orthogonal, even to itself
    measure = FieldCosine.official()
    maps = difference_map(a, b, (12,), measure)
    np.testing.assert_allclose(maps[0], 1 / 12, atol=1e-12)
    a["curve"][1] *= 1e-9  # lengths whose product falls below the published epsilon
    maps = difference_map(a, b, (12,), measure)
    np.testing.assert_allclose(maps.sum(1), measure.distances(a, b), atol=1e-9)
    assert maps.min() >= 0


def test_by_hand_two_fields_that_differ_in_two_of_three_places() -> None:
    u, v = np.array([3.0, 0.0, 4.0]), np.array([0.0, 3.0, 4.0])
    one = {"weights": np.ones((1, 1)), "defined": np.ones((1, 1), bool)}
    found = difference_map({**one, "curve": u[None, None]}, {**one, "curve": 7 * v[None, None]}, (3,))
    np.testing.assert_allclose(found, [[0.18, 0.18, 0.0]], atol=1e-12)  # (3/5)^2 / 2 twice; 1 - 16/25 in all


def test_a_sketch_keeps_no_places() -> None:
    model = _linear(np.ones((2, 64)))
    probes = Probes.of(RNG(0).random((3, 1, 8, 8)))
    values = GradientField(sketch=64)(model, probes).values
    with pytest.raises(MisuseError, match="sketch=0"):
        difference_map(values, values, (1, 8, 8))


def _linear(weight: np.ndarray, name: str = "linear") -> Model:
    layer = torch.nn.Linear(weight.shape[1], len(weight), bias=False).double()
    layer.weight.data = torch.from_numpy(weight.astype(np.float64))
    return from_module(torch.nn.Sequential(torch.nn.Flatten(), layer).double().eval(), name)


def _pair(corner: float) -> tuple[Model, Model]:
    """Two linear scorers of 8 x 8 images that agree but for a 3 x 3 corner, where the second leans otherwise."""
    rng = RNG(3)
    own = rng.normal(size=(4, 8, 8))
    other = own.copy()
    other[:, :3, :3] += corner * rng.normal(size=(4, 3, 3))
    return _linear(own.reshape(4, 64), "one"), _linear(other.reshape(4, 64), "other")


def _located(a: Model, b: Model, probes: Probes) -> Any:
    method = GradientField(potential="sum")
    return accumulate_maps(zip(method.blocks(a, probes), method.blocks(b, probes), strict=True), {0}, probes.shape)


def test_the_place_where_the_models_differ_lights_up_and_only_that() -> None:
    probes = Probes.of(RNG(1).uniform(0.4, 0.6, (6, 1, 8, 8)))
    found = _located(*_pair(3.0), probes)
    inside = found.mean[0, :3, :3]
    outside = np.delete(found.mean[0].reshape(-1), [r * 8 + c for r in range(3) for c in range(3)])
    assert inside.mean() > 10 * outside.mean()
    assert inside.sum() > 0.6 * found.mean.sum()
    # The controls: a model and itself differ nowhere; two unlike models differ everywhere alike.
    same, _ = _pair(0.0)
    assert _located(same, same, probes).mean.max() < 1e-30
    unlike = [_located(_linear(RNG(s).normal(size=(4, 64))), _linear(RNG(s + 99).normal(size=(4, 64))), probes)
              for s in range(40)]  # fmt: skip
    mean = np.mean([u.mean for u in unlike], 0)[0]
    assert mean[:3, :3].mean() == pytest.approx(mean.mean(), rel=0.2)


def test_the_average_map_sums_to_the_distance_and_only_asked_maps_are_kept() -> None:
    a, b = _pair(1.0)
    probes = Probes.of(RNG(2).random((40, 1, 8, 8)))
    method = GradientField(batch=64)  # several blocks
    distance = FieldCosine()(method(a, probes), method(b, probes))
    found = accumulate_maps(zip(method.blocks(a, probes), method.blocks(b, probes), strict=True), {39, 7}, probes.shape)
    assert found.mean.sum() == pytest.approx(distance.value, abs=1e-9)
    assert set(found.difference) == set(found.a) == set(found.b) == {7, 39}
    for i in (7, 39):
        assert found.difference[i].sum() == pytest.approx(distance.per_probe[i], abs=1e-9)


def test_agreement_is_counted_by_hand() -> None:
    probes = Probes.of(np.zeros((4, 3)), labels=[0, 1, 1, 0])
    a = np.array([[2, 1], [0, 1], [3, 0], [1, 0]])
    b = np.array([[2, 1], [5, 1], [3, 0], [0, 1]])
    found = agreement(a, b, probes)
    assert (found.alike, found.accuracy_a, found.accuracy_b) == (0.5, 0.75, 0.25)
    other = agreement(a, np.zeros((4, 7)), probes)
    assert other.alike is None
    assert agreement(a, b, probes.with_labels([0, 1, 1, 5])).accuracy_a is None  # a label it cannot answer
    assert agreement(a, b, probes.with_labels([0, 1, 1, 0], "model")).accuracy_a is None  # labels that are no truth


def _unpacked(data: bytes) -> np.ndarray:
    """A second, independent reader of what `png` writes: one IDAT, filter 0."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    at = data.index(b"IDAT")
    raw = zlib.decompress(data[at + 4 : at + 4 + int.from_bytes(data[at - 4 : at], "big")])
    return np.frombuffer(raw, np.uint8).reshape(height, 1 + 3 * width)[:, 1:].reshape(height, width, 3)


def test_pictures_are_read_back() -> None:
    pixels = RNG(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(_unpacked(raster.png(pixels)), pixels)
    image = pytest.importorskip("PIL.Image")
    import io

    np.testing.assert_array_equal(np.asarray(image.open(io.BytesIO(raster.png(pixels))).convert("RGB")), pixels)


def test_heat_grows_lighter_and_pooling_keeps_the_sum() -> None:
    colours = raster.heat(np.linspace(0, 1, 200), 1.0) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    light = np.cbrt(linear @ np.array([0.2126, 0.7152, 0.0722]))
    steps = np.diff(light[5:])
    assert steps.min() > -1e-3  # lightness never falls but for rounding of bytes
    assert light[-1] - light[0] > 0.8
    values = RNG(0).random((224, 200))
    small = raster.pool(values)
    assert max(small.shape) <= raster.CELLS
    assert small.sum() == pytest.approx(values.sum())
    over = raster.overlay(small, float(small.max()), np.zeros((224, 200, 3), np.uint8))
    assert over.shape == (224, 200, 3)


@pytest.mark.parametrize(("top", "wanted"), [(1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]), (2.0, [0, 0.5, 1, 1.5, 2])])
def test_ticks_are_round(top: float, wanted: list[float]) -> None:
    assert charts.ticks(top) == pytest.approx(wanted)


def _told(a: Model, b: Model, probes: Probes, method: GradientField | None = None) -> Difference:
    return Difference.of(a, b, probes, method)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br", "line", "rect", "circle"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"line", "rect", "circle"}:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _read(page: bytes) -> _Reader:
    reader = _Reader()
    reader.feed(page.decode())
    assert reader.open == [], "a tag is not closed"
    return reader


def test_the_page_is_complete_in_itself_and_says_the_figures() -> None:
    a, b = _pair(2.0)
    probes = Probes.of(RNG(4).random((30, 1, 8, 8)), labels=RNG(5).integers(0, 4, 30))
    told = _told(a, b, probes)
    whole = FieldCosine()(GradientField()(a, probes), GradientField()(b, probes))
    assert told.distance.per_probe == pytest.approx(whole.per_probe, abs=1e-12)
    page = difference_page(told)
    reader = _read(page)
    names = {tag for tag, _ in reader.tags}
    assert not names & {"script", "link", "iframe", "object", "a"}
    sources = [value for _, given in reader.tags for key, value in given.items() if key in {"src", "href"}]
    assert sources
    assert all((source or "").startswith("data:image/png;base64,") for source in sources)
    assert not re.search(rb"https?://|url\(|@import", page)
    text = " ".join(reader.text)
    assert f"{told.distance.value:.3g}"[:5] in text
    assert "Limitations" in text
    falling = sorted(range(30), key=lambda i: -(told.distance.per_probe[i] or 0))
    shown = [int(i) for i in re.findall(r"probe (\d+)", text)]
    assert shown == [*falling[:MOST_DIFFERENT], *falling[::-1][:LEAST_DIFFERENT]]
    cards = sum(given.get("class") == "card" for _, given in reader.tags)
    pictures = [_unpacked(base64.b64decode(str(s).split(",")[1])) for s in sources]
    assert cards == MOST_DIFFERENT + LEAST_DIFFERENT
    assert sum(p.shape[:2] == (8, 8) for p in pictures) == 5 * cards  # start of the path, input, three maps
    blank = difference_page(_told(a, b, probes, GradientField(baseline="zero"))).decode()
    assert blank.count("<img") == len(sources) - cards  # a path from nothing has no start to look at
    assert difference_page(told) == page  # nothing random, no date


def test_hostile_names_are_text() -> None:
    hostile = '<script>alert(1)</script>\u202e&\x1b[2J"'
    a = _linear(np.eye(4, 16), hostile)
    b = from_module(a.network.module, hostile + "2")
    probes = Probes.of(RNG(0).random((5, 1, 4, 4)), source=hostile)
    page = difference_page(_told(a, b, probes)).decode()
    assert "<script" not in page
    assert not {"\u202e", "\x1b"} & set(page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u202e&amp;" in page
    _read(page.encode())


class _Words(torch.nn.Module):
    def __init__(self, seed: int, vocabulary: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = torch.nn.Linear(vocabulary, 6)
        self.out = torch.nn.Linear(6, vocabulary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.table(x).cumsum(1)))


@pytest.mark.parametrize("kind", ["tokens", "audio", "tensor"])
def test_other_kinds_of_inputs_have_their_picture(kind: str) -> None:
    if kind == "tokens":
        told = _tokens()
    else:
        a, b = (_linear(RNG(s).normal(size=(3, 400))) for s in (0, 1))
        told = _told(a, b, Probes.of(RNG(2).normal(size=(12, 400)), kind=kind))
    reader = _read(difference_page(told))
    classes = [str(given.get("class")) for _, given in reader.tags]
    assert sum(c == "card" for c in classes) == min(MOST_DIFFERENT + LEAST_DIFFERENT, 12)
    assert ("tokens" in classes) == (kind == "tokens")
    assert ("wave" in classes) == (kind == "audio")
    if kind == "tokens":
        assert "H" in "".join(reader.text)


def _tokens() -> Difference:
    from dataclasses import replace

    from stemma.types import Digest, InputSpec
    from stemma.types.network import Network

    def model(seed: int) -> Model:
        module = _Words(seed, 256).eval()
        spec = InputSpec("tokens", (8,), 0, 255)

        def asked(ids: torch.Tensor) -> torch.Tensor:
            return module(torch.nn.functional.one_hot(ids, 256).float())

        made = from_module(module, f"words-{seed}")
        return replace(made, network_builder=lambda m: Network(m.name, Digest(f"sha256:{seed}"), spec, asked, module,
                                                    from_one_hot=module))  # fmt: skip

    ids = np.frombuffer(b"Hello, world! The quick brown fox jumps over the lazy dog, and all of it again ok.", np.uint8)
    return _told(model(0), model(1), Probes.of(ids[:80].reshape(10, 8).astype(np.int64)))


def test_the_example_finds_the_mark(tmp_path: Path, example: Callable[..., str]) -> None:
    said = example("where_they_differ.py", tmp_path / "page.html")
    found = re.search(r"(\d+)% of the distance lies in the two columns where marks are", said)
    assert found is not None
    assert int(found[1]) > 40  # an even map would have a quarter of it there
    assert b"<article" in (tmp_path / "page.html").read_bytes()
