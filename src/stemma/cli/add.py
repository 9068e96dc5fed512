"""`stemma add`: put checkpoints into the registry."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from stemma.cli.options import AllowCode, Data, Device, Factory, Jobs, Json, Probes, RegistryUrl, Seed

SHOWN = 40
"""Models that are listed one by one."""


def add(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Checkpoints, or folders of them.")],
    registry: RegistryUrl = None,
    name: Annotated[str | None, typer.Option("--name", metavar="N", help="Name of the one model given.")] = None,
    license: Annotated[str | None, typer.Option("--license", metavar="L", help="Licence of these models.")] = None,
    keep_weights: Annotated[bool, typer.Option("--keep-weights", help="Store the weights too.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Let a known name stand for new weights.")] = False,
    all_formats: Annotated[bool, typer.Option("--all-formats", help="Take .npz and ONNX from folders too.")] = False,
    jobs: Jobs = 1,
    probes: Probes = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Put checkpoints into the registry.

    It keeps digests and a sketch for search, not the weights; with --probes, a sketch of what each model does too. Bad
    files are reported on stderr and the rest is enrolled; the exit code is 1 if any failed.
    """
    from stemma.cli.asking import Asking
    from stemma.cli.modalities import SideBySide
    from stemma.cli.opening import open_workspace
    from stemma.cli.output import columns, plain, prefix, progress, show, show_json, warn

    results = []
    _understood(license)
    asking = Asking(network, allow_code, device, data)
    options: dict[str, Any] = {"name": name, "license": license, "keep_weights": keep_weights}
    if probes is not None:
        options["probes"] = asking.probes(probes, asking.first(paths), seed)
    with progress(quiet=as_json) as report:
        prepare = SideBySide(asking.able, options.get("probes"))
        workspace = open_workspace(registry, jobs=jobs, progress=report, prepare=prepare)
        for result in workspace.add(paths, replace=replace, all_formats=all_formats, **options):
            results.append(result)
            if result.error:
                warn(f"error: {result.error}")
            if result.note:
                warn(f"warning: {result.name}: {result.note}")
    failed = [r for r in results if r.error]
    if as_json:
        fields = ("name", "path", "digest", "status", "error", "note")
        rows = [{f: None if (v := getattr(r, f)) is None else str(v) for f in fields} for r in results]
        show_json({"registry": str(workspace.registry.path), "models": rows, "failed": len(failed)})
    else:
        done = [r for r in results if r.digest and not r.error]
        table = columns(
            ("name", "digest", "status"), [(r.name, prefix(r.digest or ""), r.status) for r in done[:SHOWN]]
        )
        counts = Counter(r.status for r in results)
        told = ", ".join(f"{n:,} {status}" for status, n in counts.items()) or "nothing there is a checkpoint"
        show(*([table] if done else []), f"{told} · {plain(workspace.registry.path)}")
    if failed:
        raise typer.Exit(1)


def _understood(license: str | None) -> None:
    """A licence that no gate would understand is told where it is stated.

    Raises:
        MisuseError: If the option is given without a licence.
    """
    from stemma.cli.output import warn
    from stemma.errors import MisuseError
    from stemma.workspace.policies import unknown

    if license is not None and not license.strip():
        raise MisuseError("--license is given without a licence")
    if license is not None and (why := unknown(license)):
        warn(f"warning: {why}: a gate will close on it. For a licence that is in no list write LicenseRef-NAME")
