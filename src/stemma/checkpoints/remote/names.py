"""Addresses of models on servers: `hf:ORG/NAME[@REVISION]` and `https://…/model.safetensors`."""

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from stemma.errors import RemoteError

HUB = "hf:"

HUB_ADDRESS = "https://huggingface.co"
"""The hub, unless `HF_ENDPOINT` names another one that speaks the same protocol."""

READ = (".safetensors", ".gguf")
"""Endings of files that are read by ranges."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9_][\w.\-]{0,95}|[A-Za-z0-9][\w.\-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[\w][\w.\-/+]{0,199}", re.ASCII)
_QUERY = re.compile(
    r"""(?<=://)(?<!endpoint:http://)(?<!endpoint:https://)([^\s'"<>?#]+)\?[^\s'"<>#]*""", re.IGNORECASE
)
COMMIT = re.compile(r"[0-9a-f]{40}")
"""A commit that names one state of a repository for ever."""


@dataclass(frozen=True, slots=True)
class RemoteName:
    """A model on a server.

    Attributes:
        repository: `ORG/NAME` on the hub; empty for a plain address.
        revision: Branch, tag or commit as given; empty for the main branch.
        url: Address of the one file; empty for a repository.
        whole: Whether all of it is to be fetched: `#whole` at the end of the address.
    """

    repository: str = ""
    revision: str = ""
    url: str = ""
    whole: bool = False

    @property
    def label(self) -> str:
        """Its name unless another is given: the repository with its revision, or the file without its ending."""
        if self.repository:
            return f"{self.repository}@{self.revision}" if self.revision else self.repository
        return unquote(urlsplit(self.url).path).rpartition("/")[2].rpartition(".")[0] or "model"

    def __str__(self) -> str:
        return f"{HUB}{self.label}" if self.repository else without_secrets(self.url)


WHOLE = "#whole"
"""At the end of an address: all of the model is fetched, not a sample."""


def is_remote(text: object) -> bool:
    """Whether a text is the address of a model on a server."""
    return isinstance(text, str) and text.startswith((HUB, "https://", "http://"))


def place(text: "str | Path") -> "str | Path":
    """A path, or the address of a model on a server as it was given: a path would join its slashes."""
    return text if isinstance(text, str) and is_remote(text) else Path(text)


def whole(text: str) -> str:
    """An address that asks for all of a model; a path or a name as it is."""
    return f"{text.removesuffix(WHOLE)}{WHOLE}" if is_remote(text) else text


def endpoint() -> str:
    """Address of the hub: `HF_ENDPOINT`, else the public one."""
    return (os.environ.get("HF_ENDPOINT") or HUB_ADDRESS).strip().rstrip("/")


def is_offline() -> bool:
    """Whether the network must not be used: `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE") for name in names)


def without_secrets(url: str) -> str:
    """An address without query and fragment, where keys of signed addresses stand: what is shown and recorded."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def without_queries(text: str) -> str:
    """A text whose addresses of files have no query, where keys of signed addresses stand."""
    return _QUERY.sub(r"\1", text) if "://" in text and "?" in text else text


def parse(text: str) -> RemoteName:
    """Read an address.

    Args:
        text: `hf:ORG/NAME[@REVISION]`, or the `https://` address of a file.

    Returns:
        What it names.

    Raises:
        RemoteError: If it names nothing that can be read, or is unsafe.
    """
    whole, text = text.endswith(WHOLE), text.removesuffix(WHOLE)
    if text.startswith(HUB):
        repository, at, revision = text.removeprefix(HUB).removesuffix("/").partition("@")
        if not _REPOSITORY.fullmatch(repository) or ".." in repository:
            raise RemoteError(f"{text[:200]!r} is not a repository: write hf:ORG/NAME, or hf:ORG/NAME@REVISION")
        if at and (not _REVISION.fullmatch(revision) or ".." in revision):
            raise RemoteError(f"{text[:200]!r} names no revision after the @: write a branch, a tag or a commit")
        return RemoteName(repository, revision, whole=whole)
    check_address(text)
    path = urlsplit(text).path.casefold()
    if not path.endswith(READ):
        hub = urlsplit(text).netloc == urlsplit(endpoint()).netloc
        advice = "write hf:ORG/NAME for a repository" if hub else f"give a file that ends in {' or '.join(READ)}"
        raise RemoteError(f"{without_secrets(text)[:200]} is not the address of a file of weights: {advice}")
    return RemoteName(url=text, whole=whole)


def check_address(url: str) -> None:
    """Refuse addresses that are not HTTPS (HTTP only on this machine and for the hub of `HF_ENDPOINT`), or hold keys.

    Raises:
        RemoteError: If it is one.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as e:
        raise RemoteError(f"{url[:200]!r} is not an address: {e}") from e
    shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"[:200]
    if parts.scheme not in ("http", "https"):
        raise RemoteError(f"{parts.scheme[:20]}: is no address that is read: only https:// is")
    if not parts.hostname or any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise RemoteError(f"{shown!r} is not an address: write https://HOST/PATH")
    if parts.username is not None or parts.password is not None:
        raise RemoteError(f"{shown} is given with a password in the address, which would be recorded: take it out")
    plain = parts.scheme == "http" and (is_local(parts.hostname) or parts.netloc == urlsplit(endpoint()).netloc)
    if parts.scheme != "https" and not plain:
        raise RemoteError(f"{shown} is not read: only https:// is, and http:// on this machine or with HF_ENDPOINT")


def is_local(host: str) -> bool:
    """Whether a host is this machine, by its name or number."""
    if host.casefold().rstrip(".") == "localhost" or host.casefold().endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_private(host: str) -> bool:
    """Whether a host is no public one, by its name or number: this machine, a private network, a cloud's own services.

    Args:
        host: Name or number of the host.

    Returns:
        True if so. Names are not looked up: behind a proxy they may have no number here.
    """
    if is_local(host) or host.casefold().endswith((".local", ".internal")):
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        # other spellings of a number: 127.1, 2130706433, 0x7f.1
        return bool(re.fullmatch(r"0x[0-9a-f]*|\d+", host.casefold().rstrip(".").rpartition(".")[2]))
