"""The address of a service that stands for a model, as it is typed after `endpoint:`."""

import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from stemma.errors import EndpointError, MisuseError
from stemma.types import Spec

Protocol = Literal["classifier", "chat"]
SENDS = ("json", "png", "npz")
"""How a classifier is given its inputs."""

OWN = ("model", "key", "classes", "send", "batch")
"""Parameters of an address that are meant for Stemma and not sent."""

SECRET = re.compile(r"key|token|secret|passw|auth|sig(nature)?$|credential", re.IGNORECASE)
"""Names of parameters whose values must not stand in an address: it is printed and written into documents."""

EXAMPLE = "endpoint:classifier+https://HOST/PATH or endpoint:chat+https://HOST/v1?model=NAME"


@dataclass(frozen=True)
class Endpoint:
    """A service and how it is asked.

    Attributes:
        protocol: `classifier` or `chat`.
        url: Where it is asked, without the parameters that are meant for Stemma.
        model: Name of the model that a chat service is to use; empty for none.
        key: Environment variable that holds the key; empty where none is sent.
        classes: The words that a chat service is to answer with, or the names of a classifier's classes.
        send: How a classifier is given its inputs, one of `SENDS`.
        batch: Most inputs of one request.
    """

    protocol: Protocol
    url: str
    model: str = ""
    key: str = ""
    classes: tuple[str, ...] = ()
    send: str = "json"
    batch: int = 32

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """The service that an address names.

        Args:
            text: What follows `endpoint:`.

        Returns:
            The service.

        Raises:
            MisuseError: If it is no such address, or holds a secret.
        """
        protocol, plus, rest = text.partition("+")
        if not plus or protocol not in ("classifier", "chat"):
            protocol, rest = "", text
        try:
            parts = urlsplit(rest)
            port = parts.port
            given = dict(parse_qsl(parts.query, keep_blank_values=True))
        except ValueError as error:
            raise MisuseError(f"{_shown(text)} is no address of a service ({error}): give {EXAMPLE}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise MisuseError(f"{_shown(text)} is no address of a service: give {EXAMPLE}")
        if parts.username or parts.password:
            raise MisuseError(f"the address of {parts.hostname} holds a password: name a variable instead, {_KEY}")
        secret = next((name for name in given if name not in OWN and SECRET.search(name)), None)
        if secret is not None:
            raise MisuseError(f"the parameter {secret!r} of {parts.hostname} looks like a secret, and addresses are "
                              f"printed: name a variable instead, {_KEY}")  # fmt: skip
        own = {name: given.pop(name) for name in OWN if name in given}
        path = parts.path
        if not protocol:
            chat = path.rstrip("/").endswith(("/chat/completions", "/v1")) or "model" in own
            protocol = "chat" if chat else "classifier"
        if protocol == "chat" and not path.rstrip("/").endswith("/chat/completions"):
            path = f"{path.rstrip('/')}/chat/completions"
        url = urlunsplit((parts.scheme, parts.netloc, path, urlencode(given), ""))
        return cls._checked(protocol, url, own)

    @classmethod
    def _checked(cls, protocol: Any, url: str, own: dict[str, str]) -> "Endpoint":
        if protocol == "chat" and not own.get("model"):
            raise MisuseError("a chat service is asked for one model: add ?model=NAME to its address")
        if (send := own.get("send", "json")) not in SENDS:
            raise MisuseError(f"send={send!r} is no way to send inputs. There are: {', '.join(SENDS)}")
        batch = own.get("batch", "32")
        if not batch.isascii() or not batch.isdigit() or not 1 <= int(batch) <= 1024:
            raise MisuseError(f"batch={batch!r} is no number of inputs from 1 to 1024")
        if (key := own.get("key", "")) and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise MisuseError(f"key= takes the name of an environment variable, not the key itself; {_KEY}")
        classes = tuple(c.strip() for c in own.get("classes", "").split(",") if c.strip())
        if len({c.casefold() for c in classes}) != len(classes) or len(classes) == 1:
            raise MisuseError("classes= takes two or more different words, for example classes=yes,no")
        return cls(protocol, url, own.get("model", ""), key, classes, send, int(batch))

    @cached_property
    def name(self) -> str:
        """Host, path and model: what is shown."""
        parts = urlsplit(self.url)
        return f"{parts.netloc}{parts.path}{f' {self.model}' if self.model else ''}"

    @property
    def identity(self) -> str:
        """What answers are kept under: everything that decides them."""
        return Spec("endpoint", 1, {"protocol": self.protocol, "url": self.url, "model": self.model,
                                    "classes": list(self.classes), "send": self.send}).digest  # fmt: skip

    def secret(self) -> str:
        """The key, read from its variable; empty where none is sent.

        Returns:
            The key.

        Raises:
            EndpointError: If the variable is not set, or the key would travel in the clear.
        """
        if not self.key:
            return ""
        value = os.environ.get(self.key, "").strip()
        if not value or not value.isascii() or not value.isprintable():
            raise EndpointError(f"the environment variable {self.key} holds no key for {self.name}: set it first")
        parts = urlsplit(self.url)
        if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise EndpointError(f"{self.name} is not asked over https, so that the key would be readable on its way")
        return value


_KEY = "for example ?key=OPENAI_API_KEY"


def _shown(text: str) -> str:
    return repr(text[:80].partition("?")[0])
