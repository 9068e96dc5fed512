"""`stemma fingerprint`: take a fingerprint of one model."""

from pathlib import Path
from typing import Annotated

import typer

from stemma.cli.options import (
    AllowCode,
    Data,
    Device,
    Factory,
    Json,
    MaxQueries,
    Parameters,
    Probes,
    RegistryUrl,
    Seed,
    word,
    words,
)


def fingerprint(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A path, name, digest prefix or endpoint:URL.")],
    method: Annotated[
        str | None, typer.Option("--method", metavar="M", help="Fingerprint to take. [default: weight-sketch]")
    ] = None,
    probes: Probes = None,
    max_queries: MaxQueries = None,
    parameter: Parameters = None,
    training_sample: Annotated[
        str | None,
        typer.Option(
            "--training-sample",
            metavar="D",
            show_default=False,
            help="Inputs like the training data, in a format of --probes; for method dna.",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="FILE",
            show_default=False,
            help="Encoder file of `stemma train dna`, or untrained; for method dna. [default: the one that ships]",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the values as .npz.")] = None,
    registry: RegistryUrl = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Take a fingerprint of one model.

    The weight sketch is what the registry stores of a model to find its relatives; every other method runs the network
    on probe inputs. A DNA of an enrolled model is stored in the registry and compared later without the model.
    """
    from rich.text import Text

    from stemma.application import fingerprint as application
    from stemma.application.network_options import NetworkOptions
    from stemma.cli.layout import plain
    from stemma.cli.output import progress, report, short, show_json, tell
    from stemma.cli.pages import writable

    writable("--out", out)
    request = application.FingerprintRequest(
        model=model,
        method=method,
        probes=probes,
        max_queries=max_queries,
        parameters=words(parameter),
        training_sample=training_sample,
        encoder=encoder,
        out=word(out),
        registry=registry,
        networks=NetworkOptions(network, allow_code, device, word(data)),
        seed=seed,
    )
    with progress(quiet=as_json) as on_progress:
        answer = application.fingerprint(request, on_progress, tell)
    if as_json:
        show_json(answer.document())
        return
    spec, used = answer.result.spec, answer.probes
    given = ", ".join(f"{name} {value}" for name, value in spec.params.items())
    rows = [("method", f"{spec.name} version {spec.version}: {given}", "")]
    rows += [] if used is None else [("probes", f"{len(used):,}: {used.source}", short(used.digest))]
    rows += [(name, f"{v.dtype} {list(v.shape)}", short(v.digest)) for name, v in answer.values().items()]
    rows += [("written to", str(out), "")] if out is not None else []
    rows += [("stored", "in the registry, to be compared without the model", "")] if answer.kept else []
    compared = "stemma trace compares it with the enrolled models"
    measured = f"stemma distance A B --probes P --method {spec.name} compares two models by it"
    report(Text(f"{spec.name} fingerprint of {plain(answer.model.name)}"), [answer.model], rows,
           "similar fingerprints mean that the models are similar in what the method measures",
           compared if used is None or answer.kept else measured)  # fmt: skip
