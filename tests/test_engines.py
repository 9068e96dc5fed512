"""Stages over many models on engines: in order, each once, whatever dies; real clusters in the slow stage."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import stemma
from checkpoints import Run
from clusters import dask_cluster, ray_cluster
from engine_tasks import deadly, deadly_once, doubled, slow
from stemma.checkpoints.load import Checkpoint
from stemma.errors import EngineError, MisuseError
from stemma.registry import Registry, ingest
from stemma.workspace import AddResult, Workspace, files_read
from stemma.workspace.engines import ALL, engine_for, run_tasks
from stemma.workspace.engines.base import AbstractEngine, AbstractPool
from stemma.workspace.engines.local import LocalProcesses
from stemma.workspace.engines.run_tasks import AHEAD, Lost, spread_over
from stemma.workspace.shared_files import FileState, Unseen, WithFiles, require_seen

pytestmark = pytest.mark.anywhere


class Died(Exception):
    """A worker of the engine below died."""


class ThreadPool(AbstractPool):
    """Threads that die by raising, and note how many tasks are in flight."""

    where = "threads"

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(2)
        self.most, self.now, self.renewed = 0, 0, 0
        self.futures: list[Future] = []

    @property
    def width(self) -> int:
        return 2

    def is_worker_lost(self, error: BaseException) -> bool:
        return isinstance(error, Died)

    def submit(self, task, value) -> Future:
        self.now += 1
        self.most = max(self.most, self.now)
        future = super().submit(task, value)
        future.add_done_callback(lambda _: setattr(self, "now", self.now - 1))
        self.futures.append(future)
        return future

    def renew(self) -> None:
        self.renewed += 1


@dataclass(frozen=True)
class Threads(AbstractEngine):
    """An engine for tests, with a pool that can be looked at."""

    pool: ThreadPool

    name: ClassVar[str] = "threads"
    form: ClassVar[str] = "threads"
    batched: ClassVar[int] = 3

    @classmethod
    def accepts(cls, address: str) -> bool:
        return address == "threads"

    @contextlib.contextmanager
    def opened(self) -> Iterator[ThreadPool]:
        yield self.pool
        self.pool.executor.shutdown()


def dies_at_seven(value: int) -> int:
    if value == 7:
        raise Died
    return 2 * value


def test_results_come_in_order_bounded_in_flight_and_the_lost_one_alone() -> None:
    pool = ThreadPool()
    drawn: list[int] = []

    def values() -> Iterator[int]:
        for i in range(50):
            drawn.append(i)
            yield i

    results = run_tasks.run(Threads("threads", pool), dies_at_seven, values(), size=lambda v: 1)
    first = next(results)
    assert first == 0
    assert len(drawn) <= 3 * (AHEAD * pool.width) + 1  # values are drawn as they are needed
    rest = list(results)
    assert [r for r in rest if not isinstance(r, Lost)] == [2 * i for i in range(1, 50) if i != 7]
    assert isinstance(rest[6], Lost)
    assert pool.most <= AHEAD * pool.width
    assert pool.renewed


def test_large_values_travel_alone_and_small_ones_together() -> None:
    for size, sent in ((1, 10), (100 << 20, 30), (3 << 20, 15)):
        pool = ThreadPool()
        assert list(run_tasks.run(Threads("threads", pool), doubled, range(30), size=lambda v, s=size: s)) == [
            *range(0, 60, 2)
        ]
        assert len(pool.futures) == sent


def test_an_interrupted_run_cancels_what_is_in_flight() -> None:
    pool, release = ThreadPool(), threading.Event()

    def first_at_once(n: int) -> int:
        if n:
            release.wait(60)
        return n

    results = run_tasks.run(Threads("threads", pool), first_at_once, range(100))
    try:
        next(results)
        closing = threading.Timer(1.0, release.set)  # tasks that run are waited for
        closing.start()
        results.close()
    finally:
        release.set()
    assert len(pool.futures) < 100
    assert any(f.cancelled() for f in pool.futures)


def test_a_worker_of_another_version_or_without_stemma_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    real = stemma.__version__

    class Elsewhere(ThreadPool):
        def submit(self, task, value) -> Future:
            monkeypatch.setattr(stemma, "__version__", "0.0.1")
            future = super().submit(task, value)
            future.exception()
            monkeypatch.setattr(stemma, "__version__", real)
            return future

    with pytest.raises(EngineError, match=f"has Stemma 0.0.1, and here is {real}: install the same version on every"):
        list(run_tasks.run(Threads("threads", Elsewhere()), doubled, [1]))

    class Bare(ThreadPool):
        def submit(self, task, value) -> Future:
            failed: Future = Future()
            failed.set_exception(ModuleNotFoundError("No module named 'stemma'"))
            return failed

    with pytest.raises(EngineError, match="a worker of threads has no Stemma: install stemma-ml"):
        list(run_tasks.run(Threads("threads", Bare()), doubled, [1]))


@pytest.mark.slow
def test_a_task_that_kills_its_process_fails_alone() -> None:
    found = list(run_tasks.run(LocalProcesses("processes:2"), deadly, range(6)))
    assert [r for r in found if not isinstance(r, Lost)] == [0, 2, 4, 8, 10]
    assert isinstance(found[3], Lost)
    with spread_over(LocalProcesses("processes:1")) as spread:
        assert list(spread(doubled, [1, 2])) == [2, 4]
        with pytest.raises(EngineError, match="was killed, perhaps for lack of memory"):
            list(spread(deadly, [2, 3]))


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("local", "processes"), ("processes:3", "processes"), ("dask://h:1", "dask"), ("tcp://h:1", "dask"),
        ("tls://h:1", "dask"), ("some/where.json", "dask"), ("ray:auto", "ray"), ("ray://h:1", "ray"),
    ],
)  # fmt: skip
def test_addresses_name_one_engine_each(address: str, kind: str) -> None:
    engine = engine_for(1, address)
    assert engine is not None
    assert engine.name == kind
    assert sum(e.accepts(address) for e in ALL) == 1


@pytest.mark.parametrize("address", ["", "foo", "http://h:1", "processes", "\x1b[31m", "https://x/y.json"])
def test_other_addresses_are_misuse(address: str) -> None:
    if address == "processes":
        assert engine_for(1, None) is None
        assert engine_for(2, None) == LocalProcesses("processes:2")
        with pytest.raises(MisuseError, match="give one of them"):
            engine_for(2, "local")
        return
    with pytest.raises(MisuseError, match=r"is no address of a cluster\. There are: local or processes:N; dask://"):
        engine_for(1, address)


@pytest.mark.parametrize("address", ["processes:0", "processes:x", "processes:", "processes:9999999", "processes:²"])
def test_numbers_of_processes_are_numbers(address: str) -> None:
    with pytest.raises(MisuseError, match="is no number of processes"):
        list(run_tasks.run(LocalProcesses(address), doubled, [1]))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("dask://127.0.0.1:1", "nothing answers at dask://127.0.0.1:1"),
        ("ray://127.0.0.1:1", "nothing answers at ray://127.0.0.1:1"),
        ("gone.json", "there is no scheduler file gone.json"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_sentence(run: Run, tmp_path: Path, address: str, said: str) -> None:
    save_file({"a": np.ones((4, 4), np.float32)}, tmp_path / "m.safetensors")
    code, out, err = run("add", tmp_path / "m.safetensors", "--cluster", address)
    assert (code, out) == (1, "")
    assert said in err
    assert err.count("\n") == 1
    assert run("add", tmp_path, "--cluster", "nonsense")[0] == 2


def test_a_worker_that_sees_other_files_is_named(tmp_path: Path) -> None:
    file = tmp_path / "m.bin"
    file.write_bytes(b"1234")
    state = FileState.of(file)
    assert (state.files, state.size) == (1, 4)
    task = WithFiles(len)
    assert task(("value", (state, FileState.of(tmp_path)))) == 5
    absent = Unseen("host7 (process 1)", FileState(str(file), None, 0))
    with pytest.raises(
        EngineError, match=r"worker on host7 \(process 1\) does not see .*m.bin: every worker of dask://"
    ):
        require_seen(absent, "dask://x")
    other = Unseen("host7 (process 1)", FileState(str(file), 1, 9))
    with pytest.raises(EngineError, match=r"sees another file \(9 bytes, here 4\) at"):
        require_seen(other, "dask://x")
    file.write_bytes(b"12345")  # it is being written: here, too
    changed = task(("value", (state,)))
    assert isinstance(changed, Unseen)
    assert "changed while it was being read" in require_seen(changed, "dask://x")
    assert FileState.of(tmp_path / "gone").files is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve relatives in files, one damaged file, and a folder with a configuration."""
    rng = np.random.default_rng(0)
    where = tmp_path / "models"
    where.mkdir()
    base = {f"l{i}.weight": rng.standard_normal((128, 128), dtype=np.float32) for i in range(3)}
    for k in range(12):
        changed = {n: a + 0.01 * k * rng.standard_normal(a.shape, dtype=np.float32) for n, a in base.items()}
        save_file(changed, where / f"m{k:02d}.safetensors")
    (where / "m05-bad.safetensors").write_bytes(b"\xff" * 100)
    return where


def enrolled(registry: Path, folder: Path, **how: str) -> tuple[list, list]:
    with Registry(registry) as opened:
        results = list(Workspace(opened, **how).add([folder]))
        return results, [replace(r, added_at="") for r in opened.models()]


def test_what_is_enrolled_and_unchanged_is_not_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files_read, "JUST_NOW", 0.0)
    registry = tmp_path / "r.db"
    first, records = enrolled(registry, folder)
    real, read = ingest.ingest, []

    def counted(checkpoint: Checkpoint, license: str | None):
        read.append(checkpoint.name)
        return real(checkpoint, license)

    monkeypatch.setattr(ingest, "ingest", counted)
    again, same = enrolled(registry, folder)
    assert read == ["m05-bad"]  # what failed is tried again
    assert same == records
    assert [(r.name, r.digest, r.note) for r in again] == [(r.name, r.digest, r.note) for r in first]
    assert {r.status for r in again} == {"known", "failed"}
    old = (folder / "m03.safetensors").stat()
    content = bytearray((folder / "m03.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "m03.safetensors").write_bytes(content)
    os.utime(folder / "m03.safetensors", ns=(old.st_atime_ns, old.st_mtime_ns))  # size and time as before
    read.clear()
    results, _ = enrolled(registry, folder)
    assert read == ["m03", "m05-bad"]
    assert "m03" in [r.name for r in results if r.error]  # the name stands for other weights
    (folder / "m00.json").write_text("{}")  # a card beside the weights may change what is claimed
    read.clear()
    enrolled(registry, folder)
    assert len(read) == 13
    read.clear()
    enrolled(tmp_path / "other.db", folder)  # another registry does not hold them
    assert len(read) == 13


def test_what_lies_outside_a_checkpoint_and_is_read_with_it_is_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter is merged with its base, ONNX keeps tensors beside the file, a part of a folder may be a link."""
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files_read, "JUST_NOW", 0.0)
    name = "model.layers.0.self_attn.q_proj"

    def values(seed: int, *shape: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    for folder in ("base", "lora", "pipeline", "elsewhere"):
        (tmp_path / folder).mkdir()
    save_file({f"{name}.weight": values(0, 8, 8)}, tmp_path / "base/model.safetensors")
    (tmp_path / "base/config.json").write_text("{}")
    low_rank = {f"base_model.model.{name}.lora_A.weight": values(1, 2, 8)}
    low_rank[f"base_model.model.{name}.lora_B.weight"] = values(2, 8, 2)
    save_file(low_rank, tmp_path / "lora/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "../base"}
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "pipeline/model_index.json").write_text("{}")
    (tmp_path / "pipeline/unet").symlink_to("../elsewhere")
    save_file({"a.weight": values(3, 8, 8)}, tmp_path / "elsewhere/model.safetensors")
    seen = [FileState.of(tmp_path / f).size for f in ("lora", "pipeline")]
    results, _ = enrolled(tmp_path / "r.db", tmp_path)
    assert {r.status for r in results} == {"added"}
    for file in ("base", "elsewhere"):
        save_file({n: a + 1 for n, a in load_file(tmp_path / file / "model.safetensors").items()} | {"b": values(4, 9)},
                  tmp_path / file / "model.safetensors")  # fmt: skip
    results, _ = enrolled(tmp_path / "r.db", tmp_path)
    assert [r.name for r in results if r.status != "failed"] == []  # the names stand for other weights
    assert all(FileState.of(tmp_path / f).size > was for f, was in zip(("lora", "pipeline"), seen, strict=True))
    (tmp_path / "net.onnx").write_bytes(b"")
    (tmp_path / "net.bin").write_bytes(b"1")
    assert str(tmp_path / "net.bin") in files_read.files_of(tmp_path / "net.onnx")


# Real clusters


def a_worker_dies_in_mid_run(address: str, folder: Path, tmp_path: Path) -> None:
    """Once by a task that dies once, once by one that always does, once from outside: every value is done once."""
    engine = engine_for(1, address)
    assert engine is not None
    assert list(run_tasks.run(engine, deadly_once, [(i, str(tmp_path)) for i in range(12)])) == [*range(0, 24, 2)]
    assert (tmp_path / "killed").exists()
    found = list(run_tasks.run(engine, deadly, range(8)))
    assert isinstance(found[3], Lost)
    assert [r for r in found if not isinstance(r, Lost)] == [2 * i for i in range(8) if i != 3]
    workers = sorted({pid for _, pid in run_tasks.run(engine, slow, range(8))})
    assert os.getpid() not in workers
    seen: list[str] = []

    def kill(result: AddResult) -> None:
        if not seen:
            os.kill(workers[0], signal.SIGKILL)
        seen.append(result.name)

    with Registry(tmp_path / "there.db") as registry:
        results = Workspace(registry, cluster=address).add([folder], on_result=kill)
        there = [replace(r, added_at="") for r in registry.models()]
        assert [r.name for r in results] == seen
        assert registry.check() == []
    assert (list(results), there) == enrolled(tmp_path / "here.db", folder)
    assert len(there) == 12


def answers_alike(run: Run, address: str, folder: Path, tmp_path: Path) -> None:
    """Trace and lineage say on the cluster what they say here."""
    for path in sorted(folder.iterdir())[3:]:
        path.unlink()
    registry = ("--registry", tmp_path / "few.db")
    assert run("add", folder, *registry)[0] == 0
    for words in (
        ("trace", folder / "m02.safetensors", "--against", folder),
        ("trace", "m02", *registry),
        ("lineage", "--redraw", *registry),
    ):
        here, there = (json.loads(run(*words, "--json", *more)[1]) for more in ((), ("--cluster", address)))
        for document in (here, there):
            document.pop("created")
            document.pop("asked")
        assert here == there


@pytest.mark.slow
def test_a_real_dask_cluster(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    with dask_cluster(tmp_path) as address:
        a_worker_dies_in_mid_run(address, folder, tmp_path)
        answers_alike(run, address, folder, tmp_path)


@pytest.mark.slow
def test_a_real_ray_cluster(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_CACHE", str(tmp_path / "cache"))
    with ray_cluster() as address:
        a_worker_dies_in_mid_run(address, folder, tmp_path)
