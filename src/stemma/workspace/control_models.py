"""Chooses control (null) models that are independent of the models in question: given, from a recipe, or enrolled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stemma.ancestry.trace import Candidate
from stemma.checkpoints.model import Model
from stemma.checkpoints.remote import place
from stemma.errors import MisuseError, StemmaError
from stemma.kinship.function.null_models import NullModels, Subject, models_needed
from stemma.registry import Registry
from stemma.registry.ingest import fingerprinters
from stemma.registry.records import Progress
from stemma.types import Comparison, InputSpec, Verdict
from stemma.workspace.candidates import candidate_from_model, candidates_from_files
from stemma.workspace.comparison_cache import ComparisonCache

if TYPE_CHECKING:
    from stemma.probes import Probes

ALPHA = 0.01
"""Level at which weights count as related when control models are chosen."""

STUDENTS_ARE_NO_CONTROLS = (
    "students of one of the two models are no control models: they keep only part of what their teacher does, so that "
    "against them most honest pairs look related. Give models that learned the task without either, with --null"
)
"""Why there is no recipe `distill`; `benchmarks/few_controls.py` measures how many honest pairs it would accuse."""

MAX_NEIGHBOURS = 3
"""Neighbours by weight sketch that are compared, to find families among control models."""

MAX_EXAMINED = 4
"""At most this many times the needed number of enrolled models is examined."""

SPARE_MODELS = 4
"""Networks that a recipe without a number trains beyond those needed: some may be related to the models in question."""


@dataclass(frozen=True)
class ControlSelection:
    """Chooses control models for one question.

    Weights decide, never distance in function: that would choose the null by what is tested. Left out are the models in
    question, whatever is related to them by weights, and all but one of every family: siblings are no independent
    samples. Of enrolled models only those count whose weights are shown to be independent.

    Attributes:
        registry: Where enrolled models and sketches are.
        functional: The functional sketch that is kept of a model for the probes of the question.
        progress: Called with what is being done, how much is done and of how much.
    """

    registry: Registry
    functional: "Callable[[Candidate], Subject]"
    progress: Progress

    def __call__(
        self,
        models: Sequence[Model],
        probes: "Probes",
        null: "str | Sequence[Path | Model] | NullModels | None",
        alpha: float,
        candidates: Sequence[Candidate] = (),
        enrolled: Callable[[], Sequence[Candidate]] = tuple,
    ) -> NullModels:
        """Choose control models.

        Args:
            models: The models in question.
            probes: Inputs that they are compared on.
            null: A recipe, paths or models; None uses enrolled models. `NullModels` are used as they are.
            alpha: Level of the decision: it determines how many are needed.
            candidates: Models that control models must be independent of as well.
            enrolled: The models of the registry.

        Returns:
            The control models, and which were left out and why.
        """
        if isinstance(null, NullModels):
            return null
        left_out: list[str] = []
        if null is None:
            found, source = sorted(enrolled(), key=lambda c: c.ref.digest), "enrolled models with independent weights"
        elif isinstance(null, str):
            found, source = (
                [candidate_from_model(m) for m in models_from_recipe(null, alpha, probes)],
                f"zoo recipe {null}",
            )
        else:
            found, source = [], "models given"
            for item in null:
                more, unreadable = (
                    ([candidate_from_model(item)], [])
                    if isinstance(item, Model)
                    else candidates_from_files([place(item)])
                )
                found += more
                left_out += unreadable
        open_ended = null is None or (isinstance(null, str) and "n" not in _options(null))
        needed_count = models_needed(alpha) if open_ended else len(found)
        examined = found[: MAX_EXAMINED * max(needed_count, 25)] if null is None else found
        selection = _Selection(
            self, models, probes, strict=null is None, candidates=candidates, known_independent=isinstance(null, str)
        )
        for i, c in enumerate(examined):
            if len(selection.kept) >= needed_count:
                break
            if null is None and any(c.ref == m.ref for m in models):
                continue
            self.progress(f"checking {c.ref.name} as a control model", i, len(examined))
            try:
                why = selection.reject(c)
            except StemmaError as e:
                why = str(e)
            left_out += [f"{c.ref.name}: {why}"] if why else []
        if len(selection.kept) < needed_count and len(examined) < len(found):
            left_out.append(f"{len(found) - len(examined)} more enrolled models that were not examined")
        parties = [self.functional(c) if null is None else Subject(c.ref.name, c.load) for c in selection.kept]
        return NullModels(source, tuple(parties), tuple(left_out))


class _Selection:
    """Control models selected so far, and why further ones are rejected."""

    def __init__(
        self,
        of: ControlSelection,
        models: Sequence[Model],
        probes: "Probes",
        *,
        strict: bool,
        candidates: Sequence[Candidate],
        known_independent: bool,
    ) -> None:
        """Start with none; `strict` requires independence to be shown, `known_independent` takes it for granted."""
        self.kept: list[Candidate] = []
        self._of, self._cache, self._probes, self._strict = of, ComparisonCache(of.registry), probes, strict
        self._known_independent = known_independent
        self._models = [m for m in models if m.tensors]
        self._sketched: list[tuple[Candidate, np.ndarray]] = []
        for c in candidates:
            self._add_neighbour(c)

    def reject(self, c: Candidate) -> str:
        """Why a model is no control model; empty, and the model is kept, where it is one."""
        c = replace(c, load=cache(c.load))  # opening an enrolled model reads all of it
        has_weights = bool(c.tensor_digests)  # black boxes have no weights to be the same
        same_weights = [m.name for m in self._models if has_weights and c.names_free_digest == m.names_free_digest]
        if same_weights:
            return f"the same weights as {same_weights[0]}"
        if duplicate := next(
            (k for k in self.kept if has_weights and k.names_free_digest == c.names_free_digest), None
        ):
            return f"the same weights as {duplicate.ref.name}"
        if self._strict and (why := self._why_unusable(c)):
            return why
        for m in self._models:
            comparison = self._cache.compare_enrolled(c, m, ALPHA) if self._strict else self._weights(c, m)
            if comparison.weights.verdict is Verdict.SUPPORTED:
                return f"its weights are related to {m.name}"
            is_independent = (
                comparison.weights.verdict is Verdict.REFUTED or (comparison.weights.p_value or 0.0) > ALPHA
            )
            if self._strict and not is_independent:
                return f"its weights are not shown to be independent of {m.name}"
        for neighbour in self._neighbours(c):
            comparison = (
                self._cache.compare_two_enrolled(c, neighbour, ALPHA)
                if self._strict
                else self._weights(c, neighbour.load())
            )
            if comparison.weights.verdict is Verdict.SUPPORTED:
                return f"related by weights to {neighbour.ref.name}"
        self.kept.append(c)
        if not self._known_independent:
            self._add_neighbour(c)
        return ""

    def _weights(self, c: Candidate, m: Model) -> Comparison:
        return self._cache.compare(c.load(), m, ALPHA)

    def _why_unusable(self, c: Candidate) -> str:
        """Why an enrolled model cannot be run on the probes; a kept sketch makes reading it unnecessary."""
        if self._of.functional(c).sketch is not None:
            return ""
        spec = c.load().network.input_spec
        return (
            ""
            if spec is None or matches_input_space(spec, self._probes)
            else f"it takes inputs of shape {list(spec.shape)}"
        )

    def _add_neighbour(self, c: Candidate) -> None:
        bits = self._bits(c)
        if bits is not None:
            self._sketched.append((c, bits))

    def _neighbours(self, c: Candidate) -> list[Candidate]:
        bits = self._bits(c)
        if bits is None or not self._sketched:
            return []
        distances = [int(np.unpackbits(bits ^ other).sum()) for _, other in self._sketched]
        order = np.argsort(distances, kind="stable")[:MAX_NEIGHBOURS]
        return [self._sketched[i][0] for i in order if self._sketched[i][0].ref != c.ref]

    def _bits(self, c: Candidate) -> np.ndarray | None:
        kept = self._of.registry.fingerprint(c.ref.digest, fingerprinters()[0].spec)
        sketch = kept or self._cache.sketch(c.load())
        return None if sketch is None else np.asarray(sketch.values["bits"])


def matches_input_space(spec: InputSpec, probes: "Probes") -> bool:
    """Whether probes have the kind and shape of a network's input space."""
    if spec.kind == "tokens" or probes.kind == "tokens":
        return spec.kind == probes.kind and probes.shape[0] <= spec.shape[0]
    return tuple(spec.shape) == probes.shape


def _options(recipe: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in recipe.partition(":")[2].split(",") if part)


def models_from_recipe(text: str, alpha: float, probes: "Probes") -> list[Model]:
    """Networks that the zoo trains for a recipe `KIND` or `KIND:n=24,seed=1,part=a`, of the probes' input space."""
    from stemma.zoo import independents
    from stemma.zoo.kinds import KINDS

    kind, given = text.partition(":")[0], _options(text)
    if kind == "distill":
        raise MisuseError(STUDENTS_ARE_NO_CONTROLS)
    numbers = {k: v for k, v in given.items() if k in ("n", "seed")}
    known = set(given) <= {"n", "seed", "part"} and all(v.isdigit() for v in numbers.values())
    if kind not in KINDS or not known or given.get("part", "a") not in ("a", "b"):
        raise MisuseError(
            f"'{text}' is not a recipe of control models: use KIND:n=24,seed=1,part=a with one of {', '.join(KINDS)}"
        )
    count, seed = int(numbers.get("n", models_needed(alpha) + SPARE_MODELS)), int(numbers.get("seed", 0))
    spec = independents(kind, 1, seed, untrained=True)[0].network.input_spec
    if spec is None or not matches_input_space(spec, probes):
        own = "" if spec is None else f" for {spec.kind} inputs of shape {list(spec.shape)}"
        raise MisuseError(
            f"the recipe '{text}' makes networks{own}, but the probes are {probes.kind} of shape {list(probes.shape)}"
        )
    return independents(kind, count, seed, part=given.get("part", "a"))
