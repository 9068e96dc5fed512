"""Charts as inline SVG in the colours of the page."""

import math
from itertools import pairwise

import numpy as np

WIDTH = 1000
"""Width in SVG units; the page scales it."""


def scale(
    value: float, interval: tuple[float, float] | None, top: float, null: tuple[float, float, float] | None = None
) -> str:
    """A distance on its scale: a dot, its interval as a bar, and the range of independent models as a band."""

    def at(x: float) -> float:
        return round(12 + (WIDTH - 24) * min(max(x / top, 0), 1), 1)

    marks = []
    if null is not None:
        low, middle, high = (at(x) for x in null)
        marks.append(f'<rect class="null" x="{low}" y="18" width="{max(high - low, 2):.1f}" height="24"/>')
        marks.append(f'<line class="mean" x1="{middle}" y1="18" x2="{middle}" y2="42"/>')
        marks.append(
            f'<text x="{min(max(middle, 70), WIDTH - 70)}" y="12" text-anchor="middle">independent models</text>'
        )
    marks.append(f'<line class="axis" x1="{at(0)}" y1="30" x2="{at(top)}" y2="30"/>')
    for tick in ticks(top):
        label = "0 = same" if tick == 0 else f"{tick:g}"
        anchor = "start" if tick == 0 else "end" if tick >= top else "middle"
        marks.append(f'<line class="axis" x1="{at(tick)}" y1="27" x2="{at(tick)}" y2="33"/>')
        marks.append(f'<text x="{at(tick)}" y="56" text-anchor="{anchor}">{label}</text>')
    if interval is not None:
        low, high = interval
        marks.append(f'<line class="whisker" x1="{at(low)}" y1="30" x2="{at(high)}" y2="30"/>')
    marks.append(f'<circle class="dot" cx="{at(value)}" cy="30" r="7"/>')
    description = f"distance {value:.3g} on a scale from 0 to {top:g}"
    return _svg(64, "".join(marks), description)


def ticks(top: float) -> list[float]:
    """About five round numbers from 0 to `top`."""
    rough = top / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next((m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.999), 10 * unit)
    return [round(i * step, 10) for i in range(int(top / step + 1e-9) + 1)]


def histogram(values: np.ndarray, top: float, bins: int = 40) -> str:
    """A histogram of per-probe distances."""
    counts, edges = np.histogram(np.clip(values, 0, top), bins=bins, range=(0, top))
    left, right, base, height = 40, WIDTH - 8, 150, 132
    most = int(counts.max(initial=1)) or 1
    step = (right - left) / bins
    marks = [
        f'<rect class="bar" x="{left + i * step + 0.6:.1f}" y="{base - height * n / most:.1f}" '
        f'width="{step - 1.2:.1f}" height="{height * n / most:.1f}"><title>{n} probes from {edges[i]:.3g} to '
        f"{edges[i + 1]:.3g}</title></rect>"
        for i, n in enumerate(counts)
        if n
    ]
    marks.append(f'<line class="axis" x1="{left}" y1="{base}" x2="{right}" y2="{base}"/>')
    for tick in ticks(top):
        x = left + (right - left) * tick / top
        anchor = "end" if tick >= top else "middle"
        marks.append(f'<text x="{x:.1f}" y="{base + 18}" text-anchor="{anchor}">{tick:g}</text>')
    for n in sorted({most, most // 2} - {0}):
        y = base - height * n / most
        marks.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{n}</text>')
        marks.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
    mean = left + (right - left) * float(np.clip(values.mean(), 0, top)) / top
    marks.append(f'<line class="mean" x1="{mean:.1f}" y1="10" x2="{mean:.1f}" y2="{base}"/>')
    anchor, shift = ("end", -6) if mean > WIDTH * 0.8 else ("start", 6)
    marks.append(f'<text class="strong" x="{mean + shift:.1f}" y="20" text-anchor="{anchor}">mean</text>')
    return _svg(base + 26, "".join(marks), f"histogram of {len(values)} per-probe distances")


def waveform(samples: np.ndarray, shares: np.ndarray, top: float, columns: int = 160) -> str:
    """A sound, and below it as bars what each section contributes to a distance."""
    edges = np.linspace(0, len(samples), min(columns, len(samples)) + 1).astype(int)
    step = WIDTH / (len(edges) - 1)
    peak = float(np.abs(samples).max(initial=0)) or 1.0
    marks = []
    for i, (a, b) in enumerate(pairwise(edges)):
        low, high = samples[a:b].min() / peak, samples[a:b].max() / peak
        y, tall = 40 - 36 * high, max(36 * (high - low), 1)
        marks.append(
            f'<rect class="wave" x="{i * step:.1f}" y="{y:.1f}" width="{step - 0.6:.1f}" height="{tall:.1f}"/>'
        )
        bar = 38 * min(float(shares[a:b].sum()) / top, 1) if top > 0 else 0
        marks.append(
            f'<rect class="heat" x="{i * step:.1f}" y="{124 - bar:.1f}" width="{step - 0.6:.1f}" height="{bar:.1f}"/>'
        )
    marks.append(f'<line class="axis" x1="0" y1="124" x2="{WIDTH}" y2="124"/>')
    return _svg(128, "".join(marks), "waveform, and below it the time ranges in which the models differ")


def profile(shares: np.ndarray, top: float) -> str:
    """A bar per coordinate of a short vector."""
    step = WIDTH / len(shares)
    gap = min(1.0, step / 5)
    marks = [
        f'<rect class="heat" x="{i * step:.2f}" y="{64 - 60 * min(v / top, 1) if top > 0 else 64:.1f}" '
        f'width="{step - gap:.2f}" height="{60 * min(v / top, 1) if top > 0 else 0:.1f}"/>'
        for i, v in enumerate(shares)
    ]
    marks.append(f'<line class="axis" x1="0" y1="64" x2="{WIDTH}" y2="64"/>')
    return _svg(68, "".join(marks), "contribution of each coordinate to the distance")


def _svg(height: int, marks: str, description: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{description}">{marks}</svg>'
