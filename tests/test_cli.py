"""The command line itself: arguments, exit codes, and text that tries to take over the terminal."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import stemma
from checkpoints import Run, arrays_of
from stemma.cli import layout, output
from stemma.cli.arguments import arrange

pytestmark = pytest.mark.anywhere


def test_version_and_help(run: Run) -> None:
    assert run("--version")[:2] == (0, f"stemma {stemma.__version__}\n")
    code, out, _ = run("--help")
    assert code == 0
    assert all(name in out for name in ("trace", "compare", "add", "list", "show", "check", "remove", "zoo", "demo"))
    assert run("trace", "--help")[1].count("--against") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("nothing",),
        ("trace",),
        ("trace", "x", "--unknown"),
        ("compare", "x"),
        ("trace", "x", "--alpha", "1"),
        ("trace", "x", "--alpha", "0"),
        ("compare", "x", "y", "--alpha", "nan"),
        ("trace", "x", "--fail-on", "cousin"),
        ("add",),
        ("zoo", "build", "mlp", "--out", "somewhere", "--seed", "-1"),
        ("demo", "--out", __file__),
    ],
)
def test_misuse_exits_with_2_and_says_why(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.strip()


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("trcae", "x"), "trace"),
        (("zoo", "biuld", "mlp"), "build"),
        (("trace", "x", "--agianst", "y"), "--against"),
        (("trace", "x", "--fail-on", "finetned"), "'finetuned'"),
        (("trace", "x", "--deny-license", "gpl-3.O"), "GPL-3.0"),
        (("distance", "a", "b", "--probes", "noise:n=4", "--method", "gradeint-field"), "'gradient-field'"),
        (("distance", "a", "b", "--probes", "noise:n=4", "--measure", "feild-cosine"), "'field-cosine'"),
        (("distance", "a", "b", "--probes", "noise:n=4", "-P", "stpes=4"), "'steps'"),
        (("fingerprint", "a", "--method", "weight-scetch"), "'weight-sketch'"),
        (("train", "detector", "mlp:n=4", "--out", "x", "--preset", "papre"), "'paper'"),
    ],
)
def test_what_is_mistyped_is_answered_with_what_was_meant(run: Run, words: tuple[str, ...], meant: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert re.search(rf"(Did you mean|Possible options:)[^.]*{re.escape(meant)}", " ".join(err.split()), re.IGNORECASE)


def test_without_arguments_five_questions_have_a_command_each(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    for name in ("trace", "compare", "lineage", "explain", "distance"):
        assert re.search(rf"\?  +stemma {name} ", out), name


def test_list_options_take_several_values() -> None:
    spread = ["trace", "m", "--against", "x", "--against", "y", "--json"]
    assert arrange(["trace", "m", "--against", "x", "y", "--json"]) == spread
    assert arrange(spread) == spread
    assert arrange(["trace", "--fail-on", "copy", "m"]) == ["trace", "--fail-on", "copy", "m"]
    # A single licence and a model: the model is no licence. Two paths after --against stay what they are.
    assert arrange(["trace", "--deny-license", "mit", "m"]) == ["trace", "--deny-license", "mit", "m"]
    assert arrange(["trace", "--against", "x", "y"]) == ["trace", "--against", "x", "--against", "y"]
    assert arrange(["compare", "--fail-on", "copy", "a", "b"]) == ["compare", "--fail-on", "copy", "a", "b"]
    assert arrange(["trace", "--registry", "r", "m"]) == ["trace", "--registry", "r", "m"]
    assert arrange(["trace", "--fail-on", "copy", "m", "--against", "x"]) == [
        *("trace", "--fail-on", "copy", "--against", "x", "m")
    ]
    assert arrange(["trace", "m", "--debug"]) == ["--debug", "trace", "m"]
    assert arrange(["add", "x", "--", "--debug"]) == ["add", "x", "--", "--debug"]
    assert arrange(["trace", "--", "-odd", "--against"]) == ["trace", "--", "-odd", "--against"]


@pytest.mark.parametrize(
    "words",
    [
        ("trace", "m", "--against", ""), ("trace", "m", "--against", "a", ""), ("compare", "a", "b", "--null", ""),
        ("add", ""), ("lineage", "a", ""),
    ],
)  # fmt: skip
def test_an_empty_path_is_not_the_working_directory(run: Run, words: tuple[str, ...]) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert "empty path" in err


def test_text_cannot_drive_the_terminal() -> None:
    assert layout.plain("a\x1b[31mb\u202ec\x07\n") == "a\\x1b[31mb\\u202ec\\x07\\n"
    assert layout.plain("\udcff") == "\\udcff"
    assert layout.plain("Modèle [bold]x[/] 模型") == "Modèle [bold]x[/] 模型"


def test_markup_in_a_name_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.show(layout.findings([("verdict", "[red]x[/red] [link=http://x]y[/link]", ":smile: [/]")]))
    assert "[red]x[/red] [link=http://x]y[/link]  :smile: [/]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("p", "log10_p", "text"),
    [
        (None, None, "not tested"),
        (0.04, -1.4, "p = .04"),
        (1.0, 0.0, "p = 1"),
        (0.00099, -3.0, "p = 1e-3"),
        (3e-12, -11.5, "p = 3e-12"),
        (5e-324, -980.0, "p < 1e-300"),
    ],
)
def test_p_values_as_people_read_them(p: float | None, log10_p: float | None, text: str) -> None:
    assert output.p_value(p, log10_p) == text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_wrap_at_words_and_words_are_never_broken(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    name, digest = "x" * 300, "sha256:" + "0123456789abcdef" * 4
    rows = [("verdict", name, "why " * 100), ("digest", f"of {digest} and", "p = .04 " * 9), ("cannot see", "y", "z")]
    output.show("word " * 90, "", layout.findings(rows), layout.columns(("n", "what"), [(name, "a b " * 60)]))
    out = capsys.readouterr().out
    assert out.count(name) == 2
    assert digest in out
    for line in out.splitlines():
        assert len(line) <= width or max(map(len, line.split())) > width - 20, line
    assert (out.count("why"), out.count("word"), out.count("p = .04")) == (100, 90, 9)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.first(1)
def test_what_commands_print_fits_the_terminal(
    run: Run, models: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    child = models.parent / "child.safetensors"
    a, stranger = models / "a.safetensors", models / "stranger.safetensors"
    commands = [("add", models), ("trace", child), ("compare", a, child), ("compare", a, stranger), ("list",)]
    commands += [("explain", a, child), ("lineage", models), ("show", "a"), ("check",), ("zoo", "list")]
    for words in commands:
        code, out, _ = run(*words)
        assert code == 0
        for line in out.splitlines():
            longest = max(map(len, line.split()), default=0)
            assert len(line) <= width or longest > width // 2, (words, line)


def test_a_command_begins_with_the_answer_and_ends_with_what_to_do(run: Run, models: Path) -> None:
    child, a = models.parent / "child.safetensors", models / "a.safetensors"
    begins = {
        ("add", models): "3 added",
        ("list",): "3 models in ",
        ("show", "a"): "a: added ",
        ("check",): "OK: 3 models in ",
        ("trace", models.parent / "copy.safetensors"): "copy is a copy of a",
        ("trace", models.parent / "alone.safetensors"): "alone has no known parent among the 3 models searched",
        ("compare", a, child): "a and child are related",
        ("compare", a, models / "stranger.safetensors"): "no shared weights found between a and stranger",
        ("lineage", models): "3 models: 0 families, 0 edges",
        ("explain", a, child): "from a to child: ",
        ("remove", "a"): "removed a",
    }
    for words, begin in begins.items():
        _, out, _ = run(*words)
        assert out.startswith(begin), words
        assert re.search(r"^  next  ", out.rstrip().split("\n\n")[-1], re.MULTILINE), words


def test_a_width_of_nothing_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert layout.console(io.StringIO()).width == layout.WIDTH


def test_a_closed_stderr_takes_no_warning_and_shows_no_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    output.warn("warning: nobody reads this")
    with output.progress(quiet=False) as report:
        assert report is None
    assert capsys.readouterr().out == ""


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in _printed(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in _printed(Terminal())
    assert "\x1b" not in _printed(io.StringIO())


def _printed(stream: io.StringIO) -> str:
    layout.console(stream).print(layout.verdict_text("copy", " of x"))
    return stream.getvalue()


def test_the_demo_leaves_what_is_not_its_own(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "suspect.safetensors"
    mine.write_text("mine")
    code, out, err = run("demo", "--out", tmp_path)
    assert (code, out, mine.read_text()) == (2, "", "mine")
    assert "--out" in err


def test_the_next_command_names_files_where_files_were_searched(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "my models"
    folder.mkdir()
    parent = arrays_of(0)
    save_file(parent, folder / "parent.safetensors")
    step = {n: np.abs(x).max() / 127 for n, x in parent.items()}
    rounded = {n: (np.round(x / step[n]) * step[n]).astype(np.float32) for n, x in parent.items()}
    save_file({n: rounded[n] if x.ndim > 1 else x for n, x in parent.items()}, tmp_path / "child.safetensors")
    for against in (folder, folder / "parent.safetensors"):
        out = run("trace", tmp_path / "child.safetensors", "--against", against)[1]
        words = " ".join(out.split())
        assert f"stemma explain '{folder / 'parent.safetensors'}'" in words
    out = run("lineage", folder, tmp_path / "child.safetensors")[1]
    assert "stemma explain" not in out or str(folder / "parent.safetensors") in " ".join(out.split())
