"""Finds the signatures of a checkpoint and checks each: who signed, and are the files those that were signed?"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stemma.checkpoints.file_hashes import SIGNATURES, files_of, hash_files
from stemma.errors import SigningError
from stemma.verification.signatures import oms
from stemma.verification.signatures.dsse import opened
from stemma.verification.signatures.keys import read_public_key

MAX_BYTES = 200_000_000
"""A statement about ten thousand models stays below this."""

SHOWN = 5
"""Names that a sentence lists before it counts the rest."""


@dataclass(frozen=True, slots=True)
class SignatureFinding:
    """The result of one check.

    Attributes:
        check: What was checked.
        good: Whether it is as signed; None where nothing vouches for it.
        reason: One sentence.
    """

    check: str
    good: bool | None
    reason: str


def signatures_of(path: Path) -> tuple[Path, ...]:
    """The signatures that lie with a checkpoint: in its folder, or beside a file under its name.

    Args:
        path: The file or folder.

    Returns:
        Their paths, sorted.
    """
    if path.is_dir():
        return tuple(sorted(f for f in path.iterdir() if f.name.endswith(SIGNATURES) and f.is_file()))
    beside = [path.with_name(stem + ending) for stem in {path.name, path.stem} for ending in SIGNATURES]
    return tuple(sorted(f for f in beside if f.is_file() and f != path))


def check_signatures(path: Path, key: Path, given: Sequence[Path] = ()) -> tuple[SignatureFinding, ...]:
    """Check every signature of a checkpoint.

    Args:
        path: The file or folder.
        key: Public key of the signer that is trusted.
        given: Signatures; those that lie with the checkpoint unless given.

    Returns:
        One or more findings for each signature, and one for what is not signed.

    Raises:
        SigningError: If the key cannot be read, or there is nothing at the path.
    """
    if not path.exists():
        raise SigningError(f"there is nothing at {path}")
    public = read_public_key(key)
    found = tuple(given) or signatures_of(path)
    if not found:
        whole = path.parent / "model.sig"
        more = f"; {whole.name} beside it is about the whole folder" if path.is_file() and whole.is_file() else ""
        return (SignatureFinding("signature", None, f"unsigned: no signature lies with {path.name}{more}"),)
    findings: list[SignatureFinding] = []
    for bundle in found:
        try:
            content = _parsed(bundle)
            if "dsseEnvelope" in content:
                findings += _weights(path, bundle, key)
            else:
                payload = opened(content, public)
                findings += _statement(path, bundle, payload, public.identity)
        except SigningError as e:
            findings.append(SignatureFinding("signature", False, f"{bundle.name}: {e}"))
    return tuple(findings)


def _parsed(bundle: Path) -> Mapping[str, Any]:
    try:
        if bundle.stat().st_size > MAX_BYTES:
            raise SigningError("too large to be a signature")
        content = json.loads(bundle.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise SigningError("not a signature that Stemma reads (OpenSSF Model Signing, or DSSE)") from None
    if not isinstance(content, dict):
        raise SigningError("not a signature that Stemma reads (OpenSSF Model Signing, or DSSE)")
    return content


def _weights(path: Path, bundle: Path, key: Path) -> Iterator[SignatureFinding]:
    wrong = oms.check_weights(path, bundle, key)
    if wrong:
        yield from (SignatureFinding("weights", False, f"{bundle.name}: {why}") for why in wrong)
        return
    names = oms.signed_names(bundle)
    yield SignatureFinding("weights", True, f"{bundle.name}: {_files(len(names))} signed with this key, and unchanged")
    if path.is_dir():
        yield from _unsigned(bundle, {name for _, name in files_of(path)} - names)


def _statement(path: Path, bundle: Path, payload: bytes | None, key: str) -> Iterator[SignatureFinding]:
    if payload is None:
        yield SignatureFinding("signature", False, f"{bundle.name}: not made with this key ({key[:16]}…), or changed")
        return
    subjects = _subjects(payload)
    yield SignatureFinding("signature", True, f"{bundle.name}: a statement signed with this key ({key[:16]}…)")
    yield from (_of_folder if path.is_dir() else _of_file)(path, bundle, subjects)


def _of_file(path: Path, bundle: Path, subjects: Sequence[tuple[str, str]]) -> Iterator[SignatureFinding]:
    """A file is known by its digest; under which name it was signed is said."""
    (file,) = hash_files(path)
    names = [name for name, sha in subjects if sha == file.sha256]
    if names:
        yield SignatureFinding("files", True, f"{bundle.name}: the bytes that were signed, as {names[0]}")
    else:
        yield SignatureFinding("files", False, f"{bundle.name}: {file.name} does not have the bytes that were signed")


def _of_folder(folder: Path, bundle: Path, subjects: Sequence[tuple[str, str]]) -> Iterator[SignatureFinding]:
    files = hash_files(folder)
    present = {file.name: file.sha256 for file in files}
    if len(present) < len(files):
        yield SignatureFinding(
            "files", False, f"{bundle.name}: two files have one name, but for what is not UTF-8 in it"
        )
    model, signed = _model_of(present, subjects)
    where = f"{bundle.name}{f', as {model}' if model else ''}"
    changed = [name for name, sha in present.items() if signed.get(name, sha) != sha]
    missing = [name for name in signed if name not in present]
    if changed:
        no = "does not" if len(changed) == 1 else "do not"
        yield SignatureFinding("files", False, f"{where}: {_listed(changed)} {no} have the bytes that were signed")
    if missing:
        yield SignatureFinding("files", False, f"{where}: {_listed(missing)} signed, and not there")
    if not changed and not missing and signed:
        yield SignatureFinding("files", True, f"{where}: {_files(len(signed))} with the bytes that were signed")
    yield from _unsigned(bundle, set(present) - set(signed))


def _model_of(present: Mapping[str, str], subjects: Sequence[tuple[str, str]]) -> tuple[str, Mapping[str, str]]:
    """The model of a statement that a folder holds: its name, empty where there is only one, and its signed files.

    Args:
        present: Digests of the files of the folder, by name.
        subjects: Names and digests that were signed.

    Returns:
        The one with the most files that agree; all files are then held against this one.
    """
    models: dict[str, dict[str, str]] = {}
    for name, sha in subjects:
        parts = name.split("/")
        for cut in range(len(parts)):
            if (rest := "/".join(parts[cut:])) in present:
                models.setdefault("/".join(parts[:cut]), {})[rest] = sha
    if not models:
        return "", {}
    best = max(sorted(models), key=lambda m: sum(present[name] == sha for name, sha in models[m].items()))
    start = f"{best}/" if best else ""
    return best, {name[len(start) :]: sha for name, sha in subjects if name.startswith(start)}


def _unsigned(bundle: Path, names: Collection[str]) -> Iterator[SignatureFinding]:
    if names:
        yield SignatureFinding("unsigned", None, f"{bundle.name} says nothing about {_listed(sorted(names))}")


def _subjects(payload: bytes) -> list[tuple[str, str]]:
    """Name and SHA-256 of every file that a statement is about."""
    try:
        statement = json.loads(payload)
        if statement["_type"] != "https://in-toto.io/Statement/v1":
            raise SigningError("the statement is not in-toto's version 1")
        found = [(str(s.get("name", "")), str(s["digest"]["sha256"])) for s in statement["subject"]]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise SigningError("what was signed is not a statement about files") from None
    if not found:
        raise SigningError("the statement is about no file")
    return found


def _files(n: int) -> str:
    return f"{n:,} file{'' if n == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
