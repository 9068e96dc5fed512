"""Trained networks in folders, probes for them, and the command line: what tests of edits start from."""

import contextlib
import io
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from documents import check_document
from stemma.checkpoints.model import Model
from stemma.checkpoints.save import save
from stemma.cli import main
from stemma.edits.artefacts.measured_effect import accuracy
from stemma.edits.editable_network import editable_copy
from stemma.networks.load import load
from stemma.probes import Probes
from stemma.zoo import data
from stemma.zoo.memory import arrays_of, model_of
from stemma.zoo.recipe import Recipe
from stemma.zoo.recipe_builder import build

LOST = 3


def stemma(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line, in this process: torch is loaded once."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    code: Any = 0
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            main(list(map(str, arguments)))
        except SystemExit as stop:
            code = stop.code or 0
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    if "--json" in arguments and texts[0]:
        check_document(texts[0])
    return subprocess.CompletedProcess(arguments, code, *texts)


def trained(kind: str) -> Model:
    """A `cnn`, `mlp` or `vit` that was trained once, by `tests/data/make_networks.py`: the same everywhere."""
    kept = load(Path(__file__).parent / "data" / kind)
    return model_of(kind, arrays_of(kept), kept.config)


def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks that were trained on digits, a language model that was trained a little, and probes."""
    folder = tmp_path_factory.mktemp("edits")
    for kind in ("cnn", "mlp", "vit"):
        save(trained(kind), folder / kind)
    save(build(Recipe("lm", "train", seed=21, parameters={"steps": 80})), folder / "lm")
    learnt, text = data.examples("cnn", "b"), data.examples("lm", "b")
    lost = learnt.targets == LOST
    np.savez(folder / "probes.npz", inputs=learnt.inputs[:256], labels=learnt.targets[:256])
    np.savez(folder / "text.npz", inputs=text.inputs[:64])
    np.savez(folder / "lost.npz", inputs=learnt.inputs[lost])
    np.savez(folder / "rest.npz", inputs=learnt.inputs[~lost], labels=learnt.targets[~lost])
    return folder


def probes(home: Path, name: str = "probes") -> Probes:
    with np.load(home / f"{name}.npz") as file:
        return Probes.of(file["inputs"], labels=file.get("labels"))


def held_out() -> Probes:
    found = data.examples("cnn", "test")
    return Probes.of(found.inputs, labels=found.targets)


def right(model: Model) -> float:
    found = accuracy(editable_copy(model), held_out())
    assert found is not None
    return found
