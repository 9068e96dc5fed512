"""`stemma train`: the learned parts, trained on zoos whose history is known."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stemma.cli.options import AllowCode, Device, Factory, Json, Probes, words

app = typer.Typer(help="Train the learned parts on families of networks.", no_args_is_help=True)


@app.command("detector")
def detector(
    zoo: Annotated[
        list[str],
        typer.Argument(
            metavar="ZOO...",
            help="Folders of `stemma zoo build`, kinds such as mlp+cnn:n=48,seed=1, or curriculum:n=24,seed=1.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write, as safetensors.")],
    preset: Annotated[
        str, typer.Option("--preset", metavar="P", help="Architecture: v3, or paper for the published one.")
    ] = "v3",
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Number of updates.")] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Random seed.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a lineage detector on families of networks.

    Whole families are used for training, selection, calibration or the test. The file holds weights, configuration and
    the figures on the test families.
    """
    from stemma.application.train import TrainDetectorRequest, train_detector
    from stemma.cli.layout import findings, plain
    from stemma.cli.output import progress, show, show_json
    from stemma.cli.pages import writable

    writable("--out", out)
    request = TrainDetectorRequest(zoo=tuple(zoo), out=str(out), preset=preset, steps=steps, seed=seed)
    with progress(quiet=as_json) as on_progress:
        answer = train_detector(request, on_progress)
    if as_json:
        show_json(answer.document())
    else:
        show(f"wrote a detector to {plain(out)}", "", findings(_rows(answer.document())))


@app.command("direction")
def direction(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the two files.")],
    families: Annotated[
        int | None,
        typer.Option(
            "--families",
            metavar="N",
            min=6,
            show_default=False,
            help="Number of trees of each kind, and of mixed families. [default: as shipped]",
        ),
    ] = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND...", show_default=False, help="Kinds of networks: mlp, cnn, vit or lm."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Random seed of the first family.")] = 3000,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Number of processes.")] = 2,
    as_json: Json = False,
) -> None:
    """Train the models of direction and parents.

    Trains trees of small networks, each child with a different recipe, and as many families of all operations.
    Direction is learned from half of the families, parents from a third, and the thresholds are set on the rest.
    """
    from stemma.application.train import TrainDirectionRequest, train_direction
    from stemma.cli.layout import findings, plain
    from stemma.cli.output import progress, show, show_json

    request = TrainDirectionRequest(out=str(out), families=families, kinds=words(kinds), seed=seed, jobs=jobs)
    with progress(quiet=as_json) as on_progress:
        answer = train_direction(request, on_progress)
    if as_json:
        show_json(answer.document())
        return
    made, document = answer.result, answer.document()
    rows = [("learned from", f"{document['pairs']:,} pairs and {document['queries']:,} suspects", ""),
            ("parent", f"named from a probability of {made.parent_threshold(8):.2f}",
             f"of one relative alone {made.parent_threshold(1):.2f}")]  # fmt: skip
    show(f"wrote direction.safetensors and parenthood.safetensors to {plain(out)}", "", findings(rows))


@app.command("dna")
def dna(
    zoo: Annotated[
        list[str],
        typer.Argument(metavar="ZOO...", help="Folders of `stemma zoo build`, or kinds such as mlp+cnn:n=24,seed=1."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write, as safetensors.")],
    probes: Probes = None,
    similarity: Annotated[
        str,
        typer.Option("--similarity", metavar="LOSS", help="Loss on similarity: infonce, pair-margin, triplet or none."),
    ] = "none",
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Number of updates.")] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Random seed.")] = 0,
    network: Factory = None,
    allow_code: AllowCode = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train the encoder and the provenance classifier of Model DNA.

    Sources are trained separately on the same data, and children are made of each. A quarter of the groups' sources is
    held out for the test. Images and texts get separate encoders.
    """
    from stemma.application.network_options import NetworkOptions
    from stemma.application.train import TrainDnaRequest, train_dna
    from stemma.cli.layout import findings, plain
    from stemma.cli.output import number, progress, show, show_json
    from stemma.cli.pages import writable

    writable("--out", out)
    request = TrainDnaRequest(
        zoo=tuple(zoo), out=str(out), probes=probes, similarity=similarity, steps=steps, seed=seed,
        networks=NetworkOptions(network, allow_code, device),
    )  # fmt: skip
    with progress(quiet=as_json) as on_progress:
        answer = train_dna(request, on_progress)
    if as_json:
        show_json(answer.document())
        return
    test = answer.test
    rows = [("learned from", f"{answer.models:,} models", f"{len(answer.groups)} groups")]
    if test["sources"]:
        rows += [("AUROC", number(test["auroc"]), f"{test['sources']} sources left out"),
                 ("top 1", number(test["top_1"]), "share of children whose source is ranked first")]  # fmt: skip
    else:
        rows.append(("tested", "not at all", "no group has the 12 sources that a test needs"))
    show(f"wrote an encoder to {plain(out)}", "", findings(rows))


def _rows(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    from stemma.cli.output import number

    families, test = document["families"], document["test"]
    split = ", ".join(f"{count} {part}" for part, count in families.items())
    rows = [("learned from", f"{document['models']:,} models", f"families: {split}")]
    if not test:
        return [*rows, ("tested", "not at all", "the test families have no questions")]
    found, refused = (("none" if x is None else number(x)) for x in (test["parent_found"], test["orphan_refused"]))
    return [
        *rows,
        ("parent found", found, f"of {test['questions'] - test['orphans']:,} questions about test families"),
        ("refused", refused, f"of {test['orphans']:,} questions without an ancestor among the candidates"),
        (
            "calibration",
            f"error {number(test['calibration_error'])}",
            "mean difference between probability and share correct",
        ),
    ]
