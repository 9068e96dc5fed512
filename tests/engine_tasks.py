"""Tasks that workers of a cluster import by name."""

import os
import signal
import time
from pathlib import Path


def doubled(value: int) -> int:
    return 2 * value


def slow(value: int) -> tuple[int, int]:
    time.sleep(0.05)
    return value, os.getpid()


def deadly(value: int) -> int:
    """Kills its worker at 3, each time."""
    if value == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * value


def deadly_once(value: tuple[int, str]) -> int:
    """Kills its worker the first time that it is given 3."""
    number, folder = value
    if number == 3:
        try:
            (Path(folder) / "killed").touch(exist_ok=False)
        except FileExistsError:
            return 2 * number
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number
