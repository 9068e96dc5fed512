"""Models put together from several: layers of different models in one stack, dense layers made experts of a mixture."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import stemma
from plain_networks import Arrays, llama, made, perturbed
from stemma.ancestry.merges.regression import find_merge
from stemma.ancestry.merges.stacked_layers import find_stack
from stemma.workspace.forest import lineage

MIXTRAL = ("block_sparse_moe.experts.{e}.{a}.weight", "block_sparse_moe.gate.weight")
OTHER = ("ff.e{e}_{a}", "ff.route")
SIZES = [{"d": 64, "inner": 112, "layers": 2}, {"d": 32, "inner": 72, "layers": 3}, {"d": 48, "inner": 48, "layers": 2}]


def _mixture(parts: list[Arrays], rest: Arrays, names: tuple[str, str], form: str = "apart") -> Arrays:
    """Experts made of the dense layers of several models; the rest is one model's, the router is new."""
    out = {n: x for n, x in rest.items() if ".mlp." not in n}
    for i in range(sum(n.endswith("gate_proj.weight") for n in rest)):
        p, width = f"model.layers.{i}.", rest["model.norm.weight"].size
        out[p + names[1]] = np.random.default_rng(i).normal(size=(len(parts), width)).astype("f4")
        for a in ("gate", "up", "down"):
            each = [x[f"{p}mlp.{a}_proj.weight"] for x in parts]
            if form == "apart":
                out |= {p + names[0].format(e=e, a=a): x for e, x in enumerate(each)}
            else:
                out[p + names[0].format(e="", a=a)] = np.stack([x.T if form == "turned" else x for x in each])
    return out


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("count", "names", "form"), [(2, MIXTRAL, "apart"), (3, OTHER, "apart"), (4, MIXTRAL, "apart"),
                                                      (3, OTHER, "stacked"), (2, OTHER, "turned")])  # fmt: skip
@pytest.mark.parametrize("noise", [pytest.param(0.05, marks=pytest.mark.slow), 1.5])
@pytest.mark.first(1)
def test_experts_of_several_fine_tunes_come_from_each_with_its_share(
    sizes: dict[str, int], count: int, names: tuple[str, str], form: str, noise: float
) -> None:
    base, config = llama(1, **sizes)
    tuned = [perturbed(base, noise, k + 1) for k in range(count)]
    child = made(_mixture(tuned, tuned[0], names, form), None, "moe")
    found = find_merge(child, [made(x, config, f"ft{k}") for k, x in enumerate([*tuned, base])])
    assert found is not None
    assert (found.method, found.certain) == ("stacked", True)
    shares = {p.name: p.coefficient for p in found.parents}
    assert shares.keys() == {f"ft{k}" for k in range(count)}
    assert max(shares, key=shares.__getitem__) == "ft0"
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(n.endswith(names[1]) for n in found.parameters["new"])
    assert len(found.parameters["new"]) == sizes["layers"]


def test_parents_are_shown_by_their_experts_where_the_base_is_not_there() -> None:
    base, config = llama(2, layers=2)
    one, two = perturbed(base, 0.05, 1), perturbed(base, 0.05, 2)
    child = made(_mixture([one, two], base, MIXTRAL), None, "moe")
    found = find_stack(child, [made(one, config, "one"), made(two, config, "two")])
    assert found is not None
    assert not found.certain
    assert found.is_proven
    assert {p.name for p in found.parents} == {"one", "two"}
    assert "come from none of the candidates" in found.reason


def test_a_stack_of_one_model_s_layers_has_no_second_parent() -> None:
    base, config = llama(3, layers=4)
    tuned = perturbed(base, 0.05, 1)
    deep = {n: x for n, x in base.items() if ".layers." not in n}
    for k, i in enumerate((0, 1, 2, 1, 2, 3)):
        mark = f"layers.{i}."
        deep |= {n.replace(mark, f"layers.{k}."): x for n, x in base.items() if mark in n}
    candidates = [made(base, config, "base"), made(tuned, config, "tuned")]
    assert find_stack(made(deep, config, "deep"), candidates) is None
    again = find_stack(made(perturbed(deep, 0.05, 2), config, "trained on"), candidates)
    assert again is None


@pytest.mark.slow
def test_trace_and_lineage_name_all_parents_of_a_mixture_with_their_shares(tmp_path: Path) -> None:
    base, _ = llama(4, d=32, inner=72, layers=2)
    one, two = perturbed(base, 0.05, 1), perturbed(base, 0.05, 2)
    networks = {"moe": _mixture([one, two], base, OTHER), "base": base, "one": one, "two": two}
    paths = {n: tmp_path / f"{n}.safetensors" for n in networks}
    for n, arrays in networks.items():
        save_file({k: np.ascontiguousarray(x) for k, x in arrays.items()}, paths[n])
    found = stemma.trace(paths["moe"], against=[paths[n] for n in ("base", "one", "two")])
    assert found.verdict == "descends"
    assert {p["name"] for p in found.parents} == {"base", "one", "two"}
    assert all(p["relation"] == "merged" for p in found.parents)
    drawn = lineage([made(x, None, n) for n, x in networks.items()])
    edges = {e.parent: e for e in drawn.edges if e.child == "moe"}
    assert edges.keys() == {"base", "one", "two"}
    assert sum(e.share or 0.0 for e in edges.values()) == pytest.approx(1.0, abs=1e-3)
    assert "moe" not in drawn.roots
