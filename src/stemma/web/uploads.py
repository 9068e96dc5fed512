"""Uploads: streamed to disk as they come, bounded, under a harmless name."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path, PureWindowsPath
from typing import IO, Any

from stemma.errors import MisuseError, StemmaError
from stemma.types.text import plain

LONGEST = 200
"""Bytes of a file name that are kept; its ending stays."""

MOST_FILES = 256

MOST_PARTS = 1024
"""Parts of a body, with those that are no files."""

LONGEST_HEADERS = 1 << 14
"""Bytes of the headers of one part."""


class TooLarge(StemmaError):
    """An upload has more bytes than the atlas takes."""


def harmless_name(given: str) -> str:
    """The last part of a name that a browser sent, without what a file name cannot or should not hold."""
    name = PureWindowsPath(plain(given).replace("/", "\\")).name if given else ""
    name = re.sub(r'[\\/:*?"<>|]', "_", name).strip(" .") or "model"
    stem, dot, ending = name.rpartition(".")
    if not dot:
        stem, ending = name, ""
    room = LONGEST - len(ending.encode()) - 1
    stem = stem.encode()[: max(room, 1)].decode(errors="ignore") or "model"
    return f"{stem}.{ending}" if dot else stem


async def receive(
    chunks: AsyncIterator[bytes], content_type: str, folder: Path, most: int, patience: float
) -> list[Path]:
    """Write the files of a `multipart/form-data` body into a folder.

    Memory: one chunk, whatever the size of the files.

    Args:
        chunks: The body as it comes.
        content_type: Header that names the boundary.
        folder: Folder for the files; emptied if the upload is refused.
        most: Bytes that the body may have.
        patience: Seconds that each next part of the body may take to come.

    Returns:
        The files, in the order in which they came.

    Raises:
        TooLarge: If there are more bytes, more files than 256, or too little room on the disk.
        MisuseError: If the body is no upload of files.
    """
    from python_multipart.exceptions import MultipartParseError
    from python_multipart.multipart import MultipartParser, parse_options_header

    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise MisuseError("an upload is a multipart/form-data body with at least one file")
    writer = _Writer(folder)
    parser = MultipartParser(options[b"boundary"], writer.callbacks)
    size = 0
    try:
        async for chunk in _with_patience(chunks, patience):
            size += len(chunk)
            if size > most:
                raise TooLarge(f"the upload has more than {most:,} bytes, which is what this atlas takes. Trace the "
                               "file on the command line, or serve with a larger --max-upload")  # fmt: skip
            if shutil.disk_usage(folder).free < (1 << 28) + len(chunk):
                raise TooLarge("there is too little room on the disk of the atlas for this upload")
            parser.write(chunk)
        parser.finalize()
    except MultipartParseError as e:
        writer.close()
        raise MisuseError(f"the upload is damaged or incomplete: {e}") from None
    finally:
        writer.close()
    if not writer.complete or not writer.files:
        raise MisuseError("no file came with the upload, or not all of it: choose a checkpoint file and send it again")
    return writer.files


async def _with_patience(chunks: AsyncIterator[bytes], patience: float) -> AsyncIterator[bytes]:
    while True:
        try:
            yield await asyncio.wait_for(anext(chunks), patience)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise MisuseError(f"nothing more of the upload came for {patience:g} seconds: send it again") from None


class _Writer:
    """Writes the parts of a body that are files; other parts are dropped."""

    def __init__(self, folder: Path) -> None:
        self.files: list[Path] = []
        self._taken: set[str] = set()  # some file systems take names that differ in case only for one
        self.complete = False
        self._folder = folder
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._room = LONGEST_HEADERS
        self._parts = 0
        self._open: IO[bytes] | None = None

    @property
    def callbacks(self) -> Any:
        """What the parser calls."""
        return {
            "on_part_begin": self._begin, "on_header_field": self._on_header, "on_header_value": self._on_value,
            "on_header_end": self._on_header_end, "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data, "on_part_end": self.close, "on_end": self._on_end,
        }  # fmt: skip

    def close(self) -> None:
        """Close the file that is being written."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _begin(self) -> None:
        self._disposition = b""
        self._room = LONGEST_HEADERS
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise TooLarge(f"the upload has more than {MOST_PARTS} parts")

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._take_room(end - start)
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._take_room(end - start)
        self._value += data[start:end]

    def _take_room(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise TooLarge(f"the upload has a part whose headers are longer than {LONGEST_HEADERS:,} bytes")

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _on_headers(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self._disposition)
        given = options.get(b"filename", b"").decode("utf-8", "replace")
        if not given:
            return
        if len(self.files) >= MOST_FILES:
            raise TooLarge(f"the upload has more than {MOST_FILES} files")
        name = harmless_name(given)
        path = self._folder / name
        for i in range(2, MOST_FILES + 2):
            if path.name.casefold() not in self._taken:
                break
            path = self._folder / f"{i}-{name}"
        self.files.append(path)
        self._taken.add(path.name.casefold())
        self._open = path.open("wb")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._open is not None:
            self._open.write(data[start:end])

    def _on_end(self) -> None:
        self.complete = True
