"""Checkpoints into the registry, one bad file never stopping the rest."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.checkpoints.load import Checkpoint, Unread, explain_no_checkpoint, survey
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError, UnusableRegistryError
from stemma.networks.load import open_models
from stemma.registry import Registry
from stemma.registry.ingest import IngestedModel, copy_weights, ingest_all
from stemma.registry.model_records import with_name
from stemma.registry.records import ModelRecord, Progress
from stemma.types import Digest

if TYPE_CHECKING:
    from stemma.probes import Probes


SKIPPED, UNSURE = "skipped", "left out"
"""What became of files that are not read: those that surely hold models, and those that may be anything."""


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
class Enrolling:
    """How checkpoints are enrolled.

    Attributes:
        registry: Where.
        jobs: Processes that read at once.
        progress: Called with what is being done, how much is done and of how much.
        license: Of these models.
        keep_weights: Keep a copy of the weights too.
        replace: Let a known name stand for new weights.
        probes: Keep functional sketches for these.
        prepare: Gives a model its network, where the files alone do not say how it is run.
    """

    registry: Registry
    jobs: int
    progress: Progress
    license: str | None = None
    keep_weights: bool = False
    replace: bool = False
    probes: "Probes | None" = None
    prepare: Callable[[Model], Model] | None = None

    def __call__(self, paths: Sequence[Path], name: str | None, all_formats: bool) -> Iterator[AddResult]:
        """Enrol checkpoints.

        Args:
            paths: Checkpoints, or folders of them.
            name: What to call the one model given.
            all_formats: Take NumPy and ONNX files from folders too.

        Yields:
            One result per model, once it is on disk.

        Raises:
            MisuseError: If a name is given for several checkpoints.
        """
        self.registry.make_writable()
        found = [c for path in paths for c in discovered(Path(path), all_formats)]
        if name is not None:
            if len(found) != 1:
                raise MisuseError(f"--name names one model, but {len(found)} checkpoints were given")
            found = [dataclasses.replace(c, name=name) if isinstance(c, Checkpoint) else c for c in found]
        found = named_apart(found)
        checkpoints = [c for c in found if isinstance(c, Checkpoint)]
        results = ingest_all(checkpoints, self.license, self.jobs)
        for done, c in enumerate(found):
            self.progress(f"adding {c.name}", done, len(found))
            if isinstance(c, AddResult):
                yield c
                continue
            result = next(results)
            if isinstance(result, str):
                yield AddResult(c.name, str(c.path), None, "failed", result)
                continue
            for model in result:
                yield self._enrolled(c, model)

    def _enrolled(self, c: Checkpoint, found: IngestedModel) -> AddResult:
        record = found.record
        weights = partial(copy_weights, c, record) if self.keep_weights else None
        try:
            outcome = self.registry.add(
                record, found.tensors, found.fingerprints, weights=weights, replace=self.replace
            )
            note = "; ".join(dict.fromkeys((*found.notes, *filter(None, [self._sketched(c, record)]))))
        except UnusableRegistryError:
            raise
        except StemmaError as e:
            return AddResult(record.name, str(c.path), record.digest, "failed", f"{c.path}: {e}")
        return AddResult(record.name, str(c.path), record.digest, outcome.status.value, note=note)

    def _sketched(self, c: Checkpoint, record: ModelRecord) -> str:
        """Keep what the model answers to the probes; a model that cannot be asked is enrolled all the same."""
        if self.probes is None:
            return ""
        from stemma.fingerprints.dna import DNA, MIN_PROBES
        from stemma.kinship.function.sketches import FunctionalSketch
        from stemma.training import shipped_dna

        methods: list[Any] = [FunctionalSketch.of(self.probes)]
        methods += [DNA(encoder=shipped_dna(self.probes.kind))] if len(self.probes) >= MIN_PROBES else []
        lacking = [m for m in methods if self.registry.functional(record.digest, self.probes.digest, m.spec) is None]
        if not lacking:
            return ""
        self.progress(f"asking {record.name}", 0, 1)
        try:
            model = next(m for m in open_models(c.path, c.name) if m.name == record.name)
            model = with_name(model, record.name)
            model.__dict__["digest"] = record.digest  # read and verified a moment ago
            model = model if self.prepare is None else self.prepare(model)
            made = [method(model, self.probes) for method in lacking]
        except (StemmaError, StopIteration) as e:
            return f"no functional sketch: {e}"
        for fingerprint in made:
            self.registry.put_functional(record.digest, fingerprint)
        return ""


def discovered(path: Path, all_formats: bool) -> Iterator[Checkpoint | AddResult]:
    """The checkpoints at a path, and what is wrong where there are none.

    Args:
        path: A checkpoint, or a folder of them.
        all_formats: Take NumPy and ONNX files from folders too.

    Yields:
        Checkpoints, or failures.
    """
    skipped: dict[str, list[Unread]] = {}
    found = False
    try:
        for seen in survey(path, all_formats):
            if isinstance(seen, Unread):
                skipped.setdefault(seen.reason, []).append(seen)
                continue
            found = True
            yield seen
    except (StemmaError, OSError) as e:
        yield AddResult(path.stem, str(path), None, "failed", str(e))
        return
    if not found:
        yield AddResult(path.name, str(path), None, "failed", explain_no_checkpoint(path))
        return
    for why, places in skipped.items():
        more = f" and {len(places) - 1} more like it were" if len(places) > 1 else " was"
        first = places[0].path
        note = f"{first}{more} skipped: it is {why}"
        yield AddResult(first.stem, str(first), None, SKIPPED if places[0].is_model else UNSURE, note=note)


def named_apart(found: Sequence[Checkpoint | AddResult]) -> list[Checkpoint | AddResult]:
    """Checkpoints of one run under different names: where two would have the same, their folders are put before it.

    Args:
        found: What `discovered` gave, for any number of paths.

    Returns:
        The same, in the same order.
    """
    names = Counter(c.name for c in {c.path.absolute(): c for c in found if isinstance(c, Checkpoint)}.values())
    taken = set(names)
    out: list[Checkpoint | AddResult] = []
    for c in found:
        if isinstance(c, Checkpoint) and names[c.name] > 1:
            parts = c.path.absolute().parent.parts[1:]
            longer = (f"{'/'.join(parts[-n:])}/{c.name}" for n in range(1, len(parts) + 1))
            name = next((n for n in longer if n not in taken), str(c.path))
            c = dataclasses.replace(c, name=name)
            taken.add(name)
        out.append(c)
    return out
