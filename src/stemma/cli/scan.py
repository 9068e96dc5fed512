"""`stemma scan`: what is new in the model stores of this machine?"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stemma.cli.options import (
    AllowUntested,
    Alpha,
    DenyLicense,
    FailOn,
    FailOnDescendantOf,
    Jobs,
    Json,
    RegistryUrl,
    words,
)

if TYPE_CHECKING:
    from stemma.application.scan import ScanAnswer, ScannedPart

SHOWN = 40
"""Models that are listed one by one."""

FINDINGS = 3
"""Related models that are named for each."""


def scan(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH...",
            show_default=False,
            help="Folders of models or of stores; the usual stores of this machine unless given.",
        ),
    ] = None,
    hf: Annotated[bool, typer.Option("--hf", help="Scan the cache of the Hugging Face hub.")] = False,
    ollama: Annotated[bool, typer.Option("--ollama", help="Scan the store of Ollama.")] = False,
    registry: RegistryUrl = None,
    add: Annotated[bool, typer.Option("--add", help="Enrol new models in the registry.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Read and trace unchanged models too.")] = False,
    alpha: Alpha = None,
    fail_on_new: Annotated[
        bool, typer.Option("--fail-on-new", help="Exit with code 3 if a model is new or changed.")
    ] = False,
    fail_on: FailOn = None,
    deny_license: DenyLicense = None,
    fail_on_descendant_of: FailOnDescendantOf = None,
    allow_untested: AllowUntested = False,
    jobs: Jobs = 1,
    as_json: Json = False,
) -> None:
    """Tell what is new in the model stores of this machine.

    Reads the cache of the Hugging Face hub, the store of Ollama and folders in place, and traces what was not there at
    the last scan.
    """
    from stemma.application import scan as application
    from stemma.cli.output import progress, show_json, warn
    from stemma.cli.policy import enforce

    request = application.ScanRequest(
        paths=words(paths or None),
        hf=hf,
        ollama=ollama,
        registry=registry,
        add=add,
        again=again,
        alpha=alpha,
        fail_on_new=fail_on_new,
        fail_on=words(fail_on),
        deny_license=words(deny_license),
        fail_on_descendant_of=words(fail_on_descendant_of),
        allow_untested=allow_untested,
        jobs=jobs,
    )
    with progress(quiet=as_json) as on_progress:
        answer = application.scan(request, on_progress)
    if as_json:
        show_json(answer.document())
    else:
        _print(answer)
    enforce(answer.ruling)
    if answer.not_tested and not allow_untested:
        n = len(answer.not_tested)
        warn(f"error: {n:,} model{'' if n == 1 else 's'} could not be read or compared: see 'not tested'. To accept "
             "this, add --allow-untested")  # fmt: skip
        raise typer.Exit(1)


def _print(answer: "ScanAnswer") -> None:
    from stemma.cli.layout import findings
    from stemma.cli.output import not_tested, show

    one = answer.present == 1
    head = f"{answer.present:,} model{'' if one else 's'}: {answer.count('new'):,} new, "
    head += f"{answer.count('changed'):,} changed, {answer.count('gone'):,} gone"
    rows = [*_models(answer), *not_tested([vars_of(t) for t in answer.not_tested])]
    kinds: dict[str, list[str]] = {}
    for item in answer.left_out:
        kinds.setdefault(item.what, []).append(item.why)
    for sentences in kinds.values():
        more = f" (and {len(sentences) - 1:,} more like it)" if len(sentences) > 1 else ""
        rows.append(("left out", f"{sentences[0]}{more}", ""))
    rows += [("store", str(store.path), store.kind) for store in answer.stores]
    rows.append(("cannot see", " · ".join(answer.cannot_see), ""))
    show(head, "", findings(rows), "", findings(_closing(answer)))


def vars_of(part: object) -> dict[str, str]:
    """A part of a document as a mapping."""
    import dataclasses

    return dataclasses.asdict(part)  # ty: ignore[invalid-argument-type]


def _models(answer: "ScanAnswer") -> Iterator[tuple[str, str, str]]:
    order = {"new": 0, "changed": 1, "gone": 2, "unchanged": 3}
    shown = [m for m in answer.models if m.status != "unchanged" or m.verdict is not None or m.refused]
    shown.sort(key=lambda m: (order[m.status], m.name))
    for m in shown[:SHOWN]:
        yield m.status, _named(m), " · ".join(_facts(m))
    if len(shown) > SHOWN:
        yield "", f"and {len(shown) - SHOWN:,} more", "all of them with --json"


def _named(model: "ScannedPart") -> str:
    others = len([name for name in model.names if name != model.name])
    return f"{model.name} (and {others} more name{'' if others == 1 else 's'})" if others else model.name


def _facts(model: "ScannedPart") -> Iterator[str]:
    if model.verdict is not None:
        related = [f"{f.name} ({f.relation or 'related'})" for f in model.findings[:FINDINGS]]
        more = f" and {len(model.findings) - FINDINGS:,} more" if len(model.findings) > FINDINGS else ""
        yield f"{model.verdict}{': ' if related else ''}{', '.join(related)}{more}"
    if model.claims:
        yield f"claims {', '.join(f'{k} {v}' for k, v in sorted(model.claims.items()))}"[:200]
    if model.refused:
        yield "refused"
    if model.enrolled:
        yield model.enrolled if model.enrolled_as == model.name else f"{model.enrolled} as {model.enrolled_as}"


def _closing(answer: "ScanAnswer") -> Iterator[tuple[str, str, str]]:
    fresh = [m for m in answer.models if m.status in ("new", "changed")]
    if not fresh:
        yield "meaning", "nothing was added or changed since the last scan", ""
        yield "next", "stemma scan --again reads and traces every model anew", ""
        return
    yield "meaning", "new models were traced against the registry; what stores and cards say is only claimed", ""
    if answer.request.add:
        yield "next", "stemma lineage draws the family trees of all enrolled models", ""
    else:
        yield "next", "stemma scan --add enrols what is new, so that later models are compared with it", ""
