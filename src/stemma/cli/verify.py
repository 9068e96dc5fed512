"""`stemma verify`: was a model edited, unlearned or signed as stated?"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stemma.cli.options import AllowCode, Data, Device, Factory, Html, Json, RegistryUrl, Seed, word, words
from stemma.cli.policy import leave_untested

if TYPE_CHECKING:
    from rich.text import Text

    from stemma.types import Evidence

Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with 3 unless the answer is proved: what was not tested closes the gate.")
]

app = typer.Typer(help="Verify an edit, unlearning or a signature.", no_args_is_help=True)


def _level(value: float | None) -> float | None:
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"{value} is not a level: give a number between 0 and 1, for example 0.05")
    return value


def _margin(value: float | None) -> float | None:
    if value is not None and value <= 0:
        raise typer.BadParameter(f"{value} is not a margin: give a share above 0, for example 0.25")
    return value


@app.command("unlearning")
def unlearning(
    original: Annotated[str, typer.Option("--original", metavar="A", help="The original model.")],
    unlearned: Annotated[
        list[str],
        typer.Option("--unlearned", metavar="B...", help="The unlearned model, or several runs of one method."),
    ],
    forget: Annotated[str, typer.Option("--forget", metavar="P", help="Inputs of the forget set.")],
    retrained: Annotated[
        list[str] | None,
        typer.Option(
            "--retrained",
            metavar="R...",
            show_default=False,
            help="Models trained in the same way without the forget set, or folders of them; 19 or more for a proof.",
        ),
    ] = None,
    retained: Annotated[
        str | None,
        typer.Option("--retained-probes", metavar="P", show_default=False, help="Inputs of the retain set."),
    ] = None,
    unseen: Annotated[
        str | None,
        typer.Option(
            "--unseen-probes",
            metavar="P",
            show_default=False,
            help="Inputs of the same kind as the forget set that no model was trained on.",
        ),
    ] = None,
    retrain_recipe: Annotated[
        str | None,
        typer.Option(
            "--retrain-recipe",
            metavar="MODULE:FUNCTION",
            show_default=False,
            help="Train retrained models with this function, called as f(dataset, seed); needs --allow-code.",
        ),
    ] = None,
    retrain_data: Annotated[
        str | None,
        typer.Option(
            "--retrain-data",
            metavar="P",
            show_default=False,
            help="What the recipe trains on, without the forget set. [default: --retained-probes]",
        ),
    ] = None,
    retrain_count: Annotated[
        int | None,
        typer.Option(
            "--retrain-count",
            metavar="N",
            min=1,
            show_default=False,
            help="Number of models that the recipe trains. [default: 3]",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            metavar="A",
            callback=_level,
            show_default=False,
            help="Significance level: probability of refuting a model that has forgotten. [default: 0.05]",
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin",
            metavar="M",
            callback=_margin,
            show_default=False,
            help="Largest excess distance that counts as none, relative to retrained models. [default: 0.25]",
        ),
    ] = None,
    registry: RegistryUrl = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    seed: Seed = None,
    strict: Strict = False,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Test whether a forget set is forgotten.

    A model that forgot behaves as if it had never been trained on it. Compared
    with how retrained models differ among themselves. Exits with 1 if unlearning is refuted.
    """
    from stemma.application import verify_unlearning as application
    from stemma.application.network_options import NetworkOptions
    from stemma.application.pages import page_of
    from stemma.cli.layout import answer_text
    from stemma.cli.output import progress, report, show_json
    from stemma.cli.pages import writable, written
    from stemma.export.edit_answers import verify_unlearning_answer, verify_unlearning_closing
    from stemma.types import Verdict

    writable("--html", html)
    request = application.VerifyUnlearningRequest(
        original=original,
        unlearned=tuple(unlearned),
        forget=forget,
        retrained=words(retrained),
        retained=retained,
        alpha=alpha,
        margin=margin,
        registry=registry,
        networks=NetworkOptions(network, allow_code, device, word(data), trains=retrain_recipe is not None),
        seed=seed,
        unseen=unseen,
        retrain_recipe=retrain_recipe,
        retrain_data=retrain_data,
        retrain_count=retrain_count,
        strict=strict,
    )
    with progress(quiet=as_json) as on_progress:
        answer = application.verify_unlearning(request, on_progress)
    if html is not None:
        written(html, page_of(answer))
    found, document = answer.result, answer.document()
    if as_json:
        show_json(document)
    else:
        rows = [*lines(found), *([("page", str(html), "")] if html else [])]
        report(answer_text(verify_unlearning_answer(document)), (answer.original, *answer.unlearned), rows,
               *verify_unlearning_closing(document))  # fmt: skip
    if found.verdict == Verdict.REFUTED:
        raise typer.Exit(1)
    leave_untested(answer.untested)


@app.command("edit")
def edit(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that prune or unlearn wrote.")],
    parent: Annotated[
        str | None,
        typer.Option(
            "--parent", metavar="MODEL", show_default=False, help="The original model. [default: as recorded]"
        ),
    ] = None,
    probes: Annotated[
        str | None,
        typer.Option("--probes", metavar="P", show_default=False, help="The probe (or forget) inputs of the edit."),
    ] = None,
    retain: Annotated[
        str | None,
        typer.Option("--retain", metavar="P", show_default=False, help="The retain inputs of the edit."),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(
            "--public-key", metavar="KEY.pem", show_default=False, help="Check that the folder is signed with this key."
        ),
    ] = None,
    registry: RegistryUrl = None,
    network: Factory = None,
    allow_code: AllowCode = False,
    data: Data = None,
    device: Device = None,
    strict: Strict = False,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Check an edit against its receipt, and repeat it.

    The exit code is 1 if anything differs from the record, or if the original model is not available. In JSON, `good`
    is null if something could not be checked.
    """
    from stemma.application import verify_edit as application
    from stemma.application.network_options import NetworkOptions
    from stemma.application.pages import page_of
    from stemma.cli.layout import answer_text, findings, lines_of
    from stemma.cli.output import progress, show, show_json
    from stemma.cli.pages import writable, written
    from stemma.export.edit_answers import verify_edit_answer, verify_edit_closing

    writable("--html", html)
    request = application.VerifyEditRequest(
        folder=str(folder),
        parent=parent,
        probes=probes,
        retain=retain,
        public_key=word(public_key),
        registry=registry,
        networks=NetworkOptions(network, allow_code, device, word(data)),
        strict=strict,
    )
    with progress(quiet=as_json) as on_progress:
        answer = application.verify_edit(request, on_progress)
    if html is not None:
        written(html, page_of(answer))
    document = answer.document()
    if as_json:
        show_json(document)
    else:
        words_ = {True: "as recorded", False: "NOT as recorded", None: "not checked"}
        rows = [(f.check, words_[f.good], f.reason) for f in answer.result]
        rows += [("page", str(html), "")] if html else []
        closing = [(label, text, "") for label, text in zip(("meaning", "next"), verify_edit_closing(document),
                                                             strict=True)]  # fmt: skip
        show(lines_of(answer_text(verify_edit_answer(document))), "", findings(rows), "", findings(closing))
    if answer.failed:
        raise typer.Exit(1)
    leave_untested(answer.untested)


@app.command("signature")
def signature(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint file or folder.")],
    public_key: Annotated[
        Path, typer.Option("--public-key", metavar="KEY.pem", show_default=False, help="The public key that you trust.")
    ],
    signatures: Annotated[
        list[Path] | None,
        typer.Option(
            "--signature",
            metavar="FILE...",
            show_default=False,
            help="Check these signatures. [default: *.sig and *.dsse.json in the folder, or beside the file]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check who signed a model, and that no file changed.

    Reads signatures of OpenSSF Model Signing and in-toto statements in DSSE envelopes. The exit code is 1 unless
    everything is signed with this key and unchanged.
    """
    from stemma.application import verify_signature as application
    from stemma.cli.layout import findings, lines_of, verdict_text
    from stemma.cli.output import show, show_json

    request = application.VerifySignatureRequest(
        path=str(path), public_key=str(public_key), signatures=words(signatures)
    )
    answer = application.verify_signature(request)
    if as_json:
        show_json(answer.document())
    else:
        words_ = {True: "good", False: "NOT good", None: "not signed"}
        headline, meaning, step = _SIGNATURES[answer.good]
        rows = [(f.check, words_[f.good], f.reason) for f in answer.result]
        closing = findings([("meaning", meaning, ""), ("next", step, "")])
        show(lines_of(verdict_text(headline)), "", findings(rows), "", closing)
    if answer.good is not True:
        raise typer.Exit(1)


_SIGNATURES = {
    True: ("signed and unchanged", "the owner of this key signed these files, and they have the same bytes now",
           "whether the key belongs to whom you think is for you to know"),
    False: ("NOT as signed", "a file was changed after it was signed, or another key signed it",
            "do not use these files; get them anew, or ask for the right public key"),
    None: ("unsigned", "nothing with this key vouches for all of these files",
           "ask the publisher for a signature, or make one: stemma sign PATH --key KEY.pem"),
}  # fmt: skip
"""Answer, meaning and next step by outcome."""


def lines(found: "Evidence") -> "Iterator[tuple[str, str | Text, str]]":
    """The findings of the test: label, finding, evidence; the last is what was not examined."""
    from stemma.cli.output import number, p_value

    yield "reason", found.reason, ""
    shown = found.details
    gold, runs = len(shown["retrained"]), len(shown["unlearned"])
    if found.statistic == "samples-of-inputs":
        yield "test", f"{found.null.source}", p_value(found.p_value, found.log10_p)
    else:
        tested = f"{runs} unlearned against {gold} retrained, labels permuted"
        floor = f" · smallest attainable {number(found.null.floor)}" if gold > 1 else ""
        yield "test", tested, f"{p_value(found.p_value, found.log10_p)}{floor}"
    yield from _sample_lines(shown.get("samples"))
    if "control_p_value" in shown:
        yield "control", "the original in the same test", p_value(shown["control_p_value"], None)
    for name, figures in shown["views"].items():
        yield name, *_view(figures)
    for name, why in shown["left_out"].items():
        yield name, "left out", why
    for name in ("forget_accuracy", "retained_accuracy"):
        if name in shown:
            parts = [f"{kind} {value:.0%}" for kind, value in shown[name].items()]
            yield name.replace("_accuracy", ""), "accuracy: " + ", ".join(parts), ""
    unseen = "inputs unlike these probes · models that were trained to pass this test"
    yield "cannot see", unseen + (" · how much repeated runs differ" if runs == 1 else ""), ""


def _sample_lines(samples: Any) -> "Iterator[tuple[str, str, str]]":
    """What each form of the test on samples says, with its controls and its assumption."""
    from stemma.cli.output import number, p_value

    if samples is None:
        return
    for form, found in samples["forms"].items():
        power = "refutes the original" if found["shown_to_have_power"] else "no power: does not refute the original"
        sound = "" if found["sound"] else f" · refutes {found['control']} as well"
        figures = ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in found["figures"].items())
        yield form, f"{p_value(found['p_value'], None)} · {power}{sound}", figures
        yield "assumes", found["assumption"].removeprefix("This assumes that "), ""
    for form, why in samples["left_out"].items():
        yield form, "not tested", why


def _view(figures: Any) -> tuple[str, str]:
    from stemma.cli.output import number

    to_original = f"{number(figures['to_original'])} to the original"
    if "excess" not in figures:
        return to_original, "no retrained models to compare with"
    limits = "" if figures["excess_high"] is None else f" [{figures['excess_low']:.0%}, {figures['excess_high']:.0%}]"
    blind = "" if figures["sees_the_original"] else " · does not distinguish the original"
    apart = f"{number(figures['to_retrained'])} to retrained, {number(figures['between_retrained'])} among them"
    return f"excess {figures['excess']:.0%}{limits}{blind}", f"{apart}, {to_original}"
