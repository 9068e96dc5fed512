"""Enrols checkpoints into the registry; one bad file never stops the others."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.checkpoints.digest import is_partial
from stemma.checkpoints.load import Checkpoint, Unread, explain_no_checkpoint, survey
from stemma.checkpoints.model import Model
from stemma.checkpoints.remote import is_remote, place
from stemma.checkpoints.remote.names import HUB
from stemma.checkpoints.remote_models import pinned
from stemma.errors import MisuseError, RegistryError, StemmaError, UnknownNameError, UnusableRegistryError
from stemma.networks.load import open_models
from stemma.registry import Registry
from stemma.registry.ingest import IngestedModel, copy_weights, ingest_all
from stemma.registry.model_records import with_name
from stemma.registry.records import ModelRecord, Progress
from stemma.types import Digest

if TYPE_CHECKING:
    from stemma.probes import Probes


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


@dataclass(frozen=True)
class Enrolment:
    """Options of enrolling checkpoints, as `Workspace` and `Workspace.add` take them."""

    registry: Registry
    jobs: int
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
        checkpoints = [c for c in discovered if isinstance(c, Checkpoint)]
        results = ingest_all(checkpoints, self.license, self.jobs)
        for done, c in enumerate(discovered):
            self.progress(f"adding {c.name}", done, len(discovered))
            if isinstance(c, AddResult):
                yield c
                continue
            result = next(results)
            if isinstance(result, str):
                yield AddResult(c.name, str(c.path), None, "failed", result)
                continue
            for model in result:
                yield self._enrol(c, model)

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

    def _enrol(self, c: Checkpoint, examined_model: IngestedModel) -> AddResult:
        record = examined_model.record
        if self.keep_weights and is_partial(record.digest):
            why = f"{c.path}: only a sample of this model was read, so its weights cannot be kept: add --download"
            return AddResult(record.name, str(c.path), record.digest, "failed", why)
        weights = partial(copy_weights, c, record) if self.keep_weights else None
        try:
            outcome = self.registry.add(
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
