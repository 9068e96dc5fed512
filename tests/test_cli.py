"""The command line itself: arguments, exit codes, and text that tries to take over the terminal."""

import io
from pathlib import Path

import pytest

import stemma
from checkpoints import Run
from stemma.cli import output
from stemma.cli.arguments import arrange


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


def test_text_cannot_drive_the_terminal() -> None:
    assert output.plain("a\x1b[31mb\u202ec\x07\n") == "a\\x1b[31mb\\u202ec\\x07\\n"
    assert output.plain("\udcff") == "\\udcff"
    assert output.plain("Modèle [bold]x[/] 模型") == "Modèle [bold]x[/] 模型"


def test_markup_in_a_name_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.show(output.findings([("verdict", "[red]x[/red] [link=http://x]y[/link]", ":smile: [/]")]))
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


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    output.show(output.findings([("verdict", "x" * 300, "why " * 100), ("cannot see", "y", "")]))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert out.count("x") == 300  # nothing is cut off


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
    output.console(stream).print(output.verdict_text("copy", " of x"))
    return stream.getvalue()


def test_the_demo_leaves_what_is_not_its_own(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "suspect.safetensors"
    mine.write_text("mine")
    code, out, err = run("demo", "--out", tmp_path)
    assert (code, out, mine.read_text()) == (2, "", "mine")
    assert "--out" in err
