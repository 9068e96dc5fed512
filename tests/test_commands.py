"""The commands on a registry: what is found, what is refused, and what is printed where."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import stemma
from checkpoints import PROGRAM, Run, arrays_of

pytestmark = pytest.mark.anywhere


def test_add_list_show_remove_check(run: Run, models: Path) -> None:
    code, out, err = run("add", models, "--license", "MIT")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[3:6]] == ["a", "stranger", "stranger-2"]
    assert out.startswith("3 added")
    listed = json.loads(run("list", "--json")[1])
    assert [model["name"] for model in listed["models"]] == ["a", "stranger", "stranger-2"]
    assert Path(listed["registry"]).name == "registry.db"
    row = next(line.split() for line in run("list")[1].splitlines() if line.startswith("stranger-2"))
    assert json.loads(run("show", row[1], "--json")[1])["name"] == "stranger-2"
    shown = json.loads(run("show", "a", "--json")[1])
    assert (shown["license"], shown["tensors"]) == ("MIT", 8)
    assert shown["parameters"] == sum(array.size for array in arrays_of(0).values())
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
    assert [kin["name"] for kin in (*answer["parents"], *answer["relatives"])] == ["a"]
    assert (*answer["parents"], *answer["relatives"])[0]["log10_p"] < -6
    assert answer["n_searched"] == 3
    # The same for a person, and the control: a stranger has no parent here.
    code, out, _ = run("trace", models.parent / "child.safetensors")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("child descends from a" if answer["verdict"] == "descends" else "child is related to a")
    assert any(line.startswith("  model         child  sha256:") for line in lines)
    shown = " ".join(out.split())
    assert ("parent set" in shown) == (answer["verdict"] != "descends")  # else the direction says it
    assert answer["verdict"] == "descends" or f"parent set {answer['parent_set'][0]['name']} probability" in shown
    assert answer["verdict"] == "descends" or "in 95% of cases" in shown
    assert any(line.startswith("  cannot see  ") for line in lines)
    assert json.loads(run("trace", models.parent / "alone.safetensors", "--json")[1])["verdict"] == "no-known-parent"


def test_trace_finds_the_copy(run: Run, models: Path) -> None:
    run("add", models)
    answer = json.loads(run("trace", models.parent / "copy.safetensors", "--json")[1])
    assert answer["verdict"] == "copy"
    assert [copy["name"] for copy in answer["copies"]] == ["a"]
    assert "copy is a copy of a" in run("trace", models.parent / "copy.safetensors")[1]


def test_against_looks_at_the_given_models_and_stores_nothing(run: Run, models: Path) -> None:
    paths = sorted(models.iterdir())
    answer = json.loads(run("trace", models.parent / "child.safetensors", "--against", *paths, "--json")[1])
    assert answer["n_searched"] == 3
    assert [kin["name"] for kin in (*answer["parents"], *answer["relatives"])] == ["a"]
    assert json.loads(run("list", "--json")[1])["models"] == []


def test_a_search_of_nothing_is_no_clean_answer(run: Run, models: Path) -> None:
    child = models.parent / "child.safetensors"
    code, out, err = run("trace", child)
    assert code == 0
    assert err.startswith("warning: nothing was searched: there is no registry at ")
    (models.parent / "empty").mkdir()
    for path in (models.parent / "missing", models.parent / "empty"):
        code, out, err = run("trace", child, "--against", path)
        assert (code, out) == (1, "")
        assert str(path) in err
    code, out, err = run("trace", child, "--against", models, models.parent / "missing")
    assert (code, out) == (1, "")


def test_compare_both_ways(run: Run, models: Path) -> None:
    code, out, _ = run("compare", models / "a.safetensors", models.parent / "child.safetensors", "--json")
    answer = json.loads(out)
    assert (code, answer["verdict"], answer["weights"]["verdict"]) == (0, "related", "related")
    answer = json.loads(run("compare", models / "a.safetensors", models / "stranger.safetensors", "--json")[1])
    assert answer["verdict"] in {"independent", "inconclusive"}
    code, out, _ = run("compare", models / "a.safetensors", models.parent / "child.safetensors")
    assert out.startswith("a and child are related")
    assert "\n  cannot see  " in out


def test_policies_exit_with_3(run: Run, models: Path) -> None:
    child, alone = models.parent / "child.safetensors", models.parent / "alone.safetensors"
    run("add", models, "--license", "GPL-3.0")
    code, out, err = run("trace", child, "--deny-license", "mit", "gpl-3.0", "--json")
    assert code == 3
    assert json.loads(out)["verdict"] in {"related", "descends"}
    assert "a is under GPL-3.0" in err
    assert run("trace", child, "--deny-license", "mit")[0] == 0
    assert run("trace", child, "--fail-on", "related")[0] == 3
    assert run("trace", alone, "--fail-on", "related", "--deny-license", "gpl-3.0")[0] == 0
    assert run("compare", models / "a.safetensors", child, "--fail-on", "related")[0] == 3
    assert run("compare", models / "a.safetensors", alone, "--fail-on", "related")[0] == 0


def test_a_licence_that_nobody_recorded_is_warned_of(run: Run, models: Path) -> None:
    run("add", models)
    code, _, err = run("trace", models.parent / "child.safetensors", "--deny-license", "gpl-3.0")
    assert code == 3
    assert "not tested: the licence of a is not recorded" in err
    code, _, err = run("trace", models.parent / "child.safetensors", "--deny-license", "gpl-3.0", "--allow-untested")
    assert code == 0
    assert "warning: not tested, but allowed: the licence of a is not recorded" in err


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
    save_file(arrays_of(77), models / "a.safetensors")
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
    save_file(arrays_of(4), folder / "[bold]x[red] :smile:.safetensors")
    code, out, _ = run("add", folder)
    assert code == 0
    assert "[bold]x[red] :smile:" in out
    assert "[bold]x[red] :smile:" in run("list")[1]
    assert json.loads(run("list", "--json")[1])["models"][0]["name"] == "[bold]x[red] :smile:"
    hidden = folder / "\x1b[2J\u202ex.safetensors"
    save_file(arrays_of(3), hidden)
    for command in (("add", folder), ("trace", hidden), ("compare", hidden, hidden), ("show", "\x1b[2J"), ("check",)):
        _, out, err = run(*command)
        assert not {"\x1b", "\u202e"} & set(out + err), command
        assert out + err


@pytest.mark.slow
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
        "import signal, sys, time\nfrom stemma.workspace import Workspace\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "def slow(*a, **k):\n    print('ready', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
        "Workspace.trace = slow\nfrom stemma.cli import main\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "trace", models / "a.safetensors"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()  # uninterrupted it would end by itself, with another code
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
    shown = json.loads(run("zoo", "show", "mlp/copy", "--json")[1])
    assert {name: value for name, value in shown.items() if name not in HEADER} == members["mlp/copy"]
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


HEADER = {"schema", "stemma_version", "created", "asked"}
"""What every document begins with."""


def _documented(command: str) -> set[str]:
    """Top-level keys of a command's JSON document, as docs/reference/commands.md has them."""
    page = (Path(__file__).parents[1] / "docs" / "reference" / "commands.md").read_text()
    section = page.split(f"## `{command}`\n")[1].split("\n## ")[0]
    found = re.search(r"^\| `--json` \| `\{(.*)\}`", section, re.MULTILINE) or re.search(
        r"^```\n\{(.*?)\}\n```", section, re.MULTILINE | re.DOTALL
    )
    assert found is not None, command
    text, before = found[1], ""
    while text != before:
        before, text = text, re.sub(r"\{[^{}]*\}|\[[^\[\]]*\]", "", text)
    text = re.sub(r': "[^"]*"(?: \| "[^"]*")*', "", text)
    return set(re.findall(r'"(\w+)"', text))


def test_json_documents_are_those_of_the_documents(run: Run, models: Path) -> None:
    child = models.parent / "child.safetensors"
    commands: list[tuple[object, ...]] = [("add", models), ("list",), ("show", "a"), ("check",), ("trace", child)]
    commands += [("compare", models / "a.safetensors", child), ("fingerprint", child), ("zoo", "list")]
    commands += [("zoo", "show", "mlp/copy"), ("remove", "a")]
    for words in commands:
        code, out, _ = run(*words, "--json")
        assert code == 0
        name = "stemma " + " ".join(str(word) for word in words[: 2 if words[0] == "zoo" else 1])
        assert set(json.loads(out)) == _documented(name) | HEADER, name


def test_a_folder_of_several_models_and_an_empty_word_name_none(run: Run, models: Path) -> None:
    assert run("trace", models / "stranger.safetensors", "--against", models)[0] == 0  # one model is one
    code, out, err = run("trace", models, "--against", models)
    assert (code, out) == (1, "")
    assert "several checkpoints" in err
    assert "a.safetensors" in err
    code, out, err = run("trace", "", "--against", models)
    assert (code, out) == (2, "")
    assert "empty" in err


def test_what_is_neither_file_nor_name_is_said_to_be_neither(run: Run) -> None:
    code, _, err = run("trace", "nowhere.safetensors")
    assert code == 1
    assert "no file 'nowhere.safetensors'" in err
    assert "there is no model" in err


def test_a_licence_is_stated_later_and_changed_only_on_purpose(run: Run, models: Path) -> None:
    def recorded() -> str | None:
        return json.loads(run("show", "a", "--json")[1])["license"]

    file = models / "a.safetensors"
    run("add", file, "--keep-weights")
    kept = json.loads(run("show", "a", "--json")[1])["weights"]
    assert (run("add", file, "--license", "gpl-3.0")[0], recorded()) == (0, "gpl-3.0")
    assert (run("add", file)[0], recorded()) == (0, "gpl-3.0")
    code, _, err = run("add", file, "--license", "mit")
    assert (code, recorded()) == (1, "gpl-3.0")
    assert "licence gpl-3.0" in err
    assert (run("add", file, "--license", "mit", "--replace")[0], recorded()) == (0, "mit")
    assert json.loads(run("show", "a", "--json")[1])["weights"] == kept is not None


def test_a_denied_licence_of_the_model_itself_is_denied(run: Run, models: Path) -> None:
    file = models / "a.safetensors"
    run("add", models, "--license", "gpl-3.0")
    code, _, err = run("trace", file, "--deny-license", "gpl-3.0")
    assert code == 3
    assert "enrolled as 'a'" in err
    assert run("trace", file, "--deny-license", "mit")[0] == 0


def test_from_python_one_path_is_no_list_of_letters(models: Path) -> None:
    suspect = models.parent / "child.safetensors"
    answer = stemma.trace(suspect, against=str(models))
    assert (*answer.parents, *answer.relatives)[0]["name"] == "a"
    with pytest.raises(stemma.StemmaError, match="does not exist"):
        stemma.trace(suspect, against=[models / "missing"])
    for alpha in (0.0, 1.0, 2.0, float("nan")):
        with pytest.raises(stemma.StemmaError, match="not a significance level"):
            stemma.trace(suspect, against=[models], alpha=alpha)
        with pytest.raises(stemma.StemmaError, match="not a significance level"):
            stemma.compare(suspect, suspect, alpha=alpha)
