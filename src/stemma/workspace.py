"""Recall or compute, then store. No method lives here: models go to the stages, their answers to the registry."""

import contextlib
import dataclasses
from collections.abc import Iterator, MutableSequence, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stemma.errors import (
    MisuseError,
    NotAModelError,
    RegistryError,
    StemmaError,
    UnknownNameError,
    UnreadableModelError,
    UnusableRegistryError,
)
from stemma.models.load import Checkpoint, discover, load, open_models
from stemma.models.model import Model
from stemma.registry import Registry, comparisons, describe
from stemma.registry.examine import Examined, copy_weights, examined, fingerprinters
from stemma.registry.records import Finding, ModelRecord, Progress
from stemma.types import Comparison, Digest, Fingerprint, Trace

if TYPE_CHECKING:
    from stemma.lineage.trace import Candidate

ALPHA = 0.01
"""Level of a decision where none is given."""

LIMIT = 48
"""Registries up to this size are compared completely; of larger ones, about as many candidates as this."""


@dataclass(frozen=True, slots=True)
class AddResult:
    """What became of one checkpoint.

    Attributes:
        name: The model's name.
        path: The file or folder.
        digest: The model's digest, None where it could not be read.
        status: `added`, `known`, `replaced` or `failed`.
        error: What is wrong, None where nothing is.
    """

    name: str
    path: str
    digest: Digest | None
    status: str
    error: str | None = None


class Workspace:
    """A registry and the work that is done with it."""

    def __init__(self, registry: Registry, jobs: int = 1, progress: Progress | None = None) -> None:
        """Bring a registry and a place to report progress together.

        Args:
            registry: Where records are kept.
            jobs: Processes that enrol, or threads that compare, at once.
            progress: Called with what is being done, how much is done and of how much.
        """
        self.registry = registry
        self._jobs = max(1, jobs)
        self._progress = progress or (lambda what, done, total: None)

    # The registry

    def list(self) -> tuple[ModelRecord, ...]:
        """All live models, sorted by name."""
        return self.registry.models()

    def show(self, name_or_digest: str) -> ModelRecord:
        """The record of one live model, by name or by a digest prefix of at least 8 characters."""
        return self.registry.get(name_or_digest)

    def remove(self, name: str) -> ModelRecord:
        """Take a name out of the registry; what was removed is returned."""
        return self.registry.remove(name)

    def check(self) -> "Sequence[Finding]":
        """Look whether registry and sources are what they were; what is wrong is returned."""
        return self.registry.check(self._progress)

    # Enrolling

    def add(
        self,
        paths: Sequence[Path],
        name: str | None = None,
        license: str | None = None,
        keep_weights: bool = False,
        replace: bool = False,
        all_formats: bool = False,
    ) -> Iterator[AddResult]:
        """Enrol checkpoints; one bad file never stops the rest.

        A result is given only once its model is on disk.

        Args:
            paths: Checkpoints, or folders of them.
            name: What to call the one model given.
            license: Of these models.
            keep_weights: Keep a copy of the weights too.
            replace: Let a known name stand for new weights.
            all_formats: Take NumPy and ONNX files from folders too.

        Yields:
            One result per model, in order.

        Raises:
            UnusableRegistryError: If nothing can be written.
            MisuseError: If a name is given for several checkpoints.
        """
        self.registry.make_writable()
        found = [c for path in paths for c in _discovered(Path(path), all_formats)]
        if name is not None:
            if len(found) != 1:
                raise MisuseError(f"--name names one model, but {len(found)} checkpoints were given")
            found = [dataclasses.replace(c, name=name) if isinstance(c, Checkpoint) else c for c in found]
        checkpoints = [c for c in found if isinstance(c, Checkpoint)]
        results = examined(checkpoints, license, self._jobs)
        for done, c in enumerate(found):
            self._progress(f"adding {c.name}", done, len(found))
            if isinstance(c, AddResult):
                yield c
                continue
            result = next(results)
            if isinstance(result, str):
                yield AddResult(c.name, str(c.path), None, "failed", result)
                continue
            for model in result:
                yield self._enrolled(c, model, keep_weights=keep_weights, replace=replace)

    def _enrolled(self, c: Checkpoint, found: Examined, *, keep_weights: bool, replace: bool) -> AddResult:
        record = found.record
        weights = partial(copy_weights, c, record) if keep_weights else None
        try:
            outcome = self.registry.add(record, found.tensors, found.fingerprints, weights=weights, replace=replace)
        except UnusableRegistryError:
            raise
        except StemmaError as e:
            return AddResult(record.name, str(c.path), record.digest, "failed", f"{c.path}: {e}")
        return AddResult(record.name, str(c.path), record.digest, outcome.status.value)

    # Models

    def resolve(self, text: str) -> Model:
        """The model that a person means.

        Args:
            text: An existing path, else a registry name, else a digest prefix of at least 8 characters.

        Returns:
            The model. Where an enrolled model's source is gone or has changed, its kept copy; where none was kept, a
            model that can be identified but not read.

        Raises:
            UnknownNameError: If it is none of these.
            NotAModelError: If a folder holds several checkpoints.
            MisuseError: If the text is empty.
        """
        if not text:
            raise MisuseError("an empty text names no model: give a path, a name or a digest prefix")
        if Path(text).exists():
            return load(Path(text))
        try:
            return self.reopen(self.registry.get(text))
        except UnknownNameError as e:
            raise UnknownNameError(f"there is no file '{text}', and {e}") from None

    def reopen(self, record: ModelRecord) -> Model:
        """The weights of an enrolled model, verified by digest.

        Cost: one pass over the source.

        Args:
            record: The model.

        Returns:
            As `resolve`.
        """
        gone = f"the weights of '{record.name}' are not at {record.source} any more"
        with contextlib.suppress(StemmaError, OSError):
            for model in open_models(record.source, record.name):
                if model.digest == record.digest:
                    return describe.renamed(model, record.name)
            gone = f"the weights at {record.source} are not those that were enrolled as '{record.name}'"
        kept = self.registry.weights(record)
        if kept is not None:
            return describe.from_kept(record, kept)
        return describe.remembered(record, self.registry.tensors(record.digest), gone)

    # Questions

    def compare(self, a: Model, b: Model, alpha: float = ALPHA) -> Comparison:
        """All evidence on a pair.

        Args:
            a: The first model.
            b: The second one.
            alpha: Level of the decision.

        Returns:
            The comparison.
        """
        comparisons.check_level(alpha)
        if describe.is_remembered(a) or describe.is_remembered(b):
            return self._from_sketches(a, b, alpha)
        return _compared(a, b, alpha)

    def trace(
        self, model: Model, against: Sequence[Path] | None = None, alpha: float = ALPHA, limit: int = LIMIT
    ) -> Trace:
        """Where a model comes from.

        Args:
            model: The suspect.
            against: Search these checkpoints, or folders of them, instead of the registry.
            alpha: Level of the decision, for the whole search.
            limit: Compare all models of a registry up to this size; of a larger one, the nearest by sketch and those
                that share tensors.

        Returns:
            The answer.
        """
        from stemma.lineage.trace import trace

        comparisons.check_level(alpha)
        if against is not None:
            candidates, unread = _opened([Path(p) for p in against], model)
            n_searched = len(candidates)
        else:
            candidates, n_searched = self._enrolled_candidates(model, limit)
            unread = ()
        gone: MutableSequence[str] = []
        failed: MutableSequence[str] = []

        def compared(c: "Candidate") -> Comparison:
            try:
                return self._recalled(c, model, alpha, gone) if against is None else _compared(c.load(), model, alpha)
            except UnreadableModelError as e:  # one candidate never stops the search
                failed.append(str(e))
                return comparisons.unanswered(c.ref, model.ref, str(e))

        with ThreadPoolExecutor(self._jobs) as pool:
            pending = {id(c): pool.submit(compared, c) for c in candidates}
            done = iter(range(len(candidates)))

            def evidence(c: "Candidate") -> Comparison:
                self._progress(f"comparing with {c.ref.name}", next(done, len(candidates)), len(candidates))
                return pending[id(c)].result()

            try:
                found = trace(model, candidates, evidence, alpha=alpha, n_searched=n_searched)
            finally:
                pool.shutdown(cancel_futures=True)
        unseen = [f"{len(unread)} files that cannot be read: {'; '.join(unread[:3])}"] if unread else []
        if gone:
            unseen.append(
                f"the weights of {', '.join(sorted(gone)[:5])}{' …' if len(gone) > 5 else ''}: only sketches are left"
            )
        if failed:
            unseen.append(f"{len(failed)} models that cannot be compared: {'; '.join(sorted(failed)[:3])}")
        return dataclasses.replace(found, cannot_see=(*found.cannot_see, *unseen))

    def _enrolled_candidates(self, model: Model, limit: int) -> "tuple[Sequence[Candidate], int]":
        contents = self.registry.count()
        if contents <= limit + 1:
            live = self.registry.models()
        else:
            copies = self.registry.by_names_free_digest(model.names_free_digest)
            near = {r.name: r for digest in self._near(model, limit) for r in self.registry.by_digest(digest)}
            live = sorted({**near, **{r.name: r for r in copies}}.values(), key=lambda r: r.name)
        others = [r for r in live if not _is_itself(r, model)]
        alone = len(others) < len(live) and model.digest not in {r.digest for r in others}
        return [self._candidate(r) for r in others], contents - alone

    def itself(self, model: Model) -> tuple[ModelRecord, ...]:
        """The records under which a model is enrolled from the very place it was read from: a trace leaves them out."""
        return tuple(r for r in self.registry.by_digest(model.digest) if _is_itself(r, model))

    def _near(self, model: Model, limit: int) -> set[Digest]:
        sketch = self._sketch(model)
        telling = [model.tensor_digests[n] for n, t in model.tensors.items() if sum(s > 1 for s in t.shape) >= 2]
        near = set(self.registry.by_tensor_digests(telling, limit))  # a vector of ones is shared by thousands
        if sketch is not None:
            index = self.registry.sketch_index(sketch.spec)
            near.update(n.digest for n in index.nearest(np.asarray(sketch.values["bits"]), limit + 1))
        return near

    def _candidate(self, record: ModelRecord) -> "Candidate":
        from stemma.lineage.trace import Candidate

        tensors = {t.name: t.digest for t in self.registry.tensors(record.digest)}
        claims = {**record.claims, **({"license": record.license} if record.license else {})}
        return Candidate(record.ref, record.names_free_digest, tensors, partial(self.reopen, record), claims)

    def _recalled(self, c: "Candidate", suspect: Model, alpha: float, gone: "MutableSequence[str]") -> Comparison:
        """Compare an enrolled model with a suspect, once: the answer is kept.

        Returns:
            The comparison.
        """
        spec = comparisons.spec(alpha)
        known = self.registry.get_evidence(c.ref.digest, suspect.digest, spec)
        if known is not None:
            return comparisons.decode(known.content, c.ref, suspect.ref)
        candidate = c.load()
        if describe.is_remembered(candidate) or describe.is_remembered(suspect):
            gone.append(c.ref.name if describe.is_remembered(candidate) else suspect.name)
            return self._from_sketches(candidate, suspect, alpha)
        found = _compared(candidate, suspect, alpha)
        with contextlib.suppress(RegistryError):  # a registry that cannot be written still answers
            self.registry.put_evidence(c.ref.digest, suspect.digest, spec, comparisons.encode(found))
        return found

    def _sketch(self, model: Model) -> Fingerprint | None:
        method = fingerprinters()[0]
        if describe.is_remembered(model):
            return self.registry.fingerprint(model.digest, method.spec)
        return method(model)

    def _from_sketches(self, a: Model, b: Model, alpha: float) -> Comparison:
        missing = next(m.notes[0] for m in (a, b) if describe.is_remembered(m))
        return comparisons.from_sketches(a, b, (self._sketch(a), self._sketch(b)), missing, alpha)


def _compared(a: Model, b: Model, alpha: float) -> Comparison:
    from stemma.kinship.compare import compare

    return compare(a, b, alpha=alpha)


def _is_itself(record: ModelRecord, model: Model) -> bool:
    return record.source == model.source and record.digest == model.digest


def _discovered(path: Path, all_formats: bool) -> Iterator[Checkpoint | AddResult]:
    try:
        found = False
        for checkpoint in discover(path, all_formats):
            found = True
            yield checkpoint
    except (StemmaError, OSError) as e:
        yield AddResult(path.stem, str(path), None, "failed", str(e))
        return
    if not found:
        yield AddResult(path.name, str(path), None, "failed", f"{path} holds no checkpoint. Is the path right?")


def _opened(paths: Sequence[Path], suspect: Model) -> "tuple[list[Candidate], list[str]]":
    """Candidates from files instead of a registry, each under a name of its own.

    Returns:
        The candidates, and what is wrong with the files that are none.

    Raises:
        NotAModelError: If there is nothing at a path.
    """
    from stemma.lineage.trace import Candidate

    for path in paths:
        if not path.exists():
            raise NotAModelError(f"there is nothing at {path} to search. Is the path right?")
    candidates: list[Candidate] = []
    unread: list[str] = []
    names: set[str] = set()
    for found in (c for path in paths for c in _discovered(path, all_formats=False)):
        if isinstance(found, AddResult):
            unread.append(found.error or found.path)
            continue
        try:
            for model in open_models(found.path, found.name if found.name not in names else str(found.path)):
                names.add(model.name)
                if not (model.source == suspect.source and model.digest == suspect.digest):
                    again = partial(_same, model)
                    candidates.append(
                        Candidate(model.ref, model.names_free_digest, model.tensor_digests, again, model.claims)
                    )
        except (StemmaError, OSError) as e:
            unread.append(str(e))
    return candidates, unread


def _same(model: Model) -> Model:
    return model
