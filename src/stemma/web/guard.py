"""Who may ask what: host, origin and token are checked, and every answer has headers that keep it to itself."""

import hmac
import http.cookies
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from stemma.web.settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

COOKIE = "stemma_token_{port}"
"""Browsers send the cookies of all ports of a host to each: the port in its name keeps two atlases apart."""

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
"""Sent with every answer: nothing is loaded from elsewhere, and no other page may show or read it."""

NOT_KEPT = (b"cache-control", b"no-store")
"""Sent with answers that do not say otherwise: one address has several forms, each as of now, for who may read it."""

SAFE_METHODS = frozenset({"GET", "HEAD"})


class Guard:
    """Lets a request through to the atlas, or says why not."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], settings: Settings) -> None:
        """Guard an ASGI application."""
        self._app = app
        self._settings = settings
        self._cookie = COOKIE.format(port=settings.port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        query = parse_qs(scope["query_string"].decode("latin-1"))
        refusal = self._refuse(scope["method"], headers, query)
        token = self._settings.token
        came_with_token = refusal is None and token is not None and _is_among(token, query.get("token", ()))

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                if came_with_token:
                    value = f"{self._cookie}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000"
                    extra.append((b"set-cookie", value.encode()))
                own = message.get("headers", ())
                if all(name.lower() != NOT_KEPT[0] for name, _ in own):
                    extra.append(NOT_KEPT)
                message["headers"] = [*own, *extra]
            await send(message)

        if refusal is not None:
            status, sentence = refusal
            start = {"type": "http.response.start", "status": status,
                     "headers": [(b"content-type", b"text/plain; charset=utf-8")]}  # fmt: skip
            await guarded(start)
            await guarded({"type": "http.response.body", "body": f"{sentence}\n".encode()})
            return
        await self._app(scope, receive, guarded)

    def _refuse(
        self, method: str, headers: Mapping[str, str], query: Mapping[str, list[str]]
    ) -> tuple[int, str] | None:
        """Status and sentence of a refusal; None lets the request through."""
        host = headers.get("host", "")
        if not self._is_own(host):
            return 421, "this atlas does not go by that name: open it by the address that stemma serve printed"
        if method not in SAFE_METHODS:
            origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
            if (origin is not None and _host_of(origin) != host) or site not in ("same-origin", "none"):
                return 403, "a page of another site asked for this, which is refused: ask from the atlas itself"
        if self._settings.token and not self._knows_token(headers, query):
            return 401, "this atlas needs its token: open it by the address that stemma serve printed"
        return None

    def _is_own(self, host: str) -> bool:
        """Whether a Host header names this atlas; a name that somebody points here (DNS rebinding) does not."""
        name, _, port = host.rpartition(":") if not host.endswith("]") and ":" in host else (host, "", "")
        name = name.strip("[]").rstrip(".").lower()
        if port and port != str(self._settings.port):
            return False
        if name == self._settings.host.lower():
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name == "localhost" and self._settings.is_local
        return address.is_loopback if self._settings.is_local else True

    def _knows_token(self, headers: Mapping[str, str], query: Mapping[str, list[str]]) -> bool:
        given = [*query.get("token", ()), headers.get("authorization", "").removeprefix("Bearer ")]
        cookies: http.cookies.SimpleCookie = http.cookies.SimpleCookie()
        try:
            cookies.load(headers.get("cookie", ""))
        except http.cookies.CookieError:
            cookies.clear()
        if self._cookie in cookies:
            given.append(cookies[self._cookie].value)
        return _is_among(str(self._settings.token), given)


def _is_among(token: str, given: Iterable[str]) -> bool:
    """Whether the token was given; how long that takes says nothing about it."""
    return any([hmac.compare_digest(one.encode(), token.encode()) for one in given])


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # `http://[`
        return None
