"""Runs the atlas."""

from collections.abc import Callable

from stemma.errors import MisuseError
from stemma.web.settings import Settings

LONGEST_REQUEST = 1 << 18
"""Bytes of the head of a request: names in addresses may be long."""


def run(settings: Settings, ready: Callable[[], None]) -> None:
    """Serve the atlas until it is interrupted.

    Args:
        settings: What is served, and to whom.
        ready: Called once it can be reached.

    Raises:
        MisuseError: If the address is taken or is none of this machine.
    """
    import socket

    import uvicorn

    from stemma.web.app import create_app

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as e:
        raise MisuseError(
            f"cannot listen on {settings.host} port {settings.port}: {e.strerror or e}. Choose another with --port"
        ) from None
    config = uvicorn.Config(
        create_app(settings), log_level="warning", h11_max_incomplete_event_size=LONGEST_REQUEST, server_header=False,
        timeout_graceful_shutdown=5, http="h11",
    )  # fmt: skip
    listening.listen()
    ready()
    uvicorn.Server(config).run(sockets=[listening])
