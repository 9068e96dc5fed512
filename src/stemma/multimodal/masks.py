"""Masks: ways to hide a modality from a network.

A mask assumes what "nothing" looks like: for normalised images 0 is the mean, for log-spectrograms it is loud, for
token ids it is a word. `AdaptiveGradientModulation.check` shows whether the output for hidden inputs is near the class
frequencies.
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from stemma.deprecation import warn_renamed
from stemma.errors import MisuseError

Batch = Mapping[str, torch.Tensor]


class AbstractMask(abc.ABC):
    """A frozen dataclass of its own parameters that hides one modality of a batch.

    Attributes:
        name: As in the command line and the docs.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Take methods that were overridden under their old names, for one release."""
        for old, new in (("alone", "independent_of_batch"), ("missing", "fill_missing")):
            if old in vars(cls):
                warn_renamed(old, new)
                setattr(cls, new, vars(cls)[old])

    @property
    def constant(self) -> bool:
        """Whether the hidden input is the same for every sample, so that an encoder has to run on it only once."""
        return True

    @property
    def independent_of_batch(self) -> bool:
        """Whether the hidden input is independent of the other samples of the batch."""
        return True

    @abc.abstractmethod
    def __call__(self, batch: Batch, modality: str) -> dict[str, torch.Tensor]:
        """The entries of a batch that change when a modality is hidden.

        Args:
            batch: Tensors by name; none is changed in place.
            modality: What to hide.

        Returns:
            New tensors by name, of the same shape and type.
        """

    def fill_missing(self, batch: Batch, modality: str, present: torch.Tensor) -> dict[str, torch.Tensor]:
        """The input for samples that lack a modality, from those that have it (`present [n]`) where others are used."""
        return self(batch, modality)


@dataclass(frozen=True)
class Zero(AbstractMask):
    """Zeros in place of the whole input: the published choice."""

    name = "zero"

    def __call__(self, batch: Batch, modality: str) -> dict[str, torch.Tensor]:
        """See `AbstractMask`; integers are refused, because 0 is a token like any other."""
        return {modality: torch.zeros_like(_floats(batch[modality], modality, self.name))}


@dataclass(frozen=True, eq=False)
class Mean(AbstractMask):
    """The mean input.

    Attributes:
        value: Mean of the training inputs, the shape of one input; the mean of the batch if None.
    """

    value: torch.Tensor | None = None
    name = "mean"

    @property
    def independent_of_batch(self) -> bool:
        """If its value was given."""
        return self.value is not None

    def __call__(self, batch: Batch, modality: str) -> dict[str, torch.Tensor]:
        """See `AbstractMask`."""
        x = _floats(batch[modality], modality, self.name)
        return {modality: _filled(x, x.detach().mean(0) if self.value is None else self.value, modality)}

    def fill_missing(self, batch: Batch, modality: str, present: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `AbstractMask`."""
        if self.value is not None:
            return self(batch, modality)
        x = _floats(batch[modality], modality, self.name)
        return {modality: _filled(x, _present_rows(x.detach(), present, modality, self.name).mean(0), modality)}


@dataclass(frozen=True, eq=False)
class Learned(AbstractMask):
    """A learned input.

    Attributes:
        value: A parameter with the shape of one input. It belongs to the mask, not to the network: give it to the
            optimiser, and save it beside the weights.
    """

    value: torch.Tensor
    name = "learned"

    def __call__(self, batch: Batch, modality: str) -> dict[str, torch.Tensor]:
        """See `AbstractMask`; the gradient of masked passes reaches the value."""
        return {modality: _filled(_floats(batch[modality], modality, self.name), self.value, modality)}


@dataclass(frozen=True)
class Permuted(AbstractMask):
    """The input of another sample of the batch, which is plausible but uninformative.

    Attributes:
        shift: Which other sample: that many rows above, cyclic, never itself. Batches have to be shuffled, and
            modalities shifted differently, so that no two come from one sample: by name, they are.
    """

    shift: int = 1
    name = "permuted"

    @property
    def constant(self) -> bool:
        """Never."""
        return False

    @property
    def independent_of_batch(self) -> bool:
        """Never."""
        return False

    def __call__(self, batch: Batch, modality: str) -> dict[str, torch.Tensor]:
        """See `AbstractMask`; `MisuseError` if there is no other sample."""
        x = batch[modality]
        if len(x) < 2 or self.shift < 1:
            raise MisuseError(
                f"a batch of {len(x)} has no other sample {self.shift} rows above to take {modality!r} from: give "
                "larger batches, or another mask"
            )
        return {modality: x.roll((self.shift - 1) % (len(x) - 1) + 1, 0)}

    def fill_missing(self, batch: Batch, modality: str, present: torch.Tensor) -> dict[str, torch.Tensor]:
        """See `AbstractMask`."""
        x = _present_rows(batch[modality], present, modality, "other sample")
        return {modality: x[torch.arange(len(present), device=x.device) % len(x)]}


@dataclass(frozen=True)
class AttentionMask(AbstractMask):
    """The modality's attention mask, closed; its tokens stay.

    Attributes:
        key: Name of the mask in the batch, `[n, length]`, 1 or true where a token is attended to.
        keep: First positions that stay open, because attention over nothing is undefined in most networks.
    """

    key: str = "attention_mask"
    keep: int = 1
    name = "attention-mask"

    @property
    def constant(self) -> bool:
        """Not while some positions stay open."""
        return False

    def __call__(self, batch: Batch, modality: str) -> dict[str, torch.Tensor]:
        """See `AbstractMask`; `MisuseError` if the batch has no valid attention mask."""
        if self.key not in batch:
            raise MisuseError(f"the batch has no attention mask {self.key!r} for {modality!r}, it has {list(batch)}")
        given = batch[self.key]
        if given.ndim != 2 or not bool(((given == 0) | (given == 1)).all()):
            raise MisuseError(
                f"{self.key!r} has to be [n, length] with 1 where a token is attended to and 0 elsewhere, but it is "
                f"{given.dtype} {list(given.shape)}" + ("" if given.ndim != 2 else " with other values")
            )
        closed = torch.zeros_like(given)
        closed[:, : self.keep] = batch[self.key][:, : self.keep]
        return {self.key: closed}


@dataclass(frozen=True)
class TokenPad(AbstractMask):
    """Padding in place of every token.

    Attributes:
        pad: The id of the padding token.
        keep: First tokens that stay, such as one that marks the start.
    """

    pad: int = 0
    keep: int = 0
    name = "token-pad"

    @property
    def constant(self) -> bool:
        """If no token stays."""
        return not self.keep

    def __call__(self, batch: Batch, modality: str) -> dict[str, torch.Tensor]:
        """See `AbstractMask`; `MisuseError` if the modality holds no token ids."""
        ids = batch[modality]
        if ids.is_floating_point():
            raise MisuseError(f"{modality!r} holds {ids.dtype}, not token ids: hide it by zero or mean")
        padded = torch.full_like(ids, self.pad)
        padded[:, : self.keep] = ids[:, : self.keep]
        return {modality: padded}


ALL = (Zero, Mean, Learned, Permuted, AttentionMask, TokenPad)
"""Every way to hide a modality."""


def masks_of(
    given: "str | AbstractMask | Mapping[str, str | AbstractMask]", modalities: Sequence[str]
) -> dict[str, AbstractMask]:
    """One mask per modality, from a mask or name for all or by modality; zero by default, `MisuseError` if unknown."""
    each: Mapping[str, Any] = given if isinstance(given, Mapping) else dict.fromkeys(modalities, given)
    unknown = [name for name in each if name not in modalities]
    if unknown:
        raise MisuseError(
            f"there is a mask for {unknown[0]!r}, which is not one of the modalities {', '.join(modalities)}"
        )
    return {m: _named(each.get(m, Zero.name), i) for i, m in enumerate(modalities)}


def _named(given: Any, position: int) -> AbstractMask:
    if isinstance(given, AbstractMask):
        return given
    if given == Permuted.name:
        return Permuted(position + 1)
    ready = {kind.name: kind for kind in ALL if kind is not Learned}
    if given not in ready:
        raise MisuseError(f"no mask is called {given!r}. Choose one of {', '.join(k.name for k in ALL)}")
    return ready[given]()


def hidden(batch: Batch, masks: Mapping[str, AbstractMask], modalities: Sequence[str]) -> dict[str, torch.Tensor]:
    """The batch with some modalities hidden: a new mapping; entries that do not change are the same tensors."""
    out = dict(batch)
    for name in modalities:
        out.update(masks[name](out, name))
    return out


def _present_rows(x: torch.Tensor, present: torch.Tensor, modality: str, name: str) -> torch.Tensor:
    rows = x[present.to(x.device)]
    if not len(rows):
        raise MisuseError(
            f"no sample of the batch has {modality!r}, so it has no {name}: hide it by zero or Mean(value)"
        )
    return rows


def _floats(x: torch.Tensor, modality: str, name: str) -> torch.Tensor:
    if not x.is_floating_point():
        raise MisuseError(
            f"{modality!r} holds {x.dtype}, and {name} would turn integers into tokens: use TokenPad, Permuted or "
            "AttentionMask"
        )
    return x


def _filled(x: torch.Tensor, value: torch.Tensor, modality: str) -> torch.Tensor:
    if value.shape != x.shape[1:]:
        raise MisuseError(
            f"the value that hides {modality!r} has shape {list(value.shape)}, but one input has {list(x.shape[1:])}"
        )
    return value.to(x.device, x.dtype).expand_as(x).contiguous()
