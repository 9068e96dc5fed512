"""What a notebook sees: the public names, in any order, and what they take."""

import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import stemma
from stemma.errors import MisuseError

pytestmark = pytest.mark.anywhere

ACTIONS = (
    "compare", "competition", "distance", "fingerprint", "lineage", "matrix", "prune", "trace", "unlearn",
    "verify_unlearning",
)  # fmt: skip
SPEC = stemma.InputSpec("image", (1, 4, 4), 0.0, 1.0)


def arrays(seed: int, base: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    new = {f"layers.{i}.weight": rng.normal(size=(48, 48)).astype(np.float32) for i in range(3)}
    return new if base is None else {n: base[n] + np.float32(0.1) * x for n, x in new.items()}


def test_no_public_name_is_an_inner_package() -> None:
    inner = {m.name for m in pkgutil.iter_modules(stemma.__path__)}
    assert inner & set(stemma.__all__) == {"edits", "methods"}  # modules whatever was imported
    assert dir(stemma) == sorted(stemma.__all__)


def test_functions_stay_functions_whatever_was_imported() -> None:
    for module in pkgutil.iter_modules(stemma.__path__):
        if module.name != "__main__":
            importlib.import_module(f"stemma.{module.name}")
    for name in stemma.__all__:
        assert getattr(stemma, name) is not None
    assert all(type(getattr(stemma, name)).__name__ == "function" for name in ACTIONS)


def test_models_modules_and_paths_are_taken_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_REGISTRY", str(tmp_path / "r.db"))
    root = arrays(0)
    save_file(arrays(1, root), tmp_path / "child.safetensors")
    module = torch.nn.Sequential(*(torch.nn.Linear(48, 48, bias=False) for _ in range(3)))
    with torch.no_grad():
        for layer, weights in zip(module, root.values(), strict=True):
            layer.weight.copy_(torch.from_numpy(weights))
    for given in (stemma.from_arrays(root, "root"), module):
        assert stemma.compare(given, tmp_path / "child.safetensors").verdict == "related"
        for against in (given, [given], iter([given])):
            found = stemma.trace(str(tmp_path / "child.safetensors"), against=against)
            assert [r["digest"] for r in (*found.parents, *found.relatives)] == [stemma.compare(given, given).a.digest]
        drawn = stemma.lineage([given, tmp_path / "child.safetensors"])
        assert len(drawn.families) == 1
    with pytest.raises(MisuseError, match="torch module, not dict"):
        stemma.compare(root, tmp_path / "child.safetensors")  # ty: ignore[invalid-argument-type]


def test_probes_may_be_words_and_a_distance_is_a_document() -> None:
    torch.manual_seed(0)
    one, other = (
        stemma.from_module(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4)).eval(), n) for n in "ab"
    )
    found = stemma.distance(one, other, "noise:n=32,seed=1,shape=1x4x4")
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["value"] == found.value > 0
    assert document["a"] == found.a


def test_the_package_runs_as_a_program() -> None:
    told = subprocess.run([sys.executable, "-m", "stemma", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["stemma", stemma.__version__]


def linear(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 24), torch.nn.ReLU(), torch.nn.Linear(24, 4))


def pair(name: str, seed: int) -> stemma.Model:
    return stemma.from_module(linear(seed).eval(), name, SPEC)


class TwoModalities(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = torch.nn.Linear(5, 6), torch.nn.Linear(7, 6), torch.nn.Linear(12, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.left(left), self.right(right)], 1).relu())


def paired_probes(seed: int) -> stemma.Probes:
    from stemma.probes import pair_modalities

    rng = np.random.default_rng(seed)
    inputs = {"left": rng.normal(size=(64, 5)), "right": rng.normal(size=(64, 7))}
    return pair_modalities({n: x.astype(np.float32) for n, x in inputs.items()}, rng.integers(0, 3, 64))


USES = {
    "trace": lambda a, b: stemma.trace(a, against=[b]),
    "compare": lambda a, b: stemma.compare(a, b),
    "lineage": lambda a, b: stemma.lineage([a, b]),
    "distance": lambda a, b: stemma.distance(a, b, "noise:n=16,shape=1x4x4", stemma.methods.ModelGiF()),
    "matrix": lambda a, b: stemma.matrix([a, b], "noise:n=16,shape=1x4x4"),
    "fingerprint": lambda a, b: stemma.fingerprint(a, probes="noise:n=16,shape=1x4x4"),
    "prune": lambda a, b: stemma.prune(a, "noise:n=64,shape=1x4x4"),
    "verify_unlearning": lambda a, b: stemma.verify_unlearning(a, b, "noise:n=32,shape=1x4x4"),
    "competition": lambda a, b: stemma.competition(TwoModalities().eval(), paired_probes(0)),
}


@pytest.mark.parametrize("last", USES)
def test_every_function_works_after_every_other(last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_REGISTRY", str(tmp_path / "r.db"))
    a, b = pair("a", 0), pair("b", 1)
    for name in [*(n for n in USES if n != last), last]:
        found = USES[name](a, b)
        if hasattr(found, "to_dict"):
            json.dumps(found.to_dict(), allow_nan=False)
        if type(found).__module__.startswith("stemma.types") and name not in ("fingerprint", "verify_unlearning"):
            assert len(repr(found).splitlines()) <= 6
            assert max(map(len, repr(found).splitlines())) < 400
    assert all(type(getattr(stemma, name)).__name__ == "function" for name in ACTIONS)
    assert type(stemma.methods).__name__ == "module"


def test_methods_have_their_published_names() -> None:
    for name in stemma.methods.__all__:
        assert isinstance(getattr(stemma.methods, name), type)
        assert f"`{name}`" in (stemma.methods.__doc__ or "")
    with pytest.raises(AttributeError, match="There are: AdaptiveGradientModulation"):
        _ = stemma.methods.Nothing


def test_a_matrix_is_what_pairs_of_distances_say() -> None:
    from stemma.fingerprints import Outputs
    from stemma.measures import LinearCka

    models = {name: pair(name, seed) for seed, name in enumerate("abc")}
    probes = "noise:n=48,seed=2,shape=1x4x4"
    found = stemma.matrix(models, probes)
    assert found.names == ("a", "b", "c")
    for i, a in enumerate(models.values()):
        for j, b in enumerate(models.values()):
            alone = stemma.distance(a, b, probes).value
            assert found.values[i][j] == pytest.approx(alone, abs=1e-6)
    assert found.nearest("a")[0][1] <= found.nearest("a")[1][1]
    assert found.array().shape == (3, 3)
    shown = found._repr_html_()
    assert shown.count("<td") == 9
    assert "background:rgb" in shown
    whole = stemma.matrix(models, probes, Outputs(), LinearCka())  # no mean of probes
    assert whole.values[0][1] == whole.values[1][0] > 0 == pytest.approx(whole.values[1][1], abs=1e-6)


def test_a_matrix_refuses_one_model_and_what_does_not_go_together() -> None:
    from stemma.fingerprints import Outputs

    with pytest.raises(MisuseError, match="two models or more"):
        stemma.matrix([pair("a", 0)], "noise:n=8,shape=1x4x4")
    with pytest.raises(MisuseError, match="field-cosine compares"):
        stemma.matrix([pair("a", 0), pair("b", 1)], "noise:n=8,shape=1x4x4", Outputs(), stemma.FieldCosine())
    with pytest.raises(MisuseError, match="asks the network: give probes"):
        stemma.fingerprint(pair("a", 0), stemma.methods.ModelGiF())


def test_two_models_of_one_name_stay_apart_in_a_matrix() -> None:
    found = stemma.matrix([linear(0).eval(), linear(1).eval()], "noise:n=16,shape=1x4x4")
    assert len(set(found.names)) == 2


def test_competition_says_what_is_missing() -> None:
    model = stemma.from_module(TwoModalities().eval(), "both")
    with pytest.raises(MisuseError, match="give both or neither"):
        stemma.competition(model, paired_probes(0), unimodal={"left": model})
    found = stemma.competition(model, paired_probes(0))
    assert found.to_dict()["strength"] == {"left": None, "right": None}
    assert "left: " in repr(found)


WORDS = "noise:n=16,shape=1x4x4"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: stemma.lineage({"a": a}), "as a list here, not as a dict"),
        (lambda a: stemma.lineage(None), "not NoneType"),
        (lambda a: stemma.lineage([a], alpha=2), "not a significance level"),
        (lambda a: stemma.trace(a, ""), "an empty text names no model"),
        (lambda a: stemma.trace(a, [a], alpha="small"), "'small' is not a significance level"),
        (lambda a: stemma.trace(a, [a], coverage=None), "but is None"),
        (lambda a: stemma.compare(a, torch.nn.Linear), "Linear is a class"),
        (lambda a: stemma.compare(a, a, WORDS, null=3), "not int"),
        (lambda a: stemma.distance(a, a, WORDS, "gradient-field"), "a method is an object such as .* not a str"),
        (lambda a: stemma.distance(a, a, WORDS, measure=stemma.FieldCosine), "the class FieldCosine: give an instance"),
        (lambda a: stemma.matrix([a, a], WORDS, stemma.methods.ModelDNA()), "a method is an object"),
        (lambda a: stemma.matrix([a, a], np.zeros((2, 16))), "probes are a stemma.Probes or words"),
        (lambda a: stemma.matrix([a, a], WORDS).nearest("b"), "'b' is not in this matrix"),
        (lambda a: stemma.fingerprint(a, "dna", WORDS), "a method is an object"),
        (lambda a: stemma.prune(a, [[0.0]]), "not list"),
        (lambda a: stemma.prune(a, WORDS, keep_ratio="half"), "keep_ratio takes a number"),
        (lambda a: stemma.unlearn(a, None), "not NoneType"),
        (lambda a: stemma.competition(a, WORDS, unimodal=[a], fit_probes=WORDS), "as a dict, not as a list"),
        (lambda a: stemma.load(3), "loaded from a path, not from 3"),
    ],
)  # fmt: skip
def test_what_is_no_model_no_probes_and_no_method_is_refused_in_a_sentence(
    call: Callable[[stemma.Model], object], message: str
) -> None:
    with pytest.raises(MisuseError, match=message):
        call(pair("a", 0))


def test_one_path_is_not_a_list_of_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEMMA_REGISTRY", str(tmp_path / "r.db"))
    file = tmp_path / "root.safetensors"
    save_file(arrays(0), file)
    assert [m.name for m in stemma.lineage(str(file)).models] == ["root"]
    workspace = stemma.Workspace(stemma.Registry(tmp_path / "r.db"))
    assert [r.name for r in workspace.add(str(file))] == ["root"]
    assert workspace.trace(stemma.from_arrays(arrays(0), "again"), against=str(file)).verdict == "copy"


def test_a_trace_takes_words_for_probes_and_modules_for_references() -> None:
    others = [linear(seed).eval() for seed in (2, 3)]
    found = stemma.trace(pair("a", 0), [pair("b", 1)], WORDS, others)
    assert found.candidates[0]["function"]["null"]["n"] == 2


def test_a_fingerprint_of_weights_needs_no_probes() -> None:
    from stemma.fingerprints.weight_sketch import WeightSketch

    model = pair("a", 0)
    alone, beside = stemma.fingerprint(model, WeightSketch(units=8)), stemma.fingerprint(model, WeightSketch(), WORDS)
    assert alone.spec.params["units"] == 8
    assert beside.probes is None


def test_models_that_hold_no_weights_are_no_copies_of_one_another() -> None:
    a, b = stemma.from_module(lambda x: x), stemma.from_module(lambda x: -x)
    assert a.digest == b.digest  # there is nothing to digest
    for one, other in ((a, b), (torch.nn.Identity(), torch.nn.ReLU())):
        found = stemma.trace(one, [other])
        assert (found.verdict, found.copies) == ("inconclusive", ())
        assert found.not_tested
    drawn = stemma.lineage([torch.nn.Identity(), torch.nn.ReLU()])
    assert not drawn.edges
    assert drawn.not_tested


def test_short_descriptions_show_names_and_never_obey_them() -> None:
    name = "evil\x1b[31m\nb: copy <script>" + "y" * 3000
    root = arrays(0)
    a, b = stemma.from_arrays(root, "a"), stemma.from_arrays(arrays(1, root), name)
    same = stemma.from_arrays(root, name)
    shown = [stemma.compare(a, b), stemma.trace(b, [a]), stemma.lineage([a, same])]
    table = stemma.matrix({name: pair("a", 0), "b": pair("b", 1)}, WORDS)
    for text in (*map(repr, shown), repr(table), table._repr_html_()):
        assert "\\x1b" in text
        assert not {"\x1b", "\u202e"} & set(text)
        assert not any(line.startswith("b:") for line in text.splitlines())
    assert max(len(line) for found in (*shown, table) for line in repr(found).splitlines()) < 600
    assert "<script>" not in table._repr_html_()
    assert stemma.matrix({1: pair("a", 0), "1": pair("b", 1)}, WORDS).names == ("1", "1 2")
