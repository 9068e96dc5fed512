"""One file on a server, read by byte ranges: every range of the same version, fetched once, tried again if dropped."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stemma.checkpoints.remote import answers
from stemma.checkpoints.remote.answers import BusyError, Version
from stemma.checkpoints.remote.names import check_address, is_offline, without_secrets
from stemma.checkpoints.remote.range_cache import RangeCache
from stemma.errors import RemoteError

if TYPE_CHECKING:
    import httpx

AT_ONCE = 8
"""Requests at once."""

LONGEST = 8 << 20
"""Most bytes of one request."""

JOINED = 1 << 17
"""Bytes between two ranges up to which they are fetched as one."""

SMALL = 16 << 20
"""Bytes up to which a file may be asked for as a whole."""

MOST_REQUESTS = 40
"""Requests for one range, even where each of them brings a little."""

AHEAD = 1 << 18
"""Least bytes of a request that nothing planned."""


class RemoteFile:
    """A file on a server, as it was when first asked for; a change of it in between is an error.

    Attributes:
        url: Its address.
    """

    def __init__(self, url: str, token: str | None = None, expected: Version | None = None) -> None:
        """Name a file; nothing is asked for yet.

        Args:
            url: Its address.
            token: Sent to the hub, never to another host.
            expected: Size and version where a list of files has told them: the size is then verified.
        """
        check_address(url)
        self.url = url
        self._token = token
        self._expected = expected
        self._lock = threading.RLock()
        self._version: Version | None = None
        self._cache: RangeCache | None = None
        self._address = url
        self._linked = ""
        self._client: httpx.Client | None = None

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._expected.size if self._expected is not None else self.version.size

    @property
    def version(self) -> Version:
        """Size and version; asks for the first bytes where nothing is known."""
        if self._version is None:
            with self._lock:
                if self._version is None:
                    self._first_answer()
        assert self._version is not None
        return self._version

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `offset` on, from the cache or the server.

        Raises:
            RemoteError: If they cannot be had, or the file is not the one it was.
        """
        for _ in range(3):  # another process may drop what was kept
            missing = self._ranges.missing(offset, offset + len(out))
            for start, stop in missing:
                self.fetch([(start, min(self.size, max(stop, start + AHEAD)))])
            if self._ranges.read_into(offset, out):
                return
        raise RemoteError(
            f"{without_secrets(self.url)}: the cache at {self._ranges.folder} does not keep what is put there"
        )

    def read(self, offset: int, length: int) -> bytes:
        """Some bytes."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise RemoteError(
                f"{without_secrets(self.url)} ends at byte {self.size}, but bytes to {offset + length} are needed"
            )
        out = bytearray(length)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def fetch(self, wanted: Sequence[tuple[int, int]]) -> None:
        """Fetch ranges that are not in the cache, several at once; ranges that are near one another as one."""
        missing = [gap for start, stop in joined(wanted) for gap in self._ranges.missing(start, stop)]
        pieces = [
            (at, min(at + LONGEST, stop)) for start, stop in joined(missing) for at in range(start, stop, LONGEST)
        ]
        if len(pieces) < 2:
            for start, stop in pieces:
                self._keep(start, stop)
            return
        with ThreadPoolExecutor(min(AT_ONCE, len(pieces))) as pool:
            pending = [pool.submit(self._keep, start, stop) for start, stop in pieces]
            try:
                for one in pending:
                    one.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _keep(self, start: int, stop: int) -> None:
        self._ranges.put(start, self._get(start, stop))

    def whole(self) -> bytes:
        """All of a small file, from the cache or in one request without a range, which not every server understands."""
        if self._expected is None or self.size > SMALL:
            return self.read(0, self.size)
        if self._ranges.missing(0, self.size):
            self._ranges.put(0, self._get(0, self.size, ranged=False))
        return self.read(0, self.size)

    @property
    def _ranges(self) -> RangeCache:
        if self._cache is None:
            version = self.version  # outside of the lock where it is known
            with self._lock:
                self._cache = self._cache or RangeCache(self.url, version)
        return self._cache

    def _first_answer(self) -> None:
        """Learn the version from an answer to a request for the first bytes, which are kept."""
        if self._expected is not None and self._expected.tag:
            self._version = self._expected
            return
        content = self._get(0, AHEAD)
        assert self._version is not None
        if self._expected is not None and self._version.size != self._expected.size:
            raise RemoteError(
                f"{without_secrets(self.url)} has {self._version.size:,} bytes, not the {self._expected.size:,} listed"
            )
        self._cache = RangeCache(self.url, self._version)
        self._cache.put(0, content)

    def _get(self, start: int, stop: int, *, ranged: bool = True) -> bytes:
        """One range, tried again a few times from where it broke off."""
        if is_offline():
            raise RemoteError(
                f"{without_secrets(self.url)} is on a server, and HF_HUB_OFFLINE is set. Unset it, or give a local path"
            )
        got, waited, tries, requests = bytearray(), 0.0, 0, 0
        while True:
            tries, requests = tries + 1, requests + 1
            if not ranged:
                got.clear()
            before = len(got)
            try:
                self._request(start, stop, got, ranged=ranged)
                if len(got) >= min(stop, self.size) - start:
                    return bytes(got)
                raise BusyError(f"{without_secrets(self.url)}: the connection broke off")
            except BusyError as e:
                tries = 1 if ranged and len(got) > before else tries
                pause = answers.PAUSE * 2 ** (tries - 1) if e.wait is None else e.wait
                waited += pause
                if tries >= answers.TRIES or requests >= MOST_REQUESTS or waited > answers.PATIENCE:
                    asks = f" and asks to wait {e.wait:,.0f} seconds" if e.wait else ""
                    raise RemoteError(f"{e}{asks}; given up after {requests} tries: try again later") from e
                time.sleep(pause)

    def _request(self, start: int, stop: int, got: bytearray, *, ranged: bool) -> None:
        """Ask once for what is missing of a range, and add what arrives."""
        import httpx

        try:
            self._ask(start + len(got), stop, got, ranged=ranged)
        except httpx.HTTPError as e:
            raise BusyError(f"{without_secrets(self.url)}: {type(e).__name__}: {str(e)[:200]}") from e
        except (httpx.InvalidURL, UnicodeError) as e:
            raise RemoteError(f"{without_secrets(self.url)}: the server leads to no address: {str(e)[:200]}") from e

    def _ask(self, start: int, stop: int, got: bytearray, *, ranged: bool) -> None:
        with self._lock:
            if self._client is None:
                self._client = answers.client()
            client, address = self._client, self._address
        signed = address != self.url
        for _ in range(answers.REDIRECTS + 1):
            headers = answers.headers_for(address, self._token)
            if ranged:
                headers["Range"] = f"bytes={start}-{stop - 1}"
            known = self._version if self._version is not None and self._version is not self._expected else None
            if ranged and known is not None and known.tag and not known.tag.startswith("W/"):
                headers["If-Range"] = known.tag
            with client.stream("GET", address, headers=headers) as response:
                if response.is_redirect or response.status_code in (301, 302, 303, 307, 308):
                    self._check_linked(response)
                    address = answers.redirected(address, response.headers.get("Location"))
                    continue
                if signed and response.status_code in (401, 403, 404, 410):
                    address, signed = self.url, False  # a signed address that is no longer valid
                    continue
                answers.check_status(response, address, ranged=ranged)
                if ranged:
                    self._take(response, start, stop, got)
                else:
                    self._receive(response, stop, got)
                self._address = address
                return
        raise RemoteError(f"{without_secrets(self.url)} leads in a circle: more than {answers.REDIRECTS} redirects")

    def _check_linked(self, response: "httpx.Response") -> None:
        """The hub tells version and size of the file where it leads to; both must stay."""
        tag = response.headers.get("X-Linked-Etag", "")
        size = response.headers.get("X-Linked-Size", "")
        if urlsplit(str(response.request.url)).netloc != urlsplit(self.url).netloc:
            return
        known = self._expected.tag if self._expected is not None else ""
        if tag and known and tag.strip('"') != known:
            raise RemoteError(f"{without_secrets(self.url)}: the hub lists another file there than it leads to")
        if tag and self._linked and tag != self._linked:
            raise RemoteError(f"{without_secrets(self.url)} changed while it was read: the hub leads to another file")
        self._linked = self._linked or tag
        if size and self._expected is not None and size != str(self._expected.size):
            raise RemoteError(
                f"{without_secrets(self.url)}: the hub lists {self._expected.size:,} bytes and leads to {size[:20]}"
            )

    def _take(self, response: "httpx.Response", start: int, stop: int, got: bytearray) -> None:
        """Read a body of the length that it may have, and no more."""
        with self._lock:
            if self._version is None or self._version is self._expected:
                found = answers.version_of(response, self.url)
                if self._expected is not None and found.size != self._expected.size:
                    raise RemoteError(
                        f"{without_secrets(self.url)} has {found.size:,} bytes, and the hub lists "
                        f"{self._expected.size:,}"
                    )
                if not found.tag:
                    raise RemoteError(
                        f"{without_secrets(self.url)}: the server names no version of it (ETag or Last-Modified), so "
                        "that a change between two requests could not be seen. Fetch it and give its path"
                    )
                self._version = found
        self._receive(response, answers.check_range(response, self.url, start, stop, self._version), got)

    def _receive(self, response: "httpx.Response", held: int, got: bytearray) -> None:
        received = 0
        for part in response.iter_raw(1 << 16):
            received += len(part)
            if received > held:
                raise RemoteError(f"{without_secrets(self.url)}: the server sends more bytes than it says")
            got += part


def joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, those that overlap or are near one another as one."""
    out: list[tuple[int, int]] = []
    for start, stop in sorted(r for r in ranges if r[0] < r[1]):
        if out and start <= out[-1][1] + JOINED:
            out[-1] = out[-1][0], max(stop, out[-1][1])
        else:
            out.append((start, stop))
    return out
