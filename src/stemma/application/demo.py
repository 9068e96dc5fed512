"""The demo: trains small networks, disguises one, traces it and checks the answer."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Progress, Schema
from stemma.application.trace import AbstractTraceDocument, trace_fields
from stemma.errors import MisuseError
from stemma.types import Trace

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.zoo.demo_family import Demo


@dataclass(frozen=True, kw_only=True)
class DemoRequest:
    """What `stemma demo` is asked.

    Attributes:
        out: Folder for models, suspect and registry; `demo` in the current folder if null.
    """

    out: str | None = None


@dataclass(frozen=True, slots=True)
class TruthPart:
    """How the suspect was made.

    Attributes:
        parent: Model that it was made from.
        disguise: What was done to hide that.
        found: Whether the trace names that model before any other.
    """

    parent: str
    disguise: tuple[str, ...]
    found: bool


@dataclass(frozen=True, kw_only=True)
class DemoDocument(AbstractTraceDocument):
    """A trace of a disguised model, with the truth about it.

    Attributes:
        registry: File of the registry.
        suspect: File of the disguised model.
        truth: How it was made, and whether the trace found that.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.demo", 1)

    asked: DemoRequest
    registry: str
    suspect: str
    truth: TruthPart


@dataclass(frozen=True, kw_only=True)
class DemoAnswer:
    """A trace of a disguised model, with the truth about it.

    Attributes:
        request: What was asked.
        made: The networks, and how the suspect was made.
        registry: File of the registry.
        enrolled: Number of networks that were enrolled.
        model: The suspect.
        result: Its trace.
    """

    request: DemoRequest
    made: "Demo"
    registry: str
    enrolled: int
    model: "Model"
    result: Trace

    @property
    def found(self) -> bool:
        """Whether the trace names the model that the suspect was made from, before any other."""
        return self.made.parent in {finding["name"] for finding in (self.result.copies or self.result.parents)}

    def document(self) -> dict[str, Any]:
        """The document that `stemma demo --json` prints."""
        truth = TruthPart(self.made.parent, tuple(step.name for step in self.made.steps), self.found)
        return DemoDocument.of(
            self.request,
            **trace_fields(self.result),
            notes=(),
            registry=self.registry,
            suspect=str(self.made.suspect),
            truth=truth,
        ).to_dict()


def demo(request: DemoRequest, progress: Progress | None = None) -> DemoAnswer:
    """Train a family of small networks, enrol it, disguise one of them, and trace it.

    Args:
        request: Where to put them.
        progress: Told what is being done.

    Returns:
        The trace, and whether it is right.
    """
    from stemma import zoo
    from stemma.application.opening import open_workspace

    folder = _folder(None if request.out is None else Path(request.out))
    if progress is not None:
        progress("training small networks on handwritten digits", 0, None)
    made = zoo.demo(folder)
    workspace = open_workspace(str(folder / "registry.db"), progress=progress)
    enrolled = sum(1 for result in workspace.add([made.models], replace=True) if not result.error)
    model = workspace.resolve(str(made.suspect))
    result = workspace.trace(model)
    return DemoAnswer(
        request=request, made=made, registry=workspace.registry.where, enrolled=enrolled, model=model, result=result
    )


def _folder(out: Path | None) -> Path:
    if out is not None or os.access(Path.cwd(), os.W_OK):
        folder = (out or Path("demo")).absolute()
        if folder.exists() and not folder.is_dir():
            raise MisuseError(f"{folder} is a file. Give a folder with --out")
        if folder.exists() and any(folder.iterdir()) and not (folder / "models" / "truth.json").exists():
            raise MisuseError(f"{folder} holds files that are not of an earlier demo. Give another folder with --out")
        return folder
    return Path(tempfile.mkdtemp(prefix="stemma-demo-"))
