"""One request for bytes of a file over HTTP, and whether its answer can be believed."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from stemma.checkpoints.remote.names import check_address, endpoint, is_private, without_secrets
from stemma.errors import MissingExtraError, RemoteError

if TYPE_CHECKING:
    import httpx

REDIRECTS = 5
"""Redirects that are followed."""

TRIES = 5
"""Requests for one range before a dropped connection or a busy server is an error."""

PATIENCE = 60.0
"""Seconds that are waited in all, for one range, for a server that asks to wait; a longer wish is an error."""

PAUSE = 0.5
"""Seconds before the second try, doubled each time."""

BUSY = frozenset({429, 500, 502, 503, 504})
"""Answers after which the same request is tried again."""

REFUSED = frozenset({401, 403})

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class BusyError(Exception):
    """A server that asks to come again, or a connection that was dropped."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Version:
    """What identifies one state of a file on a server.

    Attributes:
        size: Its bytes.
        tag: Its ETag, or the time of its last change.
    """

    size: int
    tag: str


def client() -> "httpx.Client":
    """A client that follows no redirect by itself: where a token goes, and where to, is decided here."""
    try:
        import httpx
    except ImportError as e:
        raise MissingExtraError("reading models on servers", "httpx", "hub") from e
    return httpx.Client(follow_redirects=False, timeout=httpx.Timeout(30.0, connect=10.0))


def headers_for(url: str, token: str | None) -> dict[str, str]:
    """Headers of a request; the token goes to the hub and nowhere else."""
    from stemma import __version__

    out = {"Accept-Encoding": "identity", "User-Agent": f"stemma/{__version__}"}
    hub = urlsplit(endpoint())
    if token and (urlsplit(url).scheme, urlsplit(url).netloc) == (hub.scheme, hub.netloc):
        out["Authorization"] = f"Bearer {token}"
    return out


def redirected(url: str, location: str | None) -> str:
    """The address that a redirect leads to, if it is a safe one."""
    if not location:
        raise RemoteError(f"{without_secrets(url)} leads elsewhere without saying where to")
    target = urljoin(url, location)
    before, after = urlsplit(url), urlsplit(target)
    check_address(target)
    if before.scheme == "https" and after.scheme != "https":
        raise RemoteError(f"{without_secrets(url)} leads from https to {after.scheme}: it was not followed")
    if is_private(after.hostname or "") and not is_private(before.hostname or ""):
        raise RemoteError(f"{without_secrets(url)} leads to the private address {after.hostname}: it was not followed")
    return target


def version_of(response: "httpx.Response", url: str) -> Version:
    """Size and version of the file, from the answer to a request for a range of it."""
    match = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if match is None:
        raise RemoteError(f"{without_secrets(url)}: the answer does not say which bytes it holds (Content-Range)")
    return Version(int(match[3]), tag_of(response.headers))


def tag_of(headers: Mapping[str, Any]) -> str:
    """The version that a server states: ETag, else the time of the last change, else empty."""
    return str(headers.get("ETag") or headers.get("Last-Modified") or "").strip()


def check_range(response: "httpx.Response", url: str, start: int, stop: int, known: Version | None) -> int:
    """Verify that an answer holds the bytes that were asked for, of the file as it was; returns how many it holds."""
    shown = without_secrets(url)
    if response.headers.get("Content-Encoding", "identity").casefold() not in ("", "identity"):
        raise RemoteError(f"{shown}: the server sends its bytes encoded, so that ranges of them mean nothing")
    match = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if match is None:
        raise RemoteError(f"{shown}: the answer does not say which bytes it holds (Content-Range)")
    first, last, size = (int(n) for n in match.groups())
    if known is not None and size != known.size:
        raise RemoteError(f"{shown} changed while it was read: it had {known.size:,} bytes and has {size:,}")
    if known is not None and tag_of(response.headers) != known.tag:
        raise RemoteError(f"{shown} changed while it was read: its version was {known.tag[:80]} and is another one")
    if first != start or not first <= last < min(stop, size):
        raise RemoteError(f"{shown}: bytes {start}-{stop - 1} were asked for, and bytes {first}-{last} were sent")
    held = last - first + 1
    length = response.headers.get("Content-Length")
    if length is not None and length.strip() != str(held):
        raise RemoteError(f"{shown}: the answer contradicts itself: {held:,} bytes by its range, {length} by length")
    return held


def check_status(response: "httpx.Response", url: str, *, ranged: bool = True) -> None:
    """Raise for every answer but the one that was asked for.

    Raises:
        BusyError: If the same request may be answered later.
        RemoteError: If it will not.
    """
    shown, status = without_secrets(url), response.status_code
    if status in BUSY:
        raise BusyError(f"{shown}: the server answers {status}", retry_after(response.headers.get("Retry-After")))
    if status in REFUSED:
        raise RemoteError(
            f"{shown}: access is refused ({status}). Is the repository private or gated? Log in with: hf auth login"
        )
    if status == 404:
        raise RemoteError(f"{shown}: there is no such file on the server")
    if status == 416:
        raise RemoteError(f"{shown} is shorter than it was, or than its list of files says")
    if status == 200 and ranged:
        raise RemoteError(
            f"{shown}: the server sends the whole file where a part is asked for, or the file changed: it was not "
            "read. Fetch it and give its path"
        )
    if status != (206 if ranged else 200):
        raise RemoteError(f"{shown}: the server answers {status}, which is no answer to this")


def retry_after(text: str | None) -> float | None:
    """Seconds that a server asks to wait; None where it does not say."""
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
