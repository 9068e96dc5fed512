"""All distances among some models, as a table with a heat map."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stemma.errors import MisuseError
from stemma.types.nouns import Digest, Spec
from stemma.types.text import plain, short_name

LIGHTEST, DARKEST = (247, 251, 255), (8, 64, 129)
"""Colours of the smallest and the largest distance in the heat map."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DistanceMatrix:
    """Distances among models in what they do: 0 is the same, larger is further.

    Attributes:
        names: What the models are called, in order.
        networks: Their network digests.
        values: Row by row, `len(names)` each; None where no probe has a defined distance.
        coverage: Share of probes at which each pair is defined.
        fingerprint: The fingerprinter.
        measure: The measure.
        n_probes: Number of probes.
        probes: Their digest.
    """

    names: tuple[str, ...]
    networks: tuple[Digest, ...]
    values: tuple[tuple[float | None, ...], ...]
    coverage: tuple[tuple[float, ...], ...]
    fingerprint: Spec
    measure: Spec
    n_probes: int
    probes: Digest

    def to_dict(self) -> dict[str, Any]:
        """The JSON form.

        Returns:
            Plain JSON values.
        """
        from stemma.types.nouns import jsonable

        return jsonable(self)

    def array(self) -> Any:
        """The distances as a NumPy array.

        Returns:
            `[models, models]`, NaN where undefined.
        """
        import numpy as np

        return np.array([[math.nan if v is None else v for v in row] for row in self.values])

    def nearest(self, name: str) -> list[tuple[str, float]]:
        """The other models, the nearest first.

        Args:
            name: One of `names`.

        Returns:
            Name and distance; pairs without a defined distance are left out.

        Raises:
            MisuseError: If it is none of them.
        """
        if name not in self.names:
            raise MisuseError(
                f"{name!r} is not in this matrix. There are: {', '.join(map(short_name, self.names[:10]))}"
            )
        row = self.values[self.names.index(name)]
        known = [(n, v) for n, v in zip(self.names, row, strict=True) if n != name and v is not None]
        return sorted(known, key=lambda pair: pair[1])

    def __repr__(self) -> str:
        head = f"{len(self.names)} models, {self.measure.name} of {self.fingerprint.name} on {self.n_probes:,} probes"
        names = [short_name(name, 24) for name in self.names[:10]]
        wide = max((len(name) for name in names), default=0)
        lines = [f"{name:>{wide}}  {'  '.join(_number(v) for v in row[:10])}{' …' if len(row) > 10 else ''}"
                 for name, row in zip(names, self.values, strict=False)]  # fmt: skip
        return "\n".join([head, *lines, *(["…"] if len(self.names) > 10 else [])])

    def _repr_html_(self) -> str:
        """A heat map for notebooks: one coloured cell per pair, its distance written in it."""
        known = [v for row in self.values for v in row if v is not None]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        names = [html.escape(plain(name)) for name in self.names]
        head = "".join(f"<th style='font-weight:normal'>{name}</th>" for name in names)
        rows = "".join(
            f"<tr><th style='text-align:right;font-weight:normal'>{name}</th>{_cells(row, low, high)}</tr>"
            for name, row in zip(names, self.values, strict=True)
        )
        what = f"{self.measure.name} of {self.fingerprint.name}, {self.n_probes:,} probes; 0 is the same"
        return f"<table><caption>{html.escape(what)}</caption><tr><th></th>{head}</tr>{rows}</table>"


def _cells(row: Sequence[float | None], low: float, high: float) -> str:
    return "".join(f"<td style='{_style(v, low, high)}'>{_number(v).strip()}</td>" for v in row)


def _style(value: float | None, low: float, high: float) -> str:
    if value is None:
        return "text-align:center"
    share = (value - low) / (high - low) if high > low else 0.0
    colour = [round(a + share * (b - a)) for a, b in zip(LIGHTEST, DARKEST, strict=True)]
    text = "white" if share > 0.55 else "black"
    return f"background:rgb({colour[0]},{colour[1]},{colour[2]});color:{text};text-align:center;padding:4px 8px"


def _number(value: float | None) -> str:
    return "    –" if value is None else f"{value:5.3f}" if value < 10 else f"{value:5.3g}"
