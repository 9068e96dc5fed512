"""`stemma zoo`: families of small networks with a known history, for tests and experiments."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stemma.cli.options import Cluster, Json, words

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.application.zoo import ZooShowAnswer

app = typer.Typer(help="Build families of small networks with a known history.", no_args_is_help=True)

Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Random seed of the family.")]


@app.command("list")
def list_families(as_json: Json = False) -> None:
    """List the families with their members, and the lineages."""
    from stemma.application.zoo import LINEAGES, list_zoo
    from stemma.cli.layout import columns, findings
    from stemma.cli.output import show, show_json

    answer = list_zoo()
    if as_json:
        show_json(answer.document())
        return
    rows = ((m.name, m.relation or "", ", ".join(m.parents), m.operation) for m in answer.members)
    lineages = ((f"{name}:KIND", what) for name, what in LINEAGES.items())
    show(
        f"{len(answer.members)} networks in families, and {len(LINEAGES)} kinds of lineages, can be built",
        "",
        columns(("name", "relation", "parents", "made by"), rows),
        "",
        columns(("lineage", "what it is"), lineages),
        "",
        findings([("next", "stemma zoo build FAMILY --out DIR builds one", "")]),
    )


@app.command("show")
def show_recipe(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A member, for example mlp/permuted, or a lineage, for example tree:mlp."),
    ],
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show how one member, or every model of a lineage, is made."""
    from stemma.application.zoo import ZooShowRequest, show_zoo
    from stemma.cli.layout import columns, findings, plain
    from stemma.cli.output import show, show_json

    answer = show_zoo(ZooShowRequest(name=name, seed=seed))
    if as_json:
        show_json(answer.document())
        return
    closing = findings([("next", f"stemma zoo build {plain(name.partition('/')[0])} --out DIR builds it", "")])
    if answer.is_lineage:
        rows = (
            (m.name, m.relation or "", ", ".join(m.parents), m.operation, m.parameters.get("task", ""))
            for m in answer.members
        )
        table = columns(("name", "relation", "parents", "made by", "task"), rows)
        show(f"{plain(name)}: {len(answer.members)} networks", "", table, "", closing)
        return
    show(*_recipe(answer), "", closing)


def _recipe(answer: "ZooShowAnswer") -> "tuple[Text | str, ...]":
    from stemma.cli.layout import findings, verdict_text

    made = answer.members[0]
    given = ", ".join(f"{k} {v}" for k, v in made.parameters.items())
    origin = ", ".join(made.parents) or "a random start"
    rows = [
        ("recipe", made.digest, ""),
        ("made by", f"{made.operation} {given}".rstrip(), f"seed {made.seed}, data part {made.part}"),
        ("from", origin, ""),
        ("relation", made.relation or "none: trained from scratch", ""),
    ]
    return verdict_text(made.name, f": made by {made.operation} from {origin}"), "", findings(rows)


@app.command("build")
def build(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY",
            help="A family: mlp, cnn, vit or lm; or a lineage, as tree:mlp or flat:cnn:roots=20,operation=lora.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the checkpoints.")],
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Only this member; may be given several times.")
    ] = None,
    seed: Seed = 0,
    cluster: Cluster = None,
    as_json: Json = False,
) -> None:
    """Build a family and write it as checkpoints.

    Every member becomes a checkpoint in its own folder; truth.json beside them records the relation of every pair.
    """
    from stemma.application.zoo import ZooBuildRequest, build_zoo
    from stemma.cli.layout import findings, plain
    from stemma.cli.output import progress, show, show_json
    from stemma.export.answers import typed_as

    with progress(quiet=as_json) as on_progress:
        request = ZooBuildRequest(kind=kind, out=str(out), only=words(only), seed=seed, cluster=cluster)
        answer = build_zoo(request, on_progress)
    if as_json:
        show_json(answer.document())
        return
    rows = [("meaning", f"{plain(out / 'truth.json')} records the relation of every pair", ""),
            ("next", f"stemma add {typed_as(out)} adds them to the registry", "")]  # fmt: skip
    show(f"wrote {len(answer.result.members)} models to {plain(out)}", "", findings(rows))
