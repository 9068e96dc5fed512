"""Networks of `torch.export` programs: the file contains both weights and graph."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stemma.checkpoints.model import Model
from stemma.errors import MissingExtraError, StemmaError, UnreadableModelError
from stemma.networks.fixed_batch import in_fixed_batches
from stemma.networks.from_module import differentiable
from stemma.networks.program_safety import CONSTANTS, rebuild_safe_program
from stemma.types import InputSpec
from stemma.types.network import Network, network_digest

FLOATS = frozenset({6, 7, 8, 13})
INTEGERS = frozenset({4, 5})


def open_exported(model: Model, file: Path) -> Network:
    """The network of a `.pt2` file; differentiable where its graph is.

    The raw inputs are those of the exported example: sizes that the export fixed (0 elsewhere), range [0, 1].
    Cost: memory for the file, twice that during loading.

    Raises:
        MissingExtraError: If torch is not installed.
        UnreadableModelError: If it does not load, or needs more than one tensor.

    Returns:
        The network.

    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("running a torch.export program", "torch", "networks") from error
    archive, program = rebuild_safe_program(file)
    graph = hashlib.sha256(json.dumps(program["graph_module"], sort_keys=True).encode()).hexdigest()
    constants = hashlib.sha256(_constants(archive)).hexdigest()
    name, kind, sizes = _input(model, program["graph_module"])
    try:
        loaded = torch.export.load(archive)
        unguarded = {"check_guards": False} if "check_guards" in inspect.signature(loaded.module).parameters else {}
        module = loaded.module(**unguarded)
    except Exception as error:  # versions of the format raise different errors
        raise UnreadableModelError(
            f"{model.source} cannot be loaded with torch {torch.__version__}: {' '.join(str(error).split())[:300]}. "
            "Export it again with this version"
        ) from error
    for part in module.modules():
        part.training = False  # exported programs have no train mode
    spec = _spec(kind, sizes[1:], _rows(program["graph_module"]["graph"], name))
    answer = module if not sizes[0] else in_fixed_batches(model.name, module, sizes[0])
    digest = network_digest(model.digest, f"torch.export:{graph}", constants, spec)
    smooth = differentiable(answer, spec) if kind in FLOATS else False
    return Network(model.name, digest, spec, answer, module, differentiable=smooth)


def _constants(archive: Any) -> bytes:
    import zipfile

    with zipfile.ZipFile(archive) as records:
        folder = f"model/{CONSTANTS.rpartition('/')[0]}/"
        found = b"".join(records.read(n) for n in sorted(records.namelist()) if n.startswith(folder))
    archive.seek(0)
    return found


def _input(model: Model, graph: Mapping[str, Any]) -> tuple[str, int, list[int]]:
    # name, dtype number and shape of the input, 0 for a dynamic axis
    try:
        given = [s["user_input"]["arg"] for s in graph["signature"]["input_specs"] if "user_input" in s]
        names = [arg["as_tensor"]["name"] for arg in given if "as_tensor" in arg]
        if len(names) != 1 or len(given) != 1:
            raise UnreadableModelError(
                f"{model.name} takes {len(given)} inputs; only one is supported. Export it with the others fixed"
            )
        meta = graph["graph"]["tensor_values"][names[0]]
        sizes = [int(n.get("as_int", 0)) for n in meta["sizes"]]
        kind = int(meta["dtype"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UnreadableModelError(f"{model.source}: the program does not describe its input") from error
    if not sizes or kind not in FLOATS | INTEGERS:
        raise UnreadableModelError(
            f"{model.name} takes an input of {len(sizes)} axes and dtype number {kind}, which is not a batch of numbers"
        )
    return names[0], kind, sizes


def _rows(graph: Mapping[str, Any], name: str) -> int:
    # vocabulary size of the embedding of the input, 2**31 without one
    for node in graph["nodes"]:
        if node["target"].startswith("torch.ops.aten.embedding."):
            table, ids = (part["arg"].get("as_tensor", {}).get("name") for part in node["inputs"][:2])
            if ids == name:
                return int(graph["tensor_values"][table]["sizes"][0]["as_int"])
    return 1 << 31


def _spec(kind: int, shape: list[int], rows: int) -> InputSpec:
    if kind in INTEGERS:
        if len(shape) != 1:
            raise StemmaError(
                f"the program takes integers with {len(shape) + 1} axes; only token ids of shape [n, length] are "
                "supported"
            )
        return InputSpec("tokens", (shape[0] or 1 << 20,), 0, rows - 1)
    return InputSpec("image" if len(shape) == 3 and shape[0] <= 4 else "tensor", tuple(shape), 0.0, 1.0)
