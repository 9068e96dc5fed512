"""`stemma check`: is the registry what it was, and are the sources still there?"""

import typer

from stemma.cli.options import Json, RegistryUrl


def check(registry: RegistryUrl = None, as_json: Json = False) -> None:
    """Look whether the registry is sound.

    Every digest is derived again and every source is looked at; the exit code is 1 on a finding.
    """
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import plain, progress, show, show_json, warn
    from stemma.types import jsonable

    with progress(quiet=as_json) as report:
        workspace = open_workspace(registry, progress=report)
        findings = list(workspace.check())
        models = len(list(workspace.list()))
    if as_json:
        rows = [jsonable(finding) for finding in findings]
        show_json({"registry": str(workspace.registry.path), "models": models, "findings": rows})
    elif not findings:
        show(f"{models:,} models in {plain(workspace.registry.path)}: nothing is wrong")
    for finding in findings:
        warn(f"{finding.kind}: {finding.message}")
    if findings:
        raise typer.Exit(1)
