"""`stemma demo`: train small networks, disguise one, trace it and check the answer."""

from pathlib import Path
from typing import Annotated

import typer

from stemma.cli.options import Json, word


def demo(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for its models and registry. [default: demo]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try Stemma on small networks.

    Trains a family of small networks on handwritten digits, adds it to a registry, disguises one of them, traces the
    disguised model, and says whether the answer is right: the exit code is 1 if it is not.
    """
    from stemma.application.demo import DemoRequest
    from stemma.application.demo import demo as run_demo
    from stemma.cli.layout import answer_text, findings, lines_of, plain
    from stemma.cli.output import identity, progress, show, show_json
    from stemma.cli.trace import lines
    from stemma.export.answers import trace_answer

    with progress(quiet=as_json) as on_progress:
        answer = run_demo(DemoRequest(out=word(out)), on_progress)
    if as_json:
        show_json(answer.document())
    else:
        made, record = answer.made, plain(answer.registry)
        disguise = ", ".join(step.name for step in made.steps)
        truth = f"{made.parent} after {disguise}"
        outcome = "right" if answer.found else "WRONG"
        before = [
            ("enrolled", f"{answer.enrolled} networks trained on handwritten digits", str(made.models)),
            ("suspect", "one of them in disguise", str(made.suspect)),
            ("model", *identity(answer.model)),
        ]
        after = [
            ("truth", truth, f"the answer is {outcome}"),
            ("meaning", "the model was recognised by its weights alone" if answer.found else "see docs/limits.md", ""),
            ("next", f"stemma list --registry {record}", ""),
        ]
        found = answer_text(trace_answer(answer.result.to_dict()))
        show(lines_of(found), "", findings([*before, *lines(answer.result)]), "", findings(after))
    if not answer.found:
        raise typer.Exit(1)
