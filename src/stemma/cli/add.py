"""`stemma add`: add checkpoints to the registry."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stemma.cli.options import (
    AllowCode,
    Cluster,
    Data,
    Device,
    Download,
    Factory,
    Jobs,
    Json,
    Probes,
    RegistryUrl,
    Seed,
    word,
)

if TYPE_CHECKING:
    from stemma.application.enrol import EnrolAnswer
    from stemma.workspace.enrol import AddResult

SHOWN = 40
"""Models that are listed one by one."""


def add(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...", show_default=False, help="Checkpoints, folders of them, hf:ORG/NAME or https addresses."
        ),
    ] = None,
    registry: RegistryUrl = None,
    name: Annotated[str | None, typer.Option("--name", metavar="N", help="Name of the one model given.")] = None,
    license: Annotated[str | None, typer.Option("--license", metavar="L", help="Licence of these models.")] = None,
    keep_weights: Annotated[bool, typer.Option("--keep-weights", help="Store the weights too.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a name that is already enrolled.")] = False,
    all_formats: Annotated[
        bool, typer.Option("--all-formats", help="Also read .npz and ONNX files in folders.")
    ] = False,
    hub_list: Annotated[
        Path | None,
        typer.Option(
            "--hub-list", metavar="FILE", show_default=False, help="Add each line of a file: hf:ORG/NAME[@REVISION]."
        ),
    ] = None,
    download: Download = False,
    jobs: Jobs = 1,
    cluster: Cluster = None,
    probes: Probes = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Add checkpoints to the registry.

    The registry stores digests and a sketch for search, not the weights; with --probes, a sketch of what each model
    computes too. Of a large model on a server a sample is read, and its digest is marked partial. Files that cannot be
    read are reported on stderr and the rest is added; the exit code is then 1.
    """
    from stemma.application.enrol import EnrolRequest, enrol, unclear_licence
    from stemma.application.network_options import NetworkOptions
    from stemma.cli.output import progress, show_json, warn

    if why := unclear_licence(license):
        warn(f"warning: {why}: a policy will refuse it. For a licence that is in no list write LicenseRef-NAME")
    request = EnrolRequest(
        paths=tuple(map(str, paths or ())),
        registry=registry,
        name=name,
        license=license,
        keep_weights=keep_weights,
        replace=replace,
        all_formats=all_formats,
        jobs=jobs,
        cluster=cluster,
        probes=probes,
        networks=NetworkOptions(network, allow_code, device, word(data)),
        seed=seed,
        hub_list=word(hub_list),
        download=download,
    )

    def on_result(result: "AddResult") -> None:
        if result.error:
            warn(f"error: {result.error}")
        if result.note:
            warn(f"warning: {result.name}: {result.note}")

    with progress(quiet=as_json) as on_progress:
        answer = enrol(request, on_progress, on_result)
    if as_json:
        show_json(answer.document())
    else:
        _print(answer)
    if answer.failed:
        raise typer.Exit(1)


def _print(answer: "EnrolAnswer") -> None:
    from stemma.cli.layout import columns, findings, plain
    from stemma.cli.output import prefix, show
    from stemma.export.answers import command_of

    counts = Counter(result.status for result in answer.results)
    summary = ", ".join(f"{n:,} {status}" for status, n in counts.items()) or "no checkpoint found"
    added = [result for result in answer.results if result.digest and not result.error]
    rows = [(result.name, prefix(result.digest or ""), result.status) for result in added[:SHOWN]]
    if len(added) > SHOWN:
        rows.append((f"and {len(added) - SHOWN:,} more", "", "all of them with --json"))
    meaning = "trace and lineage search these models from now on" if added else "nothing was added to the registry"
    trace = command_of("trace", answer.document()["asked"] | {"paths": None})
    step = f"{trace} MODEL compares a model with them" if added else "stemma add --help lists what can be added"
    closing = findings([("meaning", meaning, ""), ("next", step, "")])
    show(
        f"{summary} · {plain(answer.registry)}",
        *(["", columns(("name", "digest", "status"), rows)] if rows else []),
        "",
        closing,
    )
