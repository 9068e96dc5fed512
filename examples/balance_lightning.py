"""Balance a network in Lightning: a callback that keeps the modulation, and one line in `training_step`.

    python examples/balance_lightning.py

Needs `pip install 'stemma-ml[networks]' lightning`. With several devices Lightning wraps the whole module, so all
passes of a step run inside one call, and processes agree on every kappa.
"""

from typing import Any

import lightning
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stemma.multimodal import AdaptiveGradientModulation


class Balance(lightning.Callback):
    """Gives a module `agm`, keeps its history in checkpoints, logs every kappa."""

    def __init__(self, modalities: list[str], **rule: Any) -> None:
        self.modalities, self.rule = modalities, rule
        self.agm: AdaptiveGradientModulation | None = None
        self.kept: dict[str, Any] | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin, or go on where a checkpoint stopped."""
        group = torch.distributed.group.WORLD if trainer.world_size > 1 else None
        self.agm = AdaptiveGradientModulation(pl_module.net, self.modalities, group=group, **self.rule)
        if self.kept is not None:
            self.agm.load_state_dict(self.kept)
        pl_module.agm = self.agm

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, *rest: Any) -> None:
        """Say what every modality's gradient was scaled by."""
        pl_module.log_dict({f"kappa/{name}": kappa for name, kappa in pl_module.kappa.items()})

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {} if self.agm is None else self.agm.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint; used when fitting starts."""
        self.kept = state_dict or None


class Digits(lightning.LightningModule):
    """Two views of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.kappa: dict[str, float] = {}

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """The one line that changes."""
        large, small, target = batch
        out = self.agm({"large": large, "small": small}, target)
        self.kappa = dict(out.kappa)
        return out.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD: under Adam, slowly varying factors of gradients cancel."""
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


class Net(nn.Module):
    """Two encoders and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.small = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, large: torch.Tensor, small: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.head(torch.cat([self.large(large), self.small(small)], 1))


def views() -> list[torch.Tensor]:
    """Digits twice: noisy and large, cleaner and eight times smaller."""
    digits = load_digits()
    x = digits.data / 16
    x, draw = (x - x.mean(0)) / x.std(), np.random.default_rng(0)
    pair = x + 1.5 * draw.normal(size=x.shape), (x + 0.5 * draw.normal(size=x.shape)) / 8
    return [*(torch.tensor(v).float() for v in pair), torch.tensor(digits.target)]


def trained(alpha: float) -> float:
    """Train, and say how often the network is right."""
    lightning.seed_everything(0)
    data, module = views(), Digits()
    loader = DataLoader(TensorDataset(*(x[:800] for x in data)), batch_size=64, shuffle=True, drop_last=True)
    trainer = lightning.Trainer(
        max_epochs=30, callbacks=[Balance(["large", "small"], alpha=alpha)], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader)
    with torch.no_grad():
        out = module.net.eval()(data[0][1100:], data[1][1100:])
    return float((out.argmax(1) == data[2][1100:]).float().mean())


if __name__ == "__main__":
    joint, balanced = trained(0.0), trained(2.0)
    print(f"joint {joint:.1%}, balanced {balanced:.1%}")
