"""Commands that ask models: what they print, what they write, and how they refuse."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from checkpoints import Run
from stemma.checkpoints.save import save
from stemma.cli.arguments import arrange
from stemma.networks.load import from_arrays
from stemma.zoo.data import examples
from stemma.zoo.independent_networks import independents


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Perceptrons `mlp-0-0` … `mlp-0-4` and a CNN, as folders, and digits that none of them has seen."""
    folder = tmp_path_factory.mktemp("zoo")
    for model in (*independents("mlp", 5), *independents("cnn", 1)):
        save(model, folder / model.name, model.config)
    save(independents("mlp", 1)[0], folder / "bare.safetensors")
    digits = examples("mlp", "test")
    np.savez(folder / "digits.npz", inputs=digits.inputs[:48], labels=digits.targets[:48])
    np.savez(folder / "large.npz", inputs=np.zeros((4, 1, 9, 9), np.float32))
    return folder


def _pair(zoo: Path, *, same: bool = False) -> tuple[Path, Path]:
    return zoo / "mlp-0-0", zoo / ("mlp-0-0" if same else "cnn-0-0")


def test_distance_prints_one_document(run: Run, zoo: Path) -> None:
    code, out, err = run("distance", *_pair(zoo), "--probes", zoo / "digits.npz", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["a"]["name"], found["b"]["name"]) == ("mlp-0-0", "cnn-0-0")
    assert (found["method"], found["measure"], found["n_probes"], found["coverage"]) == (
        "gradient-field", "field-cosine", 48, 1.0)  # fmt: skip
    assert found["interval"][0] < found["value"] < found["interval"][1]
    assert found["value"] == pytest.approx(np.mean(found["per_probe"]))
    assert found["specs"]["method"]["params"]["steps"] == 8
    # The control: a model and itself.
    same = json.loads(run("distance", *_pair(zoo, same=True), "--probes", zoo / "digits.npz", "--json")[1])
    assert same["value"] < 1e-12
    assert same["agreement"]["alike"] == 1


def test_the_distance_is_that_of_python_and_the_figures_beside_it_are_counted(run: Run, zoo: Path) -> None:
    import torch

    import stemma
    from stemma.fingerprints.gradient_field import GradientField
    from stemma.measures.field_cosine import FieldCosine
    from stemma.probes import Probes

    a, b = (stemma.load(path) for path in _pair(zoo))
    with np.load(zoo / "digits.npz") as kept:
        inputs, labels = kept["inputs"], kept["labels"]
    probes = Probes.of(inputs, labels)
    found = json.loads(run("distance", *_pair(zoo), "--probes", zoo / "digits.npz", "--json")[1])
    wanted = FieldCosine()(GradientField()(a, probes), GradientField()(b, probes))
    assert found["value"] == pytest.approx(wanted.value, abs=1e-6)
    with torch.no_grad():
        chosen = [m.network(torch.from_numpy(inputs)).argmax(1).numpy() for m in (a, b)]
    assert found["agreement"] == {
        "alike": (chosen[0] == chosen[1]).mean(),
        "accuracy_a": (chosen[0] == labels).mean(),
        "accuracy_b": (chosen[1] == labels).mean(),
    }


def test_the_published_method_has_a_name_and_parameters_reach_the_method(run: Run, zoo: Path) -> None:
    from stemma.fingerprints.gradient_field import GradientField

    asked = ("distance", *_pair(zoo), "--probes", zoo / "digits.npz", "--json")
    found = json.loads(run(*asked, "--method", "official-gradient-field", "-P", "steps=5")[1])
    assert found["method"] == "official-gradient-field"
    assert json.loads(run(*asked)[1])["method"] == "gradient-field"
    params = found["specs"]["method"]["params"]
    assert (params["steps"], params["potential"], params["uniform"]) == (5, "own-argmax", False)
    assert {**params, "steps": 50} == dict(GradientField.official().spec.params)
    assert found["specs"]["measure"]["params"] == {"epsilon": 1e-8}
    given = ("-P", "cumulative=no", "-P", "times-input=false", "-P", "potential=sum", "-P", "epsilon=1e-6")
    found = json.loads(run(*asked, *given)[1])
    params = found["specs"]["method"]["params"]
    assert (params["cumulative"], params["times_input"], params["potential"]) == (False, False, "sum")
    assert found["specs"]["measure"]["params"]["epsilon"] == 1e-6
    seeded = json.loads(run(*asked, "-P", "sketch=16", "--seed", "7")[1])
    assert seeded["specs"]["method"]["params"]["seed"] == 7


def _methods() -> Iterator[str]:
    from stemma.application.method_options import network_methods

    yield from network_methods()


@pytest.mark.parametrize("method", list(_methods()))
def test_every_method_has_a_default_measure_and_a_fingerprint(run: Run, zoo: Path, method: str) -> None:
    code, out, _ = run("distance", *_pair(zoo), "--probes", f"{zoo / 'digits.npz'}#n=16", "--method", method, "--json")
    assert code == 0
    assert 0 < json.loads(out)["value"] < 2
    out = zoo / f"{method}.npz"
    code, said, err = run(
        "fingerprint",
        zoo / "mlp-0-0",
        "--method",
        method,
        "--probes",
        f"{zoo / 'digits.npz'}#n=16",
        "--out",
        out,
        "--json",
    )
    assert (code, err) == (0, "")
    taken = json.loads(said)
    with np.load(out) as kept:
        found = {name: list(kept[name].shape) for name in kept if name != "probes_digest"}
        assert found == {n: v["shape"] for n, v in taken["values"].items()}


def test_a_person_reads_the_distance_with_its_interval(run: Run, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        code, out, _ = run("distance", *_pair(zoo), "--probes", zoo / "digits.npz")
        lines = out.splitlines()
        assert code == 0
        assert max(len(line) for line in lines if str(zoo) not in line) <= columns
        assert re.match(r"distance between mlp-0-0 and cnn-0-0: \.\d+ \[\.\d+, \.\d+\]$", lines[0])
        assert any(re.match("  labels +the same class for ", line) for line in lines)
        assert any(line.startswith("  cannot see") for line in lines)


def test_the_page_is_written_and_is_complete(run: Run, zoo: Path, tmp_path: Path) -> None:
    page = tmp_path / "difference.html"
    code, out, err = run("distance", *_pair(zoo), "--probes", zoo / "digits.npz", "--html", page)
    assert (code, err) == (0, "")
    assert str(page) in out
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert "<script" not in text
    assert "Where they differ most" in text
    assert text.count("<article") == 10
    outputs = tmp_path / "outputs.html"
    run("distance", *_pair(zoo), "--probes", zoo / "digits.npz", "--method", "outputs", "--html", outputs)
    assert "relies on" in text
    assert "relies on" not in outputs.read_text()  # outputs know no places in the input


@pytest.mark.slow
def test_compare_names_the_floor_and_the_missing_models(run: Run, zoo: Path, tmp_path: Path) -> None:
    null = [zoo / f"mlp-0-{i}" for i in (2, 3, 4)]
    asked = ("compare", *_pair(zoo), "--probes", zoo / "digits.npz", "--null", *null)
    page = tmp_path / "page.html"
    code, out, _ = run(*asked, "--html", page, "--json")
    assert code == 0
    function = json.loads(out)["function"]
    assert function["null"]["n"] == 3 or function["details"]["views"]
    assert function["verdict"] == "inconclusive"
    assert {"What is one model to the other?", "Where they differ most"} <= set(
        re.findall("[A-Z][^<>]+", page.read_text())
    )
    lines = run(*asked)[1].splitlines()
    at = next(i for i, line in enumerate(lines) if re.match(r"  function +field distance \.", line))
    assert "more are needed for alpha 0.01" in " ".join(" ".join(lines[at : at + 5]).split())
    assert any(line.startswith("  labels  ") for line in lines)
    # The control: without probes nothing is asked and nothing said about function.
    without = json.loads(run("compare", *_pair(zoo), "--json")[1])
    assert without["function"] is None
    assert "function (no probes were given)" in without["cannot_see"]


@pytest.mark.slow
def test_a_copy_has_the_smallest_p_value_that_there_is(run: Run, zoo: Path) -> None:
    null = [zoo / f"mlp-0-{i}" for i in range(1, 5)]
    asked = ("--probes", zoo / "digits.npz", "--null", *null, "--alpha", "0.2", "--json")
    same = json.loads(run("compare", *_pair(zoo, same=True), *asked)[1])
    assert same["function"]["p_value"] == pytest.approx(0.2)
    assert same["function"]["distance"] < 1e-12
    other = json.loads(run("compare", *_pair(zoo), *asked)[1])  # the control
    assert other["function"]["distance"] > 0.05
    assert other["function"]["effect"] < 0.5 < same["function"]["effect"]


def test_trace_looks_at_function_too(run: Run, zoo: Path) -> None:
    asked = ("trace", zoo / "mlp-0-0", "--against", zoo / "mlp-0-1", zoo / "mlp-0-2", "--probes", zoo / "digits.npz",
             "--null", zoo / "mlp-0-3", zoo / "mlp-0-4")  # fmt: skip
    code, out, _ = run(*asked, "--json")
    assert code == 0
    assert all(c["function"]["distance"] > 0.05 for c in json.loads(out)["candidates"])
    assert re.search(r"^  function +field distance \.", run(*asked)[1], re.MULTILINE)


def test_add_keeps_what_a_model_does(run: Run, zoo: Path) -> None:
    code, out, err = run("add", zoo / "mlp-0-0", zoo / "mlp-0-1", "--probes", zoo / "digits.npz", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["failed"] == 0
    found = json.loads(run("compare", "mlp-0-0", "mlp-0-1", "--probes", zoo / "digits.npz", "--json")[1])
    assert found["function"]["distance"] > 0.05


def test_a_model_that_is_gone_is_compared_by_its_sketch(run: Run, zoo: Path, tmp_path: Path) -> None:
    path = shutil.copytree(zoo / "mlp-0-2", tmp_path / "gone")
    run("add", zoo / "mlp-0-0", path, "--probes", zoo / "digits.npz")
    asked = ("distance", "mlp-0-0", "gone", "--probes", zoo / "digits.npz")
    whole = json.loads(run(*asked, "--json")[1])
    shutil.rmtree(path)
    sketched = json.loads(run(*asked, "--json")[1])
    assert sketched["value"] == pytest.approx(whole["value"], abs=0.03)
    assert sketched["agreement"] == {"alike": None, "accuracy_a": None, "accuracy_b": None}
    assert "its stored sketch is used" in run(*asked)[1]
    code, out, err = run(*asked, "--html", tmp_path / "page.html")
    assert (code, out) == (2, "")
    assert "no longer available" in err
    code, _, err = run("distance", "mlp-0-0", "gone", "--probes", "noise:n=8")
    assert code == 1
    assert "no functional sketch for these probes" in err


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoo: Path) -> Iterator[str]:
    """A module in the current folder that builds the perceptron of the zoo."""
    config = json.loads((zoo / "mlp-0-0" / "config.json").read_text())
    (tmp_path / "mynets.py").write_text(
        f"from stemma.networks import build\n\n\ndef perceptron():\n    return build({config!r})\n"
    )
    monkeypatch.chdir(tmp_path)
    yield "mynets:perceptron"
    sys.modules.pop("mynets", None)


def test_a_factory_builds_bare_weights(run: Run, zoo: Path, factory: str) -> None:
    asked = ("distance", zoo / "mlp-0-0", zoo / "bare.safetensors", "--probes", zoo / "digits.npz", "--json")
    code, out, err = run(*asked)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "--network" in err
    code, out, err = run(*asked, "--network", factory)
    assert (code, out) == (2, "")
    assert "--allow-code" in err
    code, out, _ = run(*asked, "--network", factory, "--allow-code")
    assert code == 0
    assert json.loads(out)["value"] < 1e-12  # bare.safetensors holds the weights of mlp-0-0


@pytest.mark.slow
def test_the_factory_serves_candidates_null_models_and_enrolled_models(run: Run, zoo: Path, factory: str) -> None:
    code = ("--network", factory, "--allow-code", "--probes", zoo / "digits.npz")
    bare = zoo.parent / "bare"
    if not bare.exists():
        bare.mkdir()
        for i in range(4):
            (bare / f"m{i}.safetensors").write_bytes((zoo / f"mlp-0-{i}" / "model.safetensors").read_bytes())
    null = ("--null", bare / "m2.safetensors", bare / "m3.safetensors")
    asked = ("trace", bare / "m0.safetensors", "--against", bare / "m1.safetensors")
    (found,) = json.loads(run(*asked, *null, *code, "--json")[1])["candidates"]
    assert found["function"]["distance"] > 0.05
    assert found["function"]["null"]["n"] == 2
    # The control: without the factory nothing can be asked.
    (found,) = json.loads(run(*asked, "--probes", zoo / "digits.npz", "--json")[1])["candidates"]
    assert found["function"] is None
    code_, out, err = run("add", bare / "m1.safetensors", *code, "--json")
    assert (code_, err, json.loads(out)["models"][0]["note"]) == (0, "", "")
    code_, _, err = run("add", bare / "m2.safetensors", "--probes", zoo / "digits.npz")
    assert code_ == 0
    assert err.startswith("warning: m2: no functional sketch")


def _wrong(zoo: Path) -> dict[str, tuple[tuple[object, ...], int, str]]:
    digits, pair = zoo / "digits.npz", _pair(zoo)
    asked = (*pair, "--probes", digits)
    return {
        "no probes": (pair, 2, "no probe inputs are given"),
        "probes that are nowhere": ((*pair, "--probes", zoo / "nowhere"), 1, "nowhere"),
        "another shape": ((*pair, "--probes", zoo / "large.npz"), 2, r"\[1, 8, 8\]"),
        "no network": ((zoo / "mlp-0-0", zoo / "bare.safetensors", "--probes", digits), 1, "config.json"),
        "method": ((*asked, "--method", "palm"), 2, "no method is called 'palm'. There are: gradient-field, "),
        "a method of weights": ((*asked, "--method", "weight-sketch"), 2, "no method is called 'weight-sketch'"),
        "measure": ((*asked, "--measure", "ruler"), 2, "no measure is called 'ruler'. For gradient-field there are: "),
        "misfit": ((*asked, "--measure", "linear-cka"), 2, "Those that do: field-cosine"),
        "parameter": (
            (*asked, "-P", "step=3"),
            2,
            "neither .* a parameter 'step'. Did you mean 'steps'[?] Known are: steps, ",
        ),
        "no number": ((*asked, "-P", "steps=many"), 2, "steps is a whole number, not 'many'"),
        "no boolean": ((*asked, "-P", "uniform=perhaps"), 2, "uniform is true or false"),
        "not finite": ((*asked, "-P", "contrast=nan"), 2, "contrast is a number"),
        "a bad value": ((*asked, "-P", "quadrature=simpson"), 2, "unknown quadrature 'simpson'"),
        "no equals sign": ((*asked, "-P", "steps"), 2, "name=value"),
        "twice": ((*asked, "-P", "steps=3", "-P", "steps=4"), 2, "given twice"),
        "html": ((*asked, "--html", zoo / "no" / "page.html"), 2, "there is no folder .*no"),
        "html is a folder": ((*asked, "--html", zoo), 2, "is a folder"),
        "code": ((*asked, "--network", "a:b"), 2, "--allow-code"),
        "no factory": ((*asked, "--network", "ab", "--allow-code"), 2, "MODULE:FACTORY"),
        "nothing to allow": ((*asked, "--allow-code"), 2, "is given without --network"),
        "device": ((*asked, "--device", "abacus"), 2, "abacus"),
        "data": ((*asked, "--data", zoo / "nowhere"), 2, "is not a folder"),
    }


@pytest.mark.parametrize("case", _wrong(Path()))
def test_wrong_use_is_one_sentence(run: Run, zoo: Path, case: str) -> None:
    words, wanted, told = _wrong(zoo)[case]
    code, out, err = run("distance", *words)
    assert (code, out, err.count("\n")) == (wanted, "", 1), err
    assert err.startswith("error: ")
    assert re.search(told, err), err


@pytest.mark.parametrize(
    ("words", "told"),
    [(("--null", "x"), "--null is about"), (("--null-recipe", "mlp"), "--null-recipe is about"),
     (("--probes", "P", "--null", "nowhere"), "nowhere does not exist"),
     (("--probes", "P", "--null", "x", "--null-recipe", "mlp"), "give one")],
)  # fmt: skip
def test_a_null_without_probes_is_refused(run: Run, zoo: Path, words: tuple[str, ...], told: str) -> None:
    given = [str(zoo / "digits.npz") if word == "P" else word for word in words]
    code, out, err = run("compare", *_pair(zoo), *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_models_that_answer_nan_are_refused(run: Run, zoo: Path, tmp_path: Path) -> None:
    import stemma

    broken = stemma.load(zoo / "mlp-0-1")
    arrays = {name: tensor.array().copy() for name, tensor in broken.tensors.items()}
    next(iter(arrays.values()))[:] = np.nan
    save(stemma.from_arrays(arrays, "broken"), tmp_path / "broken", broken.config)
    code, out, err = run("distance", zoo / "mlp-0-0", tmp_path / "broken", "--probes", zoo / "digits.npz")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "NaN" in err


def test_fingerprints_without_probes_need_none_and_others_say_so(run: Run, zoo: Path) -> None:
    code, _, err = run("fingerprint", zoo / "mlp-0-0", "--method", "gradient-field")
    assert code == 2
    assert "--probes" in err
    code, _, err = run("fingerprint", zoo / "mlp-0-0", "--probes", zoo / "digits.npz")
    assert code == 2
    assert "takes no probe inputs" in err


def test_null_takes_several_paths_and_never_gives_one_back() -> None:
    words = ["compare", "a", "b", "--null", "x", "y", "--probes", "p"]
    assert arrange(words) == ["compare", "a", "b", "--null", "x", "--null", "y", "--probes", "p"]
    assert arrange(["compare", "--null", "a", "b"]) == ["compare", "--null", "a", "--null", "b"]


def test_a_search_of_nothing_does_not_say_that_probes_were_missing(run: Run, zoo: Path) -> None:
    code, out, _ = run("trace", zoo / "mlp-0-0", "--probes", zoo / "digits.npz", "--json")
    assert code == 0
    assert not any("no probes were given" in words for words in json.loads(out)["cannot_see"])


def test_tensors_under_other_names_are_one_sentence(run: Run, zoo: Path, tmp_path: Path) -> None:
    model = independents("mlp", 1)[0]
    other = from_arrays({f"tensor_{i}": t.array() for i, t in enumerate(model.weights.values())}, "renamed")
    save(other, tmp_path / "renamed", model.config)
    code, _, err = run("distance", tmp_path / "renamed", zoo / "mlp-0-0", "--probes", zoo / "digits.npz")
    assert code == 1
    assert "8 missing (head.bias, head.weight, layers.0.bias, …), 8 unexpected" in err
    assert "Error(s)" not in err


@pytest.mark.slow
def test_models_left_out_of_the_null_are_named_and_a_recipe_has_some_to_spare(run: Run, zoo: Path) -> None:
    asked = ("compare", *_pair(zoo), "--probes", zoo / "digits.npz", "--alpha", ".2", "--null-recipe", "mlp")
    code, out, _ = run(*asked, "--json")
    assert code == 0
    function = json.loads(out)["function"]
    assert function["null"]["n"] == 4  # as many as the level takes, though the recipe's first is one of the pair
    (left_out,) = function["details"]["left_out"]
    assert left_out.startswith("mlp-0-0: ")
    shown = " ".join(run(*asked)[1].split())
    assert "left out 1 model is not a control: mlp-0-0" in shown
    few = " ".join(run(*asked[:-1], "mlp:n=4")[1].split())
    assert "3 control models is 0.25: 1 more is needed" in few


def test_a_model_and_itself_are_zero_apart_in_words_too(run: Run, zoo: Path) -> None:
    out = run("distance", *_pair(zoo, same=True), "--probes", zoo / "digits.npz")[1]
    assert re.match(r"distance between mlp-0-0 and mlp-0-0: 0\n", out)


@pytest.mark.slow
def test_a_closed_output_ends_the_program_quietly(tmp_path: Path) -> None:
    program = "import sys; sys.stdout = None; from stemma.cli import main; main(['list', '--registry', sys.argv[1]])"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "r.db")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_probes_that_are_all_the_same_have_no_paths_between_them(run: Run, zoo: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "same.npz", inputs=np.ones((4, 1, 8, 8), np.float32))
    code, _, err = run("distance", *_pair(zoo), "--probes", tmp_path / "same.npz")
    assert code == 2
    assert "or they equal their baselines" in err


def test_models_of_one_name_are_told_apart(run: Run, zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "cnn-0-0", tmp_path / "mlp-0-0")
    out = run("distance", zoo / "mlp-0-0", tmp_path / "mlp-0-0", "--probes", zoo / "digits.npz")[1]
    assert "mlp-0-0 " not in out.partition("accuracy:")[2].partition("  next")[0]
    assert re.search(r"the first \d+ %, the second \d+ %", " ".join(out.split()))


def test_candidates_that_cannot_be_asked_are_counted_with_the_reason(run: Run, zoo: Path) -> None:
    null = ("--null", zoo / "mlp-0-2", zoo / "mlp-0-3")
    against = ("--against", zoo / "bare.safetensors", zoo / "mlp-0-1")
    out = run("trace", zoo / "mlp-0-4", *against, "--probes", zoo / "digits.npz", *null, "--json")[1]
    (seen,) = [words for words in json.loads(out)["cannot_see"] if "function" in words]
    assert seen.startswith("the function of 1 of 2 models: bare has weights but no network definition")
