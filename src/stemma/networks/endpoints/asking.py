"""Asks a service over HTTP: counted, patient, and never reading more than an answer can be."""

import email.utils
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stemma.errors import EndpointError, MissingExtraError
from stemma.networks.endpoints.address import Endpoint

TRIES = 5
"""How often one request is made before the service counts as out of order."""

LONGEST_WAIT = 60.0
"""Seconds that are waited at most before another try, whatever the service asks for."""

TIMEOUT = 60.0
"""Seconds that one answer may take."""

MOST_BYTES = 32 << 20
"""Largest answer that is read."""

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
"""Statuses after which the same request may succeed."""


@dataclass
class Budget:
    """How many inputs may still be sent, over all services of one command.

    Attributes:
        most: Inputs that may be sent.
        spent: Inputs that were sent, those of repeated requests too: services count them as well.
    """

    most: int
    spent: int = 0

    def require(self, wanted: int, name: str) -> None:
        """Raise before anything is sent if the budget does not reach.

        Args:
            wanted: Inputs that would be sent.
            name: The service.

        Raises:
            EndpointError: If they are too many.
        """
        if self.spent + wanted > self.most:
            left = f" ({self.spent:,} are used)" if self.spent else ""
            raise EndpointError(
                f"{name} would be asked {wanted:,} times, more than --max-queries {self.most:,} allows{left}: "
                f"allow more, or give fewer probes. It was asked nothing"
            )

    def spend(self, inputs: int, name: str) -> None:
        """Count inputs, just before they are sent.

        Args:
            inputs: How many.
            name: The service.

        Raises:
            EndpointError: If the budget is used up, by repeated requests.
        """
        if self.spent + inputs > self.most:
            raise EndpointError(
                f"{name} was asked {self.spent:,} times, and --max-queries {self.most:,} allows no more: requests had "
                "to be repeated. What was answered is kept, and is not asked again"
            )
        self.spent += inputs


@dataclass
class Asking:
    """A connection to one service.

    Attributes:
        endpoint: The service.
        budget: What may still be sent.
        sleep: Waits.
        timeout: Seconds that one answer may take.
        probabilities: Whether a chat service is asked for those of words; not again once it refused.
    """

    endpoint: Endpoint
    budget: Budget
    sleep: Callable[[float], None] = time.sleep
    timeout: float = TIMEOUT
    probabilities: bool = True
    _client: Any = field(default=None, repr=False)

    def __enter__(self) -> "Asking":
        try:
            import httpx
        except ImportError as error:
            raise MissingExtraError("asking a service", "httpx", "hub") from error
        secret = self.endpoint.secret()
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "stemma"}
        if secret:
            headers["Authorization"] = f"Bearer {secret}"
        self._client = httpx.Client(headers=headers, timeout=self.timeout, follow_redirects=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def post(self, body: Mapping[str, Any], inputs: int) -> Any:
        """The JSON that the service answers with.

        Args:
            body: What is asked.
            inputs: How many inputs that is.

        Returns:
            Parsed JSON.

        Raises:
            EndpointError: If it does not answer, refuses, or answers with something else.
            RefusedError: If it refuses the request as such.
        """
        import httpx

        why = ""
        for attempt in range(TRIES):
            self.budget.spend(inputs, self.endpoint.name)
            wait = min(0.5 * 2**attempt, LONGEST_WAIT)
            try:
                status, headers, text = self._sent(body)
            except httpx.HTTPError as error:
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            else:
                if status == 200:
                    return self._parsed(text)
                why = f"status {status}{self._said(text)}"
                if 300 <= status < 400:
                    raise EndpointError(f"{self.endpoint.name} is elsewhere: it answers with a redirect, which is not "
                                        "followed, for a key must not travel on. Give the address itself")  # fmt: skip
                if status not in AGAIN:
                    raise RefusedError(f"{self.endpoint.name} refuses the request: {why}", status)
                wait = max(wait, min(_retry_after(headers.get("retry-after", "")), LONGEST_WAIT))
            if attempt + 1 < TRIES:
                self.sleep(wait)
        raise EndpointError(f"{self.endpoint.name} does not answer after {TRIES} tries ({why}). What was answered "
                            "is kept: the same command goes on from there")  # fmt: skip

    def _sent(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        import httpx

        end = time.monotonic() + self.timeout
        with self._client.stream("POST", self.endpoint.url, json=body) as answer:
            found = bytearray()
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise EndpointError(f"{self.endpoint.name} answers in a compressed form that was not asked for")
            for part in answer.iter_raw():
                found += part
                if len(found) > MOST_BYTES:
                    raise EndpointError(f"{self.endpoint.name} answers with more than {MOST_BYTES >> 20} MiB")
                if time.monotonic() > end:
                    raise httpx.ReadTimeout(f"the answer took more than {self.timeout:.0f} s")
            return answer.status_code, answer.headers, bytes(found)

    def _parsed(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EndpointError(f"{self.endpoint.name} does not answer in JSON{self._said(text)}") from error

    def _said(self, text: bytes) -> str:
        """The beginning of an answer, for an error; a key that it repeats is left out."""
        words = " ".join(text[:2000].decode("utf-8", "replace").split())
        if secret := self.endpoint.secret():
            words = words.replace(secret, "…")
        words = "".join(c for c in words if c.isprintable())
        return f": {words[:160]}" if words else ""


class RefusedError(EndpointError):
    """A service refuses a request as such; its status tells why."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _retry_after(text: str) -> float:
    """Seconds that a service asks to wait; 0 where it does not say."""
    if text.isascii() and text.isdigit():
        return float(text[:6])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0
