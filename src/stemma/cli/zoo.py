"""`stemma zoo`: families of small real networks whose history is known, to try things on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import Json

if TYPE_CHECKING:
    from stemma.types import Digest
    from stemma.zoo.collection import Zoo
    from stemma.zoo.recipe import Recipe

app = typer.Typer(help="Small real networks with a known history.", no_args_is_help=True)

Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Other seeds give other families.")]

Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="NAME", help="Only this member; may be given several times.")
]


LINEAGES = {
    "tree": "a root and generations of fine-tunes, each on a task of its own: 21 models",
    "forest": "several trees that have nothing in common: 95 models",
    "flat": "many roots, and children of each by one operation",
    "siblings": "candidates that are fine-tunes of one root, and children of each",
    "decoys": "strangers: trained apart on the same data",
    "relations": "models between which every relation holds",
}
"""What can be built beside the families, as `LINEAGE:KIND`."""


@app.command("list")
def list_families(as_json: Json = False) -> None:
    """List the families and their members, and the lineages."""
    from stemma.cli.output import columns, show, show_json
    from stemma.zoo.kinds import KINDS
    from stemma.zoo.pedigree import NAMES

    members = [_made(f"{kind}/{name}", 0) for kind, names in NAMES.items() for name in names]
    if as_json:
        show_json({"members": members, "lineages": [f"{name}:{kind}" for name in LINEAGES for kind in KINDS]})
        return
    rows = ((m["name"], m["relation"] or "", ", ".join(m["parents"]), m["operation"]) for m in members)
    show(columns(("name", "relation", "parents", "made by"), rows), "")
    show(columns(("lineage", "what it is"), ((f"{name}:KIND", what) for name, what in LINEAGES.items())))


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
    from stemma.cli import output

    if ":" in name:
        _show_lineage(name, seed, as_json)
        return
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
    kind: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY",
            help="A family: mlp, cnn, vit or lm; or a lineage, as tree:mlp or flat:cnn:roots=20,operation=lora.",
        ),
    ],
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

    if out.exists() and any(out.iterdir()):
        raise MisuseError(f"{out} is not empty. Give a folder that is empty or not there yet")
    with progress(quiet=as_json) as report:
        if report is not None:
            report(f"training {kind}", 0, None)
        zoo = _zoo(kind, seed, only, report)
        zoo.write(out)
    if as_json:
        show_json({"folder": str(out), "members": [{"name": m.name, "digest": m.model.digest} for m in zoo.members]})
    else:
        show(f"wrote {len(zoo.members)} models to {plain(out)}; what is true of them: {plain(out / 'truth.json')}")


def _zoo(kind: str, seed: int, only: list[str] | None, report: Any) -> "Zoo":
    """A family, or the lineage of this name; of it, only what is asked for."""
    from stemma.errors import UnknownNameError
    from stemma.zoo import lineages
    from stemma.zoo.pedigree import family

    if ":" not in kind:
        return family(kind, seed, only=only)
    recipes = lineages.recipes_by_name(kind, seed)
    short = {name.partition("/")[2]: name for name in recipes}
    if unknown := sorted(set(only or ()) - {*short, *recipes}):
        raise UnknownNameError(f"{kind} has no model {unknown[0]!r}. There are: {', '.join(short)}.")
    wanted = {short.get(name, name) for name in only or recipes}
    chosen = {n: r for n, r in recipes.items() if n in wanted}
    return lineages.as_zoo(chosen, among=recipes, progress=report)


def _show_lineage(text: str, seed: int, as_json: bool) -> None:
    from stemma.cli import output
    from stemma.zoo.lineages import recipes_by_name

    recipes = recipes_by_name(text, seed)
    names = {recipe.digest: name for name, recipe in reversed(list(recipes.items()))}
    models = [_described(name, recipe, names) for name, recipe in recipes.items()]
    if as_json:
        output.show_json({"members": models})
        return
    rows = (
        (m["name"], m["relation"] or "", ", ".join(m["parents"]), m["operation"], m["parameters"].get("task", ""))
        for m in models
    )
    output.show(output.columns(("name", "relation", "parents", "made by", "task"), rows))


def _made(name: str, seed: int) -> dict[str, Any]:
    from stemma.errors import UnknownNameError
    from stemma.zoo.pedigree import NAMES, recipes

    kind, _, member = name.partition("/")
    known = recipes(kind, seed) if kind in NAMES else {}
    if member not in known:
        raise UnknownNameError(f"the zoo has no member '{name}'. See: stemma zoo list")
    recipe = known[member]
    names = {other.digest: f"{kind}/{other_name}" for other_name, other in reversed(known.items())}
    return _described(name, recipe, names)


def _described(name: str, recipe: "Recipe", names: dict["Digest", str]) -> dict[str, Any]:
    """A recipe as a JSON document, with its parents by name."""
    from stemma.types import jsonable

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
