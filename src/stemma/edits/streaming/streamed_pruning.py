"""A transformer pruned block by block: memory for two blocks and one layer's statistics, whatever the depth.

The hidden states of the probes pass through the whole network and through the pruned one side by side. Each block is
read, its units are chosen from the statistics of the whole network, what is left is refitted on the states of the
pruned one, and it is written, before the next block is read. One share serves all blocks (a configuration has one entry
for the width of all of them), so that no block waits for another one's error curve.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.edits.artefacts.measured_effect import LATENCY_BATCH, versions
from stemma.edits.artefacts.result import Edited, edit_receipt
from stemma.edits.artefacts.save import check_writable, companions, parent_source, write_records
from stemma.edits.dependency_graph import configurations, slicing
from stemma.edits.dependency_graph.dependency_groups import DependencyGraph
from stemma.edits.editable_network import EditableNetwork, checked_dependency_graph
from stemma.edits.fidelity.optimal_brain_surgeon import ErrorCurve
from stemma.edits.pruning.planner import MIN_PROBES, PruningPlanner, prunable_groups
from stemma.edits.pruning.pruning import Pruning
from stemma.edits.streaming.block_pruning import PrunedBlock, advance, prune_block, stored_block
from stemma.edits.streaming.hidden_states import PRUNED, WHOLE, HiddenStates
from stemma.edits.streaming.layout import Layout, layout_of
from stemma.edits.streaming.output_agreement import measured_agreement
from stemma.edits.streaming.streamed_folder import StreamedFolder
from stemma.edits.streaming.template import Template, block_kinds
from stemma.edits.streaming.whole_graph import whole_graph
from stemma.errors import MisuseError, StemmaError
from stemma.networks.load import load
from stemma.networks.unfilled import described, unfilled_module
from stemma.probes import Probes
from stemma.types import Plan, Receipt

TOKENS = 2048
"""Largest number of tokens that run through a block at once, unless one input is longer."""


@dataclass(frozen=True, eq=False)
class StreamedPruning:
    """A model while it is pruned block by block.

    Attributes:
        method: The pruning parameters, as they apply to blocks one by one.
        model: The model.
        probes: Token ids.
        folder: Where the result is written.
        progress: Called with what happens, how much is done and of how much.
    """

    method: Pruning
    model: Model
    probes: Probes
    folder: Path
    progress: Any = None

    def __call__(self, *, overwrite: bool = False) -> tuple[Plan, Receipt]:
        """Prune and write the model; a run that was interrupted is continued."""
        check_writable(self.folder, self.model.source, overwrite=overwrite)
        layout = self._checked()
        tokens = np.unique(self.probes.inputs)
        kinds = block_kinds(layout)
        before = _stamps(self.model)
        template, one_block = Template.of_block(layout, tokens, 0, kinds[0])
        ids = template.ids(self.probes.inputs)
        graph = checked_dependency_graph(one_block, ids, template.editable)
        whole = whole_graph(graph, layout)
        sizes = self._sizes(whole, template.editable)
        config = self._new_config(layout, whole, sizes)
        planner = PruningPlanner(self.method, replace(one_block, tensors={}), self.probes, template.editable, graph,
                                 graph.groups)  # fmt: skip
        del one_block
        out = StreamedFolder(self.folder, self._identity(), layout.depth + 1)
        try:
            done = out.begin() or self._begin(out, layout, template, ids)
            templates = {kinds[0]: template}
            for i in range(done["next"], layout.depth):
                if kinds[i] not in templates:
                    templates[kinds[i]] = Template.of_block(layout, tokens, i, kinds[i])[0]
                self._step(i, layout, templates[kinds[i]], planner, sizes, out, done)
            last = _states(out, layout.depth, ids, template, new=False)
            measured = measured_agreement(template, last, ids, self.method.batch)
            if _stamps(self.model) != before:
                raise StemmaError(f"the files of {self.model.name} changed while they were read: delete {out.partial} "
                                  "and start again")  # fmt: skip
            return self._finish(out, layout, planner, whole, config, done, measured)
        finally:
            out.release()

    def _checked(self) -> Layout:
        """The blocks of the model; raises if it, the inputs or the settings cannot be used."""
        if self.probes.kind != "tokens" or self.probes.inputs.ndim != 2:
            raise MisuseError(f"a network that is pruned block by block reads token ids, not {self.probes.kind}")
        if len(self.probes) < MIN_PROBES:
            raise MisuseError(f"{len(self.probes)} inputs are too few to choose units: give {MIN_PROBES} or more, "
                              "better some hundreds")  # fmt: skip
        layout = layout_of(self.model)
        words = layout.stored(layout.places.head[-1] + ".weight") if layout.places.head else None
        spec = self.model.network.input_spec
        longest = spec.shape[0] if spec is not None and spec.shape else None
        if longest is not None and self.probes.inputs.shape[1] > longest:
            raise MisuseError(f"the inputs have {self.probes.inputs.shape[1]} tokens, and {self.model.name} takes "
                              f"{longest} at most")  # fmt: skip
        highest = int(self.probes.inputs.max(initial=0))
        if int(self.probes.inputs.min(initial=0)) < 0 or (words is not None and highest >= words.shape[0]):
            raise MisuseError(f"the inputs hold the token {highest}, and {self.model.name} has no such token")
        return layout

    def _sizes(self, whole: DependencyGraph, editable: EditableNetwork) -> dict[str, int]:
        """The number of units that each group of the whole network keeps."""
        planner = PruningPlanner(self.method, self.model, self.probes, editable, whole,
                                 prunable_groups(self.method, whole, self.model))  # fmt: skip
        flat = {g.name: ErrorCurve(np.arange(g.size), np.array([0]), np.array([0.0])) for g in planner.groups}
        return planner.sizes(whole, flat, self.method.keep_ratio, "uniform")

    def _new_config(self, layout: Layout, whole: DependencyGraph, sizes: Mapping[str, int]) -> dict[str, Any]:
        """The configuration of the result, which has to be able to say all widths."""
        rows = slicing.kept_rows(whole, {g: np.arange(n) for g, n in sizes.items()})
        shapes = {n: tuple(len(rows.get(n, {}).get(a, range(k))) for a, k in enumerate(s))
                  for n, s in whole.shapes.items()}  # fmt: skip
        config = configurations.resized_config(layout.config, shapes)
        if config is None:
            raise MisuseError("with these settings the blocks would have different widths, and the configuration of a "
                              f"{layout.config['model_type']} has one for all: leave out -P only and -P ignore, or "
                              "prune in memory (--no-stream)")  # fmt: skip
        try:
            _check_shapes(layout.model, config, shapes)
        except StemmaError as error:
            raise MisuseError(f"transformers cannot build a network of these widths: {error}. Choose another share, "
                              "or leave the heads (-P heads=no)") from error  # fmt: skip
        needed = sum(t.nbytes for t in self.model.tensors.values()) + 4 * self._state_bytes(layout)
        here = next(p for p in (self.folder.resolve(), *self.folder.resolve().parents) if p.exists())
        free = shutil.disk_usage(here).free + sum(
            f.stat().st_size for f in StreamedFolder(self.folder, {}, 0).partial.rglob("*") if f.is_file()
        )
        if free < needed:
            raise MisuseError(f"the result and the hidden states take up to {needed / 1e6:,.0f} MB, and "
                              f"{free / 1e6:,.0f} MB are free beside {self.folder.name}: use another disk")  # fmt: skip
        return config

    def _state_bytes(self, layout: Layout) -> int:
        width = int(layout.config.get("hidden_size") or layout.config.get("n_embd") or 0)
        return 4 * self.probes.inputs.size * width

    def _identity(self) -> dict[str, Any]:
        """What a run is made of, by the words that an error uses."""
        spec = self.method.spec
        return {"model": str(self.model.digest), "set of inputs": str(self.probes.digest),
                "set of parameters": [spec.name, spec.version, _plain(spec.params)],
                "version of the software": dict(versions())}  # fmt: skip

    def _begin(self, out: StreamedFolder, layout: Layout, template: Template, ids: np.ndarray) -> dict[str, Any]:
        """Write what lies outside of the blocks, and embed the probes."""
        out.write(layout.depth, list(layout.others.values()))
        states = _states(out, 0, ids, template, new=True)
        for start in range(0, len(ids), self.method.batch):
            found = template.embedded(ids[start : start + self.method.batch])
            for which in (WHOLE, PRUNED):
                states.put(start, which, found)
        states.close()
        done = {"next": 0, "kept": {}, "curves": {}, "layers": {}, "seconds": [0.0, 0.0], "spent": 0.0}
        out.keep(done)
        return done

    def _step(
        self, i: int, layout: Layout, template: Template, planner: PruningPlanner, sizes: Mapping[str, int],
        out: StreamedFolder, done: dict[str, Any],
    ) -> None:  # fmt: skip
        """Prune, write and record one block."""
        began = time.monotonic()
        if self.progress is not None:
            left = f", {_duration(done['spent'] / i * (layout.depth - i))} left" if i else ""
            self.progress(f"pruning block {i + 1} of {layout.depth}{left}", i, layout.depth)
        template.fill(i)
        ids = self.probes.inputs
        before = _states(out, i, ids, template, new=False)
        here = {g.name: sizes.get(_renamed(g.name, layout, i), g.size) for g in planner.groups}
        block = prune_block(planner, template, here, before)
        out.write(i, stored_block(block, template, i))
        after = _states(out, i + 1, ids, template, new=True)
        errors, seconds = advance(block, before, after, self.method.batch)
        after.close()
        self._record(i, layout, block, done)
        done["layers"] |= {_renamed(n, layout, i): e for n, e in errors.items()}
        done["seconds"] = [a + b for a, b in zip(done["seconds"], seconds, strict=True)]
        done["spent"] += time.monotonic() - began
        done["next"] = i + 1
        out.keep(done)
        before.path.unlink(missing_ok=True)

    @staticmethod
    def _record(i: int, layout: Layout, block: PrunedBlock, done: dict[str, Any]) -> None:
        for name, kept in block.kept.items():
            full = _renamed(name, layout, i)
            curve = block.curves[name]
            done["kept"][full] = [int(k) for k in kept]
            done["curves"][full] = [[int(r) for r in curve.removed], [float(e) for e in curve.errors]]

    def _finish(
        self, out: StreamedFolder, layout: Layout, planner: PruningPlanner, whole: DependencyGraph,
        config: dict[str, Any], done: dict[str, Any], agreement: Mapping[str, float],
    ) -> tuple[Plan, Receipt]:  # fmt: skip
        """Write the records beside the weights, check what was written, and put the folder into its place."""
        written = out.finish_index()
        chosen = {g.name: g.size for g in prunable_groups(self.method, whole, self.model)}
        kept = {g: np.array(done["kept"].get(g, range(n)), int) for g, n in chosen.items()}
        curves = {g: ErrorCurve(kept[g], *(np.array(x) for x in done["curves"].get(g, [[0], [0.0]]))) for g in chosen}
        plan = self.method.plan_of(self.model, self.probes, whole, kept, curves)
        widest = max(planner.graph.shapes[r.weight][r.input_axis] for g in planner.groups for r in g.readers)
        plan = replace(plan, expected={**plan.expected, "positions": [int(self.probes.inputs.size), widest]})
        counts = {g: len(k) for g, k in kept.items()}
        scale = LATENCY_BATCH / len(self.probes)
        measured = {
            "macs": [whole.macs(), whole.macs(counts)],
            "parameters": [whole.parameters(), whole.parameters(counts)],
            "seconds": [s * scale for s in done["seconds"]],
            "layers": done["layers"],
            **agreement,
        }  # fmt: skip
        _check_shapes(self.model, config, {n: t.shape for n, t in written.items()})
        _write_config(config, out.partial)
        for file in companions(Path(self.model.source)):
            shutil.copyfile(file, out.partial / file.name)
        child = load(out.partial)
        receipt = edit_receipt(self.model, child.digest, plan, self.probes, measured)
        edited = Edited(child, planner.editable, plan, receipt, self.model)
        receipt = replace(receipt, parent_source=parent_source(edited, self.folder))
        write_records(edited, receipt, out.partial)
        out.complete()
        return plan, receipt


def prune_block_by_block(
    method: Pruning, model: Model, probes: Probes, folder: Path, *, overwrite: bool = False, progress: Any = None
) -> tuple[Plan, Receipt]:
    """Prune a transformer of any depth with the memory of about two of its blocks, and write it as it is done.

    Cost: seven passes through every block, and two cubes of each layer's inputs. On disk: the hidden states twice.

    Args:
        method: The pruning parameters. The same share of every block is kept.
        model: A checkpoint folder of one of `layout.PLACES`; its network is not built.
        probes: Token ids, of one length.
        folder: Where the result is written. Progress is kept beside it, and the same call continues it.
        overwrite: Allow an earlier result to be replaced.
        progress: Called with what happens, how much is done and of how much.

    Returns:
        The plan and the receipt.

    Raises:
        MisuseError: If the model, the settings or the inputs cannot be used; before any work.
        StemmaError: If the disk is full, or weights are not finite.
    """
    if method.rounds > 1 or method.budget == "latency":
        raise MisuseError("block by block there is one round, and no budget of latency: choose macs, parameters or "
                          "units, or prune in memory (--no-stream)")  # fmt: skip
    if method.allocation not in ("uniform", "measured"):
        raise MisuseError(f"allocation {method.allocation} needs the curves of all blocks at once: use "
                          "allocation=uniform, or prune in memory (--no-stream)")  # fmt: skip
    length = max(1, probes.inputs.shape[-1])
    batch = max(1, min(method.batch, TOKENS // length))
    method = replace(method, allocation="uniform", weigh=False, recalibrate=False, batch=batch)
    try:
        return StreamedPruning(method, described(model), probes, folder, progress)(overwrite=overwrite)
    except OSError as error:
        raise StemmaError(f"{folder.name} could not be written ({error.strerror or error}); what was done is kept, and "
                          "the same command goes on from there") from error  # fmt: skip


def _renamed(name: str, layout: Layout, i: int) -> str:
    first = layout.block(0)
    return layout.block(i) + name.removeprefix(first) if name.startswith(f"{first}.") else name


def _states(out: StreamedFolder, i: int, ids: np.ndarray, template: Template, *, new: bool) -> HiddenStates:
    config = template.layout.config
    width = int(config.get("hidden_size") or config.get("n_embd") or 0)
    return HiddenStates(out.scratch / f"states-{i}.bin", (len(ids), ids.shape[1], width), new=new)


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in params.items()}


def _stamps(model: Model) -> list[tuple[str, int, int]]:
    """Sizes and times of the files that a model is read from."""
    source = Path(model.source)
    files = sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]
    return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def _check_shapes(model: Model, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless the new configuration builds a network of the shapes that were written."""
    built = {n: tuple(t.shape) for n, t in unfilled_module(model, config).state_dict().items()}
    wrong = sorted(n for n, s in shapes.items() if n in built and built[n] != tuple(s))
    if wrong:
        raise StemmaError(f"{wrong[0]} would have the shape {built[wrong[0]]}, not {shapes[wrong[0]]}")


def _write_config(config: Mapping[str, Any], folder: Path) -> None:
    import json

    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
