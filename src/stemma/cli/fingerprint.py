"""`stemma fingerprint`: what a method sees in one model."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import AllowCode, Data, Device, Factory, Json, Parameters, Probes, RegistryUrl, Seed

if TYPE_CHECKING:
    from stemma.fingerprints.fragment_encoder import FragmentEncoder


def fingerprint(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A path, a registry name or a digest prefix.")],
    method: Annotated[str | None, typer.Option("--method", metavar="M", help="[default: the first there is]")] = None,
    probes: Probes = None,
    parameter: Parameters = None,
    training_sample: Annotated[
        str | None,
        typer.Option(
            "--training-sample",
            metavar="D",
            show_default=False,
            help="Inputs that the model was trained on, given as probes are; for method dna.",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="FILE",
            show_default=False,
            help="Of `stemma train dna`, or untrained; for method dna. [default: the one that ships]",
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

    The weight sketch is what the registry keeps of a model to find its relatives by; every other method asks the model
    with probes. A DNA of an enrolled model is kept in the registry and compared later without the model.
    """
    import numpy as np

    from stemma.cli import output
    from stemma.cli.asking import Asking
    from stemma.cli.methods import made
    from stemma.cli.modalities import joint_of
    from stemma.cli.opening import open_workspace
    from stemma.cli.pages import writable
    from stemma.errors import MisuseError
    from stemma.fingerprints import ALL
    from stemma.fingerprints.base import AbstractFingerprinter
    from stemma.fingerprints.dna import DNA

    asking = Asking(network, allow_code, device, data)
    chosen = made(method or ALL[0].name, parameter, seed)
    learnt = isinstance(chosen, DNA)
    asks = learnt or isinstance(chosen, AbstractFingerprinter)
    if probes is not None and not asks:
        raise MisuseError(f"{chosen.name} looks at weights and asks nothing: leave --probes out")
    for option, value in (("--training-sample", training_sample), ("--encoder", encoder)):
        if value is not None and not learnt:
            raise MisuseError(f"{option} belongs to method dna, not to {chosen.name}")
    writable("--out", out)
    kept = False
    with output.progress(quiet=as_json):
        workspace = open_workspace(registry, prepare=asking.able)
        subject = workspace.resolve(model)
        asked = asking.probes(probes, subject, seed) if asks else None
        (subject,), _ = joint_of([subject], {"probes": asked})
        if learnt and asked is not None:
            sample = None if training_sample is None else asking.probes(training_sample, subject, seed)
            chosen = replace(chosen, encoder=_encoder(encoder, asked.kind))
            taken = chosen(subject, asked, sample)
            kept = workspace.keep(subject, taken)
        else:
            taken = chosen(subject) if asked is None else chosen(subject, asked)
    arrays = {name: np.ascontiguousarray(value) for name, value in taken.values.items()}
    if out is not None:
        with out.open("wb") as file:
            np.savez(file, **arrays)  # ty: ignore[invalid-argument-type]
    values = _described(arrays)
    spec = taken.spec
    if as_json:
        method_made = {"name": spec.name, "version": spec.version, "params": dict(spec.params), "digest": spec.digest}
        document = {"model": {"name": subject.name, "digest": subject.digest}, "method": method_made, "values": values}
        output.show_json({**document, "probes": taken.probes, "kept": kept, "out": None if out is None else str(out)})
        return
    given = ", ".join(f"{name} {value}" for name, value in spec.params.items())
    rows = [("method", f"{spec.name} version {spec.version}: {given}", "")]
    rows += [] if asked is None else [("probes", f"{len(asked):,}: {asked.source}", output.short(asked.digest))]
    rows += [(name, f"{v['dtype']} {v['shape']}", output.short(str(v["digest"]))) for name, v in values.items()]
    rows += [("written to", str(out), "")] if out is not None else []
    rows += [("kept", "in the registry, to be compared without the model", "")] if kept else []
    output.show(output.identity(subject), "", output.findings(rows))


def _encoder(given: str | None, kind: str) -> "FragmentEncoder":
    """The learned part that a person means: a file, `untrained`, or the one that ships."""
    from stemma.fingerprints.fragment_encoder import FragmentEncoder
    from stemma.training import shipped_dna

    if given == "untrained":
        return FragmentEncoder.untrained()
    return shipped_dna(kind) if given is None else FragmentEncoder.load(Path(given))


def _described(arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    import hashlib

    return {
        name: {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "digest": "sha256:" + hashlib.sha256(array.tobytes()).hexdigest(),
        }
        for name, array in arrays.items()
    }
