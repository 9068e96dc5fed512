"""A service on the loopback that answers as a model does, and fails as services do, on request."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass
class Service:
    """What the server does, and what it was asked.

    Attributes:
        answers: From the body of a request to its answer: JSON values, or raw bytes.
        faults: Done to the next requests, one each, before any is answered.
        asked: Bodies of all requests.
        headers: Headers of all requests.
        port: Where it listens.
    """

    answers: Callable[[Body], Any]
    faults: list[Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=list)
    asked: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def status(code: int, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: reply(handler, code, body, **headers)


def truncated(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"logits": [[1')
    handler.close_connection = True


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(1 << 30))
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(1 << 10):
            handler.wfile.write(b" " * (1 << 20))


@contextlib.contextmanager
def serving(answers: Callable[[Body], Any]) -> Iterator[Service]:
    """A running service."""
    service = Service(answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            service.asked.append(body)
            service.headers.append(dict(self.headers))
            if service.faults:
                service.faults.pop(0)(self)
                return
            found = service.answers(body)
            reply(self, 200, found if isinstance(found, bytes) else json.dumps(found).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
