"""One encoder per modality: each is asked once, and only what fuses them is asked for every coalition."""

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from stemma.errors import MisuseError
from stemma.multimodal.masked_passes import AbstractPlan, Asked, Questions, evaluating, logits, moody, parts
from stemma.multimodal.masks import Batch, hidden
from stemma.multimodal.responses import Split

AGREES = 1e-3
"""Largest difference from the masked passes, relative to the largest output, that rounding explains."""

APART, MORE, TOGETHER = "apart", "more rows", "together"
"""What is shown nothing goes in a pass of its own, as more rows of the batch, or all coalitions go in one pass."""

Features = dict[str, torch.Tensor]


class _Behind:
    """Stands where an encoder stands, for one pass: what it gives goes through a function.

    No module, because making one every step would cost a small network more than the pass.
    """

    def __init__(self, part: Any, told: Callable[[Any], torch.Tensor]) -> None:
        self._part, self._told = part, told

    def __call__(self, *inputs: Any, **named: Any) -> torch.Tensor:
        return self._told(self._part(*inputs, **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


class _Instead(_Behind):
    """Gives something without asking the encoder."""

    def __call__(self, *inputs: Any, **named: Any) -> torch.Tensor:
        return self._told(None)


@dataclass(frozen=True, eq=False)
class LateFast(AbstractPlan):
    """Encoders are asked once (twice with batch norm or dropout), their features recombined.

    Without batch norm and dropout it is equal to `exact`, to rounding. With them, scores and kappas are equal;
    gradients take the encoders in training mode where `exact` takes them in evaluation mode, and leave out what flows
    through encoders that are shown nothing. What fuses the features may be anything without batch norm and dropout.
    Whether features are all that modalities are used for is tried by masked passes at calls 1, 2, 4, 8 and so on: a
    path that is closed at first, such as a gate of zeros, is found when it has opened.

    Cost: one pass forward and backward, the fusion `2^M - 1` times; with batch norm or dropout one forward pass more;
    where the batch holds more than modalities per sample, such as lengths, the encoders twice.

    Attributes:
        encoders: By modality, the name of the submodule that sees it and nothing else of its kind; it gives one tensor
            `[n, …]`.
    """

    encoders: Mapping[str, str]
    name = "late-fast"
    _tried: WeakKeyDictionary[nn.Module, tuple[int, str]] = field(default_factory=WeakKeyDictionary, repr=False)

    def __call__(self, module: nn.Module, asked: Questions) -> Asked:
        """See `AbstractPlan`.

        Returns:
            Outputs of every coalition.

        Raises:
            MisuseError: If the network does more than fuse features, or the fusion itself has batch norm or dropout.
        """
        calls, manner = self._tried.get(module, (0, APART))
        if not calls:
            self._checked(module, asked)
        inside = moody(module)
        if inside:
            self._quiet(module, inside)
        due = calls & (calls + 1) == 0  # the next call is a power of two
        found, scored = self._carried(module, asked, bool(inside), APART if due else manner)
        if due:
            self._compared(module, asked, scored)
            manner = self._manner(module, asked, found)
        self._tried[module] = (calls + 1, manner)
        return found

    def _carried(self, module: nn.Module, asked: Questions, inside: bool, manner: str) -> tuple[Asked, torch.Tensor]:
        if inside:
            answer, seen = self._pass(module, asked, asked.batch, asked.count)
            full = logits(answer)
            with torch.no_grad(), evaluating(module), _as_with_gradients():
                calm, nothing = self._apart(module, asked)[1:]
                scored = self._recombined(module, asked, full, calm, nothing)
            return Asked(answer, self._recombined(module, asked, full, seen, nothing), scored), scored
        if manner == TOGETHER and _modalities_alone(asked):
            found = self._together(module, asked)
            return found, found.outputs
        if manner == APART:
            answer, seen = self._pass(module, asked, asked.batch, asked.count)
            full, nothing = logits(answer), self._apart(module, asked)[2]
        else:
            answer, seen, nothing = self._apart(module, asked)
            answer = full = logits(answer)[: asked.count]
        outputs = self._recombined(module, asked, full, seen, nothing)
        return Asked(answer, outputs, outputs), outputs

    def _quiet(self, module: nn.Module, inside: list[nn.Module]) -> None:
        """Refuse a fusion with batch norm or dropout."""
        within = {part for place in self.encoders.values() for part in parts(module.get_submodule(place))}
        loud = [name for name, part in module.named_modules() if part in inside and part not in within]
        if loud:
            raise MisuseError(f"late-fast needs a fusion without batch norm and dropout, but there is {loud[0]!r}")

    def _together(self, module: nn.Module, asked: Questions) -> Asked:
        """All coalitions in one pass: behind each encoder its features are repeated, or what it gives for nothing."""
        seen: Features = {}
        batch, rows = self._more(asked)
        spread = lambda m, h: _spread(h, asked.count, asked.names.index(m), asked.split)  # noqa: E731
        with _recording(module, self.encoders, seen, rows, spread):
            out = logits(asked.forward(module, batch))
        outputs = out.reshape(len(asked.split.coalitions), asked.count, *out.shape[1:])
        return Asked(outputs[0], outputs, outputs)

    @torch.no_grad()
    def _manner(self, module: nn.Module, asked: Questions, found: Asked) -> str:
        """What the network can be asked at a time; the answer is of the same rows as the batch, or stays apart."""
        if not isinstance(found.answer, torch.Tensor):
            return APART
        if moody(module) or not _modalities_alone(asked):
            return MORE
        try:
            joined = self._together(module, asked).outputs
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):  # it counts its samples itself
            return MORE
        return TOGETHER if joined.shape == found.outputs.shape and _near(joined, found.outputs) else MORE

    def _pass(self, module: nn.Module, asked: Questions, batch: Batch, rows: int) -> tuple[Any, Features]:
        seen: Features = {}
        with _recording(module, self.encoders, seen, rows):
            answer = asked.forward(module, batch)
        return answer, seen

    def _apart(self, module: nn.Module, asked: Questions) -> tuple[Any, Features, Features]:
        """Answer for the batch and hidden samples below it, features of the batch, and of what is hidden."""
        batch, rows = self._more(asked)
        answer, seen = self._pass(module, asked, batch, rows)
        pairs = {m: h.split([asked.count, rows - asked.count]) for m, h in seen.items()}
        return answer, {m: above for m, (above, _) in pairs.items()}, {m: below for m, (_, below) in pairs.items()}

    def _more(self, asked: Questions) -> tuple[dict[str, Any], int]:
        """The batch with a sample of which everything is hidden below it, or all of them so; and how many rows that is.

        Encoders may read what else there is of a sample; what they give for nothing is then asked for every sample.

        Returns:
            Tensors by name, and their rows.
        """
        rows = {k: v for k, v in asked.batch.items() if _rows(v, asked.count)}
        one = _modalities_alone(asked)
        alone = one and all(mask.alone for mask in asked.masks.values())
        empty = hidden({k: v[:1] for k, v in rows.items()} if alone else rows, asked.masks, asked.names)
        below = {k: torch.cat([v, empty[k][:1] if one else empty[k]]) for k, v in rows.items()}
        return {**asked.batch, **below}, asked.count + (1 if one else asked.count)

    def _checked(self, module: nn.Module, asked: Questions) -> None:
        lacking = [name for name in asked.names if name not in self.encoders]
        if lacking or len(self.encoders) > len(asked.names):
            raise MisuseError(
                f"late-fast needs the encoder of each modality, encoders={{modality: name of the submodule}}, but of "
                f"{', '.join(asked.names)} they are {dict(self.encoders)}"
            )
        known = dict(module.named_modules())
        unknown = [name for name in self.encoders.values() if name not in known or not name]
        if unknown:
            raise MisuseError(f"the network has no submodule {unknown[0]!r} to be an encoder")
        loose = [name for name in asked.names if not asked.masks[name].constant]
        if loose:
            raise MisuseError(
                f"late-fast hides modalities by one input that is the same for all samples, but the mask of "
                f"{loose[0]!r} is {asked.masks[loose[0]].name}: use zero, mean or the plan 'batched'"
            )

    def _recombined(
        self, module: nn.Module, asked: Questions, full: torch.Tensor, seen: Features, nothing: Features
    ) -> torch.Tensor:
        many = len(asked.split.masked)
        mixed = {}
        for i, name in enumerate(asked.names):
            empty = nothing[name].expand_as(seen[name])
            mixed[name] = torch.cat([seen[name] if i in c else empty for c in asked.split.masked])
        batch = {k: _hollow(v, k in asked.names, asked.count, many) for k, v in asked.batch.items()}
        stands = lambda name, part: _Instead(part, lambda _: mixed[name])  # noqa: E731
        with evaluating(module), _standing(module, self.encoders, stands):
            others = asked.output(module, batch)
        return torch.cat([full[None], others.reshape(-1, *full.shape).to(full.dtype)])

    @torch.no_grad()
    def _compared(self, module: nn.Module, asked: Questions, scored: torch.Tensor) -> None:
        """Refuse a network whose masked passes are not what its recombined features give."""
        with evaluating(module), _as_with_gradients():
            for c, found in zip(asked.split.masked, scored[1:], strict=True):
                if not _near(found, asked.output(module, asked.without(c))):
                    apart = " and ".join(asked.names[i] for i in c)
                    raise MisuseError(
                        f"the network does more than fuse its encoders' features: with {apart} alone it answers "
                        "differently from what their recombination gives. Use the plan 'batched' or 'exact'"
                    )


@contextlib.contextmanager
def _recording(
    module: nn.Module,
    encoders: Mapping[str, str],
    seen: Features,
    rows: int,
    instead: Callable[[str, torch.Tensor], torch.Tensor] = lambda modality, features: features,
) -> Generator[None]:
    """Features of every encoder; what fuses them is given those, or something instead."""

    def told(modality: str, output: Any) -> torch.Tensor:
        if modality in seen or not isinstance(output, torch.Tensor) or len(output) != rows:
            what = f"gives a {type(output).__name__}"
            if modality in seen:
                what = "is called twice"
            elif isinstance(output, torch.Tensor):
                what = f"gives {len(output)} rows for {rows} samples"
            raise MisuseError(
                f"late-fast needs encoders that are called once and give one tensor [n, …], but "
                f"{encoders[modality]!r} {what}"
            )
        seen[modality] = output
        return instead(modality, output)

    with _standing(module, encoders, lambda m, part: _Behind(part, partial(told, m))):
        yield
    silent = [place for m, place in encoders.items() if m not in seen]
    if silent:
        raise MisuseError(f"the network never called its encoder {silent[0]!r}. If it is compiled, compile its parts")


@contextlib.contextmanager
def _as_with_gradients() -> Generator[None]:
    """Without the fast path that attention takes where there are no gradients: it gives zeros at padded positions."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _standing(module: nn.Module, encoders: Mapping[str, str], stands: Callable[[str, Any], _Behind]) -> Generator[None]:
    """Something else in the place of every encoder, so that hooks and compiled calls stay as they are."""
    kept = []
    for modality, place in encoders.items():
        parent, _, last = place.rpartition(".")
        siblings: dict[str, Any] = module.get_submodule(parent)._modules
        kept.append((siblings, last, siblings[last]))
        siblings[last] = stands(modality, siblings[last])
    try:
        yield
    finally:
        for siblings, last, part in reversed(kept):
            siblings[last] = part


def _spread(features: torch.Tensor, count: int, position: int, split: Split) -> torch.Tensor:
    own, nothing = features.split([count, len(features) - count])
    empty = nothing.expand_as(own)
    return torch.cat([own if position in c else empty for c in split.coalitions])


def _modalities_alone(asked: Questions) -> bool:
    """Whether nothing else in the batch has a row per sample."""
    return not any(_rows(v, asked.count) for k, v in asked.batch.items() if k not in asked.names)


def _near(found: torch.Tensor, true: torch.Tensor) -> bool:
    slack = max(AGREES, 8 * max(torch.finfo(true.dtype).eps, torch.finfo(found.dtype).eps))
    return not bool((true - found).abs().max() > slack * true.abs().max().clamp(min=1e-6))


def _rows(value: Any, count: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == count


def _hollow(value: Any, modality: bool, count: int, many: int) -> Any:
    """As many rows as there are coalitions, without the memory of a modality that nobody looks at any more."""
    if not _rows(value, count):
        return value
    if modality:
        return value.new_zeros(()).expand(many * count, *value.shape[1:])
    return value.repeat(many, *[1] * (value.ndim - 1))
