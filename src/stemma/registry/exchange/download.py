"""Fetch an exported registry from an address: http, https or a file; nothing where it is unchanged."""

import hashlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

from stemma.checkpoints.privacy import public_address
from stemma.errors import ExchangeError

MAX_BYTES = 2 << 30
"""Largest export that is fetched."""

TIMEOUT = 30.0
"""Seconds without an answer."""

SLOWEST = 1 << 14
"""Bytes a second, on average after the first minute, below which a server is given up."""

CHUNK = 1 << 18

MAX_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that was fetched.

    Attributes:
        path: Where it lies now; None where it is unchanged.
        etag: How the server, or the file system, tells versions of it apart; None where it does not.
        downloaded: Bytes that were fetched.
    """

    path: Path | None
    etag: str | None
    downloaded: int


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, and never from https to http."""

    max_redirections = MAX_REDIRECTS

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """See `HTTPRedirectHandler`."""
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("http", "https") or (before == "https" and after != "https"):
            raise ExchangeError(
                f"{public_address(req.full_url)} redirects to {after or 'nothing'}:, which is not followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_remote(address: str) -> bool:
    """Whether an address is fetched over the network; raises for a scheme that is not supported."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", address)
    if scheme is None:
        return False
    if scheme[1].lower() not in ("http", "https", "file"):
        raise ExchangeError(f"{public_address(address)[:200]} cannot be read. Use https, http, or the path of a file")
    return scheme[1].lower() != "file"


def local_path(address: str) -> Path:
    """The path in the address of a file."""
    return Path(unquote(urlsplit(address).path) if address.startswith("file://") else address).expanduser()


@contextmanager
def fetched(address: str, etag: str | None = None) -> Generator[Fetched]:
    """A file that lies at an address, for as long as the block lasts.

    Args:
        address: http, https, or a file.
        etag: Of the version that is known already.

    Yields:
        The file.

    Raises:
        ExchangeError: If there is none, it is too large, or the server does not answer.
    """
    if not is_remote(address):
        yield _local(local_path(address), etag)
        return
    with TemporaryDirectory(prefix="stemma-") as folder:
        yield _download(address, etag, Path(folder) / "registry")


def _local(path: Path, etag: str | None) -> Fetched:
    if not path.is_file():
        raise ExchangeError(f"there is no file {path}")
    facts = path.stat()
    if facts.st_size > MAX_BYTES:
        raise ExchangeError(f"{path} has {facts.st_size:,} bytes, more than the {MAX_BYTES:,} of an export")
    with path.open("rb") as file:
        version = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    return Fetched(None if version == etag else path, version, 0)


def _download(address: str, etag: str | None, path: Path) -> Fetched:
    shown = public_address(address)
    headers = {"User-Agent": "stemma", "Accept-Encoding": "identity"}
    if etag is not None:
        headers["If-None-Match"] = etag
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
                    urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor, _Redirects):  # fmt: skip
        opener.add_handler(handler())
    try:
        request = urllib.request.Request(address, headers=headers)
        with opener.open(request, timeout=TIMEOUT) as answer:
            size = _save(answer, path, shown)
            found = answer.headers.get("ETag")
    except urllib.error.HTTPError as e:
        if e.code == 304 and etag is not None:
            return Fetched(None, etag, 0)
        raise ExchangeError(f"{shown} cannot be read: the server answers {e.code}") from None
    except ExchangeError:
        raise
    except Exception as e:  # whatever a server and the standard library make of each other
        why = getattr(e, "reason", None) or e
        raise ExchangeError(f"{shown} cannot be read: {' '.join(str(why).split())[:200] or type(e).__name__}") from None
    return Fetched(path, found if found and len(found) <= 200 and found.isprintable() else None, size)


def _save(answer: Any, path: Path, shown: str) -> int:
    """Write an answer to a file, within the limits; returns how many bytes it has."""
    stated = answer.headers.get("Content-Length") or ""
    if stated.isdigit() and int(stated) > MAX_BYTES:
        raise ExchangeError(f"{shown} has {int(stated):,} bytes, more than the {MAX_BYTES:,} of an export")
    size, began = 0, time.monotonic()
    with path.open("wb") as out:
        while chunk := answer.read(CHUNK):
            size += len(chunk)
            out.write(chunk)
            if size > MAX_BYTES:
                raise ExchangeError(f"{shown} has more than the {MAX_BYTES:,} bytes of an export")
            lasted = time.monotonic() - began
            if lasted > 60 and size / lasted < SLOWEST:
                raise ExchangeError(f"{shown} is too slow: {size:,} bytes in {lasted:.0f} s")
    if stated.isdigit() and size != int(stated):
        raise ExchangeError(f"{shown} ended after {size:,} of {int(stated):,} bytes. Try again")
    return size
