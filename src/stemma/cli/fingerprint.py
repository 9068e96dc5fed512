"""`stemma fingerprint`: what a method sees in one model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stemma.cli.options import Json, RegistryUrl


def fingerprint(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A path, a registry name or a digest prefix.")],
    method: Annotated[str | None, typer.Option("--method", metavar="M", help="[default: the first there is]")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the values as .npz.")] = None,
    registry: RegistryUrl = None,
    as_json: Json = False,
) -> None:
    """Take a fingerprint of one model.

    The weight sketch is what the registry keeps of a model to find its relatives by.
    """
    import hashlib

    import numpy as np

    from stemma.cli import output
    from stemma.cli.opening import open_workspace
    from stemma.errors import MisuseError
    from stemma.fingerprints import ALL

    known = {kind.name: kind for kind in ALL}
    if method is not None and method not in known:
        raise MisuseError(f"no fingerprint is called '{method}'. There are: {', '.join(known)}")
    chosen = known[method] if method else ALL[0]
    with output.progress(quiet=as_json):
        subject = open_workspace(registry).resolve(model)
        taken = chosen()(subject)
    arrays: dict[str, Any] = {name: np.ascontiguousarray(value) for name, value in taken.values.items()}
    if out is not None:
        with out.open("wb") as file:
            np.savez(file, **arrays)
    values = {
        name: {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "digest": "sha256:" + hashlib.sha256(array.tobytes()).hexdigest(),
        }
        for name, array in arrays.items()
    }
    spec = taken.spec
    if as_json:
        made = {"name": spec.name, "version": spec.version, "params": dict(spec.params), "digest": spec.digest}
        document = {"model": {"name": subject.name, "digest": subject.digest}, "method": made, "values": values}
        output.show_json({**document, "out": None if out is None else str(out)})
        return
    given = ", ".join(f"{name} {value}" for name, value in spec.params.items())
    rows = [("method", f"{spec.name} version {spec.version}: {given}", "")]
    rows += [(name, f"{v['dtype']} {v['shape']}", output.short(str(v["digest"]))) for name, v in values.items()]
    rows += [("written to", str(out), "")] if out is not None else []
    output.show(output.identity(subject), "", output.findings(rows))
