"""A model as Stemma sees it: named, lazily read tensors and what its files claim about themselves."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from stemma.checkpoints import digest as digests
from stemma.checkpoints.quantization import dequantized
from stemma.checkpoints.tensor import Tensor
from stemma.checkpoints.weight_norm import folded
from stemma.errors import UnreadableModelError
from stemma.types import Digest, ModelRef
from stemma.types.network import Network


@dataclass(frozen=True)
class Model:
    """A network's weights, by name, and what its files say about it.

    Attributes:
        name: What a person calls it.
        source: Absolute path, or `python:NAME` for one made in memory.
        tensors: The tensors as stored, by canonical name, sorted.
        config: Architecture configuration as claimed by a file beside the weights, None without one.
        claims: Other metadata (licence, base model …): shown, never used as evidence.
        notes: What the reader left out or changed, for people.
        runs: Makes the network: handed in by whoever loads the model (`stemma.networks.load`), so that nothing here
            knows how a network is built. None where only tensors were read.
        black_box: Nothing is known but its answers: its digest is `blackbox:NAME`.
        view: What tells it from other views of stored models, where it is one that is made for a comparison and never
            kept: its digest is `view:VIEW`, and no entry is worked out for it.
    """

    name: str
    source: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] | None = None
    claims: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    runs: Callable[["Model"], Network] | None = field(default=None, repr=False, compare=False)
    black_box: bool = False
    view: str = ""

    @cached_property
    def tensor_digests(self) -> Mapping[str, Digest]:
        """Digest of every tensor; reads all bytes once, in slices."""
        return digests.of_tensors(self.tensors.values())

    @cached_property
    def _counted(self) -> list[Tensor]:
        return digests.counted(self.tensors.values(), self.tensor_digests)

    @cached_property
    def digest(self) -> Digest:
        """Identity of the weights: independent of format, order, sharding and of how a tied tensor was stored."""
        if self.black_box:
            return Digest(f"blackbox:{self.name}")
        if self.view:
            return Digest(f"view:{self.view}")
        return digests.of_model(self._counted, self.tensor_digests)

    @cached_property
    def names_free_digest(self) -> Digest:
        """Identity of the multiset of tensors: finds renamed copies."""
        return digests.of_contents(self.tensor_digests[t.name] for t in self._counted)

    @cached_property
    def architecture(self) -> str:
        """Identity of the number and shapes of the matrices, hexadecimal; empty of a black box."""
        shapes = sorted(t.shape for t in self.tensors.values() if sum(s > 1 for s in t.shape) >= 2)
        return hashlib.sha256(repr(shapes).encode()).hexdigest() if shapes else ""

    @property
    def ref(self) -> ModelRef:
        """Name and digest, for results."""
        return ModelRef(self.name, self.digest)

    @property
    def parameters(self) -> int:
        """Number of stored elements."""
        return sum(t.size for t in self.tensors.values())

    @cached_property
    def network(self) -> Network:
        """The model as something that can be questioned; built on first use, with torch or a runtime.

        Raises:
            UnreadableModelError: If no network can be built from what was given.
        """
        if self.runs is None:
            raise UnreadableModelError(
                f"{self.name} was read as tensors alone, so nothing runs it: open it with stemma.load or from_module"
            )
        return self.runs(self)

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """The tensors as numbers: codes dequantised, directions times lengths, everything else as stored."""
        return folded(self.state)

    @cached_property
    def state(self) -> Mapping[str, Tensor]:
        """The tensors as a network of this model takes them: codes with a scale dequantised, the rest as stored."""
        return dequantized(self.tensors)
