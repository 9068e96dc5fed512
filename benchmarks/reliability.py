"""What survives: writers killed at random moments, two writers at once, a read-only folder, a full disk.

    python benchmarks/reliability.py [--kills 100] [--seed 20261120] [--out benchmarks/results/reliability.json]

A model counts as enrolled from the moment that `Workspace.add` has given its result. After every kill the registry is
opened anew: every enrolled model must be there with its digest, every model that is there must be whole (its list of
tensors, its fingerprint and, where it was kept, its weights), and `check` must find nothing.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from stemma.networks.load import load
from stemma.registry import Registry, ingest
from testbeds.measured import stamp

SEED = 20261120
MODELS = 40
"""Checkpoints per run of a writer."""

ROUNDS = 10
"""Kills that one registry lives through."""

MODES = ("add", "keep", "replace", "jobs")
"""How the writers write, in turn: plainly, keeping weights, replacing, with two worker processes."""

WRITER = """
import sys
from pathlib import Path
from stemma.errors import StemmaError
from stemma.registry import Registry
from stemma.workspace import Workspace

def main():
    registry, mode, *paths = sys.argv[1:]
    w = Workspace(Registry(registry), jobs=2 if mode == "jobs" else 1)
    print("ready", flush=True)
    try:
        w.add([Path(p) for p in paths], keep_weights=mode == "keep", replace=mode == "replace",
              on_result=lambda r: print(r.status, r.name, r.digest, r.error, sep="\\t", flush=True))
    except StemmaError as e:
        print("stopped", type(e).__name__, e, sep="\\t", flush=True)
    print("done", flush=True)

if __name__ == "__main__":
    main()
"""


def checkpoints(folder: Path, seed: int, prefix: str, count: int = MODELS, size: int = 24) -> Path:
    """Write a folder of small models.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        layers = {f"l{j}.weight": rng.standard_normal((size, size)).astype(np.float32) for j in range(3)}
        save_file(layers, folder / f"{prefix}{i:03}.safetensors")
    return folder


class Writers:
    """Starts processes that add folders to a registry."""

    def __init__(self, home: Path) -> None:
        self.script = home / "writer.py"
        self.script.write_text(WRITER)
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(self, registry: Path, mode: str, *folders: Path) -> subprocess.Popen[str]:
        """Start one.

        Returns:
            The process, after it has said that it is ready.
        """
        process = subprocess.Popen(
            [sys.executable, self.script, registry, mode, *folders],
            stdout=subprocess.PIPE, text=True, env=self.environment, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    @staticmethod
    def said(process: subprocess.Popen[str]) -> list[list[str]]:
        """What a process reported until its end; a line that was cut off does not count.

        Returns:
            The fields of each line.
        """
        text, _ = process.communicate()
        return [line.split("\t") for line in text.split("\n")[:-1]]


def missing(registry: Path, enrolled: dict[str, str]) -> dict[str, list[str]]:
    """What is wrong with a registry that was written as far as `enrolled`.

    Returns:
        Names lost, names that are there in part, and findings of `check`; all empty if all is well.
    """
    with Registry(registry) as r:
        findings = [f"{f.kind} {f.subject}: {f.message}" for f in r.check()]
        live = {m.name: m for m in r.models()}
        lost = [n for n, digest in enrolled.items() if n not in live or live[n].digest != digest]
        half = []
        for m in live.values():
            whole = len(r.tensors(m.digest)) == m.tensors == 3
            whole &= all(r.fingerprint(m.digest, method.spec) is not None for method in ingest.fingerprinters())
            whole &= load(m.source).digest == m.digest
            kept = r.weights(m)
            whole &= kept is None or kept.stat().st_size > 0
            if not whole:
                half.append(m.name)
        index = len(r.sketch_index(ingest.fingerprinters()[0].spec))
        if index != len({m.digest for m in live.values()}):
            half.append(f"{index} sketches for {len(live)} models")
    return {"lost": lost, "half": half, "findings": findings}


def kills(home: Path, writers: Writers, count: int, seed: int) -> dict[str, Any]:
    """Kill writers at random moments of `add`.

    Returns:
        Counts; `lost`, `half` and `findings` list everything that went wrong.
    """
    rng = random.Random(seed)
    out: dict[str, Any] = {"kills": 0, "ended_before_the_kill": 0, "by_mode": dict.fromkeys(MODES, 0), "orphans": 0}
    out |= {"enrolled_when_killed": [], "lost": [], "half": [], "findings": [], "rerun_failures": []}
    took: dict[str, float] = {}
    for mode in MODES:  # how long a whole run takes, so that kills fall everywhere in it
        folder = checkpoints(home / f"timing-{mode}", seed, "t")
        process, start = writers.start(home / f"timing-{mode}.db", mode, folder), time.monotonic()
        writers.said(process)
        took[mode] = time.monotonic() - start
    enrolled: dict[str, str] = {}
    i = -1
    while out["kills"] < count:
        i += 1
        mode = MODES[rng.randrange(len(MODES))]
        registry = home / f"killed-{i // ROUNDS}" / "r.db"
        if i % ROUNDS == 0:
            enrolled = {}
        prefix = f"r{i % ROUNDS}-" if mode != "replace" else "shared-"
        folder = checkpoints(home / f"models-{i}", seed + 1 + i, prefix)
        process = writers.start(registry, mode, folder)
        time.sleep(rng.uniform(0, took[mode]))
        process.send_signal(signal.SIGKILL)
        lines = writers.said(process)
        reported = {line[1]: line[2] for line in lines if line[0] in {"added", "replaced", "known"}}
        if ["done"] in lines:
            out["ended_before_the_kill"] += 1
        else:
            out["kills"] += 1
            out["by_mode"][mode] += 1
            out["enrolled_when_killed"].append(len(reported))
        out["orphans"] += orphans(process.pid)
        # Between the commit and the report a process can die: such a model is there and was not reported.
        enrolled |= reported
        if mode == "replace" and registry.exists():
            with Registry(registry) as r:
                now = {m.name: m.digest for m in r.models() if m.name.startswith("shared-")}
                new = {p.stem: load(p).digest for p in folder.iterdir()}
                enrolled |= {n: d for n, d in now.items() if new.get(n) == d}
        for key, values in missing(registry, enrolled).items():
            out[key] += [f"round {i} ({mode}): {v}" for v in values]
        if i % ROUNDS == ROUNDS - 1 or out["kills"] == count:  # a killed registry can be written again
            again = writers.said(writers.start(registry, "replace", folder))
            out["rerun_failures"] += [f"round {i}: {line}" for line in again if line[0] in {"failed", "stopped"}]
    return out | {"seconds_of_a_whole_run": {k: round(v, 3) for k, v in took.items()}}


def orphans(group: int) -> int:
    """Worker processes of a killed writer that are still there.

    Returns:
        1 if there are any after a grace of ten seconds (one that was still starting ends when it is done with that).
    """
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return 0
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return 1


def two_at_once(home: Path, writers: Writers, seed: int) -> dict[str, Any]:
    """Two processes add the same folder and one of their own each.

    Returns:
        Counts, and what is wrong.
    """
    same = checkpoints(home / "both", seed, "both-")
    own = [checkpoints(home / f"own{i}", seed + 1 + i, f"own{i}-") for i in range(2)]
    registry = home / "two" / "r.db"
    pair = [writers.start(registry, "add", *order) for order in ((same, own[0]), (own[1], same))]
    lines = [line for p in pair for line in writers.said(p)]
    enrolled = {line[1]: line[2] for line in lines if line[0] in {"added", "known"}}
    statuses = {s: sum(line[0] == s for line in lines) for s in ("added", "known", "failed", "stopped")}
    return {**statuses, "models": len(enrolled), "expected": 3 * MODELS, **missing(registry, enrolled)}


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Generator[bool]:
    """A mount for the duration of a block.

    Yields:
        Whether mounting is allowed here.
    """
    folder.mkdir(exist_ok=True)
    allowed = os.name == "posix" and subprocess.run(["mount", *arguments, folder], check=False).returncode == 0
    try:
        yield allowed
    finally:
        if allowed:
            subprocess.run(["umount", folder], check=True)


def read_only(home: Path, writers: Writers, seed: int) -> dict[str, Any]:
    """A registry in a folder that cannot be written.

    Returns:
        What the writer said, what a reader saw, and whether a byte changed.
    """
    place = home / "readonly"
    first, second = (checkpoints(home / f"ro{i}", seed + i, f"ro{i}-", 5) for i in range(2))
    enrolled = {line[1]: line[2] for line in writers.said(writers.start(place / "r.db", "add", first)) if line[1:]}
    before = {p.name: p.read_bytes() for p in place.iterdir()}
    with mounted(place, "--bind", str(place)) as allowed:
        if not allowed:
            return {"skipped": "mounting is not allowed here"}
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        said = [line for line in writers.said(writers.start(place / "r.db", "add", second)) if line[1:]]
        wrong = missing(place / "r.db", enrolled)
        subprocess.run(["mount", "-o", "remount,rw,bind", place], check=True)
    unchanged = before == {p.name: p.read_bytes() for p in place.iterdir()}
    return {"said": [line[:2] for line in said], "message": said[0][2], "unchanged": unchanged, **wrong}


def full_disk(home: Path, writers: Writers, seed: int) -> dict[str, Any]:
    """A registry on a disk of 12 MB that fills up, and is then given more room.

    Returns:
        Per mode: how many models were enrolled before the disk was full, what was said, and what is wrong.
    """
    out: dict[str, Any] = {}
    for k, mode in enumerate(("add", "keep")):
        place = home / f"full-{mode}"
        folder = checkpoints(home / f"fill-{mode}", seed + k, "f", 400, size=64 if mode == "keep" else 24)
        with mounted(place, "-t", "tmpfs", "-o", "size=12m", "tmpfs") as allowed:
            if not allowed:
                return {"skipped": "mounting is not allowed here"}
            lines = writers.said(writers.start(place / "r.db", mode, folder))
            enrolled = {line[1]: line[2] for line in lines if line[0] == "added"}
            stopped = [line for line in lines if line[0] == "stopped"]
            wrong = missing(place / "r.db", enrolled)
            subprocess.run(["mount", "-o", "remount,size=200m", place], check=True)
            rest = writers.said(writers.start(place / "r.db", mode, folder))
            enrolled |= {line[1]: line[2] for line in rest if line[0] in {"added", "known"}}
            after = missing(place / "r.db", enrolled)
        message = stopped[0][2].replace(str(home), "…") if stopped else None
        out[mode] = {"enrolled": len([x for x in lines if x[0] == "added"]), "stopped": len(stopped),
                     "message": message, **wrong, "with_more_room": len(enrolled), "after": after}  # fmt: skip
    return out


def main() -> None:
    """Run all of it and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "reliability.json")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        writers = Writers(home)
        result = {
            "seed": options.seed,
            "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
            "models_per_run": MODELS,
            "killed": kills(home, writers, options.kills, options.seed),
            "two_at_once": two_at_once(home, writers, options.seed),
            "read_only": read_only(home, writers, options.seed),
            "full_disk": full_disk(home, writers, options.seed),
        }
        text = json.dumps(
            result | stamp("reliability") | {"seconds": round(time.monotonic() - start, 1)},
            indent=1,
            ensure_ascii=False,
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text.replace(name, "…") + "\n")


def in_a_name_space_of_its_own() -> int | None:
    """Run this program again where its mounts end with it.

    Returns:
        Its exit code; None where that is not possible or was done.
    """
    if os.name != "posix" or os.geteuid() != 0 or "STEMMA_UNSHARED" in os.environ:
        return None
    shell = ["unshare", "--mount", "--propagation", "private"]
    if not shutil.which(shell[0]) or subprocess.run([*shell, "true"], check=False, capture_output=True).returncode:
        return None
    again = [*shell, sys.executable, *sys.argv]
    return subprocess.run(again, env={**os.environ, "STEMMA_UNSHARED": "1"}, check=False).returncode


if __name__ == "__main__":
    code = in_a_name_space_of_its_own()
    if code is not None:
        sys.exit(code)
    main()
