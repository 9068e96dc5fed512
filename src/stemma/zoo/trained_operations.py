"""Operations that train: each gives a training job that starts from its parents' weights."""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stemma import networks
from stemma.errors import MisuseError
from stemma.zoo import data
from stemma.zoo.kinds import Schedule, kind_of
from stemma.zoo.memory import arrays_of, model_of
from stemma.zoo.optimizers import RATE_FACTOR, check_optimizer
from stemma.zoo.training import Arrays, initial, logits, seed_for
from stemma.zoo.training_jobs import TrainingJob

if TYPE_CHECKING:
    from stemma.zoo.recipe import Recipe

Made = tuple[dict[str, Any], Arrays]

HEAD = {"mlp": "head.", "cnn": "head.", "vit": "head.", "lm": "lm_head."}
"""Prefix of the output layer's tensor names."""

TRUNK = {
    "mlp": ("layers.0.", "layers.1."),
    "cnn": ("stem.", "blocks.0."),
    "vit": ("patch_embed.", "class_token", "position_embed", "blocks.0."),
    "lm": ("model.embed_tokens.", "model.layers.0."),
}
"""Prefixes of the tensor names of the early part that `inherit_part` takes over."""

DISTILLED_EXAMPLES = 1500
"""Examples that a teacher answers; its answers to text are large."""


def _training_job(
    recipe: "Recipe",
    config: dict[str, Any],
    start: Arrays,
    examples: data.Examples,
    default: Schedule,
    *,
    trainable: Callable[[str], bool] = lambda name: True,
    **options: Any,
) -> TrainingJob:
    """The training job that a recipe's parameters describe.

    `freeze` is a list of prefixes of tensors that are not trained.

    Returns:
        The job.

    Raises:
        MisuseError: If the decay of the rate is unknown, or the parent cannot learn this.
    """
    p = recipe.parameters
    rule, decay = check_optimizer(p.get("optimizer", "adam")), p.get("decay", "cosine")
    if decay not in ("cosine", "constant"):
        raise MisuseError(f"the decay of the learning rate must be 'cosine' or 'constant', not {decay!r}.")
    _check_fits(recipe, config, start, examples)
    frozen = tuple(p.get("freeze", ()))
    return TrainingJob(
        config,
        start,
        examples,
        seed_for(recipe.seed, 1),
        steps=int(p.get("steps", default.steps)),
        batch=int(p.get("batch", default.batch)),
        rate=float(p.get("rate", default.rate * RATE_FACTOR[rule])),
        optimizer=rule,
        weight_decay=float(p.get("weight_decay", 0)),
        decay=decay,
        trainable=frozenset(n for n in start if trainable(n) and not (frozen and n.startswith(frozen))),
        **options,
    )


def _check_fits(recipe: "Recipe", config: dict[str, Any], start: Arrays, examples: data.Examples) -> None:
    shapes = {n: a.shape for n, a in start.items()}
    if shapes != _shapes(json.dumps(config, sort_keys=True)):
        raise MisuseError(
            f"{recipe.operation} needs a parent whose tensors are named and laid out as in the zoo's {recipe.kind} "
            "networks. Train before it is renamed, transposed or folded."
        )
    classes = config.get("classes", config.get("vocab_size"))
    targets = examples.targets
    if targets.dtype.kind == "i" and len(targets) and targets.max() >= classes:
        raise MisuseError(
            f"a {recipe.kind} network of {classes} classes cannot learn {recipe.parameters.get('task', 'digit')!r}, "
            "which has more. Give another task, or replace the head."
        )


@lru_cache(maxsize=64)
def _shapes(config: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {n: tuple(t.shape) for n, t in networks.build(json.loads(config)).state_dict().items()}


def _examples(recipe: "Recipe", config: dict[str, Any]) -> data.Examples:
    """The examples for a network: odd or even where it has two classes, unless the recipe says otherwise."""
    return data.examples_for(recipe, task="parity" if config.get("classes") == 2 else "digit")


def _parent(parents: Sequence[Made]) -> Made:
    """The parent as training takes it: codes dequantised, floats of 32 bits."""
    config, arrays = parents[0]
    if any("::" in n or a.dtype == np.float16 for n, a in arrays.items()):
        arrays = arrays_of(model_of("parent", arrays, config))
    return dict(config), {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in arrays.items()}


def _finetuning_job(
    recipe: "Recipe", config: dict[str, Any], start: Arrays, examples: data.Examples, **options: Any
) -> TrainingJob:
    return _training_job(recipe, config, start, examples, kind_of(recipe.kind).tuning, **options)


def train_from_scratch(recipe: "Recipe", parents: Sequence[Made]) -> TrainingJob:
    """Train a network from its random start; `other` takes the kind's other architecture, `untrained` stops there.

    `start` is the seed of the random start where it differs from the recipe's, so that two runs share a start. `init`
    is how it is drawn.

    Returns:
        The job; the weights after each quarter of the run are kept.

    Raises:
        MisuseError: If an untrained network is to take steps.
    """
    kind, parameters = kind_of(recipe.kind), recipe.parameters
    config = dict(kind.other if parameters.get("other") else kind.config)
    config.update(parameters.get("config", {}))
    seed = seed_for(int(parameters.get("start", recipe.seed)), 0)
    start = initial(config, seed, parameters.get("init", "torch"))
    steps = 0 if parameters.get("untrained") else int(parameters.get("steps", kind.schedule.steps))
    schedule = Schedule(steps, kind.schedule.batch, kind.schedule.rate)
    if parameters.get("untrained") and "steps" in parameters:
        raise MisuseError("an untrained network takes no steps. Leave out 'steps' or 'untrained'.")
    quarters = tuple(steps * q // 4 for q in (1, 2, 3))
    return _training_job(recipe, config, start, data.examples_for(recipe), schedule, keep=quarters)


def finetune(recipe: "Recipe", parents: Sequence[Made]) -> TrainingJob:
    """Fine-tune all weights; with `keep_zeros`, pruned weights stay zero."""
    config, start = _parent(parents)
    zeros = bool(recipe.parameters.get("keep_zeros"))
    return _finetuning_job(recipe, config, start, _examples(recipe, config), keep_zeros=zeros)


def replace_head(recipe: "Recipe", parents: Sequence[Made]) -> TrainingJob:
    """A new output layer for another task (odd or even; for text the same task), and everything fine-tuned."""
    config, start = _parent(parents)
    examples = data.examples_for(recipe, task="digit" if recipe.kind == "lm" else "parity")
    if recipe.kind != "lm":
        config = {**config, "classes": 2 if "parity" in recipe.parameters.get("task", "parity") else 10}
    fresh = initial(config, seed_for(recipe.seed, 0), recipe.parameters.get("init", "torch"))
    start = {n: fresh[n] if n.startswith(HEAD[recipe.kind]) else a for n, a in start.items()}
    return _finetuning_job(recipe, config, start, examples)


def inherit_part(recipe: "Recipe", parents: Sequence[Made]) -> TrainingJob:
    """The early part of the parent, frozen, and everything after it trained from a fresh start."""
    config, parent = _parent(parents)
    trunk = TRUNK[recipe.kind]
    fresh = initial(config, seed_for(recipe.seed, 0), recipe.parameters.get("init", "torch"))
    start = {n: parent[n] if n.startswith(trunk) else a for n, a in fresh.items()}
    schedule = kind_of(recipe.kind).schedule
    return _training_job(
        recipe, config, start, _examples(recipe, config), schedule, trainable=lambda name: not name.startswith(trunk)
    )


def lora(recipe: "Recipe", parents: Sequence[Made]) -> TrainingJob:
    """Low-rank adapters of `rank`, trained and merged into the weights.

    `modules`, where given, is a list of parts of tensor names: only matrices that have one of them get an adapter.

    Returns:
        The job.

    Raises:
        MisuseError: If no matrix has one of them in its name.
    """
    config, start = _parent(parents)
    modules = tuple(recipe.parameters.get("modules", ("",)))

    def trainable(name: str) -> bool:
        return name.endswith(".weight") and any(m in name for m in modules)

    if not any(trainable(n) and a.ndim >= 2 for n, a in start.items()):
        raise MisuseError(f"no matrix has one of {list(modules)} in its name. There are: {', '.join(start)}.")
    rank = int(recipe.parameters.get("rank", 4))
    return _finetuning_job(recipe, config, start, _examples(recipe, config), rank=rank, trainable=trainable)


def unlearn(recipe: "Recipe", parents: Sequence[Made]) -> TrainingJob:
    """Fine-tune with random wrong answers for one digit, `forget` (for text: for the first tenth of it)."""
    config, start = _parent(parents)
    known_examples = _examples(recipe, config)
    rng = np.random.default_rng([recipe.seed, 3])
    targets = known_examples.targets.copy()
    if recipe.kind == "lm":
        tenth = len(targets) // 10
        targets[:tenth] = rng.integers(32, 127, targets[:tenth].shape)
    else:
        digit = int(recipe.parameters["forget"])
        rows = targets == digit
        targets[rows] = (digit + rng.integers(1, 10, rows.sum())) % 10
    return _finetuning_job(recipe, config, start, data.Examples(known_examples.inputs, targets))


def distill(recipe: "Recipe", parents: Sequence[Made]) -> TrainingJob:
    """A student from its own random start learns the teacher's answers; `other` gives it another architecture.

    Returns:
        The job.

    Source: Hinton et al. 2015, arXiv:1503.02531, at temperature 1 and without true labels.
    """
    kind, (teacher_config, teacher) = kind_of(recipe.kind), _parent(parents)
    config = dict(kind.other if recipe.parameters.get("other") else teacher_config)
    inputs = data.examples_for(recipe).inputs[:DISTILLED_EXAMPLES]
    answers = torch.from_numpy(logits(teacher_config, [teacher], inputs)[0]).softmax(-1).numpy()
    start = initial(config, seed_for(recipe.seed, 0), recipe.parameters.get("init", "torch"))
    return _training_job(recipe, config, start, data.Examples(inputs, answers), kind.schedule)
