"""The abstract base of fingerprinters: methods that look at one model, in blocks of probes."""

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError
from stemma.probes import Probes
from stemma.types import Fingerprint, Spec
from stemma.types.asking import asked_plainly


@dataclass(frozen=True, eq=False)
class Block:
    """The values of consecutive probes.

    Attributes:
        start: Index of the first probe.
        values: Named arrays, each with one row per probe (see `AbstractFingerprinter`).

    """

    start: int
    values: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))


class AbstractFingerprinter(abc.ABC):
    """A frozen dataclass of its own parameters that turns a model and probes into a fingerprint.

    `produces` decides which measures accept the fingerprint:

    - `field`: `curve` `[k, steps, d]` (or projections of it), `weights` `[k, steps]` (sum 1 over steps),
      `defined` `[k, steps]`;
    - `outputs`: `outputs` `[k, …]`, the network's outputs without normalisation;
    - `features`: `features` `[k, p]`, a vector per probe in the model's own coordinates; or `[k, r, p]`, r samples of
      each probe (positions, directions).

    Attributes:
        name: As in the command line, the docs and the registry.
        version: Raised whenever its values change.
        produces: `field`, `outputs` or `features`.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    produces: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        """Every method asks networks under the same settings of torch, whatever the caller has set."""
        super().__init_subclass__(**options)
        for name in {"blocks", "__call__"} & vars(cls).keys():
            setattr(cls, name, asked_plainly(vars(cls)[name]))

    @property
    def spec(self) -> Spec:
        """Identity of the method with its parameters, without fields that do not change values (`compare=False`)."""
        kept = [f.name for f in fields(self) if f.compare]  # ty: ignore[invalid-argument-type]
        return Spec(self.name, self.version, {name: getattr(self, name) for name in kept})

    @abc.abstractmethod
    def blocks(self, model: Model, probes: Probes, from_probe: int = 0) -> Iterator[Block]:
        """The fingerprint in probe order, a few probes at a time.

        Args:
            model: The model; it is not changed.
            probes: The inputs.
            from_probe: Skip blocks before this probe (the start of a block), to resume an interrupted run.

        Yields:
            Blocks of consecutive probes; their sizes depend on method and probes only, not on the model, so that the
            blocks of several models can be zipped.

        Raises:
            StemmaError: If the model does not support the method, or its outputs are NaN or random.
        """

    def __call__(self, model: Model, probes: Probes) -> Fingerprint:
        """The whole fingerprint, collected.

        Cost: memory for all its values; `blocks` needs that of one block.

        Args:
            model: The model.
            probes: The inputs.

        Returns:
            The fingerprint, under the model's network digest.

        Raises:
            MisuseError: If the arguments are not a model and probes.
        """
        if not isinstance(model, Model) or not isinstance(probes, Probes):
            raise MisuseError(
                "a fingerprint needs a model and probes, but "
                f"{type(model).__name__} and {type(probes).__name__} were given. Use stemma.load or "
                "stemma.from_module, and stemma.Probes.of"
            )
        parts = [block.values for block in self.blocks(model, probes)]
        values: dict[str, Any] = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        return Fingerprint(model.network.digest, probes.digest, self.spec, values)
