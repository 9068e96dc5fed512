"""Answers one question in a process of its own: `python -m stemma.web.worker FOLDER`, which the atlas starts.

The folder holds `job.json`. The answer is written to `document.json` and, where there is none, why to `error.txt`;
progress goes to stdout, a line each. The process ends when its stdin is closed, so that none outlives the atlas.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DOCUMENT, ERROR, JOB, FILES = "document.json", "error.txt", "job.json", "files"
"""Files of a job, and the folder of what was uploaded with it."""


def main(folder: Path) -> int:
    """Answer the question in a folder.

    Returns:
        0 if there is an answer, 1 if there is an error.
    """
    from stemma.checkpoints.confinement import confine
    from stemma.errors import StemmaError
    from stemma.registry.database import without_password

    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    request, served = job["request"], os.environ.get("STEMMA_REGISTRY", "")
    if request.get("registry") == without_password(served):
        request["registry"] = served
    _limit(job["limits"])
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    confine(folder / FILES)
    os.chdir(folder / FILES)  # an uploaded file is asked for by its name alone, as on a command line
    try:
        document = answer(job["kind"], request, _tell)
    except StemmaError as e:
        why = str(e)
    except MemoryError:
        why = "the question needs more memory than the atlas gives to one: ask it on the command line"
    except Exception as e:
        why = f"{type(e).__name__}: {e} (unexpected, probably a bug in Stemma)"
    else:
        _write(folder / DOCUMENT, json.dumps(document, indent=2, allow_nan=False) + "\n")
        return 0
    _write(folder / ERROR, why)
    return 1


def answer(kind: str, request: Mapping[str, Any], progress: Callable[[str, int, int | None], None]) -> dict[str, Any]:
    """The document that answers a question.

    Args:
        kind: `trace`, `compare`, `explain` or `lineage`.
        request: Fields of the request.
        progress: Told what is being done.

    Returns:
        What `--json` prints.
    """
    return _QUESTIONS[kind](request, progress).document()


def _trace(request: Mapping[str, Any], progress: Any) -> Any:
    from stemma.application.trace import TraceRequest, trace

    return trace(TraceRequest(**request), progress)


def _compare(request: Mapping[str, Any], progress: Any) -> Any:
    from stemma.application.compare import CompareRequest, compare

    return compare(CompareRequest(**request), progress)


def _explain(request: Mapping[str, Any], progress: Any) -> Any:
    from stemma.application.explain import ExplainRequest, explain

    return explain(ExplainRequest(**request), progress)


def _lineage(request: Mapping[str, Any], progress: Any) -> Any:
    from stemma.application.lineage import LineageRequest, lineage

    return lineage(LineageRequest(**request), progress)


_QUESTIONS: Mapping[str, Callable[[Mapping[str, Any], Any], Any]] = {
    "trace": _trace, "compare": _compare, "explain": _explain, "lineage": _lineage,
}  # fmt: skip


def _tell(what: str, done: int, total: int | None) -> None:
    os.write(1, (json.dumps({"what": what, "done": done, "total": total}) + "\n").encode())


def _limit(limits: Mapping[str, int]) -> None:
    """Bound memory and processor time, and step behind the server; where the system has no such limits, none is set."""
    try:
        import resource
    except ImportError:  # Windows
        return
    os.nice(10)
    for name, most in (("RLIMIT_AS", limits["memory"]), ("RLIMIT_CPU", limits["seconds"]), ("RLIMIT_CORE", 0)):
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, hard))


def _end_with_stdin() -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock a process that ends would wait for
        pass
    os._exit(1)


def _write(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
