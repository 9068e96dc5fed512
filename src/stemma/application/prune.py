"""A smaller network, without labels or training, and the record of how it was made."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Progress, Schema
from stemma.application.network_options import NetworkOptions
from stemma.errors import MisuseError
from stemma.types import ModelRef, Plan, Receipt

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.edits.fidelity.statistics import Statistics
    from stemma.edits.pruning.pruning import Pruning
    from stemma.probes import Probes

NOISE = "noise:n=256"
"""Probe inputs where none are given."""


@dataclass(frozen=True, kw_only=True)
class PruneRequest:
    """What `stemma prune` is asked.

    Attributes:
        model: Path, registry name or digest prefix of the model.
        out: Folder for the smaller model; not needed for a dry run.
        ratio: Share of the units to remove; one of `ratio` and `budget` is given.
        budget: What to keep, as `WHAT=SHARE`: macs, parameters, latency or units.
        probes: Inputs like those that the model is meant for; noise if null.
        dry_run: Whether only the plan is made.
        statistics: File of layer statistics, read where it exists and written where it does not.
        parameters: Fields of the method, as `name=value`.
        replace: Whether an existing folder may be replaced.
        stream: Whether the network is pruned block by block; null where its size and the memory at hand decide.
        registry: Registry in which names are looked up; the default one if null.
        networks: How networks are built and run.
        seed: Of whatever is drawn at random.
    """

    model: str
    out: str | None = None
    ratio: float | None = None
    budget: str | None = None
    probes: str | None = None
    dry_run: bool = False
    statistics: str | None = None
    parameters: tuple[str, ...] | None = None
    replace: bool = False
    stream: bool | None = None
    registry: str | None = None
    networks: NetworkOptions = field(default_factory=NetworkOptions)
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class PruneDocument(Document):
    """What was pruned, or will be.

    Attributes:
        model: The model before.
        plan: Which units are removed, and what that is expected to cost.
        receipt: What was done and measured; null for a dry run.
        folder: Folder of the smaller model; null for a dry run.
    """

    SCHEMA: ClassVar[Schema] = Schema("stemma.prune", 1)

    asked: PruneRequest
    model: ModelRef
    plan: Plan
    receipt: Receipt | None
    folder: str | None


@dataclass(frozen=True, kw_only=True)
class PruneAnswer:
    """A plan, and what it did unless the run is dry.

    Attributes:
        request: What was asked.
        model: The model before.
        plan: Which units are removed.
        receipt: What was done; None for a dry run.
    """

    request: PruneRequest
    model: "Model"
    plan: Plan
    receipt: Receipt | None

    def document(self) -> dict[str, Any]:
        """The document that `stemma prune --json` prints."""
        folder = None if self.receipt is None else self.request.out
        return PruneDocument.of(
            self.request, model=self.model.ref, plan=self.plan, receipt=self.receipt, folder=folder
        ).to_dict()


def prune(request: PruneRequest, progress: Progress | None = None) -> PruneAnswer:
    """Remove the units whose part the others can take over best, and write the smaller model.

    Args:
        request: The model, how much to remove, and where to write it.
        progress: Told what is being done.

    Returns:
        The plan and the receipt.
    """
    from stemma.application.opening import open_workspace
    from stemma.edits.artefacts.save import check_writable, write

    pruning = _pruning(request)
    out = _folder(request)
    networks = request.networks
    model = networks.open_model(open_workspace(request.registry, progress=progress), request.model)
    if out is not None:
        check_writable(out, model.source, overwrite=request.replace)
    if _streams(request, model):
        return _block_by_block(request, pruning, model, progress)
    probes = networks.read_probes(request.probes or NOISE, model, request.seed)
    known = _statistics(pruning, model, probes, request.statistics, progress)
    plan = pruning.plan(model, probes, known, progress)
    receipt = None
    if out is not None:
        edited = pruning.apply(model, plan, probes, known, progress)
        receipt = write(edited, out, probes, overwrite=request.replace)
    return PruneAnswer(request=request, model=model, plan=plan, receipt=receipt)


def _streams(request: PruneRequest, model: "Model") -> bool:
    """Whether the model is pruned block by block: where that is asked for, or where memory needs it and it can be."""
    if request.stream is not None:
        return request.stream
    from stemma.edits.streaming.choice import exceeds_memory, why_not

    return not (request.dry_run or request.statistics) and exceeds_memory(model) and why_not(model) is None


def _block_by_block(
    request: PruneRequest, pruning: "Pruning", model: "Model", progress: Progress | None
) -> PruneAnswer:
    from stemma.edits.streaming.streamed_pruning import prune_block_by_block
    from stemma.networks.unfilled import described

    networks = request.networks
    for given, option in ((request.dry_run, "--dry-run"), (request.statistics, "--statistics"),
                          (networks.network, "--network"), (networks.device, "--device")):  # fmt: skip
        if given:
            raise MisuseError(f"{option} needs the whole network in memory, and --stream reads it block by block: give "
                              "one of them")  # fmt: skip
    assert request.out is not None
    probes = networks.read_probes(request.probes or NOISE, described(model), request.seed)
    plan, receipt = prune_block_by_block(
        pruning, model, probes, Path(request.out), overwrite=request.replace, progress=progress
    )
    return PruneAnswer(request=request, model=model, plan=plan, receipt=receipt)


def _pruning(request: PruneRequest) -> "Pruning":
    """The method with its parameters."""
    from stemma.application.method_options import parse_fields
    from stemma.edits.pruning.pruning import Pruning

    if (request.ratio is None) == (request.budget is None):
        raise MisuseError("give either how much to remove (--ratio .3) or how much to keep (--budget macs=0.5)")
    given = parse_fields(Pruning, request.parameters, request.seed)
    if twice := sorted({"budget", "keep_ratio"} & given.keys()):
        option = "--budget" if request.ratio is None else "--ratio"
        raise MisuseError(f"{option} and -P {twice[0]} both say how much to keep: give {option} only")
    if request.ratio is not None:
        given |= {"budget": "units", "keep_ratio": 1 - request.ratio}
        return Pruning(**given)
    what, equals, share = (request.budget or "").partition("=")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not equals or not 0 < value < 1:
        raise MisuseError(f"--budget takes WHAT=R with R between 0 and 1, for example macs=0.5, not '{request.budget}'")
    given |= {"budget": {"params": "parameters"}.get(what, what), "keep_ratio": value}
    return Pruning(**given)


def _folder(request: PruneRequest) -> Path | None:
    """Where the smaller model is written; None for a dry run."""
    if request.dry_run:
        return None
    if request.out is None:
        raise MisuseError("no folder is given for the smaller model: add --out DIR, or --dry-run to see the plan only")
    out = Path(request.out)
    if out.exists() and not request.replace:
        raise MisuseError(f"{out} exists. Choose another folder, or add --replace")
    return out


def _statistics(
    pruning: "Pruning", model: "Model", probes: "Probes", given: str | None, progress: Progress | None
) -> "Statistics | None":
    from stemma.edits.fidelity.statistics import Statistics

    if given is None:
        return None
    file = Path(given)
    if not file.exists():
        collected = pruning.collect(model, probes, progress)
        collected.save(file)
        return collected
    read = Statistics.read(file)
    if read.model != model.digest or read.probes != probes.digest:
        raise MisuseError(f"{file} holds statistics of another model or of other probe inputs: give another file")
    if read.sampling != pruning.collector.sampling:
        raise MisuseError(f"{file} was collected with {read.sampling}, not {pruning.collector.sampling}")
    return read
