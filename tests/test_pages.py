"""Pages are well-formed, complete in themselves, the same every time, and harmless whatever a model is called."""

import functools
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from checkpoints import Run, arrays_of
from page_documents import HOSTILE, RelationKind, documents, explanation, layers
from stemma.errors import MisuseError
from stemma.export.answers import trace_closing
from stemma.export.markup import lines_within
from stemma.export.pages import PAGES, render_page
from stemma.export.pages.pictures.heat_map import CELL, STATUS, rows_of
from stemma.export.pages.trace import trace_view
from stemma.export.pages.words import WORDS
from stemma.types.text import short_name
from traces import of_relation, relative, trace

pytestmark = pytest.mark.anywhere

PLAIN = documents("models/a-model.v2")
HOSTILES = dict(zip(PLAIN, documents(HOSTILE).values(), strict=True))
OFTEN = {kind.value for kind in RelationKind} - {"finetuned", "related", "merged", "distilled"}
BRIEF = [what for what in PLAIN if what.split()[-1] not in OFTEN or what.startswith("edit")]
"""Documents without those that differ in the relation alone."""

VOID = {"meta", "img", "br", "wbr", "input", "hr", "link"}
PHRASING = {"p", "h1", "h2", "h3", "span", "small", "b", "code"}
SECTIONS = ("What was found", "What could be wrong", "What was not looked at", "What to do next",
            "What was asked, and how to ask again")  # fmt: skip


@functools.cache
def _page(what: str) -> bytes:
    return render_page(PLAIN[what], "stemma show x")


class Reader(HTMLParser):
    """Reads a page, and holds that every tag is closed in its order."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.feed(page.decode())
        assert self.open == [], "a tag is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not (tag in ("div", "section", "table", "ul", "ol", "p", "figure") and PHRASING & set(self.open)), tag
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text.append(data)
        if self.headings and re.search("h[1-6]", " ".join(self.open)):
            self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data)


def _attributes(reader: Reader, name: str) -> list[str]:
    return [given[name] or "" for _, given in reader.tags if name in given]


@pytest.mark.parametrize("what", PLAIN)
def test_a_page_has_the_structure_that_readers_need(what: str) -> None:
    page = _page(what)
    reader = Reader(page)
    assert page.startswith(b"<!doctype html>")
    assert reader.tags[0] == ("html", {"lang": "en"})
    levels = [level for level, _ in reader.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all(text.strip() for _, text in reader.headings)
    titles = [text for _, text in reader.headings if not text.startswith("Policy: ")]
    assert set(SECTIONS) <= set(titles)
    assert titles.index("What was found") == 1  # the answer, then what was found
    assert "stemma show x" in reader.text
    ids = _attributes(reader, "id")
    assert len(set(ids)) == len(ids)
    assert all(given.get("scope") in ("col", "row") for tag, given in reader.tags if tag == "th")
    assert all(given.get("aria-label") or given.get("aria-hidden") for tag, given in reader.tags if tag == "svg")
    assert all(given.get("aria-label") for _, given in reader.tags if given.get("role") == "region")
    assert "suspect" not in " ".join(reader.text)
    assert not re.search(r"\b(None|nan|Undefined|\{\{|\}\})\b", " ".join(reader.text))


@pytest.mark.parametrize("what", PLAIN)
def test_a_page_loads_nothing_and_runs_nothing(what: str) -> None:
    page = _page(what)
    reader = Reader(page)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "embed", "form", "a", "base"}
    assert all(value.startswith("data:") for value in _attributes(reader, "src"))
    assert not _attributes(reader, "href")
    assert not [name for _, given in reader.tags for name in given if name.startswith("on") or name == "style"]
    assert not re.search(rb"https?://|url\(|@import", page)
    policy = next(given["content"] for tag, given in reader.tags if tag == "meta" and "http-equiv" in given)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.mark.parametrize("what", PLAIN)
def test_the_same_document_gives_the_same_page(what: str) -> None:
    again = json.loads(json.dumps(PLAIN[what]))
    again["created"] = "2030-01-01T00:00:00Z"
    assert render_page(again, "stemma show x") == _page(what)


@pytest.mark.parametrize("what", BRIEF)
@pytest.mark.slow
def test_a_hostile_name_is_text(what: str) -> None:
    page = render_page(HOSTILES[what], f"stemma show {HOSTILE}")
    reader = Reader(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not {"\u202e", "\x1b"} & set(page.decode())
    assert "<script>alert(1)</script>" in " ".join(reader.text)
    assert len(reader.headings[0][1]) < 2_000
    command = next(text for text in reader.text if text.startswith("stemma show"))
    assert max(len(text) for text in reader.text if text is not command) < 2_000
    assert all(len(value) < 1_000 for name in ("title", "aria-label") for value in _attributes(reader, name))


def test_every_command_with_a_page_is_tested() -> None:
    assert {document["schema"]["name"] for document in PLAIN.values()} == set(PAGES)
    with pytest.raises(MisuseError, match="there is no page for a document of schema"):
        render_page({"schema": {"name": "stemma.list"}}, "stemma list")


def _text(what: str) -> str:
    return " ".join(" ".join(Reader(_page(what)).text).split())


def test_an_arrow_is_drawn_only_where_a_direction_is_known() -> None:
    assert "↓ from which was made" in _text("trace: descends finetuned")
    assert "↑ which was made from" in _text("trace: related child")
    for what in ("trace: related unknown", "trace: related relative", "trace: related same", "trace: possible parents"):
        assert not set("↓↑") & set(_text(what))
        assert "no direction is known" in _text(what)
    assert "= has the same weights as" in _text("trace: 50 copies")


def test_a_probability_says_what_it_is_of() -> None:
    assert "probability that it is the parent: 90 %" in _text("trace: descends finetuned")
    assert "probability that it is the parent: 10 %" in _text("trace: related relative")
    assert "probability that it was made from this model: 90 %" in _text("trace: related child")
    assert "44 further models of this kind not shown" in _text("trace: 50 copies")


def test_a_band_stands_where_an_axis_is_not_decided() -> None:
    for what, document in PLAIN.items():
        if not what.startswith("compare"):
            continue
        page = _page(what).decode()
        axes = [document["weights"], document["function"]]
        open_ = any(axis is None or axis["verdict"] == "inconclusive" for axis in axes)
        assert ('class="axes-band"' in page) == open_
        assert ('class="axes-point"' in page) != open_
        assert page.count("<title>Weights: ") == 1


def test_the_words_of_a_page_are_explained_and_are_in_the_glossary() -> None:
    text = _text("trace: descends quantized")
    assert "Words on this page" in text
    assert WORDS["quantized"][1] in text
    assert WORDS["p-value"][1] in text
    assert WORDS["modality"][1] not in text
    docs = Path(__file__).parents[1] / "docs"
    glossary = (docs / "glossary.md").read_text() + (docs / "reference" / "verdicts.md").read_text()
    missing = [word for word in WORDS if not re.search(rf"\b{re.escape(word)}", glossary, re.IGNORECASE)]
    assert not missing
    assert {kind.value for kind in RelationKind} - {"related", "unrelated", "distilled"} <= set(WORDS)


@pytest.mark.parametrize(("n", "names"), [(12, "blocks.{}.w{}.weight"), (1_000, "blocks.{}.w{}.weight"),
                                          (1_000, "{}{}"), (1_000, "part{}.sub{}.weight")])  # fmt: skip
def test_the_heat_map_has_every_tensor_once_and_no_overlap(n: int, names: str) -> None:
    given = layers("net.", n, names)
    rows = rows_of(given)
    cells = [cell for row in rows for cell in row.cells]
    assert sorted(id(cell.layer) for cell in cells) == sorted(map(id, given))
    at = {(cell.x, cell.y) for cell in cells}
    assert len(at) == n
    by_line: dict[int, list[int]] = {}
    for x, y in at:
        by_line.setdefault(y, []).append(x)
    assert all(b - a >= CELL for xs in by_line.values() for a, b in pairwise(sorted(xs)))
    lines = sorted(by_line)
    assert all(b - a >= CELL for a, b in pairwise(lines))
    assert len(rows) <= 160
    page = render_page(explanation("net.", "finetuned", given), "stemma x").decode()
    assert page.count('class="heat-cell') == n
    assert max(lines) < 6_000


def test_every_status_has_a_colour_a_sign_and_a_meaning() -> None:
    from page_documents import STATUSES

    assert set(STATUS) == set(STATUSES)
    assert len({sign for _, sign, _ in STATUS.values()}) == len(STATUS)
    style = (Path(__file__).parents[1] / "src/stemma/export/pages/style.css").read_text()
    assert all(f".is-{colour} " in style for colour, _, _ in STATUS.values())


# The command line that a page prints


class _CaughtError(Exception):
    """Holds the request that a command made."""


def _request(name: str, command: str, **fields: Any) -> Any:
    import importlib

    module = importlib.import_module(f"stemma.application.{command.replace(' ', '_')}")
    return getattr(module, name)(**fields)


def _requests() -> Iterator[tuple[str, Any]]:
    from stemma.application.network_options import NetworkOptions

    run = NetworkOptions("my.nets:Net", True, "cpu")
    odd = "a 'quoted' \"name\" $HOME `x` ; & # ü.safetensors"
    pair = {"probes": "noise:n=8,seed=1", "null": ("n 1", "n2"), "alpha": 0.05, "seed": 3, "networks": run}
    yield "trace", _request("TraceRequest", "trace", model="m")
    yield "trace", _request("TraceRequest", "trace", model=odd, against=("x", "y z"), coverage=0.9, fail_on=("copy",),
                            deny_license=("gpl-3.0", "mit"), allow_untested=True, registry="r.db", **pair)  # fmt: skip
    yield "trace", _request("TraceRequest", "trace", model="-dash", probes="p", null_recipe="cnn:n=24")
    yield "compare", _request("CompareRequest", "compare", a="a", b=odd)
    yield "compare", _request("CompareRequest", "compare", a="-a", b="b", fail_on=("related", "copy"), **pair)
    yield "explain", _request("ExplainRequest", "explain", parent=odd, child="c", alpha=0.2, registry="r.db")
    yield "lineage", _request("LineageRequest", "lineage", paths=("x", odd), alpha=0.001)
    yield "lineage", _request("LineageRequest", "lineage", registry="r.db")
    yield "distance", _request("DistanceRequest", "distance", a="a", b="b", probes=odd, method="outputs",
                               measure="jensen-shannon", parameters=("steps=5", "x=y z"), networks=run)  # fmt: skip
    yield (
        "competition",
        _request(
            "CompetitionRequest",
            "competition",
            model="m",
            probes="p",
            fit_probes="f",
            seed=2,
            concepts=("a=x", "a=y"),
            mask="mean",
            layer="head",
            concept_networks=("a=m:f",),
        ),
    )
    yield "prune", _request("PruneRequest", "prune", model=odd, out="o", ratio=0.25, parameters=("rounds=2",))
    yield "prune", _request("PruneRequest", "prune", model="m", budget="macs=0.5", dry_run=True, replace=True,
                            statistics="s t", probes="p", networks=run)  # fmt: skip
    yield "unlearn", _request("UnlearnRequest", "unlearn", model="m", forget=odd, out="o", retain="r", replace=True)
    yield "verify edit", _request("VerifyEditRequest", "verify edit", folder=odd, parent="p", probes="q", retain="r")
    yield "verify unlearning", _request("VerifyUnlearningRequest", "verify unlearning", original=odd,
                                        unlearned=("u", "v w"), forget="f", retrained=("r", "s"), retained="k",
                                        alpha=0.1, margin=0.5, networks=run)  # fmt: skip


REQUESTS = list(_requests())


def _asked_by(command: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    import importlib

    import typer.main

    from stemma.cli import app

    name = command.replace(" ", "_")
    module = importlib.import_module(f"stemma.application.{name}")
    caught: list[Any] = []

    def catch(request: Any, *_: Any) -> None:
        caught.append(request)
        raise _CaughtError

    monkeypatch.setattr(module, name, catch)
    with pytest.raises(_CaughtError):
        typer.main.get_command(app).main(words, standalone_mode=False)
    return caught[0]


@pytest.mark.parametrize(("command", "request_"), REQUESTS, ids=[f"{c} {i}" for i, (c, _) in enumerate(REQUESTS)])
def test_the_printed_command_asks_the_same(command: str, request_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    from stemma.application.command_lines import command_line

    monkeypatch.delenv("STEMMA_REGISTRY")
    monkeypatch.delenv("STEMMA_DATA", raising=False)
    words = shlex.split(command_line(command, request_))
    assert words[: 1 + len(command.split())] == ["stemma", *command.split()]
    assert _asked_by(command, words[1:], monkeypatch) == request_


def test_the_folder_of_data_sets_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stemma.application.command_lines import command_line
    from stemma.application.network_options import NetworkOptions

    monkeypatch.setenv("STEMMA_DATA", "")
    asked = _request("TraceRequest", "trace", model="m", networks=NetworkOptions(data=str(tmp_path)))
    assert command_line("trace", asked) == f"stemma trace --data {tmp_path} m"


def test_every_command_with_a_page_prints_its_line() -> None:
    assert {f"stemma.{command.replace(' ', '-')}" for command, _ in REQUESTS} == set(PAGES)


def test_no_page_holds_a_password() -> None:
    from stemma.application.command_lines import command_line

    asked = _request("LineageRequest", "lineage", registry="postgresql://me:secret@host/db")
    assert command_line("lineage", asked) == "stemma lineage --registry 'postgresql://me:***@host/db'"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("name", ["a\x1b[2Jb", "two\nlines", "it's \u202e \\ back", "plain"])
def test_a_shell_reads_the_printed_name_as_it_is(name: str) -> None:
    import subprocess

    from stemma.application.command_lines import command_line

    line = command_line("explain", _request("ExplainRequest", "explain", parent=name, child="c"))
    assert line.isprintable()
    said = subprocess.run(
        ["bash", "-c", line.replace("stemma explain", "printf '%s|'")], capture_output=True, check=True
    )
    assert said.stdout.decode() == f"{name}|c|"


# Files that the commands write


@pytest.mark.slow
def test_the_commands_write_their_pages(run: Run, models: Path, tmp_path: Path) -> None:
    a, child = models / "a.safetensors", tmp_path / "child.safetensors"
    page, svg = tmp_path / "page.html", tmp_path / "tree.svg"
    for words in (("trace", child, "--against", models), ("compare", a, child), ("explain", a, child),
                  ("lineage", models, child)):  # fmt: skip
        code, out, err = run(*words, "--html", page)
        assert (code, err) == (0, ""), err
        assert str(page) in out or words[0] == "lineage"
        Reader(page.read_bytes())
        first = page.read_bytes()
        assert f"<code>stemma {words[0]}" in first.decode()
        run(*words, "--html", page, "--json")
        assert page.read_bytes() == first
        page.unlink()
    code, _, err = run("lineage", models, child, "--svg", svg, "--html", page)
    assert (code, err) == (0, "")
    assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    for words in (("explain", a, child), ("lineage", models)):
        code, out, err = run(*words, "--html", tmp_path / "no" / "page.html")
        assert (code, out) == (2, "")
        assert "there is no folder" in err
    assert run("lineage", models, "--svg", tmp_path)[0] == 2


@pytest.mark.slow
def test_edits_write_their_pages(run: Run, tmp_path: Path) -> None:
    from edited_networks import trained
    from stemma.checkpoints.save import save

    save(trained("mlp"), tmp_path / "net")
    out, page, probes = tmp_path / "smaller", tmp_path / "page.html", ("--probes", "noise:n=64")
    seen = []
    for words in (
        ("prune", tmp_path / "net", "--ratio", ".3", "--dry-run", *probes),
        ("prune", tmp_path / "net", "--ratio", ".3", "--out", out, *probes),
        ("verify", "edit", out, *probes),
        ("verify", "edit", out),
        ("distance", tmp_path / "net", tmp_path / "net", *probes),
        ("compare", tmp_path / "net", tmp_path / "net", *probes),
    ):
        code, said, _ = run(*words, "--html", page)
        assert code == 0
        assert str(page) in said
        seen.append(" ".join(Reader(page.read_bytes()).text))
        page.unlink()
    plan, pruned, checked, unchecked, distance, compared = seen
    assert "nothing was measured" in plan
    assert "latency of 64 inputs" in pruned
    assert "repeating the edit gives these weights" in checked
    assert "the choice of units or entries was not repeated" in unchecked
    assert "Where they differ most" in distance
    assert "Where they differ most" in compared
    assert "What is one model to the other?" in compared


def test_the_page_of_hostile_files(run: Run, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>\u202e.safetensors"
    save_file(arrays_of(0), tmp_path / name)
    save_file(arrays_of(0), tmp_path / "b.safetensors")
    page = tmp_path / "page.html"
    assert run("lineage", tmp_path, "--html", page, "--svg", tmp_path / "t.svg")[0] == 0
    assert "img" not in {tag for tag, _ in Reader(page.read_bytes()).tags}
    assert "\u202e" not in page.read_text() + (tmp_path / "t.svg").read_text()


# What browsers and screen readers say: needs playwright, chromium and axe-core


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on the path")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def _pages_in(
    browser: Any,
    tmp_path: Path,
    look: Callable[[Any, str, str, int], None],
    schemes: tuple[str, ...] = ("light", "dark"),
) -> None:
    file = tmp_path / "page.html"
    for scheme in schemes:
        for width in (360, 1280):
            tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
            for what in BRIEF:
                file.write_bytes(render_page(PLAIN[what], "stemma trace a-very-long-word-" + "x" * 200))
                tab.goto(file.as_uri())
                look(tab, what, scheme, width)
            tab.close()


@pytest.mark.slow
def test_no_page_is_wider_than_the_window(browser: Any, tmp_path: Path) -> None:
    def look(tab: Any, what: str, scheme: str, width: int) -> None:
        over = tab.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert over <= 0, (what, scheme, width, over)

    _pages_in(browser, tmp_path, look, ("light",))  # colours move nothing
    assert len(BRIEF) > 30


@pytest.mark.slow
def test_axe_finds_nothing(browser: Any, tmp_path: Path) -> None:
    import os

    axe = os.environ.get("AXE_CORE")
    if axe is None:
        pytest.skip("AXE_CORE does not name axe.min.js (npm pack axe-core)")
    script = Path(axe).read_text()
    tab = browser.new_page()
    tab.set_content("<img src='data:image/png;base64,'>")  # the control
    tab.evaluate(script)
    assert {v["id"] for v in tab.evaluate("axe.run()")["violations"]} >= {"image-alt", "html-has-lang"}

    def look(tab: Any, what: str, scheme: str, width: int) -> None:
        tab.evaluate(script)
        found = tab.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', "
                             "'best-practice']})")  # fmt: skip
        wrong = [(v["id"], v["nodes"][0]["html"][:200]) for v in found["violations"]]
        assert not wrong, (what, scheme, width, wrong)

    _pages_in(browser, tmp_path, look)


def test_a_trace_lists_relatives_first_then_what_is_open_then_few_independent_models() -> None:
    strangers = [f"stranger-{i:02d}" for i in range(9)]
    document = trace("related", relatives=[relative("kin", RelationKind.SIBLINGS, "relative")], strangers=strangers,
                     undecided=["open-a", "open-b"])  # fmt: skip
    found = {**document, "candidates": document["candidates"][::-1]}
    view = trace_view(found)
    assert [row["name"] for row in view["rows"][:1]] == ["kin"]
    assert {row["name"] for row in view["rows"][1:3]} == {"open-a", "open-b"}
    assert len(view["rows"]) == 6
    page = render_page(found, "stemma trace x").decode()
    assert "6 further models compared and not listed: independent, too." in page
    many = trace("inconclusive", undecided=[f"open-{i:02d}" for i in range(20)], strangers=["stranger"])
    text = render_page(many, "stemma trace x").decode()
    assert "9 further models compared and not listed." in text
    assert "independent, too" not in text


def test_a_cell_says_on_a_phone_which_column_it_is_of() -> None:
    reader = Reader(_page("trace: descends finetuned"))
    cells = [attrs for tag, attrs in reader.tags if tag == "td" and "data-label" in attrs]
    assert {"relation", "weights", "alike"} <= {cell["data-label"] for cell in cells}


def test_the_next_step_has_the_registry_that_was_asked() -> None:
    document = of_relation(RelationKind.FINETUNED)
    asked = {**document["asked"], "registry": "/data/our models.db"}
    page = Reader(render_page({**document, "asked": asked}, "stemma trace x"))
    assert "stemma explain --registry '/data/our models.db' base model" in " ".join(page.text)
    searched = {**document["asked"], "against": ["folder"]}
    lost = trace("no-known-parent", strangers=["stranger"])
    assert "--against with further models" in trace_closing({**lost, "asked": searched})[1]
    assert trace_closing(lost)[1].startswith("stemma add PATH")


def test_long_names_that_differ_in_their_endings_stay_different() -> None:
    first, second = (f"folder/{'a-long-name-' * 12}{end}" for end in ("dense", "finetuned"))
    assert short_name(first, 48) != short_name(second, 48)
    assert all(len(short_name(name, 48)) == 48 and "…" in short_name(name, 48) for name in (first, second))
    assert lines_within(first, 20) != lines_within(second, 20)
