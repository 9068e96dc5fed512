"""What published records say about who wrote them: no folder of their machine, and no password in an address."""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

ADDRESSES = ("hf:", "https://", "http://")
"""How addresses of models begin."""

INTERNAL = (
    "local", "localhost", "localdomain", "localnet", "internal", "intern", "intranet", "private", "corp", "home",
    "priv", "lan", "dmz", "mgmt", "consul", "docker", "test", "invalid", "arpa",
)  # fmt: skip
"""Last parts of names that mean something in one network only (RFC 6761, 6762, 8375, and customs)."""

_ABSOLUTE = re.compile(
    r"""(?: file:/{1,3} | (?<![\w.:/\\~-]) (?: ~?/ | [A-Za-z]:[\\/] | \\\\ ) )
        (?: [^\s/\\'"<>|:,;]+ [/\\] )* [^\s/\\'"<>|:,;]* """,
    re.VERBOSE,
)
"""A path from the root of a file system: Unix, a home folder, Windows or a share."""

_REMOTE = re.compile(r"(?<![\w.@/\\:-])([\w.-]+@)?([\w.-]+):(?=[^\s:'\"<>|,;]*/)[^\s'\"<>|,;:]+")
"""A path on another machine, as of scp, git and NFS: a host, perhaps with a user before it, a colon, a path."""

_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)


def public_source(source: str) -> str:
    """Where a model comes from, as anybody may read it.

    Args:
        source: An address or a path.

    Returns:
        An address that anybody can look up, without password and query; else the last part of it, a file name.
    """
    if source.startswith("python:"):
        return f"python:{public_source(source.removeprefix('python:'))}"
    if source.lower().startswith(ADDRESSES):
        address = public_address(source)
        if not is_internal(address):
            return address
        source = urlsplit(address).path
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1]


def is_internal(address: str) -> bool:
    """Whether an address leads nowhere outside of one network: a host without a domain, or a private IP address."""
    if address.startswith("hf:"):
        return False
    try:
        host = (urlsplit(address).hostname or "").rstrip(".")
    except ValueError:
        return False
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        last = host.rpartition(".")[2]
        return "." not in host or last.isdigit() or last.lower() in INTERNAL


def public_address(address: str) -> str:
    """An address without user, password, query and fragment."""
    if address.startswith("hf:"):
        return address
    try:
        parts = urlsplit(address)
        place = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that is not valid"
    return urlunsplit((parts.scheme, place, parts.path, "", ""))


@dataclass(frozen=True)
class Scrubber:
    """Takes the writer's folders out of texts.

    Attributes:
        folders: Folders of the writer with a space or a quote in them, longest first; any other path is recognised.
    """

    folders: tuple[str, ...]

    @classmethod
    def of(cls, sources: Iterable[str], home: str) -> "Scrubber":
        """From the sources of enrolled models and the home folder."""
        found = {home.rstrip("/\\")}
        for source in sources:
            folder = re.split(r"[/\\][^/\\]*$", source.rstrip("/\\"))[0]
            if re.match(r"[/\\]|[A-Za-z]:", source):
                found.add(folder)
        odd = (f for f in found if len(f) > 1 and re.search(r"[\s'\"<>|:,;]", f[2:]))
        return cls(tuple(sorted(odd, key=lambda f: (-len(f), f))))

    def text(self, text: str) -> str:
        """A text in which every absolute path is only its last part, and addresses carry no password."""
        if not any(sign in text for sign in "/\\"):
            return text
        for folder in self.folders:
            text = re.sub(re.escape(folder) + r"[/\\]", "", text)
            text = re.sub(re.escape(folder) + r"(?![\w.-])", folder_name(folder), text)
        kept: list[str] = []

        def put_aside(match: re.Match[str]) -> str:
            if match[0].lower().startswith("file:"):
                return public_source(match[0])
            address = public_address(match[0])
            kept.append(public_source(address) if is_internal(address) else address)
            return f"\x00{len(kept) - 1}\x00"

        text = _ADDRESS.sub(put_aside, text.replace("\x00", ""))
        text = _REMOTE.sub(lambda match: _of_remote(match) or match[0], text)
        text = _ABSOLUTE.sub(lambda match: public_source(match[0]) or match[0][-1:], text)
        return re.sub("\x00([0-9]+)\x00", lambda match: kept[int(match[1])], text)

    def value(self, value: Any) -> Any:
        """The same for every text in plain JSON values, keys included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(k)): self.value(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(v) for v in value]
        return value


def _of_remote(match: re.Match[str]) -> str:
    """The last part of a path on another machine; empty where it is none, or one that anybody can look up."""
    user, host, path = match[1], match[2], match[0].rpartition(":")[2]
    if path.startswith("/"):
        return folder_name(path.rstrip("/"))
    return folder_name(path.rstrip("/")) if user and is_internal(f"ssh://{host}") else ""


def folder_name(folder: str) -> str:
    """The last part of a folder, empty for a root."""
    return re.split(r"[/\\]", folder)[-1]
