"""An edited model as a network of the user's own class, to be trained further."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from stemma.checkpoints.model import Model
from stemma.edits.artefacts.save import checkpoint_path, has_bare_weights
from stemma.edits.dependency_graph import configurations, slicing
from stemma.edits.editable_network import editable_copy
from stemma.errors import MisuseError, StemmaError
from stemma.networks.load import load as load_model
from stemma.types.edits import PLAN
from stemma.types.network import Network

M = TypeVar("M", bound=torch.nn.Module)


def load(folder: Path | str, module: M) -> M:
    """Make an edited model of the network that it was made from: an ordinary module that can be trained.

    The module is cut to the units that the plan keeps, and gets the weights of the folder. It is changed in place; its
    code stays the user's own, so that it trains, saves and exports as before.

    Args:
        folder: As `stemma prune`, `stemma unlearn` or `write` wrote it.
        module: The network before the edit, with any weights: a new instance of its class.

    Returns:
        The same module, smaller, with the edited weights.

    Raises:
        MisuseError: If the module has other weights or sizes than the network that was edited.
        StemmaError: If the folder holds no plan or no weights.

    Example:
        >>> net = load("smaller/", MyNet())  # doctest: +SKIP
        >>> torch.optim.SGD(net.parameters(), lr=0.01)  # doctest: +SKIP
    """
    folder = Path(folder)
    rows, heads = _slices(folder)
    weights = _weights(folder, module)
    own = module.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    names = {n: first.setdefault(id(t), n) for n, t in own.items()}  # a tensor that the module holds twice has two
    shapes = {n: tuple(t.shape) for n, t in own.items()}
    _check(folder, shapes, rows | {n: rows[names[n]] for n in names if names[n] in rows}, weights)
    slicing.slice_units(module, rows, heads)
    like = {n: t.dtype for n, t in module.state_dict().items()}
    module.load_state_dict({n: weights[n].to(like[n]) for n in like})
    _describe(folder, module)
    return module


def _describe(folder: Path, module: Any) -> None:
    """Set the new sizes in the configuration of a module of transformers, so that what it saves can be loaded."""
    if (folder / "config.json").is_file() and hasattr(module, "save_pretrained"):
        config = json.loads((folder / "config.json").read_text("utf-8"))
        for key in configurations.entries(str(config.get("model_type"))):
            if key in config and hasattr(module.config, key):
                setattr(module.config, key, config[key])


def _slices(folder: Path) -> tuple[dict[str, dict[int, np.ndarray]], frozenset[str]]:
    """The rows that a plan keeps, and which of these weights hold attention heads."""
    try:
        plan = json.loads((folder / PLAN).read_text("utf-8"))
        rows = {t: {int(a): np.array(r, int) for a, r in axes.items()} for t, axes in plan["slices"].items()}
        return rows, frozenset(map(str, plan["expected"].get("heads", ())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StemmaError(
            f"{PLAN} is missing in {folder} or cannot be read: give a folder that stemma prune or stemma unlearn wrote"
        ) from error


def _weights(folder: Path, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The folder's weights under the module's names; one tensor that the module holds twice is given twice."""
    model = load_model(checkpoint_path(folder))
    own = module.state_dict(keep_vars=True)
    around = all(n.startswith("inner.") for n in model.tensors) and not any(n.startswith("inner.") for n in own)
    stored = {n.removeprefix("inner.") if around else n: t for n, t in model.tensors.items()}
    if hasattr(module, "save_pretrained") and not own.keys() <= stored.keys():  # transformers has other names on disk
        network = model.network.module
        return {} if network is None else {n: t for n, t in network.state_dict().items() if n in own}
    first: dict[int, str] = {}
    out = {}
    for name, tensor in own.items():
        twin = first.setdefault(id(tensor), name)
        found = stored.get(name, stored.get(twin))
        if found is not None:
            out[name] = torch.from_numpy(np.array(found.array()))
    return out


def _check(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    rows: Mapping[str, Mapping[int, np.ndarray]],
    weights: Mapping[str, torch.Tensor],
) -> None:
    """Raise unless the module, cut to the plan, has the shapes of the folder's weights."""
    missing = sorted((shapes.keys() - weights.keys()) | (rows.keys() - shapes.keys()))
    if missing:
        raise MisuseError(
            f"{len(missing)} weights of {folder} and of the given module have no counterpart, such as "
            f"{', '.join(missing[:3])}: give a new instance of the class that was edited"
        )
    for name, shape in shapes.items():
        axes = rows.get(name, {})
        cut = tuple(len(axes[a]) if a in axes else n for a, n in enumerate(shape))
        outside = any(len(r) and (a >= len(shape) or r.max() >= shape[a]) for a, r in axes.items())
        if outside or cut != tuple(weights[name].shape):
            raise MisuseError(
                f"{name} has the shape {shape} in the given module, which does not give {tuple(weights[name].shape)} "
                f"by the plan of {folder}: give a module of the size before the edit"
            )


def in_class_of(parent: Model, child: Model, folder: Path) -> Model:
    """The edited model of a folder; where that holds bare weights, with the network of its parent's class."""
    if not has_bare_weights(folder):
        return child
    copied = editable_copy(parent)
    module = load(folder, copied.module)
    network = Network(child.name, child.digest, copied.network.input_spec, copied.forward, module,
                      tokenizer=copied.network.tokenizer)  # fmt: skip
    return Model(child.name, child.source, child.tensors, child.config, network_builder=lambda _: network)
