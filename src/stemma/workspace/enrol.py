"""Enrols checkpoints into the registry; one bad file never stops the others."""

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.checkpoints.digest import is_partial
from stemma.checkpoints.load import Checkpoint, Unread, explain_no_checkpoint, survey
from stemma.checkpoints.model import Model
from stemma.checkpoints.remote import is_remote, place, without_queries
from stemma.checkpoints.remote.names import HUB
from stemma.checkpoints.remote_models import pinned
from stemma.errors import MisuseError, RegistryError, StemmaError, UnknownNameError, UnusableRegistryError
from stemma.networks.load import open_models
from stemma.registry import Registry
from stemma.registry.additions import Addition
from stemma.registry.ingest import IngestedModel, copy_weights, fingerprinters
from stemma.registry.model_records import with_name
from stemma.registry.records import AddOutcome, ModelRecord, Progress
from stemma.types import Digest
from stemma.workspace.engines.base import AbstractEngine
from stemma.workspace.files_read import FilesRead
from stemma.workspace.read_checkpoints import read_all

if TYPE_CHECKING:
    from stemma.probes import Probes


TOGETHER, TOGETHER_SECONDS = 256, 0.5
"""Models that are written in one transaction at most, and for how long they are collected."""

LONG_READ = 64 << 20
"""Bytes of a checkpoint before which everything that was read is written."""

SKIPPED, UNSURE = "skipped", "left out"
"""Status of files that are not read: those that certainly hold models, and those that may be anything."""


@dataclass(frozen=True, slots=True)
class AddResult:
    """What became of one checkpoint.

    Attributes:
        name: The model's name.
        path: The file or folder.
        digest: The model's digest, None where it could not be read.
        status: `added`, `known`, `replaced`, `failed`; `skipped` (a model of a kind that is not read) or `left out`
            (what may be anything: archives, arrays).
        error: What is wrong, None where nothing is.
        note: What a person should know: what was skipped or left out of the file; why no functional sketch was kept
            although probes were given.
    """

    name: str
    path: str
    digest: Digest | None
    status: str
    error: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        """Take keys out of addresses: a result is printed, and passed on."""
        object.__setattr__(self, "path", without_queries(self.path))
        object.__setattr__(self, "error", self.error and without_queries(self.error))


@dataclass(frozen=True)
class Enrolment:
    """Options of enrolling checkpoints, as `Workspace` and `Workspace.add` take them."""

    registry: Registry
    engine: AbstractEngine | None
    progress: Progress
    license: str | None = None
    keep_weights: bool = False
    replace: bool = False
    probes: "Probes | None" = None
    prepare: Callable[[Model], Model] | None = None

    def __call__(self, paths: Sequence[Path | str], name: str | None, all_formats: bool) -> Iterator[AddResult]:
        """Enrol checkpoints and folders of them, giving one result per model once it is on disk."""
        self.registry.make_writable()
        discovered = [c for path in paths for c in discover(place(path), all_formats)]
        if name is not None:
            if len(discovered) != 1:
                raise MisuseError(f"--name names one model, but {len(discovered)} checkpoints were given")
            discovered = [dataclasses.replace(c, name=name) if isinstance(c, Checkpoint) else c for c in discovered]
        discovered = [self._on_server(c) for c in with_distinct_names(discovered)]
        with FilesRead().opened() as read_before:
            yield from self._read_and_write(discovered, read_before)

    def _read_and_write(
        self, discovered: Sequence[Checkpoint | AddResult], read_before: FilesRead
    ) -> Iterator[AddResult]:
        checkpoints = [c for c in discovered if isinstance(c, Checkpoint)]
        states = {c: read_before.state(c) for c in checkpoints}
        known = {c: self._known(c, read_before, state) for c, state in states.items()}
        results = read_all([c for c in checkpoints if not known[c]], self.license, self.engine)

        def remember(c: Checkpoint, models: Sequence[IngestedModel]) -> None:
            read_before.remember(c, states[c], models)

        waiting: list[tuple[Checkpoint, IngestedModel] | AddResult] = []
        since = time.monotonic()
        for done, c in enumerate(discovered):
            self.progress(f"adding {c.name}", done, len(discovered))
            if len(waiting) >= TOGETHER or time.monotonic() - since > TOGETHER_SECONDS or _takes_long(c):
                yield from self._write(waiting, remember)
                waiting, since = [], time.monotonic()
            if isinstance(c, AddResult):
                waiting.append(c)
                continue
            if known[c]:
                waiting += known[c]
                continue
            result = next(results)
            if isinstance(result, str):
                waiting.append(AddResult(c.name, str(c.path), None, "failed", result))
                continue
            waiting += [(c, model) for model in result]
        yield from self._write(waiting, remember)

    def _on_server(self, c: Checkpoint | AddResult) -> Checkpoint | AddResult:
        """Of a model in a repository, the commit is asked for first: what is enrolled at that commit is not read."""
        if isinstance(c, AddResult) or not is_remote(c.path):
            return c
        try:
            source = pinned(str(c.path))
        except StemmaError as e:
            return AddResult(c.name, str(c.path), None, "failed", str(e))
        with contextlib.suppress(RegistryError, UnknownNameError):
            known = self.registry.get(c.name)
            asks_more = self.replace or self.keep_weights or self.probes is not None
            if (known.name, known.source) == (c.name, source) and source.startswith(HUB) and not asks_more:
                return AddResult(known.name, str(c.path), known.digest, "known")
        return dataclasses.replace(c, path=source) if source.startswith(HUB) else c

    def _known(self, c: Checkpoint, read_before: FilesRead, state: str) -> tuple[AddResult, ...]:
        """Results for a checkpoint that is enrolled and has not changed since; none where it must be read."""
        if self.license is not None or self.keep_weights or self.replace or self.probes is not None:
            return ()
        out, spec = [], fingerprinters()[0].spec
        for model in read_before.recall(c, state):
            try:
                same = self.registry.by_digest(Digest(model.digest))
                record = next((r for r in same if (r.name, r.source) == (model.name, model.source)), None)
                if record is None or self.registry.fingerprint(record.digest, spec) is None:
                    return ()
            except UnusableRegistryError:
                raise
            except StemmaError:
                return ()
            note = "; ".join(dict.fromkeys(model.notes))
            out.append(AddResult(model.name, str(c.path), record.digest, "known", note=note))
        return tuple(out)

    def _write(
        self,
        waiting: "Sequence[tuple[Checkpoint, IngestedModel] | AddResult]",
        remember: Callable[[Checkpoint, Sequence[IngestedModel]], None],
    ) -> Iterator[AddResult]:
        """Write models that were read, in order; small ones in one transaction, each reported once it is on disk."""
        written: dict[int, AddOutcome | RegistryError] = {}
        additions: dict[int, Addition] = {}
        for i, one in enumerate(waiting):
            if not isinstance(one, AddResult) and not self.keep_weights:
                m = one[1]
                try:
                    additions[i] = Addition(m.record, m.tensors, m.fingerprints)
                except RegistryError as e:
                    written[i] = e
        small = {i: a for i, a in additions.items() if not a.large}
        if len(small) > 1:
            written |= zip(small, self.registry.add_all([*small.values()], replace=self.replace), strict=True)
        enrolled: dict[Checkpoint, list[IngestedModel]] = {}
        failed: set[Checkpoint] = set()
        for i, one in enumerate(waiting):
            if isinstance(one, AddResult):
                yield one
                continue
            result = self._enrol(*one, written.get(i))
            enrolled.setdefault(one[0], []).append(one[1])
            if result.error:
                failed.add(one[0])
            yield result
        for c, models in enrolled.items():
            if c not in failed:
                remember(c, models)

    def _enrol(
        self, c: Checkpoint, examined_model: IngestedModel, written: "AddOutcome | RegistryError | None"
    ) -> AddResult:
        record = examined_model.record
        if self.keep_weights and is_partial(record.digest):
            why = f"{c.path}: only a sample of this model was read, so its weights cannot be kept: add --download"
            return AddResult(record.name, str(c.path), record.digest, "failed", why)
        weights = partial(copy_weights, c, record) if self.keep_weights else None
        try:
            if isinstance(written, RegistryError):
                raise written
            outcome = written or self.registry.add(
                record, examined_model.tensors, examined_model.fingerprints, weights=weights, replace=self.replace
            )
            note = "; ".join(dict.fromkeys((*examined_model.notes, *filter(None, [self._keep_sketches(c, record)]))))
        except UnusableRegistryError:
            raise
        except StemmaError as e:
            return AddResult(record.name, str(c.path), record.digest, "failed", f"{c.path}: {e}")
        return AddResult(record.name, str(c.path), record.digest, outcome.status.value, note=note)

    def _keep_sketches(self, c: Checkpoint, record: ModelRecord) -> str:
        """Keep functional sketches for the probes; returns why there are none, for a model that cannot be run."""
        if self.probes is None:
            return ""
        from stemma.fingerprints.dna import DNA, MIN_PROBES
        from stemma.kinship.function.sketches import FunctionalSketch
        from stemma.training import shipped_dna

        methods: list[Any] = [FunctionalSketch.of(self.probes)]
        methods += [DNA(encoder=shipped_dna(self.probes.kind))] if len(self.probes) >= MIN_PROBES else []
        missing = [m for m in methods if self.registry.functional(record.digest, self.probes.digest, m.spec) is None]
        if not missing:
            return ""
        self.progress(f"computing the functional sketch of {record.name}", 0, 1)
        try:
            model = next(m for m in open_models(c.path, c.name) if m.name == record.name)
            model = with_name(model, record.name)
            model.__dict__["digest"] = record.digest  # read and verified a moment ago
            model = model if self.prepare is None else self.prepare(model)
            fingerprints = [method(model, self.probes) for method in missing]
        except (StemmaError, StopIteration) as e:
            return f"no functional sketch: {e}"
        for fingerprint in fingerprints:
            self.registry.put_functional(record.digest, fingerprint)
        return ""


def _takes_long(c: "Checkpoint | AddResult") -> bool:
    """Whether a checkpoint is so large, a folder or on a server, that what was read before it is written first."""
    try:
        large = is_remote(c.path) or Path(c.path).is_dir() or Path(c.path).stat().st_size > LONG_READ
        return isinstance(c, Checkpoint) and large
    except OSError:
        return True


def discover(path: Path | str, all_formats: bool) -> Iterator[Checkpoint | AddResult]:
    """The checkpoints at a path (a file or a folder) or on a server, and a result for each that cannot be enrolled."""
    skipped: dict[str, list[Unread]] = {}
    found = False
    try:
        for item in survey(path, all_formats):
            if isinstance(item, Unread):
                skipped.setdefault(item.reason, []).append(item)
                continue
            found = True
            yield item
    except (StemmaError, OSError) as e:
        yield AddResult(Path(path).stem, str(path), None, "failed", str(e))
        return
    if not found:
        yield AddResult(Path(path).name, str(path), None, "failed", explain_no_checkpoint(Path(path)))
        return
    for why, places in skipped.items():
        counted = f" and {len(places) - 1} more like it were" if len(places) > 1 else " was"
        first = places[0].path
        note = f"{first}{counted} skipped: it is {why}"
        yield AddResult(first.stem, str(first), None, SKIPPED if places[0].is_model else UNSURE, note=note)


def with_distinct_names(checkpoints: Sequence[Checkpoint | AddResult]) -> list[Checkpoint | AddResult]:
    """Checkpoints in the same order; where two have one name, their folders are put before it."""
    names = Counter(c.name for c in {_place(c): c for c in checkpoints if isinstance(c, Checkpoint)}.values())
    names_taken = set(names)
    out: list[Checkpoint | AddResult] = []
    for c in checkpoints:
        if isinstance(c, Checkpoint) and isinstance(c.path, Path) and names[c.name] > 1:
            parts = c.path.absolute().parent.parts[1:]
            candidates = (f"{'/'.join(parts[-n:])}/{c.name}" for n in range(1, len(parts) + 1))
            name = next((n for n in candidates if n not in names_taken), str(c.path))
            c = dataclasses.replace(c, name=name)
            names_taken.add(name)
        out.append(c)
    return out


def _place(c: Checkpoint) -> str:
    """What tells two checkpoints apart: where they lie."""
    return str(c.path.absolute()) if isinstance(c.path, Path) else c.path
