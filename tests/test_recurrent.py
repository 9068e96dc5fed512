"""Recurrent layers: units are symmetries of torch's own networks; fine-tunes are found where strangers are not."""

import itertools

import numpy as np
import pytest

from stemma.architectures.unit_groups import structure_of
from stemma.kinship.compare import compare
from stemma.networks.load import from_arrays
from symmetry import assert_groups_are_symmetries, noisy

torch = pytest.importorskip("torch")


class Reader(torch.nn.Module):
    """A recurrent network read by one dense layer at its last step."""

    def __init__(self, kind, layers=1, *, both=False, projection=0):
        super().__init__()
        extra = {"proj_size": projection} if projection else {}
        self.rnn = getattr(torch.nn, kind)(5, 12, layers, batch_first=True, bidirectional=both, **extra)
        self.fc = torch.nn.Linear((projection or 12) * (1 + both), 4)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


KINDS = {
    "lstm": (("LSTM",), {}, [12]),
    "lstm-2": (("LSTM", 2), {}, [12, 12]),
    "gru-both": (("GRU", 2), {"both": True}, [12, 12, 12, 12]),
    "plain": (("RNN", 2), {}, [12, 12]),
    "lstm-projected": (("LSTM", 2), {"projection": 7}, [12, 7, 12, 7]),
    "lstm-projected-both": (("LSTM", 2), {"projection": 7, "both": True}, [12, 7, 12, 7, 12, 7, 12, 7]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_units_of_recurrent_layers_are_symmetries(kind):
    arguments, options, sizes = KINDS[kind]
    module = Reader(*arguments, **options).eval()
    arrays = noisy({n: tuple(t.shape) for n, t in module.state_dict().items()})
    known = structure_of({n: a.shape for n, a in arrays.items()})
    assert known.source == "family:rnn"
    assert known.certain
    assert [g.size for g in known.groups] == sizes
    inputs = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 7, 5)).astype(np.float32))

    def run(weights):
        module.load_state_dict({n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in weights.items()})
        with torch.no_grad():
            return module(inputs).double().numpy()

    assert_groups_are_symmetries(arrays, known, run)


def keras(arrays):
    """The same weights as Keras names and stores them (one bias)."""
    cell = "lstm/lstm_cell"
    names = {"rnn.weight_ih_l0": f"{cell}/kernel:0", "rnn.weight_hh_l0": f"{cell}/recurrent_kernel:0",
             "rnn.bias_ih_l0": f"{cell}/bias:0", "fc.weight": "dense/kernel:0", "fc.bias": "dense/bias:0"}  # fmt: skip
    return {new: np.ascontiguousarray(arrays[old].T) for old, new in names.items()}


def test_the_keras_copy_has_the_same_units():
    arrays = noisy({n: tuple(t.shape) for n, t in Reader("LSTM").state_dict().items()})
    a, b = (structure_of({n: x.shape for n, x in w.items()}) for w in (arrays, keras(arrays)))
    assert b.source == "family:rnn"
    (ours,), (theirs,) = a.groups, b.groups
    assert {(m.block, m.stride) for m in ours.members} == {(m.block, m.stride) for m in theirs.members}
    assert {m.tensor for m in theirs.members} == {n for n in keras(arrays) if n != "dense/bias:0"}
    both = {f"bidirectional/{d}_lstm/lstm_cell/{n}:0": s for d in ("forward", "backward") for n, s in (
        ("kernel", (5, 48)), ("recurrent_kernel", (12, 48)), ("bias", (48,)))}  # fmt: skip
    known = structure_of(both | {"dense/kernel:0": (24, 4)})
    assert [g.size for g in known.groups] == [12, 12]
    assert [(s.group != "", s.rows) for s in known.axes["dense/kernel:0"][0].segments] == [(True, 12), (True, 12)]


def test_states_that_may_be_handed_over_are_not_called_distinct():
    shapes = {}
    for stack, width in (("encoder.", 12), ("decoder.", 12)):
        shapes |= {f"{stack}rnn.weight_ih_l0": (4 * width, 5), f"{stack}rnn.weight_hh_l0": (4 * width, width)}
    assert not structure_of(shapes).certain
    shapes["decoder.rnn.weight_ih_l0"], shapes["decoder.rnn.weight_hh_l0"] = (64, 5), (64, 16)
    assert structure_of(shapes).certain
    added = {"weight_ih_l0": (48, 5), "weight_hh_l0": (48, 12)}  # both directions may be added up before the reader
    added |= {f"{n}_reverse": s for n, s in added.items()} | {"fc.weight": (4, 12)}
    assert not structure_of(added).certain


def test_what_is_no_recurrent_layer_is_not_taken_for_one():
    assert structure_of({"weight_ih_l0": (50, 5), "weight_hh_l0": (50, 12)}).groups == ()
    assert structure_of({"a/kernel:0": (5, 48), "a/recurrent_kernel:0": (12, 36)}).groups == ()
    # two dense layers that could be reading the state: neither is given its units
    known = structure_of({"weight_ih_l0": (48, 5), "weight_hh_l0": (48, 12), "a.weight": (4, 12), "b.weight": (3, 12)})
    assert known.axes["a.weight"][1].kind == known.axes["b.weight"][1].kind == "fixed"


def trained(seed, start=None, steps=120):
    """A network that tells which of five inputs was largest on average."""
    torch.manual_seed(seed)
    module = Reader("LSTM")
    if start:
        module.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in start.items()})
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(64, 6, 5, generator=generator)
        loss = torch.nn.functional.cross_entropy(module(x), x.mean(1)[:, :4].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {n: t.detach().numpy().copy() for n, t in module.state_dict().items()}


@pytest.mark.slow
def test_a_fine_tuned_lstm_is_found_also_in_keras_names_and_strangers_are_not():
    strangers = [trained(s) for s in range(7)]
    child = trained(99, start=strangers[0])
    for suspect in (child, keras(child)):
        found = compare(from_arrays(strangers[0], "parent"), from_arrays(suspect, "child"))
        assert found.verdict == "related"
        assert found.weights.p_value < 1e-6
    pairs = itertools.combinations([from_arrays(a, str(i)) for i, a in enumerate(strangers)], 2)
    p = [compare(a, b).weights.p_value for a, b in pairs]
    assert min(p) > 0.001 / len(p)
