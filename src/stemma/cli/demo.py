"""`stemma demo`: the whole way in a minute, on networks that are made on the spot."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stemma.cli.options import Json

if TYPE_CHECKING:
    from stemma.types import Trace


def demo(
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where to put it. [default: demo]")] = None,
    as_json: Json = False,
) -> None:
    """Show the whole way on small networks.

    Trains a family of small networks on real handwritten digits, enrols it, disguises one of them, traces the suspect,
    and says whether the answer is right: the exit code is 1 if it is not.
    """
    from stemma import zoo
    from stemma.cli import output
    from stemma.cli.opening import open_workspace
    from stemma.cli.trace import lines

    folder = _folder(out)
    with output.progress(quiet=as_json) as report:
        if report is not None:
            report("training small networks on handwritten digits", 0, None)
        made = zoo.demo(folder)
        workspace = open_workspace(str(folder / "registry.db"), progress=report)
        enrolled = [result for result in workspace.add([made.models], replace=True) if not result.error]
        suspect = workspace.resolve(str(made.suspect))
        result = workspace.trace(suspect)
    right = found(result, made.parent)
    record = workspace.registry.path
    if as_json:
        truth = {"parent": made.parent, "disguise": [step.name for step in made.steps], "found": right}
        output.show_json({"registry": str(record), "suspect": str(made.suspect), "truth": truth, **result.to_dict()})
    else:
        disguise = ", ".join(step.name for step in made.steps)
        output.show(
            f"enrolled    {len(enrolled)} networks trained on handwritten digits, from {output.plain(made.models)}",
            f"suspect     {output.plain(made.suspect)}: one of them in disguise",
            "",
            output.identity(suspect),
            "",
            output.findings(lines(result)),
            "",
            f"truth       {'found' if right else 'NOT found'}: the suspect is {made.parent} after {disguise}",
            f"record      {output.plain(record)}",
            f"go on       stemma list --registry {output.plain(record)}",
        )
    if not right:
        raise typer.Exit(1)


def found(result: "Trace", truth: str) -> bool:
    """Whether a trace names the model that the suspect was made from, before any other.

    Args:
        result: The answer.
        truth: Name of the model.

    Returns:
        Whether it is among the copies, or else among the parents.
    """
    return truth in {finding["name"] for finding in (result.copies or result.parents)}


def _folder(out: Path | None) -> Path:
    import os
    import tempfile

    from stemma.errors import MisuseError

    if out is not None or os.access(Path.cwd(), os.W_OK):
        folder = (out or Path("demo")).absolute()
        if folder.exists() and not folder.is_dir():
            raise MisuseError(f"{folder} is a file. Give a folder with --out")
        if folder.exists() and any(folder.iterdir()) and not (folder / "models" / "truth.json").exists():
            raise MisuseError(f"{folder} holds what no earlier demo left there. Give another folder with --out")
        return folder
    return Path(tempfile.mkdtemp(prefix="stemma-demo-"))
