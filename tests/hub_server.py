"""A hub on this machine: the API, the redirects and the ranges that huggingface.co has, with faults to order.

Two servers, because the real hub keeps large files on another host than its API. A fault is a word that the next
answers with bytes of a file obey, as often as ordered.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"
COPIED = 1 << 20


@dataclass
class Hub:
    """The state of the hub.

    Attributes:
        repositories: Folder of each repository, by `ORG/NAME`.
        faults: Words that answers obey, in order; `*` in front: every answer.
        sent: Bytes of bodies sent, by path in the repository.
        seen: Requests: method, path and headers.
    """

    repositories: dict[str, Path] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    files_url: str = ""
    versions: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self) -> str:
        """The fault that the next answer has, if any."""
        with self.lock:
            if not self.faults:
                return ""
            return self.faults[0][1:] if self.faults[0].startswith("*") else self.faults.pop(0)

    def commit(self, name: str) -> str:
        """The commit of a repository: names, sizes and times of its files."""
        folder = self.repositories[name]
        state = [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files(folder)]
        return hashlib.sha1(repr((name, state)).encode()).hexdigest()

    def identity(self, path: Path) -> str:
        """What the hub would call the SHA-256 of a file: here of its name, size and time, since it may be huge."""
        stat = path.stat()
        return hashlib.sha256(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()

    @property
    def total(self) -> int:
        """Bytes of all bodies."""
        return sum(self.sent.values())

    @property
    def requests(self) -> int:
        """Requests so far."""
        return len(self.seen)


def files(folder: Path) -> list[Path]:
    """The files of a repository."""
    return sorted(p for p in folder.rglob("*") if p.is_file())


def is_large(path: Path) -> bool:
    """Whether the hub keeps a file on the other host."""
    return path.suffix in (".safetensors", ".gguf", ".bin")


def _handler(hub: Hub, *, api: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            with hub.lock:
                hub.seen.append((self.command, self.path, dict(self.headers)))
            if not api:
                return self.file(path)
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                return self.info(match[1], match[2])
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
                return self.tree(match[1], match[2])
            if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self.resolve(match[1], match[2], match[3])
            return self.answer(404, {"error": "no such page"})

        def answer(self, status: int, content: Any, **headers: str) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def known(self, name: str, revision: str | None) -> bool:
            allowed = name not in hub.private or self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if name not in hub.repositories or not allowed:
                self.answer(401, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
                return False
            if revision not in (None, "main", hub.commit(name)):
                self.answer(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
                return False
            return True

        def info(self, name: str, revision: str | None) -> None:
            if self.known(name, revision):
                self.answer(200, {"id": name, "modelId": name, "sha": hub.commit(name), "siblings": [], "tags": []})

        def tree(self, name: str, revision: str) -> None:
            if not self.known(name, revision):
                return
            folder, out = hub.repositories[name], []
            for path in files(folder):
                identity, size = hub.identity(path), path.stat().st_size
                row = {"type": "file", "path": path.relative_to(folder).as_posix(), "size": size, "oid": identity[:40]}
                if is_large(path):
                    row["lfs"] = {"oid": identity, "size": size, "pointerSize": 134}
                out.append(row)
            if "hostile-tree" in hub.faults:
                out.append({"type": "file", "path": "../../evil.safetensors", "size": 3, "oid": "0" * 40})
            self.answer(200, out)

        def resolve(self, name: str, revision: str, inside: str) -> None:
            if not self.known(name, revision):
                return
            path = hub.repositories[name] / inside
            if not path.is_file():
                return self.answer(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
            tag = f'"{hub.identity(path)}"'
            if not is_large(path):
                return self.body(path, f'"{hub.identity(path)[:40]}"', ranges=False)
            target = f"{hub.files_url}/{name}/{inside}?signature=secret"
            target = {"redirect-file": "file:///etc/passwd", "redirect-loop": f"{hub.url}{self.path}"}.get(
                hub.faults[0].lstrip("*") if hub.faults else "", target
            )
            self.send_response(302)
            self.send_header("Location", target)
            self.send_header("X-Repo-Commit", hub.commit(name))
            self.send_header("X-Linked-Etag", tag)
            self.send_header("X-Linked-Size", str(path.stat().st_size))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def file(self, path: str) -> None:
            name, _, inside = path.strip("/").partition("/")
            repository, _, inside = inside.partition("/")
            folder = hub.repositories.get(f"{name}/{repository}")
            if folder is None or not (folder / inside).is_file():
                return self.answer(404, {"error": "no such file"})
            path_of_file = folder / inside
            key = path_of_file.as_posix()
            tag = f'"{hub.identity(path_of_file)[:32]}-{hub.versions[key]}"'
            return self.body(path_of_file, tag, ranges=True)

        def body(self, path: Path, tag: str, *, ranges: bool) -> None:
            size, fault = path.stat().st_size, hub.fault() if ranges else ""
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if ranges else None
            start, stop = (int(match[1]), min(size, int(match[2] or size - 1) + 1)) if match else (0, size)
            if fault in ("429", "503"):
                return self.answer(int(fault), {"error": "later"}, Retry_After="0.1")
            if fault == "429-long":
                return self.answer(429, {"error": "later"}, Retry_After="86400")
            if fault == "no-ranges":
                match, start, stop = None, 0, size
            if fault == "changed":
                hub.versions[path.as_posix()] += 1
                tag = tag[:-2] + 'x"'
            self.send_response(206 if match else 200)
            self.send_header("Accept-Ranges", "bytes")
            owner = next(name for name, folder in hub.repositories.items() if folder in path.parents)
            self.send_header("X-Repo-Commit", hub.commit(owner))
            if fault != "no-tag":
                self.send_header("ETag", tag)
            if match:
                shift = 7 if fault == "wrong-range" else 0
                more = 1 if fault == "grown" else 0
                self.send_header("Content-Range", f"bytes {start + shift}-{stop - 1 + shift}/{size + more}")
            length = stop - start + {"long-length": 100, "short-length": -10}.get(fault, 0)
            self.send_header("Content-Length", str(length))
            if fault == "encoded":
                self.send_header("Content-Encoding", "gzip")
            if fault == "long-header":
                self.send_header("X-Long", "a" * 300_000)
            self.end_headers()
            if self.command == "HEAD":
                return None
            with path.open("rb") as file:
                file.seek(start)
                left = stop - start
                if fault in ("dropped", "truncated"):
                    left //= 2
                while left > 0 and (part := file.read(min(COPIED, left))):
                    try:
                        self.wfile.write(part)
                    except OSError:
                        return None
                    with hub.lock:
                        hub.sent[path.name] += len(part)
                    left -= len(part)
            if fault in ("dropped", "truncated", "long-length"):
                self.close_connection = True
            return None

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error here."""


@contextmanager
def serve(**repositories: Path) -> Generator[Hub]:
    """Run a hub with some repositories; `org__name=FOLDER`."""
    hub = Hub({name.replace("__", "/"): folder for name, folder in repositories.items()})
    servers = [_Server(("127.0.0.1", 0), _handler(hub, api=api)) for api in (True, False)]
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    hub.url, hub.files_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
