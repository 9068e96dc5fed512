"""Writing an edited model to a folder that loads without Stemma, with plan, receipt and model card."""

import copy
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemma.checkpoints.model import Model
from stemma.checkpoints.privacy import public_source
from stemma.checkpoints.save import save
from stemma.edits.artefacts.model_card import model_card
from stemma.edits.artefacts.result import Edited
from stemma.edits.dependency_graph import configurations
from stemma.edits.editable_network import OUTPUT_TOLERANCE
from stemma.edits.layer_inputs import as_tensor
from stemma.errors import MisuseError, StemmaError
from stemma.networks.load import load
from stemma.probes import Probes
from stemma.types import Receipt
from stemma.types.edits import PLAN, PROGRAM, RECEIPT

REPORT = "README.md"
"""The model card."""

BARE = "model.safetensors"
"""Weights of a network without a configuration whose code cannot be exported."""

HALF_TOLERANCE = 0.05
"""As `OUTPUT_TOLERANCE`, where weights are written in half precision."""

NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".pt2", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")
"""Endings of files in the parent's folder that hold weights."""


def write(
    edited: Edited, folder: Path | str, probes: Probes, *, overwrite: bool = False, undo: Path | str | None = None
) -> Receipt:
    """Write an edited model; the folder appears only once it is complete and was read back.

    A model with a configuration becomes a checkpoint folder of its own kind (of transformers: for `from_pretrained`);
    any other becomes a program, which `torch.export.load` loads without code, or bare weights where its code cannot be
    exported; `stemma.edits.load` puts either into the user's own class.

    Args:
        edited: The model after the edit.
        folder: Where to write.
        probes: A few are run through the model that was read back.
        overwrite: Allow an existing folder to be replaced.
        undo: File outside of the folder for the original weights, of an edit that changes weights in place. They hold
            what was to be forgotten, so that they are not written beside the result.

    Returns:
        The receipt, with the digest of what lies on disk.

    Raises:
        MisuseError: If the folder may not be written.
        StemmaError: If the model that was read back has other outputs than the edited network.
    """
    folder = Path(folder)
    check_writable(folder, edited.parent.source, overwrite=overwrite)
    check_undo(undo, folder)
    partial, aside = (folder.with_name(f".{folder.name}.{os.getpid()}.{word}") for word in ("partial", "before"))
    partial.mkdir(parents=True)
    try:
        _write_weights(edited, partial, probes)
        found = _read_back(edited, partial)
        if has_bare_weights(partial):
            _check_weights(edited, found)
        else:
            _check_outputs(edited, replace(found), probes)
        receipt = replace(edited.receipt, child=found.digest, parent_source=parent_source(edited, folder))
        write_records(edited, receipt, partial)
        if undo is not None and edited.undo:
            _write_undo(edited, Path(undo), found)
        if folder.exists():
            folder.rename(aside)
        partial.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return receipt


def check_writable(folder: Path, source: str, *, overwrite: bool) -> None:
    """Raise `MisuseError` if a folder may not be written: only earlier edits are overwritten, never the parent."""
    if not folder.name or folder.name == ".." or folder.is_symlink():
        raise MisuseError(f"{folder} is not a folder name: give a path that ends in one")
    if not folder.exists():
        return
    if not overwrite or not folder.is_dir():
        raise MisuseError(f"{folder} exists. Choose another folder, or allow it to be replaced (--replace)")
    parent, here = Path(source).resolve(), folder.resolve()
    if Path(source).exists() and (here == parent or here in parent.parents or parent in here.parents):
        raise MisuseError(f"{folder} holds the model that is edited ({source}): choose another folder")
    if any(folder.iterdir()) and not ((folder / PLAN).is_file() and (folder / RECEIPT).is_file()):
        raise MisuseError(
            f"{folder} holds something other than an edited model and is not replaced: choose another folder"
        )


def check_undo(undo: Path | str | None, folder: Path) -> None:
    """Raise `MisuseError` if original weights may not be written to a file: it exists, or lies in the result."""
    if undo is None:
        return
    if Path(undo).exists():
        raise MisuseError(f"{undo} exists: choose another file for the original weights")
    if folder.resolve() in Path(undo).resolve().parents:
        raise MisuseError(
            f"{undo} lies in {folder}, which is the result: the original weights hold what was to be forgotten. Choose "
            "a file outside of it"
        )


def parent_source(edited: Edited, folder: Path) -> str:
    """Where the parent lies, as seen from the folder of the result if it is near, else its last part."""
    source = edited.parent.source
    if Path(source).exists():
        parent, here = Path(source).resolve(), folder.resolve()
        relative = Path(os.path.relpath(parent, here))
        ups = relative.parts.count(os.pardir)
        between = here.parents[ups - 1] if ups else here  # the folder that holds both: its own name is not told
        if ups <= 2 and between not in (Path(here.anchor), *Path.home().parents):
            return relative.as_posix()
    return public_source(source)


def checkpoint_path(folder: Path) -> Path:
    """What is loaded of an edited model: the folder where it has a configuration, else the program or bare weights."""
    if (folder / "config.json").is_file():
        return folder
    return folder / (BARE if has_bare_weights(folder) else PROGRAM)


def has_bare_weights(folder: Path) -> bool:
    """Whether a folder holds weights that only the user's own class can run."""
    return (folder / BARE).is_file() and not any((folder / name).is_file() for name in ("config.json", PROGRAM))


def _write_weights(edited: Edited, folder: Path, probes: Probes) -> None:
    module, config = edited.editable.module, edited.model.config
    if hasattr(module, "save_pretrained") and config is not None:
        _of_transformers(module, config, edited.parent.config or {})
        half = half_dtype(edited)
        stored: Any = module if half is None else _halved(module, half, edited)
        stored.save_pretrained(folder)
        for file in companions(Path(edited.parent.source)):
            shutil.copyfile(file, folder / file.name)
    elif config is not None:
        save(edited.model, folder / "saved", config)
        for file in (folder / "saved").iterdir():
            file.rename(folder / file.name)
        (folder / "saved").rmdir()
        _program(edited, folder, probes)
    elif not _program(edited, folder, probes):
        from safetensors.torch import save_file

        save_file({n: t.detach().cpu().clone().contiguous() for n, t in module.state_dict().items()}, folder / BARE)


def half_dtype(edited: Edited) -> torch.dtype | None:
    """The half precision that all of the parent's matrices are stored in, if any; the child is written in it too."""
    kinds = {t.dtype for t in edited.parent.tensors.values() if t.is_float and len(t.shape) > 1}
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(kinds.pop()) if len(kinds) == 1 else None


def _halved(module: torch.nn.Module, half: torch.dtype, edited: Edited) -> Any:
    """A copy in half precision; vectors stay single where the parent stores them so."""
    vectors = {t.dtype for t in edited.parent.tensors.values() if t.is_float and len(t.shape) == 1}
    stored = copy.deepcopy(module)
    for p in stored.parameters():
        if p.ndim > 1 or "F32" not in vectors:
            p.data = p.data.to(half)
    return stored


def _of_transformers(module: Any, config: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Set the new sizes in the module's own configuration, which transformers writes."""
    for key in configurations.entries(str(config.get("model_type"))):
        if config.get(key) != before.get(key):
            setattr(module.config, key, config[key])


def companions(source: Path) -> Iterator[Path]:
    """Files beside the parent's weights that the child needs too: tokenizer, preprocessing."""
    folder = source if source.is_dir() else source.parent
    if not (source.exists() and (folder / "config.json").is_file()):
        return
    own_files = ("config.json", "generation_config.json", PLAN, RECEIPT, REPORT)
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name not in own_files and not file.name.endswith((*NOT_COPIED, ".py")):
            yield file


class _ForwardModule(torch.nn.Module):
    """A network with everything around it as one module, for export."""

    def __init__(self, edited: Edited) -> None:
        super().__init__()
        self.inner = edited.editable.module
        self._forward = edited.editable.forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raw inputs to the main output."""
        from stemma.types.network import main_output

        found = main_output(self._forward(x))
        assert found is not None
        return found


def _program(edited: Edited, folder: Path, probes: Probes) -> bool:
    """Write the network as a `torch.export` program with a free batch axis; False where its code cannot be exported."""
    editable, spec = edited.editable, edited.editable.network.input_spec
    module = editable.module if editable.forward is editable.module else _ForwardModule(edited)
    tokens = probes.kind == "tokens"
    longest = spec.shape[0] if tokens and spec is not None and spec.shape[0] else 1 << 20
    x = as_tensor(np.repeat(probes.inputs[:1], 2, 0), editable.like)
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if tokens:
        x, axes[1] = x[:, :8].contiguous(), torch.export.Dim("length", max=longest)
    try:
        program = torch.export.export(module.eval(), (x,), dynamic_shapes=(axes,))
        torch.export.save(program, folder / PROGRAM)
    except Exception:  # code that cannot be exported fails in its own way
        (folder / PROGRAM).unlink(missing_ok=True)
        return False
    return True


def _read_back(edited: Edited, folder: Path) -> Model:
    """The model as it lies on disk; its network is built too."""
    try:
        found = load(checkpoint_path(folder))
        if not has_bare_weights(folder):
            _ = found.network
        return found
    except StemmaError as error:
        why = str(error).replace(f"{folder.resolve()}{os.sep}", "").replace(f"{folder}{os.sep}", "")
        raise StemmaError(
            f"what was written of {edited.parent.name} cannot be read back ({why}), so nothing was kept: save the "
            "edited module from Python instead"
        ) from error


def _check_weights(edited: Edited, found: Model) -> None:
    """Raise unless bare weights that were read back are those of the edited network."""
    state = {n: t.detach().cpu() for n, t in edited.editable.module.state_dict().items()}
    read = {n: torch.from_numpy(np.array(t.array())) for n, t in found.tensors.items()}
    if state.keys() != read.keys() or not all(torch.equal(t.to(read[n].dtype), read[n]) for n, t in state.items()):
        raise StemmaError("the weights read back differ from those of the edited network, so nothing was kept")


def _check_outputs(edited: Edited, found: Any, probes: Probes) -> None:
    inputs = probes.inputs[:8]
    with torch.no_grad():
        edited_outputs = edited.editable.network(as_tensor(inputs, edited.editable.like)).cpu()
        network = found.network
        like = network.parameter
        read = network(as_tensor(inputs, torch.zeros(1) if like is None else like)).cpu()
    difference = float((edited_outputs - read).abs().max()) if edited_outputs.shape == read.shape else float("inf")
    close = OUTPUT_TOLERANCE if half_dtype(edited) is None else HALF_TOLERANCE
    if not difference <= close * max(float(edited_outputs.abs().max()), 1e-30):
        raise StemmaError(
            f"the model read back differs from the edited network (largest output difference {difference:.3g}), so "
            "nothing was kept: its configuration cannot describe this edit. Save the edited module from Python"
        )


def _write_undo(edited: Edited, file: Path, written: Model) -> None:
    from safetensors.torch import save_file

    called = _as_written(edited, written)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({called[n]: t.contiguous() for n, t in edited.undo.items()}, file)


def write_records(edited: Edited, receipt: Receipt, folder: Path) -> None:
    """Write plan, receipt and model card into a folder."""
    for name, content in ((PLAN, edited.plan.to_dict()), (RECEIPT, receipt.to_dict())):
        (folder / name).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    card = model_card(edited, receipt)
    if has_bare_weights(folder):
        card += "\nThe weights load into the class that was edited: `stemma.edits.load(folder, MyNet())`.\n"
    (folder / REPORT).write_text(card)


def _as_written(edited: Edited, written: Model) -> dict[str, str]:
    """The names on disk of the weights that changed."""
    out = {}
    for name in edited.undo:
        if name in written.tensors:
            out[name] = name
            continue
        own = edited.editable.module.get_parameter(name).detach().cpu().float().numpy()
        same = (n for n, t in written.tensors.items() if t.shape == own.shape and n not in out.values())
        found = next((n for n in same if np.array_equal(written.tensors[n].array().astype(np.float32), own)), None)
        if found is None:
            raise StemmaError(f"{name} is missing from the written checkpoint, so the edit could not be undone. Save "
                              "the edited module from Python")  # fmt: skip
        out[name] = found
    return out
