"""`stemma train`: the learned parts, trained on zoos whose history is known."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from stemma.cli.options import Json, Probes

app = typer.Typer(help="Train the learned parts on families with known history.", no_args_is_help=True)


@app.command("detector")
def detector(
    zoo: Annotated[
        list[str],
        typer.Argument(metavar="ZOO...", help="Folders of `stemma zoo build`, or kinds such as mlp+cnn:n=48,seed=1."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it, as safetensors.")],
    preset: Annotated[str, typer.Option("--preset", metavar="P", help="v2, or paper for the published one.")] = "v2",
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Updates.")] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the split, the start and the order.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a lineage detector on zoos.

    Whole families are trained on, selected by, calibrated on and tested on. The file holds weights, configuration and
    the figures on the test families.
    """
    from stemma.cli import output
    from stemma.cli.pages import writable
    from stemma.errors import MisuseError
    from stemma.kinship.learned.detector import PRESETS, LineageDetector

    if preset not in PRESETS:
        raise MisuseError(f"no preset is called '{preset}'. There are: {', '.join(PRESETS)}")
    writable("--out", out)
    with output.progress(quiet=as_json) as report:
        from stemma.training.detector import Training, train
        from stemma.training.detector_questions import pools
        from stemma.training.detector_zoo import probes_for

        start = LineageDetector(preset=preset, width=32 if preset == "paper" else 64)
        paper = preset == "paper"
        given = [r for one in zoo for r in _families(one, report)]
        found = pools(given, cap=start.cap, per_layer=start.per_layer, probes=probes_for, matrix=paper)
        rate = 0.01 if paper else Training.rate
        training = Training(steps=steps or Training.steps, seed=seed, rate=rate)
        words = f"{' '.join(Path(one).name for one in zoo)} --preset {preset} --steps {training.steps} --seed {seed}"
        made = {"command": f"stemma train detector {words}"}
        trained = train(found, start, training, made, report)
    trained.save(out)
    document = {
        "file": str(out),
        "preset": preset,
        "digest": trained.weights_digest,
        "models": sum(map(len, found)),
        "families": trained.made["families"],
        "test": trained.made["test"],
    }
    if as_json:
        output.show_json(document)
    else:
        output.show(f"wrote a detector to {output.plain(out)}", output.findings(_rows(document)))


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
            help="Trees of each kind, for all parts together, and as many mixed families. [default: as shipped]",
        ),
    ] = None,
    kinds: Annotated[
        list[str] | None, typer.Option("--kind", metavar="KIND...", show_default=False, help="mlp, cnn, vit or lm.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the first family.")] = 3000,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Processes that measure families.")] = 2,
    as_json: Json = False,
) -> None:
    """Train what tells direction and parents.

    Trees of small networks are trained, each child in a way of its own, and as many families of all operations. Pairs
    are learnt from half of the families, parents from a third, and the thresholds are taken on the rest.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from stemma.cli import output
    from stemma.errors import MisuseError, NotAModelError
    from stemma.training.parent_model import Families, train_parent_model

    if out.exists() and not out.is_dir():
        raise NotAModelError(f"{out} is a file: --out takes a folder for two files")
    chosen = Families(seed=seed)
    if families is not None:
        of_kind = list(kinds or chosen.pairs)
        half, third = families // 2, families // 3
        pairs, parents = dict.fromkeys(of_kind, half), dict.fromkeys(of_kind, third)
        chosen = Families(pairs, parents, dict.fromkeys(of_kind, families - half - third), seed)
    elif kinds:
        raise MisuseError("--kind goes with --families, which says how many of each")
    with output.progress(quiet=as_json) as report:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            made = train_parent_model(chosen, pool, progress=report)
    out.mkdir(parents=True, exist_ok=True)
    made.direction.trees.save(out / "direction.safetensors")
    made.trees.save(out / "parenthood.safetensors")
    document = {
        "folder": str(out), "pairs": made.direction.trees.about["pairs"], "queries": made.trees.about["queries"],
        "families": made.trees.about["families"],
        "named_from": {n: made.parent_threshold(k) for n, k in (("one", 1), ("three", 3), ("more", 8))},
    }  # fmt: skip
    if as_json:
        output.show_json(document)
    else:
        rows = [("learnt from", f"{document['pairs']:,} pairs and {document['queries']:,} suspects", ""),
                ("parent", f"named from a probability of {made.parent_threshold(8):.2f}",
                 f"of one relative alone {made.parent_threshold(1):.2f}")]  # fmt: skip
        output.show(f"wrote direction.safetensors and parenthood.safetensors to {output.plain(out)}",
                    output.findings(rows))  # fmt: skip


@app.command("dna")
def dna(
    zoo: Annotated[
        list[str],
        typer.Argument(metavar="ZOO...", help="Folders of `stemma zoo build`, or kinds such as mlp+cnn:n=24,seed=1."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it, as safetensors.")],
    probes: Probes = None,
    similarity: Annotated[
        str, typer.Option("--similarity", metavar="LOSS", help="infonce, pair-margin, triplet or none.")
    ] = "none",
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Updates.")] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the start and the order.")] = 0,
    as_json: Json = False,
) -> None:
    """Train the encoder and the provenance classifier of Model DNA.

    Sources are trained apart on the same data, and children made of each. A quarter of the groups' sources is left out
    and asked about at the end. Pictures and texts get encoders of their own.
    """
    from stemma.cli import output
    from stemma.cli.pages import writable
    from stemma.errors import MisuseError

    writable("--out", out)
    with output.progress(quiet=as_json) as report:
        from stemma.training import dna_groups
        from stemma.training.dna import TEXT_HIDDEN, Training, evaluate, split_sources, train

        own = [Path(one) for one in zoo if Path(one).exists()]
        if bool(own) != (probes is not None):
            raise MisuseError("--probes says what the models of folders are asked: give it with folders, not without")
        recipes = [r for one in zoo if not Path(one).exists() for r in dna_groups.parse_groups(one)]
        asked_of = [_own_group(folder, str(probes), report) for folder in own]
        groups = [group for group, _ in asked_of]
        kinds = {text for _, text in asked_of} | {r.kind == "lm" for r in recipes}
        if len(kinds) > 1:
            raise MisuseError("pictures and texts get encoders of their own: train one on lm alone, one on the others")
        hidden = TEXT_HIDDEN if kinds == {True} else Training.hidden
        how = Training(similarity=similarity, seed=seed, steps=steps or Training.steps, hidden=hidden)
        groups += [dna_groups.measure_group(recipe, progress=report) for recipe in recipes]
        learning, asked = split_sources(groups)
        words = f"{' '.join(Path(one).name for one in zoo)} --similarity {similarity} --steps {how.steps} --seed {seed}"
        made = {"command": f"stemma train dna {words}", "groups": [g.name for g in groups]}
        trained = train(learning, how, made, report)
        test = evaluate(trained, asked, learning)
    replace(trained, about={**trained.about, "test": test}).save(out)
    if as_json:
        output.show_json({"file": str(out), "digest": trained.digest, "groups": made["groups"], "test": test})
        return
    rows = [("trained on", f"{sum(len(g.way) for g in learning):,} models", f"{len(groups)} groups")]
    if test["sources"]:
        rows += [("told apart", output.number(test["auroc"]), f"area, {test['sources']} sources left out"),
                 ("first", output.number(test["top_1"]), "share of children whose source comes first")]  # fmt: skip
    else:
        rows.append(("tested", "not at all", "no group has 12 sources, so that some could be left out"))
    output.show(f"wrote an encoder to {output.plain(out)}", output.findings(rows))


def _own_group(folder: Path, probes: str, report: Any) -> tuple[Any, bool]:
    """What is seen of one's own zoo, and whether it is of texts."""
    from stemma.cli.asking import Asking
    from stemma.training import dna_groups, relatives

    found = relatives.relatives_from_folder(folder, report)
    asked = Asking().probes(probes, found[0].model)
    return dna_groups.group_from_relatives(folder.name, found, asked), asked.kind == "tokens"


def _families(zoo: str, report: Any) -> list[Any]:
    from stemma.training import detector_zoo, relatives

    if Path(zoo).exists():
        return relatives.relatives_from_folder(Path(zoo), report)
    kinds, count, seed = detector_zoo.parse_zoo(zoo)
    return detector_zoo.build_families(kinds, count, seed, progress=report)


def _rows(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    from stemma.cli.output import number

    families, test = document["families"], document["test"]
    split = ", ".join(f"{count} {part}" for part, count in families.items())
    rows = [("trained on", f"{document['models']:,} models", f"families: {split}")]
    if not test:
        return [*rows, ("tested", "not at all", "the test families have no questions")]
    found, refused = (("none" if x is None else number(x)) for x in (test["parent_found"], test["orphan_refused"]))
    return [
        *rows,
        ("parent found", found, f"of {test['questions'] - test['orphans']:,} questions about test families"),
        ("refused", refused, f"of {test['orphans']:,} questions without an ancestor among the candidates"),
        ("calibration", f"error {number(test['calibration_error'])}", "mean gap between probability and share right"),
    ]
