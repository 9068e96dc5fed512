"""`stemma zoo`: families of small real networks whose history is known, to try things on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stemma.cli.options import Json

app = typer.Typer(help="Small real networks with a known history.", no_args_is_help=True)

Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Other seeds give other families.")]

Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="NAME", help="Only this member; may be given several times.")
]


@app.command("list")
def list_families(as_json: Json = False) -> None:
    """List the families and their members."""
    from stemma.cli.output import columns, show, show_json
    from stemma.zoo.pedigree import NAMES

    members = [_made(f"{kind}/{name}", 0) for kind, names in NAMES.items() for name in names]
    if as_json:
        show_json({"members": members})
        return
    rows = ((m["name"], m["relation"] or "", ", ".join(m["parents"]), m["operation"]) for m in members)
    show(columns(("name", "relation", "parents", "made by"), rows))


@app.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A member, for example mlp/permuted.")],
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show how one member is made."""
    from stemma.cli import output

    made = _made(name, seed)
    if as_json:
        output.show_json(made)
        return
    given = ", ".join(f"{k} {v}" for k, v in made["parameters"].items())
    rows = [
        ("recipe", made["digest"], ""),
        ("made by", f"{made['operation']} {given}".rstrip(), f"seed {made['seed']}, data part {made['part']}"),
        ("from", ", ".join(made["parents"]) or "a random start", ""),
        ("relation", made["relation"] or "none: trained from scratch", ""),
    ]
    output.show(output.verdict_text(name), output.findings(rows))


@app.command("build")
def build(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="A family: mlp, cnn, vit or lm.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write it.")],
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Only this member; may be given several times.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Build a family and write it as checkpoints.

    Every member becomes a checkpoint in a folder of its own; truth.json beside them says what is true of every pair.
    """
    from stemma.cli.output import plain, progress, show, show_json
    from stemma.errors import MisuseError
    from stemma.zoo.pedigree import family

    if out.exists() and any(out.iterdir()):
        raise MisuseError(f"{out} is not empty. Give a folder that is empty or not there yet")
    with progress(quiet=as_json) as report:
        if report is not None:
            report(f"training the {kind} family", 0, None)
        zoo = family(kind, seed, only=only)
        zoo.write(out)
    if as_json:
        show_json({"folder": str(out), "members": [{"name": m.name, "digest": m.model.digest} for m in zoo.members]})
    else:
        show(f"wrote {len(zoo.members)} models to {plain(out)}; what is true of them: {plain(out / 'truth.json')}")


def _made(name: str, seed: int) -> dict[str, Any]:
    from stemma.errors import UnknownNameError
    from stemma.types import jsonable
    from stemma.zoo.pedigree import NAMES, recipes

    kind, _, member = name.partition("/")
    known = recipes(kind, seed) if kind in NAMES else {}
    if member not in known:
        raise UnknownNameError(f"the zoo has no member '{name}'. See: stemma zoo list")
    recipe = known[member]
    names = {other.digest: f"{kind}/{other_name}" for other_name, other in reversed(known.items())}
    return {
        "name": name,
        "digest": recipe.digest,
        "relation": None if recipe.relation is None else recipe.relation.value,
        "parents": [names[parent.digest] for parent in recipe.parents],
        "operation": recipe.operation,
        "parameters": jsonable(recipe.parameters),
        "seed": recipe.seed,
        "part": recipe.part,
    }
