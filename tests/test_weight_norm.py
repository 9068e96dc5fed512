"""Weight normalisation: lengths and directions are one matrix, whichever way they are named."""

import numpy as np
import pytest

from plain_networks import Arrays, cnn, llama, made, mlp, perturbed
from stemma.kinship.compare import compare

NAMES = {"old": ("{}_g", "{}_v"), "new": ("parametrizations.{}.original0", "parametrizations.{}.original1")}


def _apart(arrays: Arrays, names: tuple[str, str]) -> Arrays:
    out, rng = {}, np.random.default_rng(0)
    for n, x in arrays.items():
        stem, _, word = n.rpartition(".")
        if x.ndim < 2:
            out[n] = x
            continue
        norm = np.sqrt(np.square(x.reshape(len(x), -1)).sum(1)).reshape(-1, *[1] * (x.ndim - 1))
        length, direction = (f"{stem}.{w.format(word)}" for w in names)
        out |= {length: norm.astype("f4"), direction: (x * rng.uniform(0.5, 2, norm.shape)).astype("f4")}
    return out


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("network", [mlp, cnn, llama])
@pytest.mark.first(2)
def test_a_matrix_and_its_length_and_direction_are_one(network, names: tuple[str, str]) -> None:
    arrays, config = network(3)
    there = compare(made(arrays, config, "a"), made(_apart(arrays, names), None, "b"))
    back = compare(made(_apart(arrays, names), None, "a"), made(arrays, config, "b"))
    assert [f.relation.kind.value for f in (there, back)] == ["reformatted"] * 2
    tuned = compare(made(arrays, config, "a"), made(_apart(perturbed(arrays, 0.02, 1), names), None, "b"))
    assert tuned.verdict == "related"
    assert tuned.relation.parameters["relative_change"] == pytest.approx(0.017, abs=0.005)
    other = compare(made(arrays, config, "a"), made(_apart(network(4)[0], names), None, "b"))
    assert other.verdict != "related"


@pytest.mark.parametrize("axis", [0, 1, 2, None])
@pytest.mark.parametrize("style", ["old", "new"])
def test_the_matrix_is_what_torch_makes_of_it(axis: int | None, style: str) -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.Conv1d(6, 10, 3)
    normed = (torch.nn.utils.weight_norm if style == "old" else torch.nn.utils.parametrizations.weight_norm)(
        layer, dim=axis
    )
    with torch.no_grad():
        for n, p in normed.named_parameters():
            if n.endswith(("_g", "original0")):
                p.mul_(torch.rand(p.shape) + 0.5)
        normed(torch.zeros(1, 6, 8))
    state = {f"0.{n}": t.detach().numpy() for n, t in normed.state_dict().items()}
    found = made(state, None, "net").weights
    assert set(found) == {"0.weight", "0.bias"}
    np.testing.assert_allclose(found["0.weight"].array(), normed.weight.detach().numpy(), rtol=2e-6)
    np.testing.assert_allclose(found["0.weight"].rows(0, 2), normed.weight.detach().numpy()[:2], rtol=2e-6)


def test_what_is_no_length_stays_as_it_is() -> None:
    rng = np.random.default_rng(0)
    shapes = {"a.weight_v": (4, 3), "a.weight_g": (5, 1), "b.gate_g": (4, 3), "b.gate_v": (4, 3),
              "c.weight_orig": (4, 3), "c.weight_v": (3,)}  # fmt: skip
    odd = {n: rng.normal(size=s).astype("f4") for n, s in shapes.items()}
    assert set(made(odd, None, "net").weights) == set(odd)
