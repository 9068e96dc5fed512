"""The command line, one file per command: the only printer. `main` is the program `stemma`."""

import contextlib
import os
import sys
import warnings
from collections.abc import Generator, Sequence
from typing import Annotated, Any

import typer

from stemma.cli.add import add
from stemma.cli.arguments import arrange, refuse_empty_paths, refuse_misplaced_registries
from stemma.cli.check import check
from stemma.cli.compare import compare
from stemma.cli.competition import competition
from stemma.cli.demo import demo
from stemma.cli.distance import distance
from stemma.cli.explain import explain
from stemma.cli.export import export
from stemma.cli.fidelity import fidelity
from stemma.cli.fingerprint import fingerprint
from stemma.cli.lineage import lineage
from stemma.cli.list import list_command
from stemma.cli.missing_extras import missing_extra
from stemma.cli.prune import prune
from stemma.cli.registry import app as registry
from stemma.cli.remove import remove
from stemma.cli.scan import scan
from stemma.cli.serve import serve
from stemma.cli.show import show
from stemma.cli.sign import sign
from stemma.cli.trace import trace
from stemma.cli.train import app as train
from stemma.cli.unlearn import unlearn
from stemma.cli.verify import app as verify
from stemma.cli.zoo import app as zoo
from stemma.errors import MissingExtraError, MisuseError, StemmaError

FAILED, MISUSED = 1, 2
"""Exit codes: an error or a finding of `check`; wrong arguments. A closed policy is 3, see `cli.policy`."""

QUESTIONS = (
    ("Where does this model come from?", "stemma trace MODEL"),
    ("Was that model made from mine?", "stemma compare MINE SUSPECT"),
    ("Which of these models come from which?", "stemma lineage FOLDER"),
    ("What was changed to get this model from that one?", "stemma explain PARENT CHILD"),
    ("How differently do two models behave?", "stemma distance A B --probes P"),
)
"""What is shown without arguments."""

app = typer.Typer(
    name="stemma",
    help="Tell where a neural network comes from, from the models alone.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(trace)
app.command()(compare)
app.command()(explain)
app.command()(distance)
app.command()(lineage)
app.command()(export)
app.command()(add)
app.command()(scan)
app.command("list")(list_command)
app.command()(show)
app.command()(check)
app.command()(remove)
app.command()(serve)
app.command()(fingerprint)
app.command()(competition)
app.command()(fidelity)
app.command()(prune)
app.command()(unlearn)
app.command()(sign)
app.add_typer(registry, name="registry")
app.add_typer(verify, name="verify")
app.add_typer(zoo, name="zoo")
app.add_typer(train, name="train")
app.command()(demo)


def _version(wanted: bool) -> None:
    if wanted:
        from stemma import __version__

        typer.echo(f"stemma {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    threads: Annotated[int, typer.Option("--threads", min=1, metavar="N", help="Number of CPU threads.")] = 1,
) -> None:
    # Read when NumPy is first imported, which no command has done yet. Its small products gain nothing from more.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code.

    Args:
        arguments: As typed, without the program's name; those of the process if None.

    Raises:
        SystemExit: Always: 0 done, 1 an error or a finding of `check`, 2 misuse, 3 a violated policy, 130 interrupted.
    """
    typed = arrange(sys.argv[1:] if arguments is None else arguments)
    if not typed and "_STEMMA_COMPLETE" not in os.environ:  # a shell that asks for completions types nothing
        _show_questions()
        raise SystemExit(0)
    try:
        refuse_empty_paths(typed)
        refuse_misplaced_registries(typed)
        with _old_names_told():
            app(typed, prog_name="stemma")
    except Exception as error:
        from stemma.cli.output import warn

        if "--debug" in typed:
            raise
        warn(f"error: {_sentence(error, typed)}")
        raise SystemExit(MISUSED if isinstance(error, MisuseError) else FAILED) from None


@contextlib.contextmanager
def _old_names_told() -> Generator[None]:
    """Warnings of old parameter names reach stderr: Python hides them from whoever runs a program."""
    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.filterwarnings("always", ".*is deprecated and will be removed in the next release", DeprecationWarning)

        def shown(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
            from stemma.cli.output import warn

            if category is DeprecationWarning and "in the next release" in str(message):
                warn(f"warning: {message}")
            else:
                usual(message, category, filename, lineno, *rest)

        warnings.showwarning = shown  # ty: ignore[invalid-assignment]
        yield


def _show_questions() -> None:
    from stemma.cli.layout import columns, findings
    from stemma.cli.output import show

    rows = [("first", "stemma add FOLDER adds the models that trace searches", ""),
            ("try", "stemma demo shows it all on small networks, in a minute", ""),
            ("next", "stemma --help lists all commands", "")]  # fmt: skip
    show("Stemma tells where a neural network comes from, from the models alone.", "",
         columns(("question", "command"), QUESTIONS), "", findings(rows))  # fmt: skip


def _sentence(error: Exception, typed: Sequence[str]) -> str:
    text = " ".join(str(error).split())
    if (missing := missing_extra(error) or missing_extra(error.__cause__)) and not isinstance(error, MissingExtraError):
        return str(MissingExtraError(f"'stemma {_command(typed)}' with these options", *missing))
    if isinstance(error, StemmaError):
        from stemma.checkpoints.remote import without_queries

        return without_queries(text)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return f"{type(error).__name__}: {text} (unexpected, probably a bug in Stemma: --debug shows the traceback)"


def _command(typed: Sequence[str]) -> str:
    words = [word for word in typed if not word.startswith("-")]
    return " ".join(words[: 2 if words[:1] in (["registry"], ["verify"], ["zoo"], ["train"]) else 1])
