"""Figures as a person reads them on a page or in a picture."""

import math
import re
from typing import TYPE_CHECKING, Any

from stemma.types.text import LONGEST_NAME, plain, short_name

if TYPE_CHECKING:
    from markupsafe import Markup

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

SMALLEST = -300
"""Decimal logarithm below which a p-value is shown as a bound: doubles end there."""

EXACT = frozenset({"copy", "reformatted", "permuted"})
"""Relations that are shown by carrying the change out and comparing, which needs no p-value."""


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many significant digits: `0.97`, `12`, `1.2 × 10⁻⁶`; a dash where there is none."""
    if value is None:
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        text = f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"
        return text
    exponent = math.floor(math.log10(abs(value)))
    mantissa = value / 10**exponent
    return f"{mantissa:.1f} × {power(exponent)}"


def power(exponent: int) -> str:
    """A power of ten: `10⁻¹²`."""
    return "10" + str(exponent).translate(SUPERSCRIPT)


def percent(share: float | None) -> str:
    """A share as a percentage: `97 %`, `99.7 %`, `more than 99.9 %`; never 0 or 100 unless it is that."""
    if share is None:
        return "–"
    if 0.999 < share < 1:
        return "more than 99.9 %"
    if 0 < share < 0.001:
        return "less than 0.1 %"
    shown = f"{100 * share:.1f}" if share > 0.99 or share < 0.01 else f"{100 * share:.0f}"
    return f"{shown.removesuffix('.0')} %"


def p_value(tested: Any) -> str:
    """The p-value of something with `p_value` and `log10_p`: `p = 0.04`, `p = 3 × 10⁻¹²`, `p < 10⁻³⁰⁰`."""
    p, exponent = tested.get("p_value"), tested.get("log10_p")
    if p is None:
        return "not tested"
    if exponent is not None and exponent < SMALLEST:
        return f"p < {power(SMALLEST)}"
    if p >= 1e-3:
        return f"p = {number(p)}"
    exponent = math.floor(math.log10(p)) if p > 0 else SMALLEST
    return f"p < {power(SMALLEST)}" if p == 0 else f"p = {p / 10.0**exponent:.0f} × {power(exponent)}"


def strength(finding: Any) -> str:
    """How strong the evidence for a finding is: its p-value, or that the change was carried out and compared."""
    p = finding.get("p_value")
    if finding.get("relation") in EXACT and (p is None or p > 1e-6):
        return "verified exactly"
    return p_value(finding)


def odds(tested: Any) -> str:
    """A p-value in words: how often independent models would agree so well by chance."""
    p, exponent = tested.get("p_value"), tested.get("log10_p")
    if p is None:
        return ""
    if p >= 0.1:
        return f"independent models agree this well {percent(p)} of the time"
    exponent = math.log10(p) if exponent is None and p > 0 else SMALLEST if exponent is None else exponent
    times = math.floor(-exponent)
    if times < 6:
        return f"independent models agree this well once in {round(10**-exponent, -times + 1):,.0f} cases"
    return f"independent models agree this well less than once in {power(min(times, -SMALLEST))} cases"


def count(n: int, one: str, many: str = "") -> str:
    """`1 model`, `1,204 models`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def digest(value: object, digits: int = 12) -> str:
    """The algorithm and the first digits of a digest."""
    algorithm, _, text = str(value).partition(":")
    return f"{algorithm}:{text[:digits]}…" if text else str(value)


def breakable(value: object) -> "Markup":
    """A name that may be broken behind the signs that part it, as markup."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([/_.-])", r"\1<wbr>", str(escape(plain(value)))))


def said(value: object, most: int = 600) -> str:
    """A sentence as it is shown: plain, long names in it cut, and cut in the middle where it is still too long."""
    text = re.sub(rf"\S{{{LONGEST_NAME},}}", lambda word: short_name(word[0]), plain(value))
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[-most // 3 :]}"


def name(value: object, most: int = LONGEST_NAME) -> str:
    """A name as it is shown: plain, and cut where it is long."""
    return short_name(value, most)
