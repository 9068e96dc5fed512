"""The documents say what is there, and nothing that is not."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from safetensors.numpy import save_file

from checkpoints import Run
from stemma import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = ROOT / "docs" / "commands.md"
IDS = [page.name for page in PAGES]


def _commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, groups included."""
    group = typer.main.get_command(cli.app)
    waiting = [("stemma", group)]
    while waiting:
        name, command = waiting.pop()
        inner = getattr(command, "commands", None)
        if inner:
            waiting += [(f"{name} {word}", sub) for word, sub in inner.items()]
        else:
            yield name, command


def _options(command: Any) -> set[str]:
    return {flag for p in command.params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("--")}


ALL = dict(_commands())
EVERYWHERE = {"--help", "--version", "--debug", "--install-completion", "--show-completion"}


def _sections() -> dict[str, str]:
    parts = re.split(r"^## `(stemma [a-z ]+)`.*$", COMMANDS.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


def test_every_command_has_its_section() -> None:
    assert sorted(_sections()) == sorted(ALL)


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_option_is_documented_and_no_other(name: str) -> None:
    section = _sections()[name]
    documented = _flags(section) - EVERYWHERE
    assert documented == _options(ALL[name]) - EVERYWHERE


def test_the_options_of_the_program_itself_are_documented() -> None:
    intro = COMMANDS.read_text().split("\n## ")[0]
    assert _flags(intro) >= EVERYWHERE


def _blocks(page: Path, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def _shell_lines(page: Path) -> Iterator[list[str]]:
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    lines = [line for block in re.findall(r"^```(?:\w*)\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    lines += re.findall(r"`(stemma [^`]*)`", text)
    for line in lines:
        bare = line.strip().removeprefix("$ ").split("  #")[0].split(" #")[0]
        if bare.startswith(("stemma ", "make ")):
            yield shlex.split(re.sub(r"[\[\]|<>;&]", " ", bare))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_that_are_mentioned_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in _shell_lines(page):
        if words[0] == "make":
            assert words[1] in targets, words
            continue
        plain = [word for word in words[1:] if not word.startswith("-")]
        name = next((n for n in (f"stemma {' '.join(plain[:2])}", f"stemma {' '.join(plain[:1])}") if n in ALL), None)
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        groups = {n.rsplit(" ", 1)[0] for n in ALL}
        if name is None:
            assert f"stemma {' '.join(plain[:1])}".strip() in groups, words
            continue
        assert flags <= _options(ALL[name]) | EVERYWHERE, words


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_local_links_and_pictures_resolve(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in {_anchor(h) for h in re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)}, target


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_paths_that_are_mentioned_exist(page: Path) -> None:
    for path in re.findall(r"`((?:src|docs|tests|benchmarks|examples|\.ci)/[\w./-]*)`", page.read_text()):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_dotted_names_that_are_mentioned_exist(page: Path) -> None:
    for dotted in set(re.findall(r"\bstemma(?:\.[A-Za-z_]\w*)+", page.read_text())):
        if not re.search(rf"`[^`\n]*{re.escape(dotted)}|^.*{re.escape(dotted)}\(", page.read_text(), re.MULTILINE):
            continue
        assert _resolves(dotted), dotted


def _resolves(dotted: str) -> bool:
    words = dotted.split(".")
    for cut in range(len(words), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(words[:cut]))
        except ModuleNotFoundError:
            continue
        try:
            for word in words[cut:]:
                value = getattr(value, word)
        except AttributeError:
            return False
        return True
    return False


def test_a_name_that_does_not_exist_is_noticed() -> None:
    assert _resolves("stemma.types.Trace.to_dict")
    assert not _resolves("stemma.types.Nothing")
    assert not _resolves("stemma.nothing.at_all")


def _figures() -> Any:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FIGURES = _figures()


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_figures_are_those_of_the_result_files(page: Path) -> None:
    text = page.read_text()
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    assert prose.count("<!-- results:") == len(FIGURES.TAG.findall(prose)), "a tag is not well formed"
    assert FIGURES.filled(text) == text, "run `make figures`"


def test_a_wrong_figure_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "speed.json").write_text('{"small": {"seconds": [1.234]}}')
    tagged = "<!-- results: speed.json#small/seconds/0 .1f -->{}<!-- / -->"
    assert FIGURES.filled(tagged.format("9.9"), tmp_path) == tagged.format("1.2")
    with pytest.raises(KeyError, match="large"):
        FIGURES.filled("<!-- results: speed.json#large -->1<!-- / -->", tmp_path)
    example = f"`{tagged.format('9.9')}`"
    assert FIGURES.filled(example, tmp_path) == example


def test_a_result_that_is_older_than_its_method_is_marked_on_the_page(tmp_path: Path) -> None:
    source = tmp_path / "src" / "stemma" / "kinship" / "weights" / "version.py"
    kept = tmp_path / "benchmarks" / "results"
    for folder in (source.parent, kept):
        folder.mkdir(parents=True)
    source.write_text('"""The version."""\n\nVERSION = 5\n')
    for name, document in {
        "new": {"measured_with": {"kinship.weights": 5}}, "old": {"measured_with": {"kinship.weights": 4}}, "bare": {},
    }.items():  # fmt: skip
        (kept / f"{name}.json").write_text(json.dumps(document))
    page = "One <!-- measured: new.json -->x<!-- / -->, <!-- measured: old.json --><!-- / -->, {}.".format(
        "<!-- measured: bare.json --><!-- / -->"
    )
    assert FIGURES.filled(page, tmp_path).count(FIGURES.EARLIER) == 2
    assert "new.json --><!--" in FIGURES.filled(page, tmp_path)


@pytest.mark.parametrize("file", ["verdicts_attack", "verdicts_framing", "verdicts_independent", "layouts", "speed"])
def test_a_page_with_figures_of_comparisons_says_when_they_are_older(file: str) -> None:
    quoting = [p.name for p in PAGES if f"results: {file}.json#" in p.read_text() and p.name != "extending.md"]
    assert quoting
    marked = [p.name for p in PAGES if f"measured: {file}.json -->" in p.read_text() and p.name != "extending.md"]
    assert set(quoting) <= set(marked)


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in index, page.name


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"


FEW = ("root", "permuted", "int8", "finetuned", "distilled-other-architecture", "independent-1")


@pytest.mark.parametrize("only", [FEW, pytest.param((), marks=pytest.mark.slow)], ids=["few", "all"])
def test_the_readme_commands_run_as_printed(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], only: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (b for b in _blocks(ROOT / "README.md") if "stemma add" in b or "stemma distance" in b)
    for line in (*first.splitlines(), *second.splitlines()):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "stemma", line
        fewer = [flag for name in only for flag in ("--only", name)] if words[1:3] == ["zoo", "build"] else []
        status, out, err = run(*words[1:], *fewer)
        assert status == 0, f"{line}\n{out}{err}"
        if words[1] == "trace":
            assert "verdict     related to mlp/" in out
    assert (tmp_path / "difference.html").stat().st_size > 10_000
    (code,) = _blocks(ROOT / "README.md", "python")
    exec(code, {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("related")
    assert 0 < float(second) < 0.5


def test_the_formats_page_lists_what_is_read_and_refused() -> None:
    from stemma.architectures import families
    from stemma.checkpoints.formats import ALL as FORMATS
    from stemma.checkpoints.quantization import REFUSED

    text = (ROOT / "docs" / "formats.md").read_text()
    rows = {cells[1].strip(): cells[2] for cells in (line.split("|") for line in text.splitlines()) if len(cells) == 5}
    assert set(rows) - {"format", "---"} == {form.name for form in FORMATS}
    for form in FORMATS:
        assert re.findall(r"`([^`]+)`", rows[form.name]) == list(form.suffixes)
    assert all(kind in text for kind, _ in REFUSED)
    known = {path.stem for path in Path(families.__file__).parent.glob("*.json")}
    assert set(re.findall(r"`(\w+)`", text.split("## Architectures")[1])) == known


def test_the_python_example_finds_the_parent(example: Callable[..., str]) -> None:
    said = example("find_the_parent.py")
    assert "related to mlp/root: permuted" in said
    assert "the stranger is in" in said  # independent or inconclusive


def test_the_gate_example_refuses_a_copy(tmp_path: Path) -> None:
    arrays = {f"fc{i}.weight": np.random.default_rng(i).normal(size=(32, 32)).astype(np.float32) for i in range(3)}
    for name in ("known", "copy"):
        save_file(arrays, tmp_path / f"{name}.safetensors")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    added = ["stemma", "add", "known.safetensors"]
    assert subprocess.run(added, cwd=tmp_path, env=environment, capture_output=True, check=False).returncode == 0
    gate = ROOT / "examples" / "gate.sh"
    save_file(_noise(), tmp_path / "stranger.safetensors")
    for name, code in (("copy", 3), ("stranger", 0), ("missing", 1)):
        done = subprocess.run(
            [gate, f"{name}.safetensors"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        if code != 1:
            assert (json.loads((tmp_path / "trace.json").read_text())["verdict"] == "copy") == (code == 3)


def _noise() -> dict[str, np.ndarray]:
    return {f"fc{i}.weight": np.random.default_rng(9 + i).normal(size=(32, 32)).astype(np.float32) for i in range(3)}


def test_every_test_of_kinship_is_on_its_page() -> None:
    files = (ROOT / "src" / "stemma" / "kinship").rglob("*.py")
    names = {n for file in files for n in re.findall(r'^    name = "([\w-]+)"$', file.read_text(), re.MULTILINE)}
    rows = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs" / "kinship.md").read_text(), re.MULTILINE)
    assert names == set(rows)
