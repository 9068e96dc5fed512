"""One encoder per modality: each is asked once, and only what fuses them is asked for every coalition."""

import contextlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stemma.errors import MisuseError
from stemma.multimodal.masks import Batch
from stemma.multimodal.plans import AbstractPlan, Asked, Questions, evaluating, logits, moody

AGREES = 1e-3
"""Largest difference from the masked passes, relative to the largest output, that rounding explains."""

Features = dict[str, torch.Tensor]


class _Stands(nn.Module):
    """Stands where an encoder stands and gives what it gave."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self._features = features

    def forward(self, *inputs: Any, **named: Any) -> torch.Tensor:
        return self._features


@dataclass(frozen=True, eq=False)
class LateFast(AbstractPlan):
    """Encoders are asked once (twice with batch norm or dropout), their features recombined.

    Without batch norm and dropout it is equal to `exact`. With them, scores and kappas are equal; gradients take the
    encoders in training mode where `exact` takes them in evaluation mode, and leave out what flows through encoders
    that are shown nothing. What fuses the features may be anything without batch norm and dropout. Whether features are
    all that modalities are used for is tried at the first step.

    Cost: one pass forward and backward, the fusion `2^M - 1` times; with batch norm or dropout one forward pass more.

    Attributes:
        encoders: By modality, the name of the submodule that sees it and nothing else; it gives one tensor `[n, …]`.
    """

    encoders: Mapping[str, str]
    name = "late-fast"
    _tried: list[bool] = field(default_factory=list, repr=False)  # once: whether the network answers with a tensor

    def __call__(self, module: nn.Module, asked: Questions) -> Asked:
        """See `AbstractPlan`.

        Returns:
            Outputs of every coalition.

        Raises:
            MisuseError: If the network does more than fuse features, or the fusion itself has batch norm or dropout.
        """
        if not self._tried:
            self._checked(module, asked)
        inside = moody(module)
        loud = [n for n in inside if not any(n == e or n.startswith(f"{e}.") for e in self.encoders.values())]
        if loud:
            raise MisuseError(f"late-fast needs a fusion without batch norm and dropout, but there is {loud[0]!r}")
        if not inside:
            answer, full, seen, nothing = self._once(module, asked)
            outputs = scored = self._recombined(module, asked, full, seen, nothing)
        else:
            answer, seen = self._pass(module, asked, asked.batch)
            full = logits(answer)
            with torch.no_grad(), evaluating(module):
                calm, nothing = _last_apart(self._pass(module, asked, self._one_more(asked))[1])
                scored = self._recombined(module, asked, full, calm, nothing)
            outputs = self._recombined(module, asked, full, seen, nothing)
        if not self._tried:
            self._compared(module, asked, scored)
            self._tried.append(isinstance(answer, torch.Tensor))
        return Asked(answer, outputs, scored)

    def _once(self, module: nn.Module, asked: Questions) -> tuple[Any, torch.Tensor, Features, Features]:
        """Answer, logits, features of every encoder, and what it gives when it is shown nothing, with their graph."""
        if self._tried == [True]:  # what is shown nothing is one more row
            answer, seen = self._pass(module, asked, self._one_more(asked))
            full = logits(answer)[:-1]
            return full, full, *_last_apart(seen)
        answer, seen = self._pass(module, asked, asked.batch)
        nothing = _last_apart(self._pass(module, asked, self._one_more(asked))[1])[1]
        return answer, logits(answer), seen, nothing

    def _pass(self, module: nn.Module, asked: Questions, batch: Batch) -> tuple[Any, Features]:
        seen: Features = {}
        with _recording(module, self.encoders, seen):
            answer = asked.forward(module, batch)
        return answer, seen

    def _one_more(self, asked: Questions) -> dict[str, Any]:
        """The batch with a sample of which everything is hidden below it."""
        empty = asked.without(())
        return {k: torch.cat([v, empty[k][:1]]) if _rows(v, asked.count) else v for k, v in asked.batch.items()}

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
        with _standing(module, self.encoders, mixed), evaluating(module):
            others = asked.output(module, batch)
        return torch.cat([full[None], others.reshape(-1, *full.shape).to(full.dtype)])

    @torch.no_grad()
    def _compared(self, module: nn.Module, asked: Questions, scored: torch.Tensor) -> None:
        """Refuse a network whose masked passes are not what its recombined features give."""
        with evaluating(module):
            for c, found in zip(asked.split.masked, scored[1:], strict=True):
                true = asked.output(module, asked.without(c))
                slack = 8 * max(torch.finfo(true.dtype).eps, torch.finfo(found.dtype).eps)
                if (true - found).abs().max() > max(AGREES, slack) * true.abs().max().clamp(min=1e-6):
                    apart = " and ".join(asked.names[i] for i in c)
                    raise MisuseError(
                        f"the network does more than fuse its encoders' features: with {apart} alone it answers "
                        "differently from what their recombination gives. Use the plan 'batched' or 'exact'"
                    )


@contextlib.contextmanager
def _recording(module: nn.Module, encoders: Mapping[str, str], seen: Features) -> Generator[None]:
    def keep(modality: str) -> Any:
        def hook(part: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor) or modality in seen:
                what = "is called twice" if modality in seen else f"gives a {type(output).__name__}"
                raise MisuseError(
                    f"late-fast needs encoders that are called once and give one tensor, but {encoders[modality]!r} "
                    f"{what}"
                )
            seen[modality] = output

        return hook

    handles = [module.get_submodule(place).register_forward_hook(keep(m)) for m, place in encoders.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    silent = [place for m, place in encoders.items() if m not in seen]
    if silent:
        raise MisuseError(f"the network never called its encoder {silent[0]!r}. If it is compiled, compile its parts")


@contextlib.contextmanager
def _standing(module: nn.Module, encoders: Mapping[str, str], features: Features) -> Generator[None]:
    kept = {place: module.get_submodule(place) for place in encoders.values()}
    try:
        for modality, place in encoders.items():
            _put(module, place, _Stands(features[modality]))
        yield
    finally:
        for place, part in kept.items():
            _put(module, place, part)


def _put(module: nn.Module, place: str, part: nn.Module) -> None:
    parent, _, last = place.rpartition(".")
    module.get_submodule(parent)._modules[last] = part


def _last_apart(seen: Features) -> tuple[Features, Features]:
    return {m: h[:-1] for m, h in seen.items()}, {m: h[-1:] for m, h in seen.items()}


def _rows(value: Any, count: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == count


def _hollow(value: Any, modality: bool, count: int, many: int) -> Any:
    """As many rows as there are coalitions, without the memory of a modality that nobody looks at any more."""
    if not _rows(value, count):
        return value
    if modality:
        return value.new_zeros(()).expand(many * count, *value.shape[1:])
    return value.repeat(many, *[1] * (value.ndim - 1))
