"""Trained networks of the zoo in folders, probes for them, and the command line: what tests of edits start from."""

import contextlib
import io
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stemma.cli import main
from stemma.edits.asking import own_network
from stemma.edits.measuring import accuracy
from stemma.models.model import Model
from stemma.models.save import save
from stemma.probes import Probes
from stemma.zoo import data
from stemma.zoo.recipe import Recipe, build

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
    return subprocess.CompletedProcess(arguments, code, *texts)


def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained digits networks and a language model in folders, and probes."""
    folder = tmp_path_factory.mktemp("edits")
    for kind, steps in (("cnn", {}), ("mlp", {}), ("vit", {"steps": 250}), ("lm", {"steps": 80})):
        save(build(Recipe(kind, "train", seed=21, parameters=steps)), folder / kind)
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
    found = accuracy(own_network(model), held_out())
    assert found is not None
    return found
