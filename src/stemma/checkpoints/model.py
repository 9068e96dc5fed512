"""The model: named, lazily read tensors, and claims of its files."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from stemma.checkpoints import digest as digests
from stemma.checkpoints.quantization import dequantize
from stemma.checkpoints.tensor import Tensor
from stemma.checkpoints.weight_norm import fold_weight_norm
from stemma.errors import UnreadableModelError
from stemma.types import Digest, ModelRef
from stemma.types.asking import asked_plainly
from stemma.types.network import Network


@dataclass(frozen=True)
class Model:
    """The weights of a network by name, and the claims of its files.

    Attributes:
        name: Name, for display.
        source: Absolute path, or `python:NAME` for a model made in memory.
        tensors: The tensors as stored, by canonical name, sorted.
        config: Architecture configuration as claimed by a file next to the weights, None without one.
        claims: Other metadata (licence, base model …): shown, never used as evidence.
        notes: What the reader omitted or changed, for display.
        network_builder: Builds the network; set by `stemma.networks.load`, because this package does not import
            networks. None if only tensors were read.
        black_box: Whether only its outputs are known: its digest is `blackbox:NAME`.
        view: Identifies a temporary view made for one comparison: its digest is `view:VIEW`, and nothing is stored for
            it.
    """

    name: str
    source: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] | None = None
    claims: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    network_builder: Callable[["Model"], Network] | None = field(default=None, repr=False, compare=False)
    black_box: bool = False
    view: str = ""

    @cached_property
    def is_partial(self) -> bool:
        """Whether only a sample of its weights was read: its digest then begins with `partial:`."""
        return any(t.leading is not None for t in self.tensors.values())

    @cached_property
    def tensor_digests(self) -> Mapping[str, Digest]:
        """Digest of every tensor; reads all bytes once, in slices (of a sample, what it holds)."""
        return digests.of_tensors(self.tensors.values())

    @cached_property
    def counted(self) -> list[Tensor]:
        """The tensors that make up its identity: all except second names of tied tensors."""
        return digests.distinct_tensors(self.tensors.values(), self.tensor_digests)

    @cached_property
    def digest(self) -> Digest:
        """Identity of the weights: independent of format, order, sharding and of how a tied tensor was stored."""
        if self.black_box:
            return Digest(f"blackbox:{self.name}")
        if self.view:
            return Digest(f"view:{self.view}")
        return digests.of_model(self.counted, self.tensor_digests)

    @cached_property
    def names_free_digest(self) -> Digest:
        """Identity of the multiset of tensors: finds renamed copies; of a black box, which has none, its name."""
        if self.black_box:
            return self.digest
        return digests.of_contents(self.tensor_digests[t.name] for t in self.counted)

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
        """The network, built on first use with torch or ONNX Runtime.

        Raises:
            UnreadableModelError: If no network can be built.
        """
        if self.network_builder is None:
            raise UnreadableModelError(
                f"{self.name} has weights but no network to run. Open it with stemma.load or stemma.from_module"
            )
        return asked_plainly(self.network_builder)(self)

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """The tensors as numbers: codes dequantised, weight normalisation folded, everything else as stored."""
        return fold_weight_norm(self.state)

    @cached_property
    def state(self) -> Mapping[str, Tensor]:
        """The tensors as a network takes them: codes with a scale dequantised, the rest as stored."""
        return dequantize(self.tensors)
