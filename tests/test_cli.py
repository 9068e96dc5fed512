"""The command line: what is printed where, exit codes, and names that try to take over the terminal."""

import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import stemma
from stemma.cli import main, output, policy
from stemma.cli.arguments import arrange
from stemma.errors import MisuseError

Run = Callable[..., tuple[int, str, str]]
PROGRAM = [sys.executable, "-c", "from stemma.cli import main; main()"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command in this process and gives its exit code, stdout and stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


WIDTH = 48


def _arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"fc0": (WIDTH, 20), "fc1": (WIDTH, WIDTH), "fc2": (WIDTH, WIDTH), "out": (10, WIDTH)}
    weights = {f"{n}.weight": rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return weights | {f"{n}.bias": rng.normal(size=s[0]).astype(np.float32) for n, s in shapes.items()}


def _child(arrays: dict[str, np.ndarray], seed: int, amount: float = 0.2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: (a + amount * rng.normal(size=a.shape)).astype(np.float32) for n, a in arrays.items()}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Root `a`, its child, an exact copy, and two strangers of the same shape."""
    folder = tmp_path / "models"
    folder.mkdir()
    save_file(_arrays(0), folder / "a.safetensors")
    save_file(_arrays(1), folder / "stranger.safetensors")
    save_file(_arrays(2), folder / "stranger-2.safetensors")
    save_file(_child(_arrays(0), 5), tmp_path / "child.safetensors")
    save_file(_arrays(0), tmp_path / "copy.safetensors")
    save_file(_arrays(9), tmp_path / "alone.safetensors")
    return folder


# What needs no registry


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
        ("trace", "x", "--alpha", "2"),
        ("trace", "x", "--fail-on", "cousin"),
        ("add",),
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


def test_policy_words() -> None:
    assert policy.wanted_relations(["Copy,pruned", "merged"]) == {"copy", "pruned", "merged"}
    with pytest.raises(MisuseError, match="no relation 'cousin'"):
        policy.wanted_relations(["cousin"])
    findings = [{"name": "x", "relation": "pruned"}]
    assert list(policy.refused_relations(frozenset({"pruned"}), "related", findings)) == ["the relation to x is pruned"]
    assert list(policy.refused_relations(frozenset({"related"}), "descends", [])) == ["the verdict is descends"]
    assert not list(policy.refused_relations(frozenset({"copy", "related"}), "no-known-parent", []))


# With a registry


def test_add_list_show_remove_check(run: Run, models: Path) -> None:
    code, out, err = run("add", models, "--license", "MIT")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[1:-1]] == ["a", "stranger", "stranger-2"]
    assert out.splitlines()[-1].startswith("3 added")
    listed = json.loads(run("list", "--json")[1])
    assert [model["name"] for model in listed["models"]] == ["a", "stranger", "stranger-2"]
    assert Path(listed["registry"]).name == "registry.db"
    row = next(line.split() for line in run("list")[1].splitlines() if line.startswith("stranger-2"))
    assert json.loads(run("show", row[1], "--json")[1])["name"] == "stranger-2"
    shown = json.loads(run("show", "a", "--json")[1])
    assert (shown["license"], shown["tensors"]) == ("MIT", 8)
    assert shown["parameters"] == sum(array.size for array in _arrays(0).values())
    assert shown["digest"] in run("show", "a")[1]
    assert run("check")[0] == 0
    assert json.loads(run("check", "--json")[1])["findings"] == []
    assert run("remove", "stranger")[0] == 0
    assert [model["name"] for model in json.loads(run("list", "--json")[1])["models"]] == ["a", "stranger-2"]
    code, out, err = run("show", "stranger")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")


def test_an_empty_registry_says_what_to_do(run: Run) -> None:
    code, out, _ = run("list")
    assert code == 0
    assert "stemma add" in out


def test_trace_finds_the_parent_and_not_the_strangers(run: Run, models: Path) -> None:
    run("add", models)
    code, out, err = run("trace", models.parent / "child.safetensors", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["verdict"] in {"related", "descends"}
    assert [parent["name"] for parent in answer["parents"]] == ["a"]
    assert answer["relatives"] == []
    assert answer["parents"][0]["log10_p"] < -6
    assert answer["n_searched"] == 3
    # The same for a person, and the control: a stranger has no parent here.
    code, out, _ = run("trace", models.parent / "child.safetensors")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("child  sha256:")
    assert lines[2].split()[:4] == ["verdict", "related", "to", "a"]
    assert lines[-1].split()[:2] == ["cannot", "see"]
    assert json.loads(run("trace", models.parent / "alone.safetensors", "--json")[1])["verdict"] == "no-known-parent"


def test_trace_finds_the_copy(run: Run, models: Path) -> None:
    run("add", models)
    answer = json.loads(run("trace", models.parent / "copy.safetensors", "--json")[1])
    assert answer["verdict"] == "copy"
    assert [copy["name"] for copy in answer["copies"]] == ["a"]
    assert "verdict     copy of a" in run("trace", models.parent / "copy.safetensors")[1]


def test_against_looks_at_the_given_models_and_stores_nothing(run: Run, models: Path) -> None:
    paths = sorted(models.iterdir())
    answer = json.loads(run("trace", models.parent / "child.safetensors", "--against", *paths, "--json")[1])
    assert answer["n_searched"] == 3
    assert [parent["name"] for parent in answer["parents"]] == ["a"]
    assert json.loads(run("list", "--json")[1])["models"] == []


def test_compare_both_ways(run: Run, models: Path) -> None:
    code, out, _ = run("compare", models / "a.safetensors", models.parent / "child.safetensors", "--json")
    answer = json.loads(out)
    assert (code, answer["verdict"], answer["weights"]["verdict"]) == (0, "related", "related")
    answer = json.loads(run("compare", models / "a.safetensors", models / "stranger.safetensors", "--json")[1])
    assert answer["verdict"] in {"independent", "inconclusive"}
    code, out, _ = run("compare", models / "a.safetensors", models.parent / "child.safetensors")
    assert out.splitlines()[3].split()[:2][0] == "verdict"
    assert out.splitlines()[-1].split()[:2] == ["cannot", "see"]


def test_policies_exit_with_3(run: Run, models: Path) -> None:
    child, alone = models.parent / "child.safetensors", models.parent / "alone.safetensors"
    run("add", models, "--license", "GPL-3.0")
    code, out, err = run("trace", child, "--deny-license", "mit", "gpl-3.0", "--json")
    assert code == 3
    assert json.loads(out)["verdict"] == "related"
    assert "a is under GPL-3.0" in err
    assert run("trace", child, "--deny-license", "mit")[0] == 0
    assert run("trace", child, "--fail-on", "related")[0] == 3
    assert run("trace", alone, "--fail-on", "related", "--deny-license", "gpl-3.0")[0] == 0
    assert run("compare", models / "a.safetensors", child, "--fail-on", "related")[0] == 3
    assert run("compare", models / "a.safetensors", alone, "--fail-on", "related")[0] == 0


def test_a_licence_that_nobody_recorded_is_warned_of(run: Run, models: Path) -> None:
    run("add", models)
    code, _, err = run("trace", models.parent / "child.safetensors", "--deny-license", "gpl-3.0")
    assert code == 0
    assert err.startswith("warning: the licence of a is not recorded")


def test_bad_files_are_reported_and_the_rest_is_enrolled(run: Run, models: Path) -> None:
    (models / "broken.safetensors").write_bytes(b"\xff" * 40)
    code, out, err = run("add", models, "--json")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "broken" in err
    answer = json.loads(out)
    assert answer["failed"] == 1
    assert sorted(m["name"] for m in answer["models"] if m["status"] == "added") == ["a", "stranger", "stranger-2"]


def test_a_known_name_with_other_weights_needs_replace(run: Run, models: Path) -> None:
    assert run("add", models / "a.safetensors")[0] == 0
    assert run("add", models / "a.safetensors")[0] == 0
    code, _, err = run("add", models / "stranger.safetensors", "--name", "a")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert run("add", models / "stranger.safetensors", "--name", "a", "--replace")[0] == 0


def test_check_finds_a_source_that_changed(run: Run, models: Path) -> None:
    run("add", models)
    save_file(_arrays(77), models / "a.safetensors")
    code, out, err = run("check", "--json")
    assert code == 1
    assert [finding["kind"] for finding in json.loads(out)["findings"]] == ["source-changed"]
    assert err.startswith("source-changed: ")


@pytest.mark.parametrize("command", ["trace", "show", "remove"])
def test_an_unknown_name_is_one_sentence(run: Run, command: str) -> None:
    code, out, err = run(command, "nothing-like-it")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ")
    assert "nothing-like-it" in err


def test_debug_shows_the_traceback(models: Path) -> None:
    bad = models / "broken.safetensors"
    bad.write_bytes(b"\xff" * 40)
    quiet = subprocess.run([*PROGRAM, "trace", bad, "--against", models], capture_output=True, text=True, check=False)
    loud = subprocess.run([*PROGRAM, "trace", bad, "--debug"], capture_output=True, text=True, check=False)
    assert quiet.returncode == loud.returncode == 1
    assert "Traceback" not in quiet.stderr
    assert quiet.stderr.startswith("error: ")
    assert "Traceback" in loud.stderr


def test_hostile_names_are_shown_not_obeyed(run: Run, models: Path) -> None:
    folder = models.parent / "odd"
    folder.mkdir()
    save_file(_arrays(4), folder / "[bold]x[red] :smile:.safetensors")
    code, out, _ = run("add", folder)
    assert code == 0
    assert "[bold]x[red] :smile:" in out
    assert "[bold]x[red] :smile:" in run("list")[1]
    assert json.loads(run("list", "--json")[1])["models"][0]["name"] == "[bold]x[red] :smile:"
    hidden = folder / "\x1b[2J\u202ex.safetensors"
    save_file(_arrays(3), hidden)
    for command in (("add", folder), ("trace", hidden), ("compare", hidden, hidden), ("show", "\x1b[2J"), ("check",)):
        _, out, err = run(*command)
        assert not {"\x1b", "\u202e"} & set(out + err), command
        assert out + err


def test_a_reader_that_leaves_early_is_no_error(models: Path) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    subprocess.run([*PROGRAM, "add", models], check=True, capture_output=True, env=environment)
    for command in (["list"], ["list", "--json"], ["--help"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([*PROGRAM, *command], stdout=write, stderr=subprocess.PIPE, env=environment, check=False)
        os.close(write)
        assert b"Traceback" not in done.stderr
        assert done.returncode != 0


def test_interrupting_leaves_no_traceback(models: Path) -> None:
    code = (
        "import sys, time\nfrom stemma.workspace import Workspace\n"
        "def slow(*a, **k):\n    print('ready', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
        "Workspace.trace = slow\nfrom stemma.cli import main\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "trace", models / "a.safetensors"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err


def test_the_default_alpha_in_the_help_is_the_one_that_is_used() -> None:
    from stemma.cli.options import Alpha
    from stemma.workspace import ALPHA

    (option,) = (part for part in Alpha.__metadata__ if hasattr(part, "help"))
    assert f"[default: {ALPHA}]" in option.help


def _signature(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_commands_pass_what_the_workspace_takes() -> None:
    assert {"name", "license", "keep_weights", "replace", "all_formats"} <= _signature(stemma.Workspace.add)
    assert {"against", "alpha"} <= _signature(stemma.Workspace.trace)
    assert "alpha" in _signature(stemma.Workspace.compare)


def test_fingerprints_of_a_copy_agree_and_of_a_stranger_do_not(run: Run, models: Path) -> None:
    paths = models / "a.safetensors", models.parent / "copy.safetensors", models / "stranger.safetensors"
    first, copy, stranger = (json.loads(run("fingerprint", path, "--json")[1])["values"] for path in paths)
    assert first == copy != stranger
    out = models.parent / "sketch.npz"
    assert run("fingerprint", paths[0], "--method", "weight-sketch", "--out", out)[0] == 0
    with np.load(out) as stored:
        assert {name: list(stored[name].shape) for name in stored} == {n: v["shape"] for n, v in first.items()}
    code, _, err = run("fingerprint", paths[0], "--method", "palm")
    assert code == 2
    assert "no fingerprint is called 'palm'" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(shell: str) -> None:
    words = {"bash": {"COMP_WORDS": "stemma tr", "COMP_CWORD": "1"}}.get(shell, {"_TYPER_COMPLETE_ARGS": "stemma tr"})
    environment = {**os.environ, "_STEMMA_COMPLETE": f"complete_{shell}", **words}
    extra = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"} if shell == "fish" else {}
    done = subprocess.run(PROGRAM, env=environment | extra, capture_output=True, text=True, check=False)
    assert "trace" in done.stdout
    assert "compare" not in done.stdout


def test_the_zoo_is_built_listed_and_explained(run: Run, tmp_path: Path) -> None:
    members = {m["name"]: m for m in json.loads(run("zoo", "list", "--json")[1])["members"]}
    assert members["mlp/copy"]["parents"] == ["mlp/root"]
    assert members["mlp/copy"]["relation"] == "copy"
    assert members["mlp/root"]["relation"] is None
    assert json.loads(run("zoo", "show", "mlp/copy", "--json")[1]) == members["mlp/copy"]
    assert "mlp/root" in run("zoo", "show", "mlp/copy")[1]
    assert run("zoo", "show", "mlp/nothing")[0] == 1
    out = tmp_path / "zoo"
    built = json.loads(run("zoo", "build", "mlp", "--out", out, "--only", "root", "--only", "copy", "--json")[1])
    digests = {m["name"]: m["digest"] for m in built["members"]}
    assert set(digests) == {"mlp/root", "mlp/copy"}
    assert digests["mlp/root"] == digests["mlp/copy"] == stemma.load(out / "mlp" / "root").digest
    code, _, err = run("zoo", "build", "mlp", "--out", out)
    assert code == 2
    assert "not empty" in err


def test_the_demo_finds_its_suspect_and_can_be_run_again(run: Run, tmp_path: Path) -> None:
    for _ in range(2):
        code, out, _ = run("demo", "--out", tmp_path / "demo", "--json")
        answer = json.loads(out)
        assert code == 0
        assert answer["truth"]["found"] is True
        assert [parent["name"] for parent in answer["parents"]] == [answer["truth"]["parent"]]
        assert Path(answer["registry"]).is_relative_to(tmp_path)
