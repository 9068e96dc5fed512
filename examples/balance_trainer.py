"""Balance a network with the Hugging Face Trainer: one overridden method, and the state in every checkpoint.

    python examples/balance_trainer.py

Two views of scikit-learn's digits compete: a noisy large one that is learnt at once, and a cleaner one, eight times
smaller. Needs `pip install 'stemma-ml[networks,hf]' accelerate`.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainingArguments

from stemma.multimodal import AdaptiveGradientModulation


class Net(nn.Module):
    """Two encoders and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.small = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, large: torch.Tensor, small: torch.Tensor, labels: torch.Tensor | None = None) -> dict:
        """Logits, and the loss where labels are given, as the Trainer evaluates it."""
        logits = self.head(torch.cat([self.large(large), self.small(small)], 1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


class BalancedTrainer(Trainer):
    """A Trainer that modulates gradients; alone or in several processes."""

    agm: AdaptiveGradientModulation | None = None
    alpha = 2.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The modulated loss while training, the plain one otherwise."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.agm is None:  # `model` is the wrapped one by now, where there are several processes
            self.agm = AdaptiveGradientModulation(model, ["large", "small"], alpha=self.alpha)
        batch = {name: x for name, x in inputs.items() if name != "labels"}
        found = self.agm(batch, inputs["labels"])
        return (found.loss, found.answer) if return_outputs else found.loss

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.agm is not None and folder.is_dir():
            torch.save(self.agm.state_dict(), folder / "balance.pt")


def views(rows: slice) -> list[dict]:
    """Digits twice."""
    digits = load_digits()
    x = digits.data / 16
    x, draw = (x - x.mean(0)) / x.std(), np.random.default_rng(0)
    large, small = x + 1.5 * draw.normal(size=x.shape), (x + 0.5 * draw.normal(size=x.shape)) / 8
    pairs = zip(large[rows], small[rows], digits.target[rows], strict=True)
    return [{"large": torch.tensor(a).float(), "small": torch.tensor(b).float(), "labels": int(y)} for a, b, y in pairs]


def trained(alpha: float, folder: str) -> float:
    """Train, keep the weights with the record of how they were balanced, and say how often the network is right."""
    torch.manual_seed(0)
    arguments = TrainingArguments(
        folder, num_train_epochs=30, per_device_train_batch_size=64, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    model, test = Net(), views(slice(1100, None))
    sgd = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    constant = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1.0)
    trainer = BalancedTrainer(model, arguments, train_dataset=views(slice(0, 800)), optimizers=(sgd, constant))
    trainer.alpha = alpha
    trainer.train()
    place = Path(folder) / f"alpha-{alpha:g}"
    place.mkdir()
    save_file(model.state_dict(), place / "model.safetensors")
    record = trainer.agm.record() if trainer.agm else {}
    (place / "config.json").write_text(json.dumps({"balance": record}, indent=1))
    model.eval()
    with torch.no_grad():
        out = model(*(torch.stack([t[name] for t in test]) for name in ("large", "small")))["logits"]
    return float((out.argmax(1) == torch.tensor([t["labels"] for t in test])).float().mean())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as there:
        joint, balanced = trained(0.0, there), trained(2.0, there)
        print(f"joint {joint:.1%}, balanced {balanced:.1%}")
