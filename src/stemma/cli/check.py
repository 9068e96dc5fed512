"""`stemma check`: is the registry intact, and are the sources of its models still there?"""

import typer

from stemma.cli.options import Json, RegistryUrl

MOVED = frozenset({"source-gone", "source-changed"})
"""Findings about the files of models, not about the registry."""


def check(registry: RegistryUrl = None, as_json: Json = False) -> None:
    """Verify registry integrity.

    Every digest is derived again and every source is read; the exit code is 1 on a finding.
    """
    from stemma.application.enrolled_models import RegistryRequest, check_registry
    from stemma.cli.layout import findings, plain
    from stemma.cli.output import progress, show, show_json, warn
    from stemma.export.answers import command_of

    with progress(quiet=as_json) as on_progress:
        answer = check_registry(RegistryRequest(registry=registry), on_progress)
    found = answer.result
    if as_json:
        show_json(answer.document())
    else:
        models = "1 model" if answer.models == 1 else f"{answer.models:,} models"
        outcome = f"{len(found):,} problem{'s' * (len(found) > 1)} found" if found else "OK"
        trace = command_of("trace", answer.document()["asked"])
        rows = [("meaning", "every digest and every source is as recorded", ""),
                ("next", f"{trace} MODEL searches these models", "")]  # fmt: skip
        if found:
            only_sources = all(finding.kind in MOVED for finding in found)
            means = "the records are intact, but some weights have moved or changed" if only_sources else (
                "the registry cannot be relied on until this is repaired")  # fmt: skip
            rows = [("meaning", means, ""), ("next", "follow the messages on stderr; each says what to do", "")]
        show(f"{outcome}: {models} in {plain(answer.registry)}", "", findings(rows))
    for finding in found:
        warn(f"{finding.kind}: {finding.message}")
    if found:
        raise typer.Exit(1)
