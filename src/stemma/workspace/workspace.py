"""The registry and what is done with it: enrol, compare, trace, distance."""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

from stemma.ancestry.trace import Candidate
from stemma.checkpoints.model import Model
from stemma.checkpoints.remote import is_remote, place
from stemma.errors import MisuseError, StemmaError, UnknownNameError, UnusableRegistryError
from stemma.networks.load import load, open_models
from stemma.registry import Registry, comparisons, model_records
from stemma.registry.records import Finding, ModelRecord, Progress
from stemma.training import shipped_parent_model
from stemma.types import Comparison, Distance, Evidence, Fingerprint, Trace
from stemma.workspace.candidates import is_same_file
from stemma.workspace.compared_elsewhere import compare_elsewhere
from stemma.workspace.comparison_cache import ComparisonCache, compare_weights
from stemma.workspace.engines import engine_for
from stemma.workspace.enrol import AddResult, Enrolment
from stemma.workspace.known import KnownSearch, added, find_known
from stemma.workspace.read_checkpoints import with_digests
from stemma.workspace.role_assignment import COVERAGE, RoleAssignment, with_direction
from stemma.workspace.search_scope import search_files, search_registry

if TYPE_CHECKING:
    from stemma.fingerprints.base import AbstractFingerprinter
    from stemma.kinship.function.selection import Selection
    from stemma.measures.base import AbstractMeasure
    from stemma.probes import Probes
    from stemma.registry.ingest import IngestedModel
    from stemma.workspace.engines.base import AbstractEngine
    from stemma.workspace.function import FunctionAxis, Nulls

ALPHA = 0.01
"""Level of a decision where none is given."""

LIMIT = 48
"""Registries up to this size are compared completely; of larger ones, about as many candidates as this."""


class Workspace:
    """A registry and the questions that are answered with it."""

    def __init__(
        self,
        registry: Registry,
        jobs: int = 1,
        progress: Progress | None = None,
        prepare: Callable[[Model], Model] | None = None,
        cluster: str | None = None,
    ) -> None:
        """Open a registry.

        Args:
            registry: Where records are kept.
            jobs: Processes that enrol, or threads that compare, at once.
            progress: Called with what is being done, how much is done and of how much.
            prepare: Gives every model that is opened its network, where the files alone do not determine it.
            cluster: Address of the cluster that reads and compares; this machine if None.

        Raises:
            MisuseError: If it is no address of a cluster, or both `jobs` and `cluster` are given.
        """
        self.registry = registry
        self.engine = engine_for(jobs, cluster)
        self._jobs = max(1, jobs)
        self._prepare = prepare or (lambda model: model)
        self._progress = progress or (lambda what, done, total: None)

    @property
    def distant(self) -> "AbstractEngine | None":
        """The cluster, if there is one that may be on other machines."""
        return self.engine if self.engine is not None and self.engine.distant else None

    # The registry

    def list(self) -> tuple[ModelRecord, ...]:
        """All live models, sorted by name."""
        return self.registry.models()

    def show(self, name_or_digest: str) -> ModelRecord:
        """The record of one live model, by name or by a digest prefix of at least 8 characters."""
        try:
            return self.registry.get(name_or_digest)
        except UnknownNameError as e:
            if self.registry.exists():
                raise
            raise UnknownNameError(f"{e} (there is no registry at {self.registry.where})") from None

    def remove(self, name: str) -> ModelRecord:
        """Take a name out of the registry, and return its record."""
        return self.registry.remove(name)

    def check(self) -> "Sequence[Finding]":
        """Verify the integrity of registry and sources, and return what is wrong."""
        where = self.registry.where
        if not self.registry.exists():
            return [Finding("missing", where, f"there is no registry at {where}. Make one with: stemma add PATH")]
        return self.registry.check(self._progress)

    # Enrolling

    def add(
        self,
        paths: Sequence[Path | str],
        name: str | None = None,
        license: str | None = None,
        keep_weights: bool = False,
        replace: bool = False,
        all_formats: bool = False,
        probes: "Probes | None" = None,
        on_result: Callable[[AddResult], None] | None = None,
    ) -> tuple[AddResult, ...]:
        """Enrol checkpoints; one bad file never stops the others.

        Args:
            paths: Checkpoints, folders of them, or addresses of models on servers.
            name: Name of the one model given.
            license: Of these models.
            keep_weights: Keep a copy of the weights too.
            replace: Let a known name stand for new weights.
            all_formats: Take NumPy and ONNX files from folders too.
            probes: Keep a functional sketch for these, at most 256 KiB a model, for comparing later without the model.
            on_result: Called with each result as soon as its model is on disk.

        Returns:
            One result per model, in order.

        Raises:
            UnusableRegistryError: If nothing can be written.
            MisuseError: If a name is given for several checkpoints.
        """
        enrol = Enrolment(
            self.registry, self.engine, self._progress, license, keep_weights, replace, probes, self._prepare
        )
        if isinstance(paths, (str, os.PathLike)):  # a text is a sequence of letters
            paths = [place(os.fspath(paths))]
        results = []
        for result in enrol(paths, name, all_formats):
            results.append(result)
            if on_result is not None:
                on_result(result)
        return tuple(results)

    # Models

    def resolve(self, text: str) -> Model:
        """The model that a text names.

        Args:
            text: An existing path, else a registry name, else a digest prefix of at least 8 characters, else the
                address of a model on a server.

        Returns:
            The model. Where an enrolled model's source is gone or has changed, its kept copy; where none was kept, or
            where only another registry tells of the model, one that can be identified but not read.

        Raises:
            UnknownNameError: If it is none of these.
            NotAModelError: If a folder holds several checkpoints.
            MisuseError: If the text is empty.
        """
        if not text:
            raise MisuseError("an empty text names no model: give a path, a name or a digest prefix")
        if _exists(text):
            return self._prepare(load(Path(text)))
        try:
            return self.reopen(self.show(text))
        except UnknownNameError as e:
            if is_remote(text):
                return self._prepare(load(text))
            known = find_known(self.registry, text)
            if known is not None:
                return known.opened()
            raise UnknownNameError(f"there is no file '{text}', and {e}") from None

    def reopen(self, record: ModelRecord, read: "Sequence[IngestedModel]" = ()) -> Model:
        """The weights of an enrolled model, verified by digest in one pass over the source; as `resolve`.

        Args:
            record: The model.
            read: The models of its source as they were read a moment ago elsewhere; they are not read again then.

        Returns:
            The model.
        """
        gone = f"the weights of '{record.name}' are no longer at {record.source}"
        try:
            models = open_models(record.source, record.name)
            with_digests(models, read)
            for model in models:
                if model.digest == record.digest:
                    return self._prepare(model_records.with_name(model, record.name))
            gone = f"the weights at {record.source} are not those that were enrolled as '{record.name}'"
        except (StemmaError, OSError) as e:
            if is_remote(record.source):
                gone = f"the weights of '{record.name}' are on a server and were not read: {e}"
        kept = self.registry.weights(record)
        if kept is not None:
            return self._prepare(model_records.model_from_copy(record, kept))
        return model_records.model_without_weights(record, self.registry.tensors(record.digest), gone)

    # Questions

    def compare(
        self, a: Model, b: Model, alpha: float = ALPHA, probes: "Probes | Selection | None" = None, null: "Nulls" = None
    ) -> Comparison:
        """All evidence on a pair.

        Args:
            a: The first model.
            b: The second one.
            alpha: Level of each axis.
            probes: Inputs that both are compared on; without them only the weights are compared.
            null: Independent control models for the function axis: paths and models, or a recipe of the zoo such as
                `cnn:n=99,seed=1`; None uses enrolled models whose weights are independent of both.

        Returns:
            The comparison; the relation is named from both axes.

        Raises:
            MisuseError: If control models are given without probes.
        """
        comparisons.check_alpha(alpha)
        _require_probes(null, probes)
        comparison = with_direction(ComparisonCache(self.registry).compare(a, b, alpha), a, b, shipped_parent_model)
        return comparison if probes is None else self._function(probes, alpha).on_pair(comparison, a, b, null)

    def keep(self, model: Model, fingerprint: Fingerprint) -> bool:
        """Keep a functional fingerprint of an enrolled model for comparing later; returns whether it is enrolled."""
        if not self.registry.by_digest(model.digest):
            return False
        self.registry.put_functional(model.digest, fingerprint)
        return True

    def distance(
        self,
        a: Model,
        b: Model,
        probes: "Probes",
        method: "AbstractFingerprinter | None" = None,
        measure: "AbstractMeasure | None" = None,
    ) -> Distance:
        """Functional distance of two models.

        Args:
            a: One model.
            b: The other.
            probes: Inputs that both are compared on.
            method: The fingerprinter; the gradient field unless given.
            measure: The measure; the one that goes with the method unless given.

        Returns:
            The distance with its interval over probes. Where a model is gone it is that of the functional sketches
            that were kept for these probes, and its `fingerprint` says so.
        """
        return self._function(probes, ALPHA).distance(a, b, method, measure)

    def trace(
        self,
        model: Model,
        against: Sequence[Path | str | Model] | None = None,
        alpha: float = ALPHA,
        limit: int = LIMIT,
        probes: "Probes | None" = None,
        null: "Nulls" = None,
        coverage: float = COVERAGE,
    ) -> Trace:
        """Identify where a model comes from.

        Args:
            model: The suspect.
            against: Search these checkpoints, folders of them or models, instead of the registry.
            alpha: Level of the decision on each axis, for the whole search.
            limit: Compare all models of a registry up to this size; of a larger one, the nearest by sketch and those
                that share tensors.
            probes: Inputs that suspect and candidates are compared on; without them only the weights are compared.
            null: Independent control models, as `compare` takes them.
            coverage: Share of suspects whose parent set is to hold the parent.

        Returns:
            The answer.

        Raises:
            MisuseError: If control models are given without probes, or the coverage is not between 0 and 1.
        """
        from stemma.ancestry.trace import trace

        comparisons.check_alpha(alpha)
        if not isinstance(coverage, Real) or not 0 < coverage < 1:
            raise MisuseError(
                f"the coverage must be between 0 and 1, but is {coverage!r}; at .95, 95 of 100 sets hold the parent"
            )
        _require_probes(null, probes)
        if against is not None:
            against = [place(os.fspath(against))] if isinstance(against, (str, os.PathLike)) else list(against)
            search = search_files(
                [p if isinstance(p, Model) else place(p) for p in against], model, self._prepare, self.distant
            )
        else:
            search = search_registry(self.registry, model, limit, self.reopen)
        candidates = search.candidates

        def of_weights(c: Candidate) -> Comparison:
            if id(c) in elsewhere:
                return elsewhere[id(c)]
            try:
                if cache is not None:
                    return cache.compare_enrolled(c, model, alpha)
                return compare_weights(c.load(), model, alpha)
            except UnusableRegistryError:
                raise
            except StemmaError as e:  # one candidate never stops the search
                return comparisons.failed_comparison(c.ref, model.ref, str(e))

        cache = ComparisonCache(self.registry) if against is None else None
        elsewhere = {} if self.distant is None else compare_elsewhere(
            candidates, model, alpha, cache, self.distant, self._progress
        )  # fmt: skip
        function = {} if probes is None else self._function(probes, alpha).on_search(model, candidates, null)
        with ThreadPoolExecutor(self._jobs) as pool:
            pending = {id(c): pool.submit(of_weights, c) for c in candidates}
            done = iter(range(len(candidates)))

            def evidence(c: Candidate) -> Comparison:
                self._progress(f"comparing with {c.ref.name}", next(done, len(candidates)), len(candidates))
                return _with_function(pending[id(c)].result(), function.get(id(c)), c, model, alpha)

            try:
                assign_roles = RoleAssignment(model, shipped_parent_model, coverage)
                found = trace(model, candidates, evidence, alpha=alpha, n_searched=search.n_searched,
                              assign_roles=assign_roles, not_tested=search.not_tested, coverage=coverage)  # fmt: skip
            finally:
                pool.shutdown(cancel_futures=True)
        return found if against is not None else added(found, KnownSearch(self.registry, model, alpha)(), model)

    def _function(self, probes: "Probes | Selection", alpha: float) -> "FunctionAxis":
        from stemma.kinship.function.selection import Selection
        from stemma.probes import Probes
        from stemma.workspace.function import FunctionAxis

        if not isinstance(probes, (Probes, Selection)):
            raise MisuseError(
                f"probes must be a stemma.Probes, not {type(probes).__name__}: use Probes.of(inputs, labels=…), "
                "or stemma.probes.read_probes, which takes what --probes takes"
            )

        def enrolled() -> list[Candidate]:
            known = self.registry.models()
            return [Candidate(r.ref, r.names_free_digest, {}, partial(self.reopen, r)) for r in known]

        return FunctionAxis(self.registry, probes, alpha, self._progress, enrolled)

    def own_records(self, model: Model) -> tuple[ModelRecord, ...]:
        """The records of a model with the same source and digest, which a trace leaves out."""
        return tuple(r for r in self.registry.by_digest(model.digest) if is_same_file(r, model))


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # an address may be longer than the name of a file
        return False


def _with_function(
    comparison: Comparison, function: Evidence | str | None, candidate: Candidate, suspect: Model, alpha: float
) -> Comparison:  # fmt: skip
    from stemma.kinship.axes import FORGOTTEN, both_axes

    if function is None:
        return comparison
    if not isinstance(function, str) and function.details.get(FORGOTTEN):  # or learnt: that is for the weights to say
        with contextlib.suppress(StemmaError, OSError):
            comparison = with_direction(comparison, candidate.load(), suspect, shipped_parent_model)
    return both_axes(comparison, function, alpha)


def _require_probes(null: "Nulls", probes: object) -> None:
    if null is not None and probes is None:
        raise MisuseError("control models (--null) are for the function axis: give probes (--probes) too")
