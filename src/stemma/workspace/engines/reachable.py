"""Whether anything listens at an address, told within seconds instead of minutes."""

import socket

from stemma.errors import EngineError, MisuseError

SECONDS = 5.0
"""How long an address may take to answer."""


def require_reachable(place: str, address: str, what: str) -> None:
    """Raise unless something listens at `HOST:PORT`.

    Args:
        place: `HOST:PORT`; IPv6 in brackets.
        address: As it was typed, for the message.
        what: What should be there.

    Raises:
        MisuseError: If it is no host and port.
        EngineError: If nothing listens there.
    """
    host, _, port = place.rstrip("/").rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise MisuseError(f"{address!r} is no address of a {what}: give host and port, for example …://10.0.0.1:8786")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error) or "no answer"
        raise EngineError(
            f"nothing answers at {address} ({why}): is the {what} running, and can it be reached?"
        ) from error
