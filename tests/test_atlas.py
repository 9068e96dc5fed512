"""The atlas: its pages, their JSON twins, uploads, questions, and who is refused."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints import Run, arrays_of, child_of
from documents import check_document
from edited_networks import stemma

pytest.importorskip("fastapi", reason="the web extra is not installed")

from starlette.testclient import TestClient

from stemma.web.app import STATIC, create_app
from stemma.web.settings import Settings
from stemma.web.uploads import harmless_name

pytestmark = pytest.mark.anywhere

HOSTILE = ["<script>alert(1)</script>", "a' onload='x", "{{ 7*7 }}", "x" * 10_000, "ünï/../..", "a&b=c#d?e", "-rf"]

Client = TestClient


def client_of(registry: Path, **given: Any) -> Client:
    settings = Settings(registry=str(registry), **given)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return TestClient(create_app(settings), base_url=f"http://{host}:{settings.port}", raise_server_exceptions=False)


def enrolled_below(tmp_path: Path) -> Path:
    """A root, its child, a stranger, a model with claims; the tree is drawn."""
    folder = tmp_path / "enrolled"
    folder.mkdir()
    save_file(arrays_of(0), folder / "root.safetensors", metadata={"license": "gpl-3.0"})
    save_file(child_of(arrays_of(0), 5), folder / "child.safetensors")
    save_file(arrays_of(1), folder / "stranger.safetensors")
    path = tmp_path / "atlas.db"
    for words in (("add", folder), ("lineage",)):
        done = stemma(*words, "--registry", path)
        assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return enrolled_below(tmp_path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same registry, for tests that only read."""
    return enrolled_below(tmp_path_factory.mktemp("atlas"))


@pytest.fixture
def reading(kept: Path) -> Iterator[Client]:
    with client_of(kept) as client:
        yield client


@pytest.fixture
def atlas(registry: Path) -> Iterator[Client]:
    with client_of(registry) as client:
        yield client


class Page(HTMLParser):
    """What a page has: headings, addresses, text, labels."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.addresses: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self._skipped = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._skipped = tag in ("script", "style")
        if tag in ("h1", "h2", "h3"):
            self.levels.append(int(tag[1]))
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action", "hx-get")]

    def handle_endtag(self, tag: str) -> None:
        self._skipped = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._skipped else data


def answered(client: Client, address: str, seconds: float = 120) -> dict[str, Any]:
    """The document at a question's address, once it is answered."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = client.get(address, headers={"accept": "application/json"})
        if found.status_code != 202:
            return found.json()
        time.sleep(0.2)
    raise AssertionError(f"not answered in {seconds} seconds: {found.text}")


def upload(client: Client, content: bytes, name: str = "suspect.safetensors") -> Any:
    return client.post("/trace", files={"model": (name, content)}, headers={"accept": "application/json"})


PAGES = ("/", "/?search=root", "/?sort=family&reverse=true", "/?license=gpl", "/model?name=child", "/tree", "/trace",
         "/compare", "/compare?a=root&b=child", "/explain", "/tree/model?name=root")  # fmt: skip


@pytest.mark.parametrize("address", PAGES)
def test_every_page_is_whole_and_loads_nothing_from_elsewhere(reading: Client, address: str) -> None:
    found = reading.get(address)
    page = Page(found.text)
    assert found.status_code == 200
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert not [a for a in page.addresses if a.startswith(("http", "//", "javascript", "data"))]
    if not address.startswith("/tree/model"):
        assert page.levels.count(1) == 1
        assert page.levels[0] == 1
        assert all(b <= a + 1 for a, b in zip(page.levels, page.levels[1:], strict=False))
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for own in {a for a in page.addresses if a.startswith("/static/")}:
        assert reading.get(own).status_code == 200, own


def test_pages_say_what_is_enrolled_and_how_it_is_related(reading: Client) -> None:
    assert "3 models" in Page(reading.get("/").text).text
    assert "1 model of 3" in Page(reading.get("/?search=CHI").text).text
    assert "No model fits" in reading.get("/?search=nothing-like-it").text
    child = Page(reading.get("/model?name=child").text).text
    assert "1 relative here" in child or "made from root" in child
    assert "gpl-3.0" in Page(reading.get("/model?name=root").text).text
    assert "stemma show" in child


def test_an_empty_registry_says_what_to_do(tmp_path: Path) -> None:
    with client_of(tmp_path / "none.db") as client:
        for address in ("/", "/tree", "/trace"):
            found = client.get(address)
            assert found.status_code == 200
            assert "stemma add" in found.text
        assert client.get("/tree/drawing").json()["names"] == []
    assert not (tmp_path / "none.db").exists()


def test_twins_are_the_documents_of_the_command_line(
    atlas: Client, registry: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    pairs = {
        "/model?name=child": ("show", "child"),
        "/?search=o&sort=parameters&reverse=true": (
            "list",
            "--search",
            "o",
            "--sort",
            "parameters",
            "--reverse",
            "--limit",
            50,
        ),
    }
    for address, words in pairs.items():
        code, out, _ = run(*words, "--registry", registry, "--json")
        assert code == 0
        assert atlas.get(address, headers={"accept": "application/json"}).text == out
        joined = "&" if "?" in address else "?"
        assert atlas.get(f"{address}{joined}format=json").text == out
    drawn = atlas.get("/tree?format=json").text
    check_document(drawn)
    printed = json.loads(run("lineage", "--registry", registry, "--json")[1])
    assert printed.pop("reused")["models"]  # it was drawn before, which the page need not say
    assert json.loads(drawn) == printed


@pytest.mark.slow
def test_page_command_line_and_python_give_one_document_byte_for_byte(
    atlas: Client, registry: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stemma.application.trace import TraceRequest, trace

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    file = tmp_path / "suspect.safetensors"
    save_file(child_of(arrays_of(0), 6), file)
    asked = upload(atlas, file.read_bytes())
    assert asked.status_code == 202
    answered(atlas, asked.json()["answer"])
    by_page = atlas.get(asked.json()["answer"], headers={"accept": "application/json"}).text
    monkeypatch.chdir(tmp_path)
    code, by_command, _ = run("trace", "suspect.safetensors", "--registry", registry, "--json")
    assert code == 0
    by_python = trace(TraceRequest(model="suspect.safetensors", registry=str(registry))).document()
    assert by_page == by_command
    assert json.dumps(by_python, indent=2) + "\n" == by_page
    page = atlas.get(asked.json()["answer"])
    assert "suspect" in Page(page.text).text
    assert "stemma trace" in page.text
    assert not any((registry.with_name("atlas.db.atlas") / "jobs").glob("*/files/*"))  # the upload is gone


@pytest.mark.slow
def test_questions_about_enrolled_models_are_answered_once(atlas: Client) -> None:
    form = {"kind": "compare", "a": "root", "b": "child"}
    asked = atlas.post("/ask", data=form, headers={"accept": "application/json"}).json()
    document = answered(atlas, asked["answer"])
    assert document["verdict"] == "related"
    again = atlas.post("/ask", data=form, headers={"accept": "application/json"}).json()
    assert again["id"] == asked["id"]
    assert atlas.get("/compare?a=root&b=child&format=json").json() == document
    explained = atlas.post("/ask", data={"kind": "explain", "parent": "root", "child": "child"}, follow_redirects=False)
    assert explained.status_code == 303
    assert answered(atlas, explained.headers["location"])["schema"]["name"] == "stemma.explain"


@pytest.mark.slow
def test_a_hostile_file_fails_alone(atlas: Client) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch /tmp/stemma-was-here",)

    files = {
        "model.pt": pickle.dumps(Bomb()), "model.safetensors": (1 << 62).to_bytes(8, "little") + b"{}",
        "empty.safetensors": b"", "model.gguf": b"GGUF" + b"\xff" * 60,
    }  # fmt: skip
    asked = [upload(atlas, content, name).json()["answer"] for name, content in files.items()]
    for address in asked:
        state = answered(atlas, address)
        assert state["state"] == "failed"
        assert state["error"]
        assert "Traceback" not in state["error"]
        assert "No answer" in atlas.get(address).text
    assert not Path("/tmp/stemma-was-here").exists()
    assert atlas.get("/").status_code == 200


def test_a_question_can_be_cancelled_and_its_file_is_deleted(registry: Path) -> None:
    with client_of(registry, max_jobs=1) as client:
        big = {f"l{i}": np.ones((64, 64), np.float32) for i in range(4)}
        save_file(big, registry.with_name("big.safetensors"))
        content = registry.with_name("big.safetensors").read_bytes()
        first, second = (upload(client, content, f"{i}.safetensors").json() for i in range(2))
        for job in (second, first):
            state = client.post(f"{job['answer']}/cancel", headers={"accept": "application/json"}).json()
            assert state["state"] == "cancelled"
        end = time.monotonic() + 20
        while time.monotonic() < end and any((registry.with_name("atlas.db.atlas") / "jobs").glob("*/files/*")):
            time.sleep(0.1)
        assert not any((registry.with_name("atlas.db.atlas") / "jobs").glob("*/files/*"))
        assert "Cancelled" in client.get(first["answer"]).text


@pytest.mark.slow
def test_a_killed_atlas_loses_no_question(registry: Path, tmp_path: Path) -> None:
    save_file(arrays_of(7), tmp_path / "later.safetensors")
    content = (tmp_path / "later.safetensors").read_bytes()
    with client_of(registry) as client:
        done = upload(client, content, "before.safetensors").json()["answer"]
        document = answered(client, done)
    with client_of(registry, max_jobs=0) as client:  # it is killed before it can answer
        waiting = upload(client, content, "later.safetensors").json()["answer"]
    with client_of(registry) as client:
        assert client.get(done, headers={"accept": "application/json"}).json() == document
        state = answered(client, waiting)
        assert state["state"] == "interrupted"
        assert "Ask again" in client.get(waiting).text
        again = client.post(f"{waiting}/again", headers={"accept": "application/json"}).json()["answer"]
        assert answered(client, again)["model"]["name"] == "later"


def test_so_many_questions_wait_and_no_more(registry: Path) -> None:
    with client_of(registry, max_jobs=0, max_waiting=2) as client:
        codes = [upload(client, b"x" * 100, f"{i}.safetensors").status_code for i in range(4)]
        assert codes == [202, 202, 503, 503]
        assert len(list((registry.with_name("atlas.db.atlas") / "jobs").iterdir())) == 2


def test_uploads_are_bounded_and_leave_nothing(registry: Path) -> None:
    jobs = registry.with_name("atlas.db.atlas") / "jobs"
    with client_of(registry, max_upload=10_000) as client:
        assert upload(client, b"x" * 20_000).status_code == 413
        head = b"--b\r\nContent-Disposition: form-data; name=m; filename=m.pt\r\n\r\n"
        parts = iter([head, *[b"x" * 1000] * 30])
        streamed = client.post("/trace", content=parts, headers={"content-type": "multipart/form-data; boundary=b"})
        assert streamed.status_code == 413
        cut = client.post("/trace", content=b"--b\r\nContent-Disposition: form-data; name=m; filename=m.pt\r\n\r\nhalf",
                          headers={"content-type": "multipart/form-data; boundary=b"})  # fmt: skip
        assert cut.status_code == 400
        assert client.post("/trace", content=b"x", headers={"content-type": "text/plain"}).status_code == 400
        assert client.post("/trace", data={"model": "no file"}, files={}).status_code == 400
        assert not jobs.exists() or not list(jobs.iterdir())


@pytest.mark.parametrize(
    "given", [*HOSTILE, "../../etc/passwd", "C:\\x\\y.pt", "..", ".", "", "a\x00b.pt", "‮txt.exe", " . ", "con/..pt"]
)
def test_names_of_uploads_become_harmless(given: str, tmp_path: Path) -> None:
    name = harmless_name(given)
    assert name
    assert name.isprintable()
    assert len(name.encode()) <= 220
    (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert name not in (".", "..")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text_on_every_page(name: str, tmp_path: Path, run: Run) -> None:
    from stemma.registry import Registry

    save_file(arrays_of(3), tmp_path / "m.safetensors")
    assert run("add", tmp_path / "m.safetensors", "--registry", tmp_path / "hostile.db")[0] == 0
    registry = Registry(tmp_path / "hostile.db")
    record = registry.remove("m")
    registry.add(record.renamed(name), registry.tensors(record.digest))
    registry.put_tree("lineage", {"models": [{"name": name, "digest": record.digest}], "edges": [], "roots": [name],
                                  "families": [[name]]}, {})  # fmt: skip
    with client_of(tmp_path / "hostile.db") as client:
        for address in ("/", "/model", "/tree", "/tree/model", "/compare", "/explain", "/tree/drawing"):
            key = {"/compare": "a", "/explain": "parent"}.get(address, "name")
            found = client.get(address, params={key: name})
            assert found.status_code == 200, address
            if address == "/tree/drawing":
                assert found.json()["names"] == [name]
                continue
            page = Page(found.text)
            assert page.tags.count("script") == (4 if address == "/tree" else 0 if address == "/tree/model" else 2)
            assert "onload=" not in found.text.replace("&#39; onload=&#39;", "")
            assert name != "{{ 7*7 }}" or "{{ 7*7 }}" in page.text or "49" not in page.text, address
        model = client.get("/model", params={"name": name, "format": "json"}).json()
        assert model["name"] == name


@pytest.mark.parametrize(
    ("headers", "method", "code"),
    [
        ({"host": "evil.example"}, "GET", 421),
        ({"host": "127.0.0.1:1"}, "GET", 421),
        ({"host": "127.0.0.1.evil.example:7433"}, "GET", 421),
        ({"host": "localhost:7433"}, "GET", 200),
        ({"host": "[::1]:7433"}, "GET", 200),
        ({"origin": "http://evil.example"}, "POST", 403),
        ({"origin": "null"}, "POST", 403),
        ({"origin": "http://[::1"}, "POST", 403),
        ({"origin": "http://localhost:7433", "host": "127.0.0.1:7433"}, "POST", 403),
        ({"sec-fetch-site": "cross-site"}, "POST", 403),
        ({"sec-fetch-site": "same-site"}, "POST", 403),
        ({"origin": "http://127.0.0.1:7433", "sec-fetch-site": "same-origin"}, "POST", 404),
    ],
)
def test_other_hosts_and_origins_are_refused(reading: Client, headers: dict[str, str], method: str, code: int) -> None:
    body = {"data": {"kind": "trace", "model": "no such"}} if method == "POST" else {}
    assert reading.request(method, "/ask" if method == "POST" else "/", headers=headers, **body).status_code == code


def test_where_others_can_reach_it_a_token_is_needed(registry: Path) -> None:
    with client_of(registry, host="10.1.2.3", token="secret-token") as client:
        assert client.get("/").status_code == 401
        assert client.get("/?token=wrong").status_code == 401
        assert client.get("/static/style.css").status_code == 401
        assert client.get("/", headers={"authorization": "Bearer secret-token"}).status_code == 200
        client.cookies.clear()
        first = client.get("/?token=secret-token")
        assert first.status_code == 200
        assert "HttpOnly" in first.headers["set-cookie"]
        assert "SameSite=Strict" in first.headers["set-cookie"]
        assert client.get("/tree").status_code == 200  # by its cookie
        assert client.get("/", headers={"host": "evil.example:7433"}).status_code == 421


def test_only_enrolled_models_and_uploads_are_opened(atlas: Client, registry: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "enrolled" / "root.safetensors", "/etc/passwd", "../x"):
        found = atlas.post("/ask", data={"kind": "trace", "model": str(path)}, headers={"accept": "application/json"})
        assert found.status_code == 404
        assert "no enrolled model" in found.json()["error"]
    assert atlas.post("/ask", data={"kind": "prune", "model": "root"}).status_code == 400
    assert atlas.get("/static/../app.py").status_code == 404
    assert atlas.get("/static/%2e%2e/app.py").status_code == 404
    assert atlas.get("/jobs/..%2f..").status_code == 404


@pytest.mark.parametrize(
    "address", ["/model?name=nobody", "/jobs/0123", "/nowhere", "/?family=nobody", "/?sort=size", "/model"]
)
def test_what_is_not_there_is_said_in_one_sentence(reading: Client, address: str) -> None:
    found = reading.get(address)
    assert found.status_code in (400, 404, 422)
    twin = reading.get(address, headers={"accept": "application/json"})
    assert twin.status_code == found.status_code
    assert len(twin.json()["error"]) > 10


def test_a_model_that_is_enrolled_shows_at_once_and_moves_nothing(
    atlas: Client, registry: Path, tmp_path: Path, run: Run
) -> None:
    before = atlas.get("/tree/drawing").json()
    save_file(arrays_of(8), tmp_path / "new.safetensors")
    assert run("add", tmp_path / "new.safetensors", "--registry", registry)[0] == 0
    assert "4 models" in Page(atlas.get("/").text).text
    after = atlas.get("/tree/drawing").json()
    places = [dict(zip(d["names"], zip(d["x"], d["y"], strict=True), strict=True)) for d in (before, after)]
    assert places[1].items() >= places[0].items()
    assert after["kind"][after["names"].index("new")] == 2
    assert "1 model enrolled since" in atlas.get("/tree").text
    assert run("remove", "new", "--registry", registry)[0] == 0
    assert "new" not in atlas.get("/tree/drawing").json()["names"]


def test_what_stands_for_other_weights_now_keeps_no_relation(registry: Path, tmp_path: Path, run: Run) -> None:
    save_file(arrays_of(8), tmp_path / "child.safetensors", metadata={"base_model": "root"})
    assert run("add", tmp_path / "child.safetensors", "--replace", "--registry", registry)[0] == 0
    code, out, _ = run("show", "child", "--registry", registry, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["parents"] == found["children"] == []
    assert found["family"]["members"] == 1
    assert any("not in it" in why for why in found["family"]["not_tested"])
    assert not [line for line in found["claims_checked"] if line["verdict"] != "not checked"]
    assert json.loads(run("show", "root", "--registry", registry, "--json")[1])["children"] == []
    code, _, err = run("list", "--family", "child", "--registry", registry)
    assert code == 2
    assert "stemma lineage" in err
    with client_of(registry) as client:
        assert "not drawn yet" in client.get("/").text
        twin = client.get("/tree?format=json").json()
        assert [t["model"] for t in twin["not_tested"] if t["what"] == "not-drawn"] == ["child"]
        drawing = client.get("/tree/drawing").json()
        assert drawing["edges"] == []
        assert drawing["kind"][drawing["names"].index("child")] == 2


def test_vendored_files_are_those_that_were_published_and_have_their_licences() -> None:
    folder = STATIC / "vendor"
    known = json.loads((folder / "vendored.json").read_text())
    assert {p.name for p in folder.glob("*.js")} == set(known)
    for name, facts in known.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == facts["sha256"]
        assert len((folder / facts["licence_file"]).read_text()) > 300


def test_what_is_drawn_is_what_the_lineage_says(tmp_path: Path) -> None:
    from stemma.export.trees.drawing import draw
    from stemma.registry import Registry
    from stemma.types import Digest, Edge, Lineage, ModelRef
    from stemma.web.atlas import drawing_data, with_undrawn
    from stemma.workspace.catalogue import Catalogue

    names = ["a", "b", "c", "m", "x", "y"]
    tree = Lineage(
        models=tuple(ModelRef(n, Digest(f"sha256:{i}")) for i, n in enumerate(names)),
        edges=(
            Edge(parent="a", child="b", relation="finetuned", confidence=0.876),
            Edge(parent="a", child="m", relation="merged", share=0.25),
            Edge(parent="b", child="m", relation="merged", share=0.75),
            Edge(parent="(missing 1)", child="x", relation="finetuned"),
            Edge(parent="(missing 1)", child="y", relation="finetuned"),
        ),
        roots=("a",), families=(("a", "b", "m"), ("x", "y"), ("c",)),
        missing_ancestors=({"name": "(missing 1)", "children": ["x", "y"], "parent": None},),
        refused=({"models": ["x", "y"], "reason": "either"},),
    )  # fmt: skip
    registry = Registry(tmp_path / "r.db")
    registry.put_tree("lineage", tree.to_dict(), {})
    known = Catalogue(registry)
    known.stale = frozenset()
    data = drawing_data(known, with_undrawn(known), draw(tree))
    at = {n: i for i, n in enumerate(data["names"])}
    rows = [data["edges"][i : i + 5] for i in range(0, len(data["edges"]), 5)]
    shown = {(data["names"][p], data["names"][c], data["relations"][r], sure, share) for p, c, r, sure, share in rows}
    assert shown == {
        ("a", "b", "finetuned", 88, -1), ("a", "m", "merged", -1, 25), ("b", "m", "merged", -1, 75),
        ("(missing 1)", "x", "finetuned", -1, -1), ("(missing 1)", "y", "finetuned", -1, -1),
    }  # fmt: skip
    assert data["kind"][at["(missing 1)"]] == 1
    assert [data["names"][i] for i in data["kin"]] == ["x", "y"]
    family = {n: data["family"][i] for n, i in at.items()}
    assert family["a"] == family["b"] == family["m"] != family["x"] == family["y"] == family["(missing 1)"] > 0
    assert family["c"] == 0
    assert data["relations"][data["relation"][at["m"]]] == "merged"
    assert data["x"][at["m"]] == data["x"][at["b"]] + 1  # below the parent with the larger share


def test_serve_refuses_a_port_that_is_taken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = run("serve", "--port", taken.getsockname()[1])
    assert code == 2
    assert "--port" in err


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("a.example", False),
    ],
)
def test_serve_asks_for_a_token_wherever_others_can_reach_it(
    host: str, local: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Settings] = []

    def note(settings: Settings, ready: Callable[[], None]) -> None:
        served.append(settings)
        ready()

    monkeypatch.setattr("stemma.web.serve.run", note)
    code, out, err = run("serve", "--host", host)
    assert code == 0
    assert (served[0].token is None) == local == ("token" not in out) == ("warning" not in err)


def test_the_cookie_is_the_token_and_nothing_else_that_came_with_it(registry: Path) -> None:
    with client_of(registry, host="10.1.2.3", token="secret-token") as client:
        for other in ("evil%0d%0aX-Injected:%201", "x;Domain=example", "%00"):
            found = client.get(f"/?token={other}&token=secret-token")
            assert found.headers["set-cookie"].startswith("stemma_token_7433=secret-token; Path=/; HttpOnly")
            assert "Domain" not in found.headers["set-cookie"]
        kept = client.get("/?token=garbage")  # its cookie lets it in, and stays
        assert (kept.status_code, "set-cookie" in kept.headers) == (200, False)


def test_two_atlases_of_one_host_do_not_log_each_other_out(registry: Path) -> None:
    with client_of(registry, host="10.1.2.3", token="one", port=7501) as client:
        first = client.get("/?token=one").headers["set-cookie"].partition("=")[0]
    with client_of(registry, host="10.1.2.3", token="two", port=7502) as client:
        assert client.get("/?token=two").headers["set-cookie"].partition("=")[0] != first


@pytest.mark.parametrize("address", ["/", "/model?name=root", "/tree/drawing", "/trace", "/nowhere", "/?format=json"])
def test_no_cache_keeps_a_page_for_who_comes_next(reading: Client, address: str) -> None:
    assert reading.get(address).headers["cache-control"] == "no-store"
    assert reading.get(address, headers={"host": "evil.example"}).headers["cache-control"] == "no-store"


JSON = {"accept": "application/json"}


def test_asking_again_takes_no_file_from_a_question_on_its_way(registry: Path) -> None:
    jobs = registry.with_name("atlas.db.atlas") / "jobs"
    with client_of(registry, max_jobs=0) as client:
        first = upload(client, b"x" * 100).json()
        assert client.post(f"{first['answer']}/again", headers=JSON).json()["id"] == first["id"]
        assert (jobs / first["id"] / "files" / "suspect.safetensors").exists()


def test_asking_again_when_too_many_wait_keeps_the_file(registry: Path) -> None:
    jobs = registry.with_name("atlas.db.atlas") / "jobs"
    with client_of(registry, max_jobs=0) as client:
        first = upload(client, b"x" * 100).json()
    with client_of(registry, max_jobs=0, max_waiting=1) as client:
        other = upload(client, b"y" * 100).json()
        assert client.post(f"{first['answer']}/again", headers=JSON).status_code == 503
        assert (jobs / first["id"] / "files" / "suspect.safetensors").exists()
        client.post(f"{other['answer']}/cancel")
        assert client.post(f"{first['answer']}/again", headers=JSON).status_code == 202
        client.post(f"{client.get('/trace', headers=JSON).json()['questions'][0]['answer']}/cancel")
        assert client.post(f"{first['answer']}/again", headers=JSON).status_code == 400  # once is enough


def test_an_upload_that_stops_coming_is_given_up(registry: Path) -> None:
    import asyncio

    head = b"--b\r\nContent-Disposition: form-data; name=m; filename=m.pt\r\n\r\nhalf"
    pieces = [{"type": "http.request", "body": head, "more_body": True}]
    sent: list[Any] = []
    given = Settings(registry=str(registry), patience=0.2)

    async def ask() -> None:
        async def receive() -> Any:
            if pieces:
                return pieces.pop()
            await asyncio.sleep(30)

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"127.0.0.1:7433"), (b"content-type", b"multipart/form-data; boundary=b")]
        await create_app(given)({"type": "http", "http_version": "1.1", "method": "POST", "path": "/trace", "scheme":
                                 "http", "query_string": b"", "headers": headers, "server": ("127.0.0.1", 7433)},
                                receive, send)  # fmt: skip

    asyncio.run(asyncio.wait_for(ask(), 15))
    assert sent[0]["status"] == 400
    assert not any((registry.with_name("atlas.db.atlas") / "jobs").iterdir())


def test_what_is_no_file_in_an_upload_is_bounded_too(atlas: Client) -> None:
    kind = {"content-type": "multipart/form-data; boundary=b"}
    many = b"".join(b"--b\r\nContent-Disposition: form-data; name=n\r\n\r\nx\r\n" for _ in range(2000)) + b"--b--\r\n"
    long = b"--b\r\nContent-Disposition: form-data; name=" + b"n" * 100_000 + b"\r\n\r\nx\r\n--b--\r\n"
    assert [atlas.post("/trace", content=c, headers=kind).status_code in (400, 413) for c in (many, long)] == [True] * 2


def test_names_that_differ_in_case_only_stay_two_files(registry: Path) -> None:
    with client_of(registry, max_jobs=0) as client:
        files = [("model", (name, b"x")) for name in ("A.pt", "a.pt", "2-a.pt")]
        found = client.post("/trace", files=files, headers=JSON).json()
        kept = (registry.with_name("atlas.db.atlas") / "jobs" / found["id"] / "files").iterdir()
        assert len({p.name.casefold() for p in kept}) == 3


@pytest.mark.parametrize("named", ["{tmp}/enrolled/root.safetensors", "../../../../enrolled/root.safetensors"])
@pytest.mark.first(1)
def test_an_uploaded_adapter_opens_no_file_of_the_machine(named: str, registry: Path, tmp_path: Path) -> None:
    job = tmp_path / "atlas.db.atlas" / "jobs" / ("0" * 32)
    (job / "files").mkdir(parents=True)
    layer = next(n for n, a in arrays_of(0).items() if a.ndim == 2 and n.endswith(".weight"))
    out, into = arrays_of(0)[layer].shape
    start = f"base_model.model.{layer.removesuffix('.weight')}"
    lora = {f"{start}.lora_A.weight": np.ones((2, into), np.float32),
            f"{start}.lora_B.weight": np.ones((out, 2), np.float32)}  # fmt: skip
    save_file(lora, job / "files" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [layer.removesuffix(".weight")],
              "base_model_name_or_path": named.format(tmp=tmp_path)}  # fmt: skip
    (job / "files" / "adapter_config.json").write_text(json.dumps(config))
    question = {"kind": "trace", "request": {"model": ".", "registry": str(registry)},
                "limits": {"memory": 1 << 40, "seconds": 1 << 20}}  # fmt: skip
    (job / "job.json").write_text(json.dumps(question))
    with subprocess.Popen([sys.executable, "-m", "stemma.web.worker", str(job)], stdin=subprocess.PIPE) as process:
        assert process.wait(120) == 1, (job / "document.json").read_text()[:500]
    assert "is not on this machine" in (job / "error.txt").read_text()


def test_a_second_atlas_of_a_registry_is_refused_and_takes_no_question_of_the_first(registry: Path) -> None:
    from stemma.errors import MisuseError

    jobs = registry.with_name("atlas.db.atlas") / "jobs"
    with client_of(registry, max_jobs=0) as client:
        waiting = upload(client, b"x" * 100).json()["id"]
        coming = jobs / ("0" * 32)  # as an upload of which only a part has come
        (coming / "files").mkdir(parents=True)
        with pytest.raises(MisuseError, match="another atlas of this registry runs already"):
            client_of(registry, port=7434)
        assert coming.exists()
        assert client.get(f"/jobs/{waiting}", headers=JSON).json()["state"] == "waiting"
    with client_of(registry, max_jobs=0) as client:  # once the first has ended
        assert client.get(f"/jobs/{waiting}", headers=JSON).json()["state"] == "interrupted"


def test_what_cannot_be_written_is_said_in_one_sentence(registry: Path) -> None:
    registry.with_name("atlas.db.atlas").write_text("a file where the folder should be")
    with client_of(registry) as client:
        assert client.get("/").status_code == 200
        found = upload(client, b"x")
        assert found.status_code == 500
        assert "cannot be written" in found.json()["error"]
