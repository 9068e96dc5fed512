"""Distances between all pairs of models, without storing fingerprints."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.fingerprints.base import AbstractFingerprinter, Block
from stemma.fingerprints.evaluation import require_one_tokenizer
from stemma.measures.base import AbstractMeasure
from stemma.probes import Probes
from stemma.types import Digest, Spec

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, eq=False)
class Pairwise:
    """Distances among models, probe by probe.

    Attributes:
        models: Network digests, in order.
        probes: Digest of the probes.
        fingerprint: The fingerprinter.
        measure: The measure.
        per_probe: `[m, m, k]`, NaN where undefined.
    """

    models: tuple[Digest, ...]
    probes: Digest
    fingerprint: Spec
    measure: Spec
    per_probe: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """Mean over the probes where both models are defined, `[m, m]`; NaN where there is none."""
        defined = np.isfinite(self.per_probe)
        count = defined.sum(2)
        total = np.where(defined, self.per_probe, 0).sum(2)
        return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)

    @property
    def coverage(self) -> np.ndarray:
        """Share of probes with a defined distance, `[m, m]`."""
        return np.isfinite(self.per_probe).mean(2)


def pairwise(
    models: Sequence[Model],
    probes: Probes,
    method: AbstractFingerprinter,
    measure: AbstractMeasure,
    *,
    progress: Progress | None = None,
    state: Path | None = None,
) -> Pairwise:
    """Distances among all models, block by block of probes.

    Cost: each model is run once. Memory: one block of each model, `[m, m, k]` distances, and the networks of all
    models.

    Args:
        models: The models.
        probes: The inputs.
        method: The fingerprinter.
        measure: A probewise measure (a mean over probes).
        progress: Called with a message, the number of probes done and the total.
        state: A file for finished blocks, to resume an interrupted run; it is removed at the end.

    Returns:
        The distances.

    Raises:
        MisuseError: If the measure is not a mean over probes, does not accept the fingerprints, or the tokenizers
            differ.
    """
    if method.produces not in measure.accepts:
        raise MisuseError(f"{measure.name} accepts {', '.join(sorted(measure.accepts))}, but {method.name} produces "
                          f"{method.produces}")  # fmt: skip
    if not measure.probewise:
        raise MisuseError(
            f"{measure.name} is not a mean over probes, so it cannot be computed in blocks. Use another measure"
        )
    if probes.kind == "tokens":
        require_one_tokenizer(*models)
    digests = tuple(m.network.digest for m in models)
    identity = Spec("pairwise", 1, {"models": digests, "probes": probes.digest, "method": method.spec,
                                    "measure": measure.spec}).digest  # fmt: skip
    per_probe = np.full((len(models), len(models), len(probes)), np.nan)
    done = _load_state(state, identity, per_probe)
    for blocks in _zipped(models, probes, method, done):
        start, stop = blocks[0].start, blocks[0].start + len(blocks[0])
        per_probe[:, :, start:stop] = measure.gram([b.values for b in blocks])
        if progress is not None:
            progress(f"comparing {len(models)} models", stop, len(probes))
        if state is not None:
            _save_state(state, identity, per_probe, stop)
    if state is not None:
        state.unlink(missing_ok=True)
    return Pairwise(digests, probes.digest, method.spec, measure.spec, per_probe)


def _zipped(
    models: Sequence[Model], probes: Probes, method: AbstractFingerprinter, from_probe: int
) -> Iterator[tuple[Block, ...]]:
    streams = [method.blocks(m, probes, from_probe) for m in models]
    for blocks in zip(*streams, strict=True):
        if len({(b.start, len(b)) for b in blocks}) > 1:
            raise StemmaError(f"{method.name} returned different blocks for these models, which is a bug in the method")
        yield blocks


def _load_state(state: Path | None, identity: Digest, per_probe: np.ndarray) -> int:
    """Restore the state of an interrupted run with the same parameters."""
    if state is None or not state.exists():
        return 0
    try:
        with np.load(state, allow_pickle=False) as kept:
            if str(kept["identity"]) != identity:
                return 0
            per_probe[:] = kept["per_probe"]
            return int(kept["done"])
    except (OSError, ValueError, KeyError):
        return 0


def _save_state(state: Path, identity: Digest, per_probe: np.ndarray, done: int) -> None:
    """Write the state to a temporary file and rename it."""
    state.parent.mkdir(parents=True, exist_ok=True)
    beside = state.with_name(state.name + ".part")
    with beside.open("wb") as file:
        np.savez(file, identity=np.array(str(identity)), per_probe=per_probe, done=np.array(done))
    beside.replace(state)
