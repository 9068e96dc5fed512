"""Where modulation could go wrong without a word: closed gates, recomputed passes, missing samples, other losses."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stemma.errors import MisuseError
from stemma.multimodal import AdaptiveGradientModulation, Modulation
from stemma.multimodal.late_fusion_passes import LateFast
from stemma.multimodal.masks import AttentionMask, hidden, masks_of
from test_modulation import Late, _batch, _grads, _made, _step

PLACES = {n: f"encoders.{n}" for n in "av"}
STRONG: dict[str, Any] = {"alpha": 2.0, "reference": "parity"}


def _steps(model: nn.Module, many: int, **options: Any) -> list[dict[str, float]]:
    agm = AdaptiveGradientModulation(model, ["a", "v"], **{**STRONG, **options})
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    kappas = []
    for i in range(many):
        batch, target = _batch(seed=i)
        sgd.zero_grad()
        out = agm(batch, target)
        out.loss.backward()
        sgd.step()
        kappas.append(dict(out.kappa))
    return kappas


class Gated(Late):
    """Late fusion and a path around it that is closed at first."""

    def __init__(self) -> None:
        super().__init__()
        self.around, self.gate = nn.Linear(5, 4), nn.Parameter(torch.zeros(1))

    def forward(self, **x: torch.Tensor) -> torch.Tensor:
        return super().forward(**x) + self.gate * self.around(x["a"])


def test_a_path_around_the_encoders_that_opens_later_is_found() -> None:
    assert len(_steps(_made(Gated), 3)) == 3  # the control
    with pytest.raises(MisuseError, match="does more than fuse"):
        _steps(_made(Gated), 3, plan="late-fast", encoders=PLACES)


def test_a_plan_is_tried_on_every_network_it_is_given() -> None:
    plan, opened = LateFast(PLACES), _made(Gated)
    nn.init.ones_(opened.gate)
    assert len(_steps(_made(Late), 1, plan=plan)) == 1
    with pytest.raises(MisuseError, match="does more than fuse"):
        _steps(opened, 1, plan=plan)


class Padded(nn.Module):
    """Encoders that see how long a sample is."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({n: Counting() for n in "av"})
        self.head = nn.Linear(14, 4)

    def forward(self, lengths: torch.Tensor, **x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.encoders[n](x[n], lengths) for n in "av"], 1))


class Counting(nn.Module):
    """Features of an input and of its length."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 7)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.body(torch.cat([x, lengths[:, None].to(x.dtype)], 1)).tanh()


def test_encoders_that_read_lengths_are_asked_for_every_sample() -> None:
    found = []
    for plan in ({"plan": "exact"}, {"plan": "late-fast", "encoders": PLACES}):
        model = _made(Padded)
        agm = AdaptiveGradientModulation(model, ["a", "v"], **STRONG, **plan)
        for lengths in (torch.full((6,), 5), torch.arange(6), torch.arange(6).flip(0)):
            batch, target = _batch()
            model.zero_grad()
            agm({**batch, "lengths": lengths}, target).loss.backward()
        found.append(_grads(model))
    assert all(torch.allclose(found[1][n], g, atol=1e-12) for n, g in found[0].items())


class Counted(Late):
    """A network that counts its samples by its inputs."""

    def forward(self, **x: torch.Tensor) -> torch.Tensor:
        return super().forward(**x) + torch.zeros(len(x["a"]), 1)


def test_a_network_that_counts_its_samples_itself_stays_exact() -> None:
    fast = _steps(_made(Counted), 4, plan="late-fast", encoders=PLACES)
    slow = _steps(_made(Counted), 4)
    assert [f["a"] for f in fast] == pytest.approx([s["a"] for s in slow], abs=1e-12)


def test_frames_in_place_of_samples_are_refused() -> None:
    class Framed(Late):
        def forward(self, **x: torch.Tensor) -> torch.Tensor:
            frames = [self.encoders[n](torch.stack([x[n]] * 3, 1).flatten(0, 1)) for n in "av"]
            return self.head(torch.cat([f.unflatten(0, (-1, 3)).mean(1) for f in frames], 1))

    with pytest.raises(MisuseError, match="gives 18 rows for 6 samples"):
        _steps(_made(Framed), 1, plan="late-fast", encoders=PLACES)


class Recomputed(nn.Module):
    """A block whose activations are computed again in backward."""

    def __init__(self, always: bool, dropout: float = 0.5) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Dropout(dropout))
        self.head, self.always = nn.Linear(8, 4), always

    def forward(self, **x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([x["a"], x["v"]], 1).requires_grad_()
        if self.training or self.always:
            return self.head(checkpoint(self.block, both, use_reentrant=True))
        return self.head(self.block(both))


@pytest.mark.parametrize("plan", ["exact", "batched"])
def test_masked_passes_are_not_recomputed_in_another_mode(plan: str) -> None:
    with pytest.raises(MisuseError, match="activation checkpointing"):
        _steps(_made(Recomputed, True), 1, plan=plan)
    batch, target = _batch()
    torch.manual_seed(3)
    found, _ = _step(_made(Recomputed, False), batch, target, plan=plan, **STRONG)

    class Plain(Recomputed):
        def forward(self, **x: torch.Tensor) -> torch.Tensor:
            return self.head(self.block(torch.cat([x["a"], x["v"]], 1)))

    truth, _ = _step(_made(Plain, False), batch, target, plan=plan, **STRONG)
    assert all(torch.allclose(found[n], truth[n], atol=1e-12) for n in truth)
    without, _ = _step(_made(Recomputed, True, 0.0), batch, target, plan=plan, **STRONG)
    assert any(float(g.abs().max()) > 0 for g in without.values())


@pytest.mark.parametrize("mask", ["zero", "mean", "permuted"])
def test_what_stands_in_missing_samples_does_not_matter(mask: str) -> None:
    present = torch.ones(6, 2, dtype=torch.bool)
    present[:3, 0] = False
    found = []
    for filler in (0.0, 1000.0, float("nan")):
        batch, target = _batch()
        batch["a"][:3] = filler
        model = _made(Late)
        out = AdaptiveGradientModulation(model, ["a", "v"], mask=mask, **STRONG)(batch, target, present)
        found.append([out.loss.item(), *out.kappa.values()])
    assert found[0] == pytest.approx(found[1], abs=1e-12)
    assert found[0] == pytest.approx(found[2], abs=1e-12)
    if mask != "zero":
        agm, absent = AdaptiveGradientModulation(model, ["a", "v"], mask=mask), torch.tensor([[False, True]] * 6)
        with pytest.raises(MisuseError, match="no sample of the batch has 'a'"):
            agm(batch, target, absent)


class Sequences(nn.Module):
    """Tokens with padding through attention, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        self.encoders = nn.ModuleDict({"a": nn.TransformerEncoder(layer, 1), "v": nn.Linear(5, 4)})
        self.head = nn.Linear(8, 4)

    def forward(self, a: torch.Tensor, v: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
        words = self.encoders["a"](a, src_key_padding_mask=padded)
        return self.head(torch.cat([words.mean(1), self.encoders["v"](v)], 1))


def test_padded_attention_is_judged_as_with_gradients() -> None:
    batch, target = _batch()
    padded = torch.arange(3)[None] >= torch.tensor([1, 2, 3, 1, 2, 3])[:, None]
    batch = {"a": torch.randn(6, 3, 4).double(), "v": batch["v"], "padded": padded}
    torch.manual_seed(0)
    slow = AdaptiveGradientModulation(_made(Sequences), ["a", "v"], **STRONG)(batch, target)
    torch.manual_seed(0)
    fast = AdaptiveGradientModulation(_made(Sequences), ["a", "v"], plan="late-fast", encoders=PLACES, **STRONG)(
        batch, target
    )
    assert all(torch.allclose(slow.responses[n], fast.responses[n], atol=1e-10) for n in "av")


def test_masks_that_would_hide_nothing_are_refused_or_shifted_apart() -> None:
    for given in (torch.ones(6, 1, 1, 3), torch.zeros(6, 3) - 1e9):
        with pytest.raises(MisuseError, match="with 1 where a token is attended to"):
            AttentionMask()({"attention_mask": given}, "text")
    rows = {n: torch.arange(4.0)[:, None] for n in "av"}
    gone = hidden(rows, masks_of("permuted", ["a", "v"]), ["a", "v"])
    assert not bool((gone["a"] == gone["v"]).any())
    assert not any(bool((gone[n] == rows[n]).any()) for n in "av")


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(reduction="none"),
        nn.CrossEntropyLoss(label_smoothing=0.3),
    ],
)
def test_responses_are_judged_alike_however_the_loss_is_reduced(loss: nn.CrossEntropyLoss) -> None:
    batch, target = _batch()
    plain = AdaptiveGradientModulation(_made(Late), ["a", "v"], **STRONG)(batch, target)
    out = AdaptiveGradientModulation(_made(Late), ["a", "v"], loss=loss, **STRONG)(batch, target)
    assert out.kappa == plain.kappa
    assert torch.equal(out.loss, loss(out.logits, target))


def test_labels_that_a_loss_ignores_do_not_count() -> None:
    batch, target = _batch(n=8)
    ignored = torch.where(torch.arange(8) < 3, target, -100)
    named = torch.where(ignored < 0, 0, target)
    loss = nn.CrossEntropyLoss(ignore_index=0)
    kept = named != 0
    one = AdaptiveGradientModulation(_made(Late), ["a", "v"], loss=loss, **STRONG)(batch, named)
    two = AdaptiveGradientModulation(_made(Late), ["a", "v"], **STRONG)(
        {n: x[kept] for n, x in batch.items()}, named[kept]
    )
    assert one.kappa == pytest.approx(two.kappa, abs=1e-12)
    regression = {"loss": nn.MSELoss(reduction="sum")}, {"loss": nn.MSELoss()}
    aim = torch.randn(8, 4, dtype=torch.float64)
    kappas = [AdaptiveGradientModulation(_made(Late), ["a", "v"], **STRONG, **o)(batch, aim).kappa for o in regression]
    assert kappas[0] == pytest.approx(kappas[1], abs=1e-12)


@pytest.mark.parametrize("plan", ["exact", "batched", "late-fast"])
def test_losses_of_modalities_alone_are_added(plan: str) -> None:
    batch, target = _batch()
    encoders = {"encoders": PLACES} if plan == "late-fast" else {}
    truth, without = _step(_made(Late), batch, target, **STRONG)
    model = _made(Late)
    parts = [nn.functional.cross_entropy(model(**{**batch, n: 0 * batch[n]}), target) for n in "av"]
    (sum(parts) * 0.5).backward()
    alone = _grads(model)
    found, out = _step(_made(Late), batch, target, plan=plan, unimodal_loss_weight=0.5, **encoders, **STRONG)
    assert out.kappa == pytest.approx(without.kappa, abs=1e-12)
    assert out.loss.item() == pytest.approx(without.loss.item() + 0.5 * sum(p.item() for p in parts), abs=1e-12)
    assert all(torch.allclose(found[n], truth[n] + alone[n], atol=1e-12) for n in truth)
    with pytest.raises(MisuseError, match="unimodal_loss_weight has to be 0 or more"):
        AdaptiveGradientModulation(model, ["a", "v"], unimodal_loss_weight=-1.0)


def test_steps_that_are_not_scaled_are_counted() -> None:
    class Barred(Late):
        def forward(self, **x: torch.Tensor) -> torch.Tensor:
            return super().forward(**x).index_fill(1, torch.tensor([3]), -torch.inf)

    batch, target = _batch()
    agm = AdaptiveGradientModulation(_made(Barred), ["a", "v"], **STRONG)
    agm(batch, target % 3)
    assert agm.record()["skipped_steps"] == 1
    other = AdaptiveGradientModulation(_made(Barred), ["a", "v"], **STRONG)
    other.load_state_dict(agm.state_dict())
    assert other.record() == agm.record()


def test_caps_are_numbers_that_a_float_can_hold() -> None:
    for cap in (float("inf"), 81.0, 0.0):
        with pytest.raises(MisuseError, match="cap has to be above 0"):
            Modulation(cap=cap)
    rule = Modulation(alpha=4.0, cap=80.0)
    kappa, *_ = rule.coefficients([0.0, 9.0], [1.0, 1.0])
    assert 0 < kappa[0] < 1e-30
    agm = AdaptiveGradientModulation(_made(Late), ["a", "v"], alpha=4.0, cap=80.0)
    agm.history = agm._history_so_far.after(rule, [0.0, 9.0], [1.0, 1.0], kappa)
    assert agm.record()["capped_steps"] == {"a": 1, "v": 0}


def test_processes_agree_only_where_they_train_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as processes

    asked = []
    monkeypatch.setattr(processes, "all_reduce", lambda values, group=None: asked.append(group))
    monkeypatch.setattr(processes, "is_initialized", lambda: True)
    batch, target = _batch()
    AdaptiveGradientModulation(_made(Late), ["a", "v"], **STRONG)(batch, target)
    assert asked == []
    AdaptiveGradientModulation(_made(Late), ["a", "v"], group="all", **STRONG)(batch, target)
    assert asked == ["all"]


def test_sharded_parameters_are_refused(tmp_path: Path) -> None:
    import torch.distributed as processes
    from torch.distributed.fsdp import fully_shard

    processes.init_process_group("gloo", init_method=f"file://{tmp_path}/here", rank=0, world_size=1)
    try:
        mesh = processes.init_device_mesh("cpu", (1,))
        with pytest.raises(MisuseError, match="sharded"):
            AdaptiveGradientModulation(fully_shard(_made(Late), mesh=mesh), ["a", "v"])
    finally:
        processes.destroy_process_group()


def test_small_misuse_is_one_sentence() -> None:
    batch, target = _batch()
    with pytest.raises(MisuseError, match="permutations has to be 1 or more"):
        AdaptiveGradientModulation(_made(Late), ["a", "v"], permutations=0)
    agm = AdaptiveGradientModulation(_made(Late), ["a", "v"])
    with pytest.raises(MisuseError, match="but it is list"):
        agm(batch, target, [[True, True]] * 6)
    with pytest.raises(MisuseError, match="not a state of AdaptiveGradientModulation: it has no 'spec'"):
        agm.load_state_dict({"modalities": ["a", "v"]})


_INDUCTOR = """
import torch
from stemma.multimodal import AdaptiveGradientModulation
from test_modulation import Late, _batch, _grads, _made, _step
batch, target = _batch()
truth, _ = _step(_made(Late), batch, target, alpha=2.0, reference="parity")
places = {n: f"encoders.{n}" for n in "av"}
for plan in ("exact", "batched", "late-fast"):
    model = _made(Late)
    if plan == "late-fast":
        for n in "av":
            model.encoders[n].compile()
    compiled = model if plan == "late-fast" else torch.compile(model)
    agm = AdaptiveGradientModulation(compiled, ["a", "v"], alpha=2.0, reference="parity", plan=plan, encoders=places)
    agm(batch, target).loss.backward()
    found = _grads(model)
    assert all(torch.allclose(found[n], truth[n], atol=1e-10) for n in truth), plan
print("same")
"""


@pytest.mark.anywhere  # other processors: `test_a_compiled_network_gives_the_same_gradient`
@pytest.mark.slow
def test_a_network_compiled_by_inductor_gives_the_same_gradient(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    own = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }  # the shared one may hold code for other instructions
    done = subprocess.run(
        [sys.executable, "-c", _INDUCTOR], cwd=here, capture_output=True, text=True, check=False, env=own
    )
    assert done.stdout.strip() == "same", done.stderr
