"""The file of an exported registry: JSON Lines in gzip, sealed with a digest over every byte, and signed if asked for.

A section is what one registry exported: a gzip member with a header line and a line `["digest",statement]` for each
statement, then a second, uncompressed member with the seal: how many statements, the SHA-256 of the first member, and
a DSSE envelope with its public key where the section is signed. A file is one section or several, one after another,
so that files are joined with `cat`. There is one way only to write what a file says, and every byte of it is checked.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

from stemma.errors import ExchangeError, MissingExtraError, SigningError
from stemma.registry import records
from stemma.registry.exchange import statements
from stemma.registry.exchange.statements import Statement
from stemma.verification.signatures import dsse, keys

FORMAT, VERSION = "stemma.registry", 1

PREDICATE = "urn:stemma:registry:v1"
"""Type of what a signature states; a name, and no address."""

HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""The only header of a gzip member: no time, no name, no system."""

CHUNK = 1 << 16
MAX_SECTIONS = 1000
MAX_SEAL = 0xFFFF
"""Bytes of a seal: one block that is not compressed."""

MAX_GROWTH, GRACE = 40, 16 << 20
"""A section holds at most so many times its own bytes, and so many more."""


@dataclass(frozen=True, slots=True)
class Section:
    """What one registry exported.

    Attributes:
        identity: Identity of the registry, as it states it.
        name: How it calls itself.
        stemma_version: Version that wrote it.
        created: When: UTC, ISO 8601.
        complete: Whether it holds everything that the registry knows itself.
        statements: Number of statements.
        left_out: How much was left out, by what.
        digest: SHA-256 of the compressed statements.
        signed_by: SHA-256 of the public key; None where it is not signed.
    """

    identity: str
    name: str
    stemma_version: str
    created: str
    complete: bool
    statements: int
    left_out: Mapping[str, int]
    digest: str
    signed_by: str | None


class _Compressed:
    """A gzip member that is written."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._hash, self._crc, self._size = out, hashlib.sha256(), 0, 0
        self._deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
        self._put(HEAD)

    def _put(self, content: bytes) -> None:
        self._hash.update(content)
        self._out.write(content)

    def write(self, content: bytes) -> None:
        self._crc, self._size = zlib.crc32(content, self._crc), self._size + len(content)
        self._put(self._deflate.compress(content))

    def close(self) -> str:
        self._put(self._deflate.flush() + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))
        return self._hash.hexdigest()


def write_section(
    out: BinaryIO,
    header: Mapping[str, Any],
    told: Iterable[Statement],
    left_out: Mapping[str, int],
    key: keys.PrivateKey | None = None,
) -> Section:
    """Write one section.

    Args:
        out: An open file.
        header: `identity`, `name`, `stemma_version`, `created` and `complete`.
        told: The statements; read one at a time.
        left_out: What was left out, read after the last statement.
        key: Signs the section.

    Returns:
        What was written.

    Raises:
        ExchangeError: If the seal is too long.
    """
    member, n = _Compressed(out), 0
    first = {"format": FORMAT, "version": VERSION, **header}
    member.write(records.canonical_json(first).encode() + b"\n")
    for one in told:
        member.write(b'["%b",%b]\n' % (one.digest.rpartition(":")[2].encode(), one.text.encode()))
        n += 1
    digest = member.close()
    facts = {"statements": n, "left_out": {k: v for k, v in left_out.items() if v}, "sha256": digest}
    seal: dict[str, Any] = {**facts, "signature": None}
    if key is not None:
        envelope = json.loads(dsse.envelope(_stated(first, facts), key))
        seal["signature"] = {"envelope": envelope, "key": _pem(key.public)}
    content = records.canonical_json(seal).encode() + b"\n"
    if len(content) > MAX_SEAL:
        raise ExchangeError("the seal of the export is too long")
    out.write(_stored(content))
    fields = {k: header[k] for k in ("identity", "name", "stemma_version", "created", "complete")}
    signed_by = None if key is None else key.public.identity
    return Section(**fields, statements=n, left_out=facts["left_out"], digest=digest, signed_by=signed_by)


def _stated(first: Mapping[str, Any], facts: Mapping[str, Any]) -> bytes:
    """What is signed: an in-toto statement about the section, by the digest of its first member."""
    subject = [{"name": f"{first['name']} {first['identity']}", "digest": {"sha256": facts["sha256"]}}]
    stated = {"_type": "https://in-toto.io/Statement/v1", "subject": subject, "predicateType": PREDICATE,
              "predicate": {"header": dict(first), "statements": facts["statements"],
                            "left_out": facts["left_out"]}}  # fmt: skip
    return records.canonical_json(stated).encode()


def _pem(key: keys.PublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.material.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _stored(content: bytes) -> bytes:
    """A gzip member of one block that is not compressed."""
    block = struct.pack("<BHH", 1, len(content), len(content) ^ 0xFFFF) + content
    return HEAD + block + struct.pack("<II", zlib.crc32(content), len(content))


# Reading


@dataclass
class _Input:
    """An open file of somebody else, with what was read too much of it."""

    file: BinaryIO
    left: bytes = b""

    def some(self) -> bytes:
        out, self.left = self.left or self.file.read(CHUNK), b""
        return out

    def exactly(self, n: int) -> bytes:
        out = b""
        while len(out) < n:
            more = self.some()
            if not more:
                _refuse("it ends too early")
            out += more
        out, self.left = out[:n], out[n:] + self.left
        return out

    def ended(self) -> bool:
        self.left = self.some()
        return not self.left


@dataclass
class SectionReader:
    """One section of a file, read from its start to its end.

    Attributes:
        header: Its first line.
        section: What it is; there only when every line was read, and seal and signature are right.
    """

    source: _Input
    header: dict[str, Any] = field(default_factory=dict)
    section: Section | None = None

    def lines(self) -> Iterator[tuple[str, str]]:
        """Digest and text of every statement; the digest is checked, the text is not."""
        n, found = 0, self._lines()
        self.header = _header(next(found, b""))
        for line in found:
            n += 1
            if len(line) < 70 or line[:2] != b'["' or line[66:68] != b'",' or line[-1:] != b"]":
                _refuse(f"its line {n + 1:,} is no statement")
            text = line[68:-1]
            if hashlib.sha256(text).hexdigest().encode() != line[2:66]:
                _refuse(f"its statement {n:,} was changed: it does not have its digest")
            try:
                yield line[2:66].decode(), text.decode()
            except UnicodeDecodeError:
                _refuse(f"its statement {n:,} is not UTF-8")
        self.section = self._seal(n)

    def _lines(self) -> Iterator[bytes]:
        rest = bytearray()
        for content in self._content():
            rest += content
            *whole, last = rest.split(b"\n")
            if max((len(x) for x in (*whole, last)), default=0) > 4 * statements.MAX_TEXT:
                _refuse(f"a line of it is longer than {statements.MAX_TEXT:,} characters")
            yield from map(bytes, whole)
            rest = last
        if rest:
            _refuse("its last line does not end")

    def _content(self) -> Iterator[bytes]:
        """What the compressed member holds, a part at a time; its digest goes to `_digest`."""
        if self.source.exactly(len(HEAD)) != HEAD:
            _refuse("it does not begin as one")
        inflate, seen = zlib.decompressobj(-15), hashlib.sha256(HEAD)
        crc = size = taken = 0
        while not inflate.eof:
            chunk = self.source.some()
            if not chunk:
                _refuse("it ends too early")
            taken, waiting = taken + len(chunk), chunk
            while waiting and not inflate.eof:
                try:
                    content = inflate.decompress(waiting, 1 << 20)
                except zlib.error:
                    _refuse("its compressed part is damaged")
                waiting = inflate.unconsumed_tail
                crc, size = zlib.crc32(content, crc), size + len(content)
                if size > GRACE + MAX_GROWTH * taken:
                    _refuse(f"it grows to more than {MAX_GROWTH} times its size when it is unpacked")
                if content:
                    yield content
            seen.update(chunk[: len(chunk) - len(inflate.unused_data)])
        self.source.left = inflate.unused_data
        end = self.source.exactly(8)
        if end != struct.pack("<II", crc, size & 0xFFFFFFFF):
            _refuse("its content does not have its checksum")
        seen.update(end)
        self._digest = seen.hexdigest()

    def _seal(self, n: int) -> Section:
        """Check the seal against everything that was read."""
        head = self.source.exactly(len(HEAD) + 5)
        _, length, inverse = struct.unpack("<BHH", head[len(HEAD) :])
        content = self.source.exactly(length)
        if head + content + self.source.exactly(8) != _stored(content) or inverse != length ^ 0xFFFF:
            _refuse("its seal is damaged")
        seal = _json(content, "its seal")
        if set(seal) != {"statements", "left_out", "sha256", "signature"}:
            _refuse("its seal has other fields than Stemma writes")
        left_out = seal["left_out"]
        if not isinstance(left_out, dict) or not all(type(v) is int and 0 < v <= 1 << 62 for v in left_out.values()):
            _refuse("its seal does not say what was left out")
        if type(seal["statements"]) is not int or (seal["statements"], seal["sha256"]) != (n, self._digest):
            _refuse("it was changed: its content does not have the digest in its seal")
        signed_by = None if seal["signature"] is None else self._signer(seal)
        fields = {k: self.header[k] for k in ("identity", "name", "stemma_version", "created", "complete")}
        return Section(**fields, statements=n, left_out=left_out, digest=self._digest, signed_by=signed_by)

    def _signer(self, seal: Mapping[str, Any]) -> str:
        """The key that signed the section; raises unless the signature is right and says what the section says."""
        signature = seal["signature"]
        try:
            if set(signature) != {"envelope", "key"}:
                _refuse("its signature has other fields than Stemma writes")
            key = _public(signature["key"])
            named = [entry["keyid"] for entry in signature["envelope"]["signatures"]]
            known = {"payload", "payloadType", "signatures"}
            if set(signature["envelope"]) != known or any(
                set(x) != {"keyid", "sig"} for x in signature["envelope"]["signatures"]
            ):
                _refuse("its signature has other fields than Stemma writes")
            payload = dsse.opened(signature["envelope"], key)
        except (TypeError, KeyError, AttributeError, SigningError):
            _refuse("its signature is damaged")
        facts = {k: seal[k] for k in ("statements", "left_out", "sha256")}
        if named != [key.identity] or payload != _stated(self.header, facts):
            _refuse("it was changed after it was signed, or not signed with the key that it names")
        return key.identity


def _public(text: str) -> keys.PublicKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as e:
        raise MissingExtraError("a signed registry", "cryptography", "standards") from e
    try:
        key = keys.PublicKey(load_pem_public_key(text.encode()))
        same = keys.is_known_kind(key.material) and _pem(key) == text
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        same = False
    return key if same else _refuse("the public key of its signature cannot be read")


def _header(line: bytes) -> dict[str, Any]:
    header = _json(line + b"\n", "its first line")
    if header.get("format") != FORMAT:
        _refuse("it does not begin as one")
    version = header.get("version")
    if type(version) is int and version > VERSION:
        raise ExchangeError(
            f"this registry was exported in version {version} of the format, and this version of Stemma reads "
            f"{VERSION}. Update Stemma"
        )
    texts = ("identity", "name", "stemma_version", "created")
    if set(header) != {"format", "version", "complete", *texts} or version != VERSION:
        _refuse("its first line has other fields than Stemma writes")
    if not all(isinstance(header[k], str) and header[k].isprintable() and len(header[k]) <= 100 for k in texts):
        _refuse("its first line holds texts that cannot be")
    check_registry_name(header["name"])
    if type(header["complete"]) is not bool or not is_identity(header["identity"]):
        _refuse("its first line does not name a registry")
    return header


def is_identity(text: str) -> bool:
    """Whether a text has the form of the identity of a registry: 32 hexadecimal digits."""
    return len(text) == 32 and all(c in "0123456789abcdef" for c in text)


def check_registry_name(name: str) -> str:
    """The name of a registry, which may stand behind an `@`; raises for any other text."""
    if not name or len(name) > 60 or not all(c.isalnum() or c in "-_." for c in name) or not name.isascii():
        raise ExchangeError(
            f"{name[:80]!r} is no name of a registry. Use at most 60 letters, digits, hyphens, dots and underscores"
        )
    return name


def _json(content: bytes, what: str) -> dict[str, Any]:
    """An object in one line of canonical JSON."""
    try:
        value = json.loads(content)
        same = records.canonical_json(value).encode() + b"\n" == content
    except Exception:  # whatever is wrong with it
        _refuse(f"{what} is damaged")
    return value if same and isinstance(value, dict) else _refuse(f"{what} is damaged")


def sections(file: BinaryIO) -> Iterator[SectionReader]:
    """The sections of a file; each must be read to its end before the next one."""
    source, n = _Input(file), 0
    while n == 0 or not source.ended():
        n += 1
        if n > MAX_SECTIONS:
            _refuse(f"it holds more than {MAX_SECTIONS:,} exports")
        yield SectionReader(source)


def survey(file: BinaryIO) -> list[Section]:
    """Read a whole file without looking into its statements: every digest, seal and signature is checked."""
    found = []
    for reader in sections(file):
        for _ in reader.lines():
            pass
        assert reader.section is not None
        found.append(reader.section)
    return found


def _refuse(why: str) -> NoReturn:
    raise ExchangeError(f"this is no registry that Stemma exported, or it was damaged: {why}")
