"""The documents say what is there, and nothing that is not."""

import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from checkpoints import Run
from stemma import cli

pytestmark = pytest.mark.anywhere

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if (DOCS / "templates") not in p.parents)]
COMMANDS = DOCS / "reference" / "commands.md"
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]


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


GENERATED = FIGURES.templates()


@pytest.mark.parametrize("page", GENERATED, ids=[page.relative_to(ROOT).as_posix() for page in GENERATED])
def test_a_generated_page_is_what_its_template_renders_to(page: Path) -> None:
    source = GENERATED[page].relative_to(ROOT)
    assert page.exists(), f"run `make figures`, which writes it from {source}"
    said = f"{page.relative_to(ROOT)} is generated: edit {source}, then run `make figures`"
    assert page.read_text() == FIGURES.page(GENERATED[page]), said


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_no_tag_is_left_on_a_page(page: Path) -> None:
    assert page in GENERATED or not page.read_text().startswith("<!-- Generated"), "its template is missing"
    assert "{{" not in FIGURES.CODE.sub("", page.read_text()), "a page with figures needs a template"


def test_figures_come_from_the_result_files(tmp_path: Path) -> None:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "speed.json").write_text('{"very small": {"a/b": [1.234]}}')
    assert FIGURES.render("It took {{ speed.json#very small/a%2Fb/0 | .1f }} s.", tmp_path) == "It took 1.2 s."
    assert FIGURES.render("{{ speed.json#very small/a%2Fb/0 }}", tmp_path) == "1.234"
    with pytest.raises(KeyError, match="large"):
        FIGURES.render("{{ speed.json#large }}", tmp_path)
    with pytest.raises(ValueError, match="not well formed"):
        FIGURES.render("{{ speed.json }}", tmp_path)
    assert FIGURES.render("`{{ speed.json#large }}`", tmp_path) == "`{{ speed.json#large }}`"


def test_a_page_edited_by_hand_is_noticed(tmp_path: Path) -> None:
    template = tmp_path / "docs" / "templates" / "how-to" / "wait.md"
    template.parent.mkdir(parents=True)
    template.write_text("# Wait\n")
    assert FIGURES.templates(tmp_path) == {tmp_path / "docs" / "how-to" / "wait.md": template}
    rendered = FIGURES.page(template, tmp_path)
    assert rendered.splitlines()[0] == (
        "<!-- Generated from docs/templates/how-to/wait.md: edit that file, then run `make figures`. -->"
    )
    assert rendered != "# Wait for me\n"


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
    text = "One.{{ measured: new.json }} Two.{{ measured: old.json }} Three.{{ measured: bare.json }}"
    assert FIGURES.render(text, tmp_path) == f"One. Two.{FIGURES.EARLIER} Three.{FIGURES.EARLIER}"


def test_results_older_than_their_method_are_listed(tmp_path: Path) -> None:
    from testbeds.measured import VERSIONS

    kept = tmp_path / "benchmarks" / "results"
    kept.mkdir(parents=True)
    for method in ("dna", "forest"):
        source = tmp_path / "src" / "stemma" / VERSIONS[method][0]
        source.parent.mkdir(parents=True)
        source.write_text("class A:\n    version: ClassVar[int] = 3\n    version = 3\n")
    for name, methods in {"new": {"dna": 3}, "old": {"dna": 2, "forest": 3}, "first": {"forest": 0}}.items():
        (kept / f"{name}.json").write_text(json.dumps({"made_with": {"commit": f"{name}123", "methods": methods}}))
    assert FIGURES.render("{{ older results }}", tmp_path).splitlines()[2:] == [
        "| first | forest | before versions | version 3 | first123 |",
        "| old | dna | version 2 | version 3 | old123 |",
    ]
    (kept / "old.json").unlink()
    (kept / "first.json").unlink()
    assert FIGURES.older_results(tmp_path).startswith("No file")


RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def test_every_result_says_what_it_was_made_with() -> None:
    """A method that is newer than a result changes the list on the page of limits, which is rendered again above."""
    from testbeds.measured import METHODS, VERSIONS, current

    for path in RESULTS:
        made = json.loads(path.read_text())["made_with"]
        assert re.fullmatch(r"[0-9a-f]{7,40}\+?", made["commit"]), path.name
        assert set(made["methods"]) == set(METHODS.get(path.stem, ())), path.name
        assert all(version <= current(method) for method, version in made["methods"].items()), path.name
    assert all(current(method) >= 1 for method in VERSIONS)
    scripts = [p for p in (ROOT / "benchmarks").glob("*.py") if "results" in p.read_text()]
    assert {p.name for p in scripts if "testbeds.measured" not in p.read_text()} <= UNSTAMPED


UNSTAMPED = {
    "erasure.py", "forgetting.py", "layouts.py", "multimodal_balance.py", "multimodal_competition.py", "names_lost.py",
    "verdicts_attack.py", "verdicts_framing.py", "verdicts_independent.py",
}  # fmt: skip
"""Scripts that write their results through a module of `testbeds` or through another script."""


def test_no_page_shows_a_point_as_the_interval_of_a_share() -> None:
    points = re.compile(r"\b(?:1\.0+ \[1\.0+, 1\.0+\]|0\.0+ \[0\.0+, 0\.0+\])")
    found = {f"{p.name}: {m[0]}" for p in PAGES for m in points.finditer(FIGURES.CODE.sub("", p.read_text()))}
    assert found == set()


@pytest.mark.parametrize("file", ["verdicts_attack", "verdicts_framing", "verdicts_independent", "layouts", "speed"])
def test_a_page_with_figures_of_comparisons_says_when_they_are_older(file: str) -> None:
    texts = {path: FIGURES.CODE.sub("", path.read_text()) for path in GENERATED.values()}
    quoting = {path for path, text in texts.items() if f"{{{{ {file}.json#" in text}
    assert quoting
    assert quoting <= {path for path, text in texts.items() if f"{{{{ measured: {file}.json }}}}" in text}


def _sentences(page: Path) -> Iterator[str]:
    """Sentences of a page outside code, tables and headings."""
    text = re.sub(r"```.*?```|<!--.*?-->|^[|#][^\n]*$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:-|\d+\.) )", text):
        yield from re.split(r"(?<=[.!?:])\s+(?=[A-Z`*\[0-9])", " ".join(block.split()))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_sentences_are_short(page: Path) -> None:
    words = {s: sum(any(map(str.isalnum, w)) for w in re.sub(r"\]\([^)]*\)", "", s).split()) for s in _sentences(page)}
    assert {sentence: n for sentence, n in words.items() if n > 35} == {}
    assert sorted(words.values())[len(words) // 2] <= 20


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    for page in PAGES[1:]:
        name = page.relative_to(DOCS).as_posix()
        assert name == "index.md" or f"]({name})" in index, name


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"


FEW = (
    "root", "permuted", "int8", "finetuned", "finetuned-other-data", "merged-two", "distilled-other-architecture",
    "independent-1", "independent-2",
)  # fmt: skip


@pytest.mark.parametrize("only", [FEW, pytest.param((), marks=pytest.mark.slow)], ids=["few", "all"])
def test_the_readme_commands_run_as_printed(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], only: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in _blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    answers = {
        "trace": "int8 descends from root (quantized)",
        "compare": "root and permuted are related (permuted)",
        "lineage": "6 models: 1 family, 5 edges",
        "distance": "distance between root and distilled-other-architecture: ",
        "prune": "units removed from root: ",
        "verify": "the edit is as recorded",
    }
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words[0] == "stemma", line
        fewer = [flag for name in only for flag in ("--only", name)] if words[1:3] == ["zoo", "build"] else []
        status, out, err = run(*words[1:], *fewer)
        assert status == 0, f"{line}\n{out}{err}"
        assert answers.get(words[1], "") in out.partition("\n")[0]
    assert {line.split()[1] for line in lines} >= set(answers)
    assert (tmp_path / "difference.html").stat().st_size > 10_000
    (code,) = _blocks(ROOT / "README.md", "python")
    exec(code, {})
    first, second = capsys.readouterr().out.splitlines()
    assert first == "descends ['root']"
    assert 0 < float(second) < 0.5


def _as_typed(line: str, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Runs one line of a tutorial, Python in this process (torch is loaded once); gives its exit code and text."""
    line, _, file = line.partition("#")[0].partition(" > ")
    words = shlex.split(line)
    if words[0] == "stemma":
        code, out, err = run(*words[1:])
        if file:
            (folder / file.strip()).write_text(out)
        return code, out + err
    if words[0] == "python":
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", words[1:])
            runpy.run_path(words[1], run_name="__main__")
        return 0, ""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


EPOCHS = {"privacy-engineer": ("range(30)", "range(12)")}
"""Where less training than is printed leads to the same answers."""


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_runs_as_printed(tmp_path: Path, page: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEMMA_REGISTRY", str(tmp_path / "registry.db"))
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        if language == "python":  # its first line names the file
            (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(
                block.replace(*EPOCHS.get(page.stem, ("", "")))
            )
            continue
        for line in block.splitlines():
            code = re.search(r"# exit code (\d+)$", line)
            status, said = _as_typed(line, run, tmp_path, monkeypatch)
            assert status == (int(code[1]) if code else 0), f"{line}\n{said}"
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def test_the_formats_page_lists_what_is_read_and_refused() -> None:
    from stemma.architectures import families
    from stemma.checkpoints.formats import ALL as FORMATS
    from stemma.checkpoints.quantization import REFUSED

    text = (DOCS / "reference" / "formats.md").read_text()
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


def test_every_test_of_kinship_is_on_its_page() -> None:
    files = (ROOT / "src" / "stemma" / "kinship").rglob("*.py")
    names = {n for file in files for n in re.findall(r'^    name = "([\w-]+)"$', file.read_text(), re.MULTILINE)}
    rows = re.findall(r"^\| `([\w-]+)` \|", (DOCS / "methods" / "weight_tests.md").read_text(), re.MULTILINE)
    assert names == set(rows)
