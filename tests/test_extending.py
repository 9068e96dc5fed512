"""Extending Stemma takes one file and one list entry, as docs/how-to/extending.md says: each is done in a copy."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import stemma

pytestmark = pytest.mark.anywhere

SOURCE = Path(stemma.__file__).parent


@dataclass(frozen=True)
class Addition:
    """One thing that is added.

    Attributes:
        path: The new file, below `src/stemma`.
        text: What is in it.
        list_in: The file that lists such things; empty where the folder is the list.
        imports: The line that fetches it.
        after: What stands before its entry.
        entry: The entry.
        proof: A program that uses it, run in the copy; it fails if it is not there.
    """

    path: str
    text: str
    list_in: str
    imports: str
    after: str
    entry: str
    proof: str


FORMAT = Addition(
    "checkpoints/formats/lines_of_numbers.py",
    '''"""One array as lines of numbers, after a first line `#numbers`."""

from pathlib import Path

import numpy as np

from stemma.checkpoints.formats.base import AbstractFormat, Contents
from stemma.checkpoints.tensor import ArrayStorage, Tensor


class LinesOfNumbers(AbstractFormat):
    """A matrix in text."""

    name = "lines of numbers"
    suffixes = (".numbers",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `AbstractFormat.recognises`."""
        return head.startswith(b"#numbers")

    def read(self, path: Path) -> Contents:
        """See `AbstractFormat.read`."""
        array = np.loadtxt(path, dtype=np.float32)
        return Contents({"": (Tensor("array", "F32", array.shape, ArrayStorage(lambda: array)),)})
''',
    "checkpoints/formats/__init__.py",
    "from stemma.checkpoints.formats.lines_of_numbers import LinesOfNumbers\n",
    "ALL: tuple[AbstractFormat, ...] = (\n",
    "    LinesOfNumbers(),\n",
    """
import pathlib, stemma
path = pathlib.Path("weights.numbers")
path.write_text("#numbers\\n1 2 3\\n4 5 6\\n")
assert stemma.load(path).tensors["array"].array().tolist() == [[1, 2, 3], [4, 5, 6]]
""",
)

FAMILY = Addition(
    "architectures/families/twin_towers.json",
    json.dumps(
        {
            "model_types": ["twin-towers"],
            "explicit": True,
            "requires": ["tower_in.weight", "tower_out.weight"],
            "tensors": {"tower_in.weight": ["floor", "pixel"], "tower_out.weight": ["class", "floor"]},
            "groups": {"floor": {"chunk": 0}},
        }
    ),
    "",
    "",
    "",
    "",
    """
import numpy as np, stemma
from stemma.architectures.unit_groups import structure
arrays = {"tower_in.weight": np.ones((6, 4), "f4"), "tower_out.weight": np.ones((3, 6), "f4")}
found = structure(stemma.from_arrays(arrays, "m", {"model_type": "twin-towers"}))
assert "floor" in str([group.name for group in found.groups]), found
""",
)

MEASURE = Addition(
    "measures/largest_difference.py",
    '''"""The largest difference of two answers."""

from dataclasses import dataclass
from typing import final

import numpy as np

from stemma.measures.base import AbstractMeasure, Law, Values


@final
@dataclass(frozen=True)
class LargestDifference(AbstractMeasure):
    """Largest absolute difference of any entry of an answer."""

    name = "largest-difference"
    accepts = frozenset({"outputs"})
    probewise = True
    laws = frozenset({Law.IDENTITY, Law.SYMMETRY, Law.TRIANGLE})

    def distances(self, a: Values, b: Values) -> np.ndarray:
        """See `AbstractMeasure.distances`: `[k]`."""
        return np.abs(a["outputs"] - b["outputs"]).reshape(len(a["outputs"]), -1).max(1)
''',
    "measures/__init__.py",
    "from stemma.measures.largest_difference import LargestDifference\n",
    "ALL: tuple[type[AbstractMeasure], ...] = (\n    FieldCosine,\n",
    "    LargestDifference,\n",
    """
import subprocess, sys, torch
from stemma.checkpoints.save import save
import stemma
config = {"model_type": "stemma-mlp", "input_shape": [1, 2, 2], "hidden": [4], "classes": 3}
from stemma import networks
for seed in (0, 1):
    torch.manual_seed(seed)
    state = {n: t.numpy() for n, t in networks.build(config).state_dict().items()}
    save(stemma.from_arrays(state, "m", config), __import__("pathlib").Path(f"m{seed}"))
told = subprocess.run([sys.executable, "-m", "stemma", "distance", "m0", "m1", "--probes", "noise:n=8",
                       "--method", "outputs", "--measure", "largest-difference"], capture_output=True, text=True)
assert told.returncode == 0 and "largest-difference" in told.stdout, told
""",
)

OPERATION = Addition(
    "kinship/relation/clipped.py",
    '''"""Clipped: no weight is larger than a limit, all others are as they were."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stemma.kinship.relation.base import AbstractOperation, FittedOperation
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Layer, Pair
from stemma.types import RelationKind


@dataclass(frozen=True)
class Clipped(AbstractOperation):
    """Weights brought into a range."""

    name: ClassVar[str] = "clipped"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`."""
        if pair.operations or not pair.unexplained or not all(_is_clipped(layer) for layer in pair.unexplained):
            return None
        step = Step(self.name, RelationKind.RELATED, "weights were clipped", {}, bits=32.0, place=2.0)
        done = {layer.b: layer.explained("clipped") for layer in pair.unexplained}
        return FittedOperation(step, pair.with_layers(done, self.name))


def _is_clipped(layer: Layer) -> bool:
    if layer.measured is None:
        return False
    a, b = layer.measured.sample
    return bool(np.array_equal(np.clip(a, b.min(), b.max()), b))
''',
    "kinship/relation/__init__.py",
    "from stemma.kinship.relation.clipped import Clipped\n",
    "ALL: tuple[AbstractOperation, ...] = (\n",
    "    Clipped(),\n",
    """
import numpy as np, stemma
rng = np.random.default_rng(0)
arrays = {f"layers.{i}.weight": rng.normal(size=(48, 48)).astype("f4") for i in range(3)}
a = stemma.from_arrays(arrays, "a")
b = stemma.from_arrays({n: x.clip(-1, 1) for n, x in arrays.items()}, "b")
found = stemma.compare(a, b)
assert found.relation.steps == ("clipped",), found
""",
)

COMMAND = Addition(
    "cli/count.py",
    '''"""`stemma count`: how many models are enrolled?"""

from stemma.cli.options import RegistryUrl


def count(registry: RegistryUrl = None) -> None:
    """Count the enrolled models."""
    from stemma.application.opening import open_workspace
    from stemma.cli.output import show

    show(str(len(open_workspace(registry).list())))
''',
    "cli/__init__.py",
    "from stemma.cli.count import count\n",
    "app.command()(trace)\n",
    "app.command()(count)\n",
    """
import subprocess, sys, numpy as np
from safetensors.numpy import save_file
save_file({"w": np.ones((4, 4), "f4")}, "one.safetensors")
run = lambda *a: subprocess.run([sys.executable, "-m", "stemma", *a, "--registry", "r.db"], capture_output=True,
                                text=True, check=True).stdout
run("add", "one.safetensors")
assert run("count").strip() == "1"
""",
)

LICENCE = Addition(
    "",
    "",
    "application/policies/licence_names.py",
    "",
    "MODELS = (\n",
    '    "quite-open-1.0",\n',
    """
from stemma.application.policies import why_unclear
assert not why_unclear("Quite Open 1.0")
assert why_unclear("Quite Closed 1.0")
""",
)

ADDITIONS = {
    "format": FORMAT,
    "family": FAMILY,
    "measure": MEASURE,
    "operation": OPERATION,
    "command": COMMAND,
    "licence": LICENCE,
}


@pytest.mark.parametrize("kind", ADDITIONS)
@pytest.mark.first(1)
def test_an_addition_is_one_file_and_one_entry(kind: str, tmp_path: Path) -> None:
    added = ADDITIONS[kind]
    house = tmp_path / "src" / "stemma"
    shutil.copytree(SOURCE, house)  # with what is compiled of it
    assert _run(added.proof, tmp_path).returncode != 0, "it must not be there before"
    if added.path:
        assert not (house / added.path).exists()
        (house / added.path).write_text(added.text)
    if added.list_in:
        listing = house / added.list_in
        text = listing.read_text()
        assert text.count(added.after) == 1
        text = text.replace(added.after, added.after + added.entry)
        first = text.index("\nfrom stemma.") + 1 if added.imports else 0
        listing.write_text(text[:first] + added.imports + text[first:])
    told = _run(added.proof, tmp_path)
    assert told.returncode == 0, told.stderr


def _run(program: str, where: Path) -> "subprocess.CompletedProcess[str]":
    here = where / "work"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    surroundings = {**os.environ, "PYTHONPATH": str(where / "src"), "STEMMA_REGISTRY": str(here / "registry.db")}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=here, env=surroundings, capture_output=True, text=True)
