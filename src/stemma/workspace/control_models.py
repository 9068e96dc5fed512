"""Which models stand for independence: those given, those a recipe makes, or those enrolled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stemma.ancestry.trace import Candidate
from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.kinship.function.null_models import NullModels, Subject, models_needed
from stemma.registry import Registry
from stemma.registry.ingest import fingerprinters
from stemma.registry.records import Progress
from stemma.types import Comparison, InputSpec, Verdict
from stemma.workspace.candidates import from_files, of_model
from stemma.workspace.comparison_cache import Recall

if TYPE_CHECKING:
    from stemma.probes import Probes

ALPHA = 0.01
"""Level at which a model's weights speak for kinship, when null models are chosen."""

NEAREST = 3
"""So many neighbours by weight sketch are compared, to find families among null models."""

LOOKED_AT = 4
"""At most this many times the null models needed are looked at in a registry."""

SPARE = 4
"""More networks than needed that a recipe without a number trains: some may be related to the models asked about."""


@dataclass(frozen=True)
class Independent:
    """Chooses null models for one question.

    What a model's weights say decides, never how near it is in function: that would choose the null by what is tested.
    Left out are the models in question, whatever is related to them by weights, and all but one of every family:
    siblings are no independent draws. Of enrolled models only those count whose weights are seen to be independent.

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
        asked: Sequence[Model],
        probes: "Probes",
        null: "str | Sequence[Path | Model] | NullModels | None",
        alpha: float,
        beside: Sequence[Candidate] = (),
        enrolled: Callable[[], Sequence[Candidate]] = tuple,
    ) -> NullModels:
        """Choose.

        Args:
            asked: The models in question.
            probes: What is asked.
            null: A recipe, paths or models; None takes enrolled models. `NullModels` are taken as they are.
            alpha: Level of the decision: it says how many are needed.
            beside: Candidates that null models must be strangers to as well.
            enrolled: The models of the registry.

        Returns:
            The null models, and which were left out and why.
        """
        if isinstance(null, NullModels):
            return null
        left_out: list[str] = []
        if null is None:
            found, source = sorted(enrolled(), key=lambda c: c.ref.digest), "enrolled models with independent weights"
        elif isinstance(null, str):
            found, source = [of_model(m) for m in from_recipe(null, alpha, probes)], f"zoo recipe {null}"
        else:
            found, source = [], "models given"
            for item in null:
                more, unread = ([of_model(item)], []) if isinstance(item, Model) else from_files([Path(item)])
                found += more
                left_out += unread
        open_ended = null is None or (isinstance(null, str) and "n" not in _given(null))
        wanted = models_needed(alpha) if open_ended else len(found)
        looked_at = found[: LOOKED_AT * max(wanted, 25)] if null is None else found
        choice = _Choice(self, asked, probes, strict=null is None, beside=beside, strangers=isinstance(null, str))
        for i, c in enumerate(looked_at):
            if len(choice.kept) >= wanted:
                break
            if null is None and any(c.ref == m.ref for m in asked):
                continue
            self.progress(f"looking at {c.ref.name} as a null model", i, len(looked_at))
            try:
                why = choice.refusal(c)
            except StemmaError as e:
                why = str(e)
            left_out += [f"{c.ref.name}: {why}"] if why else []
        if len(choice.kept) < wanted and len(looked_at) < len(found):
            left_out.append(f"{len(found) - len(looked_at)} more enrolled models that were not looked at")
        parties = [self.functional(c) if null is None else Subject(c.ref.name, c.load) for c in choice.kept]
        return NullModels(source, tuple(parties), tuple(left_out))


class _Choice:
    """Null models so far, and why another one is none."""

    def __init__(
        self,
        of: Independent,
        asked: Sequence[Model],
        probes: "Probes",
        *,
        strict: bool,
        beside: Sequence[Candidate],
        strangers: bool,
    ) -> None:
        """Start with none.

        Args:
            of: Who chooses.
            asked: The models in question.
            probes: What is asked.
            strict: Only models whose weights are seen to be independent count.
            beside: Candidates that null models must be strangers to as well.
            strangers: They are known to be strangers to each other.
        """
        self.kept: list[Candidate] = []
        self._of, self._recall, self._probes, self._strict = of, Recall(of.registry), probes, strict
        self._strangers = strangers
        self._asked = [m for m in asked if m.tensors]
        self._near: list[tuple[Candidate, np.ndarray]] = []
        for c in beside:
            self._remember(c)

    def refusal(self, c: Candidate) -> str:
        """Why a model is no null model; empty where it is one, and then it is kept."""
        c = replace(c, load=cache(c.load))  # opening an enrolled model reads all of it
        held = bool(c.tensor_digests)  # black boxes have no weights to be the same
        same = [m.name for m in self._asked if held and c.names_free_digest == m.names_free_digest]
        if same:
            return f"the same weights as {same[0]}"
        if twice := next((k for k in self.kept if held and k.names_free_digest == c.names_free_digest), None):
            return f"the same weights as {twice.ref.name}"
        if self._strict and (why := self._unfit(c)):
            return why
        for m in self._asked:
            found = self._recall.enrolled(c, m, ALPHA) if self._strict else self._weights(c, m)
            if found.weights.verdict is Verdict.SUPPORTED:
                return f"its weights are related to {m.name}"
            seen = found.weights.verdict is Verdict.REFUTED or (found.weights.p_value or 0.0) > ALPHA
            if self._strict and not seen:
                return f"nothing shows that its weights are independent of {m.name}"
        for other in self._neighbours(c):
            among = self._recall.between(c, other, ALPHA) if self._strict else self._weights(c, other.load())
            if among.weights.verdict is Verdict.SUPPORTED:
                return f"of one family with {other.ref.name}"
        self.kept.append(c)
        if not self._strangers:
            self._remember(c)
        return ""

    def _weights(self, c: Candidate, m: Model) -> Comparison:
        return self._recall.weights(c.load(), m, ALPHA)

    def _unfit(self, c: Candidate) -> str:
        """Why an enrolled model cannot be asked; what is kept of its function spares the reading."""
        if self._of.functional(c).sketch is not None:
            return ""
        spec = c.load().network.input_spec
        return "" if spec is None or fits(spec, self._probes) else f"it takes inputs of shape {list(spec.shape)}"

    def _remember(self, c: Candidate) -> None:
        bits = self._bits(c)
        if bits is not None:
            self._near.append((c, bits))

    def _neighbours(self, c: Candidate) -> list[Candidate]:
        bits = self._bits(c)
        if bits is None or not self._near:
            return []
        apart = [int(np.unpackbits(bits ^ other).sum()) for _, other in self._near]
        order = np.argsort(apart, kind="stable")[:NEAREST]
        return [self._near[i][0] for i in order if self._near[i][0].ref != c.ref]

    def _bits(self, c: Candidate) -> np.ndarray | None:
        kept = self._of.registry.fingerprint(c.ref.digest, fingerprinters()[0].spec)
        sketch = kept or self._recall.sketch(c.load())
        return None if sketch is None else np.asarray(sketch.values["bits"])


def fits(spec: InputSpec, probes: "Probes") -> bool:
    """Whether probes are of a network's raw input space.

    Returns:
        By kind and shape.
    """
    if spec.kind == "tokens" or probes.kind == "tokens":
        return spec.kind == probes.kind and probes.shape[0] <= spec.shape[0]
    return tuple(spec.shape) == probes.shape


def _given(recipe: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in recipe.partition(":")[2].split(",") if part)


def from_recipe(text: str, alpha: float, probes: "Probes") -> list[Model]:
    """Independent networks that the zoo trains, or has trained before.

    Args:
        text: `KIND` or `KIND:n=24,seed=1,part=a`; unless given, as many as alpha takes and some to spare.
        alpha: Level of the decision.
        probes: What is asked: of the networks' raw input space.

    Returns:
        The models.

    Raises:
        MisuseError: If the recipe cannot be read, or makes networks of another input space.
    """
    from stemma.zoo import independents
    from stemma.zoo.kinds import KINDS

    kind, given = text.partition(":")[0], _given(text)
    numbers = {k: v for k, v in given.items() if k in ("n", "seed")}
    known = set(given) <= {"n", "seed", "part"} and all(v.isdigit() for v in numbers.values())
    if kind not in KINDS or not known or given.get("part", "a") not in ("a", "b"):
        raise MisuseError(
            f"'{text}' is no recipe of null models: give KIND:n=24,seed=1,part=a with one of {', '.join(KINDS)}"
        )
    count, seed = int(numbers.get("n", models_needed(alpha) + SPARE)), int(numbers.get("seed", 0))
    spec = independents(kind, 1, seed, untrained=True)[0].network.input_spec
    if spec is None or not fits(spec, probes):
        own = "" if spec is None else f" for {spec.kind} inputs of shape {list(spec.shape)}"
        raise MisuseError(
            f"the recipe '{text}' makes networks{own}, but the probes are {probes.kind} of shape {list(probes.shape)}"
        )
    return independents(kind, count, seed, part=given.get("part", "a"))
