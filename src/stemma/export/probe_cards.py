"""One card per probe: the input, where the models differ there, and the outputs of both."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stemma.export import charts, raster
from stemma.export.markup import escape
from stemma.export.page import number, percent
from stemma.measures.difference_map import DifferenceMaps
from stemma.probes import Probes

ANSWERS = 3
"""Number of top outputs per model on a card."""

MODELS = ("a", "b")

PIXELATED_BELOW = 96
"""Images with fewer pixels a side are shown with visible pixels."""


@dataclass(frozen=True, eq=False)
class ProbeCards:
    """Builds the cards.

    Attributes:
        probes: The probes.
        outputs: Outputs of both models.
        labels: Class names of both, if any.
        maps: Where the models differ; None without a field.
        scaled_by: Probes whose maps determine the colour scale.
        starts: Baseline input of each probe `[n, …]`; None if it is not shown.
        scores: Whether each model answers with class scores, not hidden states.

    """

    probes: Probes
    outputs: tuple[np.ndarray, np.ndarray]
    labels: tuple[Mapping[int, str], ...]
    maps: DifferenceMaps | None
    scaled_by: Sequence[int]
    starts: np.ndarray | None = None
    scores: tuple[bool, ...] = (True, True)

    def card(self, i: int, distance: float) -> str:
        """The card of probe `i`."""
        label = "" if self.probes.labels is None else f" · label {escape(self._name(0, int(self.probes.labels[i])))}"
        head = f"<header><span><b>probe {i}</b>{label}</span><b>{number(distance)}</b></header>"
        answers = "".join(self._answer(side, i) for side in range(2))
        return f'<article class="card">{head}{self._input(i)}{answers}{self._concentration(i)}</article>'

    def bar(self) -> str:
        """The colour legend; empty without maps."""
        if self.maps is not None and self.probes.kind == "tokens":
            return f"<p class=soft>The darkest positions contribute {number(self._tops[0], 2)} or more.</p>"
        if self.maps is None or not self.is_picture:
            return ""
        most, reliance = (number(top, 2) for top in self._tops)
        return _bar(f"{most} or more for differences, {reliance} or more for reliance, {self._cell}")

    def average(self) -> str:
        """The maps averaged over all probes; empty without maps or for token inputs."""
        maps = self.maps
        if maps is None or self.probes.kind == "tokens":
            return ""
        means = (maps.mean, maps.mean_a, maps.mean_b)
        titles = ("difference", *(_model_key(s) + "relies on" for s in MODELS))
        if not self.is_picture:
            return "".join(f"<p class=soft>{t}</p>{_curve(m)}" for m, t in zip(means, titles, strict=True))
        cells = [raster.pool(_sum_channels(m)) for m in means]
        tops = float(cells[0].max()), *[float(max(c.max() for c in cells[1:]))] * 2
        figures = "".join(
            _figure(raster.heat(_enlarged(c), top), f"{title}, up to {number(top, 2)}", smooth=self._smooth)
            for c, title, top in zip(cells, titles, tops, strict=True)
        )
        return _bar(f"the largest number below each map, {self._cell}") + f'<div class="maps">{figures}</div>'

    @cached_property
    def is_picture(self) -> bool:
        """Whether probes are shown as pictures."""
        shape = self.probes.shape
        return (self.probes.kind == "image" and len(shape) == 3) or (len(shape) == 2 and self.probes.kind == "tensor")

    @cached_property
    def _step(self) -> int:
        return -(-max(self.probes.shape[-2:]) // raster.CELLS)

    @cached_property
    def _cell(self) -> str:
        return "per pixel" if self._step == 1 else f"per square of {self._step} x {self._step} pixels"

    @cached_property
    def _smooth(self) -> bool:
        return max(self.probes.shape[-2:]) >= PIXELATED_BELOW

    @cached_property
    def _range(self) -> tuple[float, float]:
        """Black and white: [0, 1] if the probes are within it, else their range."""
        low, high = float(self.probes.inputs.min()), float(self.probes.inputs.max())
        return (0.0, 1.0) if low >= 0 and high <= 1 and high > 0.2 else (low, high)

    @cached_property
    def _tops(self) -> tuple[float, float]:
        """Upper ends of the colour scales of differences and of model reliance: almost all cells are below."""
        if self.maps is None:
            return 1.0, 1.0
        return self._most(self.maps.difference), self._most(self.maps.a, self.maps.b)

    def _most(self, *kept: Mapping[int, np.ndarray]) -> float:
        found = [maps[i] for i in self.scaled_by for maps in kept if i in maps]
        cells = [(raster.pool(_sum_channels(f)) if self.is_picture else f).reshape(-1) for f in found]
        return float(np.quantile(np.concatenate(cells), 0.995)) if cells else 1.0

    def _input(self, i: int) -> str:
        if self.probes.kind == "tokens":
            return self._text(i)
        if not self.is_picture:
            return self._line(i)
        shown = self._picture(self.probes.inputs[i])
        figures = [_figure(shown, "input", smooth=self._smooth)]
        if self.maps is not None and self.starts is not None:
            figures.insert(0, _figure(self._picture(self.starts[i]), "baseline", smooth=self._smooth))
        if self.maps is not None:
            titles = ("difference", *(_model_key(s) + "relies on" for s in MODELS))
            tops = (self._tops[0], self._tops[1], self._tops[1])
            maps = (self.maps.difference, self.maps.a, self.maps.b)
            for found, title, top in zip(maps, titles, tops, strict=True):
                cells = raster.pool(_sum_channels(found[i]))
                figures.append(_figure(raster.overlay(cells, top, shown), title, smooth=self._smooth))
        return f'<div class="maps of-{len(figures)}">{"".join(figures)}</div>'

    def _picture(self, image: np.ndarray) -> np.ndarray:
        return raster.picture(image if image.ndim == 3 else image[None], *self._range)

    def _line(self, i: int) -> str:
        flat = self.probes.inputs[i].reshape(-1)
        if self.maps is None:
            return f'<div class="maps wide">{_curve(np.abs(flat))}</div>'
        share = self.maps.difference[i].reshape(-1)
        if self.probes.kind == "audio":
            top = max(float(s.sum()) for s in np.array_split(share, min(160, len(share))))
            return f'<div class="maps wide">{charts.waveform(flat, share, top)}</div>'
        return f'<div class="maps wide">{_curve(share)}</div>'

    def _text(self, i: int) -> str:
        ids = [int(t) for t in self.probes.inputs[i]]
        share = np.zeros(len(ids)) if self.maps is None else self.maps.difference[i]
        top = self._tops[0] or 1.0
        spans = (
            f'<span title="{number(float(v))}" style="--hot: {min(85 * v / top, 85):.0f}%">{self._token(t)}</span>'
            for t, v in zip(ids, share, strict=True)
        )
        start = ""
        if self.maps is not None and self.starts is not None:
            start = f"<small>baseline: {''.join(self._token(int(t)) for t in self.starts[i])}</small>"
        return f'<p class="tokens">{"".join(spans)}</p>{start}'

    def _token(self, token: int) -> str:
        if self._bytes and 32 < token < 127:
            return escape(chr(token))
        if self._bytes:
            return {32: "&nbsp;", 10: "⏎"}.get(token, "·")
        return f"{token}&nbsp;"

    @cached_property
    def _bytes(self) -> bool:
        """Whether tokens are bytes (a vocabulary of 256)."""
        return self.outputs[0].ndim == 3 and self.outputs[0].shape[2] == 256

    def _concentration(self, i: int) -> str:
        """How concentrated a map is."""
        if self.maps is None:
            return ""
        falling = np.sort(_coordinates(self.maps.difference[i], self.probes))[::-1]
        if not falling.sum() > 0:
            return ""
        needed = int(np.searchsorted(np.cumsum(falling), falling.sum() / 2)) + 1
        places = {"image": "pixels", "tokens": "positions", "audio": "samples"}.get(self.probes.kind, "coordinates")
        return f"<small>half of the distance is in {percent(needed / len(falling), 0)} of the {places}</small>"

    def _answer(self, side: int, i: int) -> str:
        out = np.asarray(self.outputs[side][i], np.float64)
        if not self.scores[side]:
            out = out[None]  # hidden states: no entry is a class
        elif self.probes.kind == "tokens" and out.ndim == 2:
            out = out[-1]
        if out.ndim == 1 and len(out) == 1:
            text = f"<b>{number(float(out[0]))}</b>"
        elif out.ndim != 1:
            text = f"<i>an output of shape {list(self.outputs[side][i].shape)}</i>"
        else:
            chance = np.exp(out - out.max())
            chance /= chance.sum()
            best = np.argsort(-chance, kind="stable")[:ANSWERS]
            named = [
                f"{escape(self._name(side, int(c)))} ({percent(float(chance[c]), 0)})"
                for c in best
                if c == best[0] or chance[c] >= 0.005
            ]
            text = ", ".join([f"<b>{named[0]}</b>", *(f"<i>{name}</i>" for name in named[1:])])
        return f'<div class="answers">{_model_key(MODELS[side])}<span>{text}</span></div>'

    def _name(self, side: int, answer: int) -> str:
        if self._bytes and self.probes.kind == "tokens":
            return repr(chr(answer)) if 32 <= answer < 127 else f"byte {answer}"
        return self.labels[side].get(answer, str(answer))


def _model_key(side: str) -> str:
    return f'<span class="of-{side}"><span class=key>{side.upper()}</span></span>'


def _figure(pixels: np.ndarray, title: str, *, smooth: bool) -> str:
    kind = ' class="fine"' if smooth else ""
    image = f'<img src="{raster.inline(pixels)}" alt="{_without_tags(title)}">'
    return f"<figure{kind}>{image}<figcaption>{title}</figcaption></figure>"


def _without_tags(markup: str) -> str:
    return re.sub(r"<[^>]*>", "", markup).replace("relies", " relies", 1)


def _bar(top: str) -> str:
    ramp = raster.heat(np.linspace(0, 1, 128)[None], 1.0)
    return (
        f'<div class="scale"><span>0</span><img src="{raster.inline(ramp)}" alt="colours from dark to light">'
        f"<span>{top}</span></div>"
    )


def _sum_channels(found: np.ndarray) -> np.ndarray:
    """One number per pixel: channels are summed."""
    return found if found.ndim == 2 else found.sum(0)


def _coordinates(found: np.ndarray, probes: Probes) -> np.ndarray:
    return (_sum_channels(found) if probes.kind == "image" else found).reshape(-1)


def _enlarged(cells: np.ndarray, side: int = 8) -> np.ndarray:
    return np.repeat(np.repeat(cells, side, 0), side, 1) if max(cells.shape) < 16 else cells


def _curve(values: np.ndarray) -> str:
    flat = values.reshape(-1)
    if len(flat) > 320:
        flat = np.array([part.sum() for part in np.array_split(flat, 320)])
    return charts.profile(flat, float(flat.max(initial=0)))
