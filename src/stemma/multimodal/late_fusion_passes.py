"""The plan `late-fast`: each encoder runs once, and only the fusion runs for every coalition of modalities."""

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from stemma.errors import MisuseError
from stemma.multimodal.masked_passes import (
    AbstractPlan,
    CoalitionOutputs,
    CoalitionRequest,
    differs_in_training,
    evaluation_mode,
    logits,
    submodules,
)
from stemma.multimodal.masks import Batch, hidden
from stemma.multimodal.responses import CoalitionSplit

TOLERANCE = 1e-3
"""Largest difference from the masked passes, relative to the largest output: rounding."""

SEPARATE, APPENDED, SINGLE_PASS = "apart", "more rows", "together"
"""Hidden inputs run in a separate pass, as appended rows of the batch, or all coalitions run in one pass."""

Features = dict[str, torch.Tensor]


class _WrappedEncoder:
    """Stands in for an encoder during one pass: its output goes through a function.

    It is no module, because making one every step would cost a small network more than the pass.
    """

    def __init__(self, part: Any, record: Callable[[Any], torch.Tensor]) -> None:
        self._part, self._output = part, record

    def __call__(self, *inputs: Any, **named: Any) -> torch.Tensor:
        return self._output(self._part(*inputs, **named))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


class _ReplacedEncoder(_WrappedEncoder):
    """Gives features without running the encoder."""

    def __call__(self, *inputs: Any, **named: Any) -> torch.Tensor:
        return self._output(None)


@dataclass(frozen=True, eq=False)
class LateFast(AbstractPlan):
    """Encoders run once (twice with batch norm or dropout), and their features are recombined.

    Without batch norm and dropout it is equal to `exact`, up to rounding. With them, scores and kappas are equal;
    gradients use the encoders in training mode where `exact` uses them in evaluation mode, and leave out what flows
    through encoders of hidden modalities. The fusion may be anything without batch norm and dropout. At calls 1, 2, 4,
    8 and so on, masked passes check that the network uses modalities through their features only: a path that is
    closed at first, such as a gate of zeros, is found once it has opened.

    Cost: one pass forward and backward, the fusion `2^M - 1` times; with batch norm or dropout one forward pass more;
    where the batch holds more than modalities per sample, such as lengths, the encoders twice.

    Attributes:
        encoders: By modality, the name of the submodule that encodes it and no other; it gives one tensor `[n, …]`.
    """

    encoders: Mapping[str, str]
    name = "late-fast"
    _known: WeakKeyDictionary[nn.Module, tuple[int, str]] = field(default_factory=WeakKeyDictionary, repr=False)

    def __call__(self, module: nn.Module, request: CoalitionRequest) -> CoalitionOutputs:
        """See `AbstractPlan`; `MisuseError` if the network does more than fuse features."""
        calls, way = self._known.get(module, (0, SEPARATE))
        if not calls:
            self._check_request(module, request)
        changing = differs_in_training(module)
        if changing:
            self._check_fusion(module, changing)
        due = calls & (calls + 1) == 0  # the next call is a power of two
        found, scored = self._passes(module, request, bool(changing), SEPARATE if due else way)
        if due:
            self._check_recombination(module, request, scored)
            way = self._fastest_way(module, request, found)
        self._known[module] = (calls + 1, way)
        return found

    def _passes(
        self, module: nn.Module, request: CoalitionRequest, changing: bool, way: str
    ) -> tuple[CoalitionOutputs, torch.Tensor]:
        if changing:
            answer, features = self._recorded_pass(module, request, request.batch, request.count)
            full = logits(answer)
            with torch.no_grad(), evaluation_mode(module), _without_attention_fast_path():
                evaluated, hidden_features = self._batch_and_hidden(module, request)[1:]
                scored = self._recombined(module, request, full, evaluated, hidden_features)
            outputs = self._recombined(module, request, full, features, hidden_features)
            return CoalitionOutputs(answer, outputs, scored), scored
        if way == SINGLE_PASS and _only_modalities(request):
            found = self._single_pass(module, request)
            return found, found.outputs
        if way == SEPARATE:
            answer, features = self._recorded_pass(module, request, request.batch, request.count)
            full, hidden_features = logits(answer), self._batch_and_hidden(module, request)[2]
        else:
            answer, features, hidden_features = self._batch_and_hidden(module, request)
            answer = full = logits(answer)[: request.count]
        outputs = self._recombined(module, request, full, features, hidden_features)
        return CoalitionOutputs(answer, outputs, outputs), outputs

    def _check_fusion(self, module: nn.Module, changing: list[nn.Module]) -> None:
        """Refuse a fusion with batch norm or dropout."""
        within = {part for place in self.encoders.values() for part in submodules(module.get_submodule(place))}
        changing_parts = [name for name, part in module.named_modules() if part in changing and part not in within]
        if changing_parts:
            raise MisuseError(
                f"late-fast needs a fusion without batch norm and dropout, but the network has {changing_parts[0]!r}: "
                "use exact or batched"
            )

    def _single_pass(self, module: nn.Module, request: CoalitionRequest) -> CoalitionOutputs:
        """All coalitions in one pass: each encoder's features are repeated, or replaced by those of hidden input."""
        features: Features = {}
        batch, rows = self._with_hidden_rows(request)
        coalition_features = lambda m, h: _coalition_features(h, request.count, request.names.index(m), request.split)  # noqa: E731
        with _recording(module, self.encoders, features, rows, coalition_features):
            out = logits(request.forward(module, batch))
        outputs = out.reshape(len(request.split.coalitions), request.count, *out.shape[1:])
        return CoalitionOutputs(outputs[0], outputs, outputs)

    @torch.no_grad()
    def _fastest_way(self, module: nn.Module, request: CoalitionRequest, found: CoalitionOutputs) -> str:
        """The fastest way to run the network whose outputs have the expected rows and values."""
        if not isinstance(found.answer, torch.Tensor):
            return SEPARATE
        if differs_in_training(module) or not _only_modalities(request):
            return APPENDED
        try:
            joined = self._single_pass(module, request).outputs
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):  # code that assumes a batch size
            return APPENDED
        return SINGLE_PASS if joined.shape == found.outputs.shape and _close(joined, found.outputs) else APPENDED

    def _recorded_pass(
        self, module: nn.Module, request: CoalitionRequest, batch: Batch, rows: int
    ) -> tuple[Any, Features]:
        features: Features = {}
        with _recording(module, self.encoders, features, rows):
            answer = request.forward(module, batch)
        return answer, features

    def _batch_and_hidden(self, module: nn.Module, request: CoalitionRequest) -> tuple[Any, Features, Features]:
        """The output for the batch and hidden samples below it, features of the batch, and of what is hidden."""
        batch, rows = self._with_hidden_rows(request)
        answer, features = self._recorded_pass(module, request, batch, rows)
        pairs = {m: h.split([request.count, rows - request.count]) for m, h in features.items()}
        return answer, {m: above for m, (above, _) in pairs.items()}, {m: below for m, (_, below) in pairs.items()}

    def _with_hidden_rows(self, request: CoalitionRequest) -> tuple[dict[str, Any], int]:
        """The batch with one fully hidden sample appended, or all of them, and the number of rows."""
        rows = {k: v for k, v in request.batch.items() if _has_row_per_sample(v, request.count)}
        one = _only_modalities(request)
        alone = one and all(mask.independent_of_batch for mask in request.masks.values())
        empty = hidden({k: v[:1] for k, v in rows.items()} if alone else rows, request.masks, request.names)
        below = {k: torch.cat([v, empty[k][:1] if one else empty[k]]) for k, v in rows.items()}
        return {**request.batch, **below}, request.count + (1 if one else request.count)

    def _check_request(self, module: nn.Module, request: CoalitionRequest) -> None:
        absent_encoders = [name for name in request.names if name not in self.encoders]
        if absent_encoders or len(self.encoders) > len(request.names):
            raise MisuseError(
                f"late-fast needs one encoder for each of {', '.join(request.names)}, encoders={{modality: name of the "
                f"submodule}}, but was given {dict(self.encoders)}"
            )
        known = dict(module.named_modules())
        unknown = [name for name in self.encoders.values() if name not in known or not name]
        if unknown:
            raise MisuseError(f"the network has no submodule {unknown[0]!r}: name the encoder of each modality")
        varying = [name for name in request.names if not request.masks[name].constant]
        if varying:
            raise MisuseError(
                f"late-fast needs masks that are the same for all samples, but {varying[0]!r} is hidden by "
                f"{request.masks[varying[0]].name}: use zero, mean or the plan 'batched'"
            )

    def _recombined(
        self, module: nn.Module, request: CoalitionRequest, full: torch.Tensor, features: Features,
        hidden_features: Features,
    ) -> torch.Tensor:  # fmt: skip
        many = len(request.split.masked)
        mixtures = {}
        for i, name in enumerate(request.names):
            empty = hidden_features[name].expand_as(features[name])
            mixtures[name] = torch.cat([features[name] if i in c else empty for c in request.split.masked])
        batch = {k: _repeated(v, k in request.names, request.count, many) for k, v in request.batch.items()}
        replacement = lambda name, part: _ReplacedEncoder(part, lambda _: mixtures[name])  # noqa: E731
        with evaluation_mode(module), _replaced_encoders(module, self.encoders, replacement):
            others = request.output(module, batch)
        return torch.cat([full[None], others.reshape(-1, *full.shape).to(full.dtype)])

    @torch.no_grad()
    def _check_recombination(self, module: nn.Module, request: CoalitionRequest, scored: torch.Tensor) -> None:
        """Refuse a network whose masked passes differ from its recombined features."""
        with evaluation_mode(module), _without_attention_fast_path():
            for c, found in zip(request.split.masked, scored[1:], strict=True):
                if not _close(found, request.output(module, request.without(c))):
                    apart = " and ".join(request.names[i] for i in c)
                    raise MisuseError(
                        f"the network does more than fuse its encoders' features: with {apart} alone its output "
                        "differs from that of the recombined features. Use the plan 'batched' or 'exact'"
                    )


@contextlib.contextmanager
def _recording(
    module: nn.Module,
    encoders: Mapping[str, str],
    features: Features,
    rows: int,
    transform: Callable[[str, torch.Tensor], torch.Tensor] = lambda modality, features: features,
) -> Generator[None]:
    """Record the features of every encoder; the fusion is given those, or a function of them."""

    def record(modality: str, output: Any) -> torch.Tensor:
        if modality in features or not isinstance(output, torch.Tensor) or len(output) != rows:
            what = f"gives a {type(output).__name__}"
            if modality in features:
                what = "is called twice"
            elif isinstance(output, torch.Tensor):
                what = f"gives {len(output)} rows for {rows} samples"
            raise MisuseError(
                f"late-fast needs encoders that are called once and give one tensor [n, …], but "
                f"{encoders[modality]!r} {what}"
            )
        features[modality] = output
        return transform(modality, output)

    with _replaced_encoders(module, encoders, lambda m, part: _WrappedEncoder(part, partial(record, m))):
        yield
    uncalled = [place for m, place in encoders.items() if m not in features]
    if uncalled:
        raise MisuseError(
            f"the network did not call its encoder {uncalled[0]!r}. If it is compiled, compile its parts instead"
        )


@contextlib.contextmanager
def _without_attention_fast_path() -> Generator[None]:
    """Without attention's inference fast path, which gives zeros at padded positions."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _replaced_encoders(
    module: nn.Module, encoders: Mapping[str, str], replacement: Callable[[str, Any], _WrappedEncoder]
) -> Generator[None]:
    """Put something else in the place of every encoder, so that hooks and compiled calls stay as they are."""
    kept = []
    for modality, place in encoders.items():
        parent, _, last = place.rpartition(".")
        siblings: dict[str, Any] = module.get_submodule(parent)._modules
        kept.append((siblings, last, siblings[last]))
        siblings[last] = replacement(modality, siblings[last])
    try:
        yield
    finally:
        for siblings, last, part in reversed(kept):
            siblings[last] = part


def _coalition_features(features: torch.Tensor, count: int, position: int, split: CoalitionSplit) -> torch.Tensor:
    own, hidden_features = features.split([count, len(features) - count])
    empty = hidden_features.expand_as(own)
    return torch.cat([own if position in c else empty for c in split.coalitions])


def _only_modalities(request: CoalitionRequest) -> bool:
    """Whether nothing else in the batch has a row per sample."""
    return not any(_has_row_per_sample(v, request.count) for k, v in request.batch.items() if k not in request.names)


def _close(found: torch.Tensor, true: torch.Tensor) -> bool:
    slack = max(TOLERANCE, 8 * max(torch.finfo(true.dtype).eps, torch.finfo(found.dtype).eps))
    return not bool((true - found).abs().max() > slack * true.abs().max().clamp(min=1e-6))


def _has_row_per_sample(value: Any, count: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == count


def _repeated(value: Any, modality: bool, count: int, many: int) -> Any:
    """As many rows as there are coalitions; a modality is replaced by zeros that take no memory."""
    if not _has_row_per_sample(value, count):
        return value
    if modality:
        return value.new_zeros(()).expand(many * count, *value.shape[1:])
    return value.repeat(many, *[1] * (value.ndim - 1))
