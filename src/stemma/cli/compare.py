"""`stemma compare`: what is B to A?"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import (
    AllowCode,
    AllowUntested,
    Alpha,
    Data,
    Device,
    Factory,
    FailOn,
    Html,
    Json,
    NullPaths,
    NullRecipe,
    Probes,
    RegistryUrl,
    Seed,
)

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.types import Comparison


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A path, a registry name or a digest prefix.")],
    b: Annotated[str, typer.Argument(metavar="B", help="A path, a registry name or a digest prefix.")],
    probes: Probes = None,
    null: NullPaths = None,
    null_recipe: NullRecipe = None,
    registry: RegistryUrl = None,
    alpha: Alpha = None,
    fail_on: FailOn = None,
    allow_untested: AllowUntested = False,
    html: Html = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Say what one model is to another.

    Related, independent or inconclusive, and what was done to the one to get the other. With --probes, in what they do
    as well as in their weights.
    """
    from stemma.cli.asking import Asking
    from stemma.cli.modalities import SideBySide, joint_of
    from stemma.cli.notes import notes_of, tell
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import progress, show, show_json
    from stemma.cli.pages import compared, writable, written
    from stemma.cli.policy import enforce, with_policy
    from stemma.workspace.policies import Policy, on_comparison

    policy = Policy.of(fail_on, allow_untested=allow_untested)
    level = {} if alpha is None else {"alpha": alpha}
    asking = Asking(network, allow_code, device, data)
    writable("--html", html)
    with progress(quiet=as_json) as report:
        workspace = open_workspace(registry, progress=report, prepare=asking.able)
        models = workspace.resolve(a), workspace.resolve(b)
        options = asking.function(probes, null, null_recipe, models[0], seed, html=html is not None)
        (first, second), options = joint_of(models, options)
        models = first, second
        prepare = SideBySide(asking.able, options.get("probes"))
        workspace = open_workspace(registry, progress=report, prepare=prepare)
        result = workspace.compare(*models, **options, **level)
        page = None if html is None else compared(models, options["probes"], result, report)
    written(html, page)
    tell(*models)
    ruling = on_comparison(policy, result, **level)
    if as_json:
        show_json(with_policy({**result.to_dict(), "notes": notes_of(*models)}, ruling, given=policy.given))
    else:
        from stemma.cli.output import findings, identity

        rows = [*lines(result), *([("page", str(html), "")] if html else [])]
        show(*(identity(model) for model in models), "", findings(rows))
    enforce(ruling)


def lines(result: "Comparison") -> Iterator[tuple[str, "str | Text", str]]:
    """What a person reads: every line a finding with its evidence, the last what was not looked at.

    Args:
        result: The answer.

    Yields:
        Label, finding, evidence.
    """
    from stemma.cli.behaviour import behaviour
    from stemma.cli.output import not_tested, strength, verdict_text
    from stemma.types import Verdict

    kind = result.relation.kind.value
    named = "" if kind in {"related", "unrelated"} else f": {kind}"
    reason = "" if result.relation.reason == result.weights.reason else result.relation.reason
    yield "verdict", verdict_text(result.verdict, named), reason
    if result.relation.steps and result.relation.steps != (kind,):
        yield "steps", " → ".join(result.relation.steps), ""
    measured = [f"{k.replace('_', ' ')} {_value(v)}" for k, v in result.relation.parameters.items() if _is_figure(v)]
    if measured:
        yield "measured", ", ".join(measured), ""
    weights = result.weights
    chance = strength({**result.to_dict()["weights"], "relation": kind})
    yield "weights", weights.reason, f"{chance} · {weights.statistic}"
    function = result.to_dict()["function"]
    if function is not None:
        yield from behaviour(function, (result.a.name, result.b.name))
    for evidence in result.evidence:
        looked = evidence.p_value is not None or evidence.verdict == Verdict.SUPPORTED
        if looked and evidence is not weights and evidence is not result.function:
            chance = strength({**evidence.to_dict(), "relation": kind})
            why = f": {evidence.reason}" if evidence.spec.name == "modality-shares" else ""
            yield (
                "tested too",
                f"{evidence.claim}: {_SAID[evidence.verdict.value]}{why}",
                f"{chance} · {evidence.statistic}",
            )
    arrow = {"a->b": f"{result.a.name} → {result.b.name}", "b->a": f"{result.b.name} → {result.a.name}"}
    yield "direction", arrow.get(result.direction, "unknown"), ""
    yield from not_tested([t for t in result.open_questions if t["why"] != weights.reason])
    told = {t["why"] for t in result.open_questions}
    yield "cannot see", " · ".join(c for c in result.cannot_see if c not in told) or "nothing known to be missing", ""


_SAID = {"supported": "yes", "refuted": "no", "inconclusive": "undecided"}
"""What a test says of its own claim, whatever the answer above it."""


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)


def _value(value: Any) -> str:
    from stemma.cli.output import number

    return number(value) if isinstance(value, float) else str(value)
