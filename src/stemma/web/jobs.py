"""Questions that take time: asked from a page, answered in a process each, kept beside the registry."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from stemma.errors import MisuseError
from stemma.web.settings import Settings
from stemma.web.worker import DOCUMENT, ERROR, FILES, JOB

State = Literal["waiting", "running", "done", "failed", "cancelled", "interrupted"]

ENDED = frozenset({"done", "failed", "cancelled", "interrupted"})

_ID = re.compile(r"[0-9a-f]{32}")


@dataclass
class Job:
    """One question.

    Attributes:
        id: Its number in addresses.
        kind: `trace`, `compare`, `explain` or `lineage`.
        request: Fields of the request.
        folder: Where its files lie.
        asked_at: When it was asked, in seconds since 1970.
        state: What became of it.
        progress: What is being done, how much of it is done, and of how much.
        key: What it would be found again by: the question and the state of the registry.
    """

    id: str
    kind: str
    request: Mapping[str, Any]
    folder: Path
    asked_at: float
    state: State = "waiting"
    progress: tuple[str, int, int | None] = ("waiting", 0, None)
    key: str = ""
    process: "subprocess.Popen[str] | None" = field(default=None, repr=False)

    @property
    def document(self) -> bytes | None:
        """The answer, as `--json` prints it; None if there is none."""
        path = self.folder / DOCUMENT
        return path.read_bytes() if self.state == "done" and path.exists() else None

    @property
    def error(self) -> str:
        """Why there is no answer."""
        path = self.folder / ERROR
        return path.read_text(encoding="utf-8") if path.exists() else ""


def _held(folder: Path) -> IO[str] | None:
    """The lock of an atlas on its folder, which ends with its process; None where the system has none."""
    if fcntl is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError:  # it can be read and not written
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise MisuseError(
            f"another atlas of this registry runs already (it holds {folder / 'lock'}): use that one, or end it first"
        ) from None
    except OSError:  # a file system without locks
        pass
    return lock


class Busy(Exception):
    """So many questions wait already that no further one is taken."""


class Jobs:
    """All questions of one atlas."""

    def __init__(self, settings: Settings) -> None:
        """Find the questions that were asked before; those that were not answered are marked as interrupted.

        Raises:
            MisuseError: If another atlas of the same registry runs: the two would delete each other's files.
        """
        self._settings = settings
        self._held = _held(settings.folder)
        self._folder = settings.folder / "jobs"
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._running = self._receiving = 0
        self._jobs = {job.id: job for job in self._found()}
        self._closed = False

    def new_folder(self) -> Path:
        """A folder for a question and the files that are uploaded with it."""
        folder = self._folder / uuid.uuid4().hex
        (folder / FILES).mkdir(parents=True)
        return folder

    def check_room(self) -> None:
        """Raise `Busy` if no further question is taken: so many wait, or are on their way with an upload."""
        with self._lock:
            if len(self._waiting) >= self._settings.max_waiting:
                raise Busy

    @contextmanager
    def receiving(self) -> Generator[Path]:
        """A folder for a question and the files that are uploaded with it; deleted where that fails.

        Yields:
            The folder.

        Raises:
            Busy: If so many questions wait, or uploads come at once, that this one is not taken.
        """
        with self._lock:
            if len(self._waiting) + self._receiving >= self._settings.max_waiting:
                raise Busy
            self._receiving += 1
        folder = self.new_folder()
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            with self._lock:
                self._receiving -= 1

    def ask(self, kind: str, request: Mapping[str, Any], key: str = "", folder: Path | None = None) -> Job:
        """Take a question.

        Args:
            kind: `trace`, `compare`, `explain` or `lineage`.
            request: Fields of the request.
            key: What it can be found again by.
            folder: Folder of `new_folder`, with the uploaded files.

        Returns:
            The question, waiting or running.

        Raises:
            Busy: If too many wait.
        """
        try:
            self.check_room()
        except Busy:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        folder = folder or self.new_folder()
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        limits = {"memory": self._settings.max_memory + 2 * size, "seconds": self._settings.max_seconds}
        job = Job(folder.name, kind, dict(request), folder, time.time(), key=key)
        content = {"kind": kind, "request": job.request, "asked_at": job.asked_at, "key": key, "limits": limits}
        (folder / JOB).write_text(json.dumps(content), encoding="utf-8")
        with self._lock:
            self._jobs[job.id] = job
            self._waiting.append(job)
        self._start_next()
        self._forget()
        return job

    def get(self, id: str) -> Job | None:
        """A question by its number."""
        return self._jobs.get(id)

    def answered(self, key: str) -> Job | None:
        """The newest question with this key that was answered, or is being answered."""
        same = [j for j in self._jobs.values() if j.key == key and j.state in ("done", "running", "waiting")]
        return max(same, key=lambda j: j.asked_at, default=None)

    def recent(self, n: int) -> list[Job]:
        """The questions that were asked last, the newest first."""
        return sorted(self._jobs.values(), key=lambda j: -j.asked_at)[:n]

    def again(self, job: Job) -> Job:
        """Ask a question once more that was interrupted.

        Returns:
            The new question, with the files of the old one; the old one itself while it is on its way or answered.

        Raises:
            MisuseError: If its files are gone.
            Busy: If too many questions wait; the files stay for another time.
        """
        if job.state in ("waiting", "running", "done"):
            return job
        self.check_room()
        folder, files = self.new_folder(), job.folder / FILES
        try:
            (folder / FILES).rmdir()
            files.rename(folder / FILES)  # of two who ask at once, one gets them
        except OSError:
            (folder / FILES).mkdir(exist_ok=True)
        if job.key.startswith("uploaded") and not any((folder / FILES).iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
            raise MisuseError("the uploaded file is no longer here: upload it again")
        return self.ask(job.kind, job.request, job.key, folder)

    def cancel(self, job: Job) -> None:
        """Stop a question: its process ends at once, and its files are deleted."""
        with self._lock:
            if job.state in ENDED:
                return
            was_running = job.state == "running"
            job.state = "cancelled"
            if not was_running:
                self._waiting.remove(job)
        if job.process is not None:
            job.process.kill()
        (job.folder / ERROR).write_text("cancelled before it was answered", encoding="utf-8")
        if not was_running:
            shutil.rmtree(job.folder / FILES, ignore_errors=True)

    def close(self) -> None:
        """Stop all questions; they are interrupted, and can be asked again when the atlas is served again."""
        with self._lock:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
        for job in waiting:
            job.state = "interrupted"
        for job in list(self._jobs.values()):
            if job.process is not None and job.state == "running":
                job.state = "interrupted"
                job.process.kill()
        if self._held is not None:
            self._held.close()

    def _found(self) -> list[Job]:
        found = []
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            try:
                content = json.loads((folder / JOB).read_text(encoding="utf-8"))
                job = Job(folder.name, content["kind"], content["request"], folder, content["asked_at"],
                          key=content["key"])  # fmt: skip
            except (OSError, ValueError, KeyError):
                if _ID.fullmatch(folder.name):  # an upload that never became a question
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            ended = "done" if (folder / DOCUMENT).exists() else "failed" if (folder / ERROR).exists() else "interrupted"
            job.state = ended
            found.append(job)
        return found

    def _start_next(self) -> None:
        with self._lock:
            if self._closed or self._running >= self._settings.max_jobs or not self._waiting:
                return
            job = self._waiting.popleft()
            job.state, job.progress = "running", ("starting", 0, None)
            self._running += 1
        threading.Thread(target=self._run, args=(job,), daemon=True).start()

    def _run(self, job: Job) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if self._settings.registry is not None:  # its password stands in no question and in no list of processes
            environment["STEMMA_REGISTRY"] = self._settings.registry
        try:
            job.process = subprocess.Popen(
                [sys.executable, "-m", "stemma.web.worker", str(job.folder.absolute())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
                errors="replace", env=environment, start_new_session=True,
            )  # fmt: skip
            too_long = threading.Timer(self._settings.max_seconds, job.process.kill)
            too_long.daemon = True
            too_long.start()
            if job.state == "cancelled":  # between being taken and being started
                job.process.kill()
            assert job.process.stdout is not None
            for line in job.process.stdout:
                self._hear(job, line)
            job.process.wait()
            too_long.cancel()
        except OSError as e:
            (job.folder / ERROR).write_text(f"no process could be started: {e}", encoding="utf-8")
        self._end(job)

    def _hear(self, job: Job, line: str) -> None:
        try:
            said = json.loads(line)
            job.progress = str(said["what"]), int(said["done"]), said["total"]
        except (ValueError, KeyError, TypeError):
            return  # a library printed something

    def _end(self, job: Job) -> None:
        with self._lock:
            self._running -= 1
            if job.state == "running":
                if (job.folder / DOCUMENT).exists():
                    job.state = "done"
                else:
                    job.state = "failed"
                    if not (job.folder / ERROR).exists():
                        (job.folder / ERROR).write_text(self._why_killed(job), encoding="utf-8")
        if job.process is not None:
            for stream in (job.process.stdin, job.process.stdout):
                if stream is not None:
                    stream.close()
        if job.state != "interrupted":
            shutil.rmtree(job.folder / FILES, ignore_errors=True)
        self._start_next()

    def _why_killed(self, job: Job) -> str:
        code = job.process.returncode if job.process is not None else None
        return (
            f"the process that answered was stopped by the system (code {code}): it took more than "
            f"{self._settings.max_memory >> 30} GiB of memory or {self._settings.max_seconds:,} seconds, or a library "
            "failed on the file. Ask on the command line, where there is no such limit"
        )

    def _forget(self) -> None:
        """Delete the oldest answers beyond those that are kept."""
        ended = sorted((j for j in self._jobs.values() if j.state in ENDED), key=lambda j: -j.asked_at)
        for job in ended[self._settings.kept :]:
            self._jobs.pop(job.id, None)
            shutil.rmtree(job.folder, ignore_errors=True)
