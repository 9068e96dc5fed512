"""Unimodal losses and modality dropout against slow twins."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stemma.errors import MisuseError
from stemma.multimodal.masks import masks_of
from stemma.multimodal.strategies import ModalityDropout, UnimodalLosses
from stemma.multimodal.strategies.base import Setting


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 4), nn.Linear(3, 4), nn.Linear(8, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.a(a).relu(), self.b(b).relu()], 1))


def _case() -> tuple[Setting, dict[str, torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    setting = Setting(_Net(), ("a", "b"), masks_of("zero", ("a", "b")), {"a": "a", "b": "b"})
    return setting, {"a": torch.randn(64, 5), "b": torch.randn(64, 3)}, torch.randint(0, 3, (64,))


def test_unimodal_losses_are_those_of_heads_on_the_encoders() -> None:
    setting, batch, labels = _case()
    run = UnimodalLosses(0.5).start(setting)
    found = run.loss(batch, labels)
    net, heads = setting.model, run.heads  # ty: ignore[missing-attribute]
    slow = cross_entropy(net(**batch), labels)
    for m in ("a", "b"):
        slow = slow + 0.5 * cross_entropy(heads[m](getattr(net, m)(batch[m])), labels)
    assert torch.allclose(found, slow)
    assert len(run.extra()) == 4
    assert not run.needs_progress


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_modality_dropout_shows_one_modality_of_the_samples_drawn(rate: float) -> None:
    setting, batch, labels = _case()
    seen: dict[str, torch.Tensor] = {}
    setting.model.register_forward_pre_hook(lambda part, args, kwargs: seen.update(kwargs), with_kwargs=True)
    ModalityDropout(rate).start(setting).loss(batch, labels)
    gone = {m: (seen[m] == 0).all(1) for m in batch}
    assert not (gone["a"] & gone["b"]).any()
    assert all(torch.equal(seen[m][~gone[m]], batch[m][~gone[m]]) for m in batch)
    lone = float((gone["a"] | gone["b"]).double().mean())
    assert lone == rate if rate in (0, 1) else 0.3 < lone < 0.7


def test_modality_dropout_refuses_a_rate_that_is_no_part() -> None:
    with pytest.raises(MisuseError, match="from 0 to 1"):
        ModalityDropout(1.5)
