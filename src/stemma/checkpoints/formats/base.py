"""The abstract base of checkpoint formats."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from stemma.checkpoints.tensor import Tensor


@dataclass(frozen=True)
class Contents:
    """The contents of one file, before names are made canonical.

    Attributes:
        parts: Tensors under their stored names: the main model under `""`, averaged weights under `"ema"`.
        metadata: Text metadata of the file, shown as claims.
        notes: Omitted content, for display.
        aliases: Groups of names that share one storage in the file (tied tensors).
    """

    parts: Mapping[str, tuple[Tensor, ...]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    aliases: tuple[tuple[str, ...], ...] = ()


class AbstractFormat(abc.ABC):
    """A checkpoint format: how to recognise a file and how to list its tensors without reading them."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the first bytes are those of this format.

        Args:
            path: The file.
            head: Its first 64 bytes.

        Returns:
            True only if the bytes identify the format; the extension is checked afterwards.
        """

    @abc.abstractmethod
    def read(self, path: Path) -> Contents:
        """List the tensors; their bytes are read lazily.

        Args:
            path: The file.

        Returns:
            The contents.

        Raises:
            UnreadableModelError: If the file is truncated, inconsistent or hostile.
        """
