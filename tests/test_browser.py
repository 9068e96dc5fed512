"""The atlas in a real browser: every page, the tree by mouse and keyboard, an upload to its verdict, axe-core.

Needs Playwright, Chromium and, for accessibility, AXE_CORE=/path/to/axe.min.js; what is missing is skipped.
"""

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from checkpoints import Run, arrays_of, child_of

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("fastapi", reason="the web extra is not installed")
CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.anywhere,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
NARROW, WIDE = 390, 1280
PAGES = ("/", "/?search=child", "/model?name=child", "/tree", "/trace", "/compare?a=root", "/explain", "/nowhere")


@contextlib.contextmanager
def served(registry: Path) -> Iterator[str]:
    """The atlas in a thread, at an address of its own."""
    import uvicorn

    from stemma.web.app import create_app
    from stemma.web.settings import Settings

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(create_app(Settings(registry=str(registry), port=port)), port=port, log_level="error")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def atlas(tmp_path: Path, run: Run) -> Iterator[str]:
    folder = tmp_path / "enrolled"
    folder.mkdir()
    save_file(arrays_of(0), folder / "root.safetensors", metadata={"license": "gpl-3.0"})
    save_file(child_of(arrays_of(0), 5), folder / "child.safetensors")
    save_file(child_of(arrays_of(0), 6), folder / "sister.safetensors")
    save_file(arrays_of(1), folder / "stranger <img src=x onerror=alert(1)>.safetensors")
    assert run("add", folder, "--registry", tmp_path / "atlas.db")[0] == 0
    assert run("lineage", "--registry", tmp_path / "atlas.db")[0] == 0
    with served(tmp_path / "atlas.db") as address:
        yield address


@pytest.fixture
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


class Watched:
    """A page whose console and requests are written down."""

    def __init__(self, browser: Any, address: str, width: int = WIDE, scheme: str = "light") -> None:
        self.address = address
        self.page = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme).new_page()
        self.problems: list[str] = []
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.problems.append(str(e)))
        self.page.on("dialog", lambda d: self.problems.append(f"dialog {d.message}"))
        self.page.on("request", lambda r: None if r.url.startswith(address) else self.problems.append(r.url))

    def open(self, path: str) -> Any:
        self.page.goto(self.address + path)
        if path.startswith("/tree"):
            self.page.wait_for_selector("#tree[data-ready]")
        return self.page


@pytest.mark.parametrize("width", [360, WIDE, 2560])
def test_no_page_complains_asks_elsewhere_or_is_wider_than_the_window(atlas: str, browser: Any, width: int) -> None:
    watched = Watched(browser, atlas, width, "dark" if width == 360 else "light")
    for path in PAGES:
        page = watched.open(path)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, path
    allowed = [p for p in watched.problems if "404" not in p]  # of the page that is not there
    assert not allowed


def test_the_tree_by_mouse_and_by_keyboard(atlas: str, browser: Any) -> None:
    watched = Watched(browser, atlas)
    page = watched.open("/tree")
    box = page.locator("#tree").bounding_box()
    x, y = page.evaluate("stemmaTree.place('root')")
    page.mouse.click(box["x"] + x, box["y"] + y)
    page.wait_for_selector("#tree-panel h2")
    assert page.evaluate("stemmaTree.selected()") == "root"
    assert "root" in page.inner_text("#tree-panel h2")
    page.locator("#tree").focus()
    parented = page.evaluate("fetch('/tree/drawing').then(r => r.json()).then(d => d.edges.length > 0)")
    if parented:
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(300)
        assert page.evaluate("stemmaTree.selected()") in ("child", "sister")
    before = page.evaluate("stemmaTree.view().k")
    page.keyboard.press("+")
    assert page.evaluate("stemmaTree.view().k") > before
    for by in ("family", "licence", "date", "relation"):
        page.select_option("#tree-colour", by)
    page.fill("#tree-find", "stranger")
    page.keyboard.press("Enter")
    page.wait_for_timeout(400)
    assert page.evaluate("stemmaTree.selected()").startswith("stranger <img")
    page.locator("#tree").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/model?*")
    assert "stranger <img" in page.inner_text("h1")
    assert not watched.problems


def test_search_narrows_the_list_while_one_types(atlas: str, browser: Any) -> None:
    watched = Watched(browser, atlas)
    page = watched.open("/")
    page.fill("input[type=search]", "sis")
    page.wait_for_selector("table.models tbody tr:only-child")
    assert "sister" in page.inner_text("table.models tbody")
    assert not watched.problems


def test_a_dropped_file_is_traced_to_its_verdict(atlas: str, browser: Any, tmp_path: Path) -> None:
    save_file(child_of(arrays_of(0), 9), tmp_path / "suspect.safetensors")
    watched = Watched(browser, atlas)
    page = watched.open("/trace")
    page.set_input_files("#file", tmp_path / "suspect.safetensors")
    page.click("form.drop button")
    page.wait_for_url("**/jobs/*")
    page.wait_for_selector("h1 .verdict", timeout=120_000)
    assert "suspect" in page.inner_text("h1")
    assert "stemma trace" in page.inner_text("pre.command")
    assert not watched.problems


def test_a_question_is_cancelled_from_its_page(atlas: str, browser: Any, tmp_path: Path) -> None:
    save_file(child_of(arrays_of(0), 9), tmp_path / "suspect.safetensors")
    watched = Watched(browser, atlas)
    page = watched.open("/trace")
    page.set_input_files("#file", tmp_path / "suspect.safetensors")
    page.click("form.drop button")
    page.wait_for_url("**/jobs/*")
    page.click("text=Cancel")
    page.wait_for_selector("text=Cancelled")
    assert not watched.problems


def test_the_evidence_of_an_edge_opens_from_the_panel(atlas: str, browser: Any) -> None:
    watched = Watched(browser, atlas)
    page = watched.open("/compare?a=root&b=child")
    page.wait_for_selector("h1 .verdict", timeout=120_000)
    assert "related" in page.inner_text("h1")
    assert not watched.problems


@pytest.mark.skipif("AXE_CORE" not in os.environ, reason="AXE_CORE does not name axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_axe_finds_no_serious_fault(atlas: str, browser: Any, width: int, scheme: str) -> None:
    source = Path(os.environ["AXE_CORE"]).read_text()
    watched = Watched(browser, atlas, width, scheme)
    for path in PAGES:
        page = watched.open(path)
        page.evaluate(source)
        found = page.evaluate("axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html)]))")
        assert [v for v in found if v[0] in ("serious", "critical")] == [], path


def test_an_empty_registry_complains_on_no_page(browser: Any, tmp_path: Path) -> None:
    with served(tmp_path / "none.db") as address:
        watched = Watched(browser, address, NARROW)
        for path in ("/", "/trace", "/compare", "/explain"):
            watched.open(path)
        watched.page.goto(address + "/tree")
        assert "stemma add" in watched.page.inner_text("main")
        assert not watched.problems
