"""The order in which tests of weights decide: every row of the table by itself, and the page that shows it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plain_networks import made, mlp
from stemma import compare
from stemma.kinship import by_weights
from stemma.kinship.weights.contents.contents_in_place import contents_in_place
from stemma.kinship.weights.correspondence import by_name
from stemma.kinship.weights.decision import TABLE, Findings, decide
from stemma.types import Axis, Evidence, Null, Spec, Verdict

PAGE = Path(__file__).parents[1] / "docs" / "methods" / "weight_tests.md"
YES, NO, OPEN = Verdict.SUPPORTED, Verdict.REFUTED, Verdict.INCONCLUSIVE


def evidence(
    statistic: str, verdict: Verdict, log10_p: float | None = None, effect: float = 0.0, **details: object
) -> Evidence:  # fmt: skip
    p = None if log10_p is None else 10.0**log10_p
    return Evidence(
        claim="the weights share an origin",
        axis=Axis.WEIGHTS,
        statistic=statistic,
        value=0.0,
        null=Null("a test"),
        p_value=p,
        log10_p=log10_p,
        effect=effect,
        verdict=verdict,
        reason=f"{statistic} says {verdict.value}",
        spec=Spec(statistic),
        inputs=("a", "b"),
        details=details,
    )


SAME = evidence("digest", OPEN)
STRANGER = evidence("units-alike", NO, 0.0)
NOTHING = evidence("units-alike", OPEN, 0.0)
ORDER = evidence("units-in-place", OPEN, -0.2)
GAP = ({"what": "sizes", "model": "", "why": "two matrices were not looked at"},)
STRANGERS = Findings(SAME, order=ORDER, contents=STRANGER, matched=evidence("units-matched", OPEN, 0.0))

ROWS = {
    "same digest": (replace(STRANGERS, same=evidence("digest", YES)), YES, "digest"),
    "same numbers": (replace(STRANGERS, exact_equality=evidence("recast", YES)), YES, "recast"),
    "exact map": (replace(STRANGERS, matched=evidence("units-matched", YES), mapped=True), YES, "units-matched"),
    "contents under a map": (replace(STRANGERS, matched=evidence("units-matched", YES, -9)), YES, "units-matched"),
    "contents in place": (replace(STRANGERS, contents=evidence("units-alike", YES, -9)), YES, "units-alike"),
    "units bit for bit": (replace(STRANGERS, kept=evidence("units-kept", YES, -9)), YES, "units-kept"),
    "tensors bit for bit": (replace(STRANGERS, shared=evidence("shared-tensors", YES)), YES, "shared-tensors"),
    "order alone": (replace(STRANGERS, order=evidence("units-in-place", YES, -110)), OPEN, "units-in-place"),
    "a trace of order": (replace(STRANGERS, order=evidence("units-in-place", OPEN, -3)), OPEN, "units-in-place"),
    "one tensor": (
        replace(STRANGERS, contents=evidence("units-alike", OPEN, -0.1, log10_p_of_all=-40.0)), OPEN, "units-alike",
    ),
    "a trace of contents": (replace(STRANGERS, matched=evidence("units-matched", OPEN, -5)), OPEN, "units-matched"),
    "a map without proof": (
        replace(STRANGERS, matched=evidence("units-matched", OPEN, 0.0, effect=0.2)), OPEN, "units-matched",
    ),
    "a shared table": (replace(STRANGERS, shared=evidence("shared-tensors", OPEN)), OPEN, "shared-tensors"),
    "not tested": (replace(STRANGERS, not_tested=GAP), OPEN, "units-alike"),
    "other sizes": (replace(STRANGERS, contents=NOTHING, sizes=evidence("sizes", NO)), NO, "sizes"),
    "excluded": (STRANGERS, NO, "units-alike"),
    "too little": (replace(STRANGERS, contents=NOTHING), OPEN, "units-alike"),
}  # fmt: skip
"""For each row findings to which it applies, what it concludes, and whose evidence it quotes."""


def test_every_row_has_its_case() -> None:
    assert list(ROWS) == [row.name for row in TABLE]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_decides(name: str) -> None:
    findings, verdict, statistic = ROWS[name]
    row, found = decide(findings)
    assert (row.name, row.verdict, found.statistic) == (name, verdict, statistic)
    assert found.verdict is verdict  # no line contradicts the answer above it


@pytest.mark.parametrize(("upper", "lower"), list(zip(list(ROWS)[:-2], list(ROWS)[1:-1], strict=True)))
def test_a_row_goes_before_the_next(upper: str, lower: str) -> None:
    both = STRANGERS
    for name in (lower, upper):  # where both rows read one field, they exclude each other
        both = replace(both, **{f: v for f, v in vars(ROWS[name][0]).items() if v is not getattr(STRANGERS, f)})
    assert decide(both)[0].name == upper


def test_nobody_is_acquitted_by_what_was_not_looked_at() -> None:
    for name, (findings, _, _) in ROWS.items():
        row, _ = decide(replace(findings, not_tested=GAP))
        assert row.verdict is not NO, name


def test_order_never_convicts() -> None:
    ordered = evidence("units-in-place", YES, -110)
    for name, (findings, verdict, _) in ROWS.items():
        row, found = decide(replace(findings, order=ordered))
        assert verdict is YES or row.verdict is OPEN, name
        assert "forged" in found.reason or row.name != "order alone"


def test_the_page_shows_the_table() -> None:
    section = PAGE.read_text().split("## The order in which tests decide")[1].split("\n## ")[0]
    shown = re.findall(r"^\| ([a-z ]+) \| .+ \| `(\w+)`", section, re.MULTILINE)
    words = {YES: "related", NO: "independent", OPEN: "inconclusive"}
    assert shown == [(row.name, words[row.verdict]) for row in TABLE]


def test_a_trace_in_place_is_not_forgotten_when_other_pairs_are_looked_at() -> None:
    (arrays, _), (other, _) = mlp(1), mlp(2)
    a, b = made(arrays, None, "a"), made(other | {"2.weight": arrays["2.weight"] + np.float32(1e-4)}, None, "b")
    seen = contents_in_place(a, b, by_name(a, b), 0.01)
    assert seen.verdict is Verdict.INCONCLUSIVE
    assert not by_weights._too_few_units(seen, 0.01), (
        seen.reason
    )  # one tensor alone agrees: a second look acquits nobody
    nothing = contents_in_place(a, b, (), 0.01)
    assert by_weights._too_few_units(nothing, 0.01)
    assert compare(a, b).verdict != "independent"
