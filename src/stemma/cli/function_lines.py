"""How the function axis of a comparison or a trace is printed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NORMAL_LAW = "normal law"
"""What decides where the rank alone cannot, as in the details of a document."""

SHOWN = 3
"""Models not used as reference that are named."""


def function_lines(function: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """The function axis: distance and p-value, the null, label agreement and accuracy.

    Args:
        function: As in the `--json` document of a comparison.
        names: Of the two models.

    Yields:
        Label, finding, evidence.
    """
    from stemma.cli.output import between, number

    details = function.get("details") or {}
    first = next(iter(details.get("measures") or ()), None)
    if "channels" in details:
        yield "function", f"DNA distance {number(function['distance'])}", _chance(function)
        first = None
    else:
        yield "function", _measured(function, first), _chance(function)
    yield "", str(function["reason"]), ""
    yield from _both_p_values(details.get("p_values") or {})
    if not (function.get("null") or {}).get("n"):
        yield from _without_controls(details.get("beyond_labels"))
    if first is not None and "null_median" in first:
        span = between(first["null_median"], (first["null_smallest"], first["null_largest"]))
        yield "controls", f"control models: {span}", f"median [smallest, largest] · {function['null']['source']}"
    if details.get("agreement") is not None:
        yield agreement_line(names, details["agreement"], details.get("accuracy") or (), details.get("null_agreement"))
    apart = list(details.get("left_out") or ())
    if apart:
        many = f"{len(apart)} {'model is not a control' if len(apart) == 1 else 'models are not controls'}"
        yield (
            "left out",
            f"{many}: {'; '.join(map(str, apart[:SHOWN]))}",
            "all with --json" if len(apart) > SHOWN else "",
        )
    for name, why in (details.get("missing_measures") or {}).items():
        yield "left out", f"{name}: {why}", ""


def _both_p_values(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The exact p-value and the extrapolated one, where there are both, and which of them decides."""
    from stemma.cli.output import p_value

    if found.get("normal_law") is not None:
        both = f"{p_value(found['exact'], None)} by rank, {p_value(found['normal_law'], None)} by a normal law"
        yield "p-values", f"{both}; the {found['decides']} one decides", f"assumes: {found['assumes']}"


def _without_controls(found: Mapping[str, Any] | None) -> Iterator[tuple[str, str, str]]:
    """What the true labels alone say of a pair that no control model stands for."""
    from stemma.cli.output import number

    if found is not None:
        one = max(found["first_right"], found["second_right"])
        yield (
            "no controls",
            f"the same wrong answer to {found['alike_wrong']} probe inputs, one model alone right on {one}: "
            f"e = {number(found['e_value'])} if {found['assumes']}; {found['broken_by']}",
            "",
        )


def _measured(function: Mapping[str, Any], first: Mapping[str, Any] | None) -> str:
    from stemma.cli.output import between, number

    if first is None:
        value, shared = function.get("distance"), (function.get("details") or {}).get("adjusted_rand")
        if value is None and shared is not None:
            return f"labels alone: their partitions of the probe inputs agree by {number(shared)} (adjusted Rand index)"
        return "not measured" if value is None else f"distance {number(value)}"
    interval = first.get("interval")
    what = "field distance" if first["measure"] == "field-cosine" else f"{first['measure']} of {first['fingerprint']}"
    return f"{what} {between(first['distance'], tuple(interval) if interval else None)}"


def _chance(function: Mapping[str, Any]) -> str:
    from stemma.cli.output import number, p_value

    p, null = function.get("p_value"), function.get("null") or {}
    exact = ((function.get("details") or {}).get("p_values") or {}).get("decides") != NORMAL_LAW
    at_floor = exact and p is not None and null.get("n") and p <= null["floor"] * (1 + 1e-9)
    effect = function.get("effect")
    parts = [p_value(p, function.get("log10_p")), "the smallest attainable p-value" if at_floor else ""]
    return " · ".join(part for part in (*parts, f"effect {number(effect)}" if effect else "") if part)


def agreement_line(
    names: Sequence[str], alike: float | None, accuracies: Sequence[float | None], null: float | None = None
) -> tuple[str, str, str]:
    """Label agreement and accuracy, the figures that stand beside every distance.

    Args:
        names: Of the two models.
        alike: Share of probes with the same top answer; None where they do not choose among the same answers.
        accuracies: Of both, None where no true labels are known.
        null: The median of `alike` among control models.

    Returns:
        Label, finding, evidence.
    """
    if len(set(names)) < len(names):
        names = ("the first", "the second")
    known = [f"{n} {percent(x)}" for n, x in zip(names, accuracies, strict=False) if x is not None]
    accuracy = f"accuracy: {', '.join(known)}" if known else "no true labels given, so no accuracy"
    if alike is None:
        return "labels", "not comparable: the two have different classes", accuracy
    among = "" if null is None else f" (control models: {percent(null)})"
    return "labels", f"the same class for {percent(alike)} of the probe inputs{among}", accuracy


def percent(share: float) -> str:
    """A share that is not rounded to all or nothing.

    Returns:
        For example `91 %`, `99.7 %`.
    """
    exact = 100 * share
    digits = next((d for d in range(4) if 0 < round(exact, d) < 100), 0) if 0 < exact < 100 else 0
    return f"{exact:.{digits}f} %"
