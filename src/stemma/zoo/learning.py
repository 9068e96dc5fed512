"""What is done to zoo models by training them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stemma.zoo import data
from stemma.zoo.kinds import Schedule, kind_of
from stemma.zoo.training import Arrays, initial, logits, seed_for, train

if TYPE_CHECKING:
    from stemma.zoo.recipe import Recipe

Made = tuple[dict[str, Any], Arrays]

HEAD = {"mlp": "head.", "cnn": "head.", "vit": "head.", "lm": "lm_head."}
"""How the names of the output layer begin."""

TRUNK = {
    "mlp": ("layers.0.", "layers.1."),
    "cnn": ("stem.", "blocks.0."),
    "vit": ("patch_embed.", "class_token", "position_embed", "blocks.0."),
    "lm": ("model.embed_tokens.", "model.layers.0."),
}
"""How the names of the early part begin that `inherit_part` takes over."""

DISTILLED_EXAMPLES = 1500
"""How many examples a teacher answers; its answers to text are large."""


def _schedule(recipe: "Recipe", default: Schedule) -> Schedule:
    steps = recipe.parameters.get("steps", default.steps)
    return Schedule(int(steps), default.batch, float(recipe.parameters.get("rate", default.rate)))


def _tune(recipe: "Recipe", config: dict[str, Any], start: Arrays, examples: data.Examples, **options: Any) -> Arrays:
    schedule = _schedule(recipe, kind_of(recipe.kind).tuning)
    return train(config, [start], examples, schedule, [seed_for(recipe.seed, 1)], **options)[0][-1]


def train_from_scratch(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Train a network from its random start; `other` takes the kind's other architecture, `untrained` stops there.

    `start` is the seed of the random start where it differs from the recipe's; so two runs share a start.

    Returns:
        Configuration, and the weights after each quarter of the run, stacked `[4, …]`.
    """
    kind, parameters = kind_of(recipe.kind), recipe.parameters
    config = dict(kind.other if parameters.get("other") else kind.config)
    config.update(parameters.get("config", {}))
    start = initial(config, seed_for(int(parameters.get("start", recipe.seed)), 0))
    if parameters.get("untrained"):
        return config, {n: np.stack([a] * 4) for n, a in start.items()}
    schedule = _schedule(recipe, kind.schedule)
    quarters = [schedule.steps * q // 4 for q in (1, 2, 3)]
    examples = data.examples(recipe.kind, recipe.part)
    [run] = train(config, [start], examples, schedule, [seed_for(recipe.seed, 1)], keep=quarters)
    return config, {n: np.stack([moment[n] for moment in run]) for n in start}


def finetune(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Train on; with `keep_zeros`, pruned weights stay zero.

    Returns:
        Configuration and weights.
    """
    config, start = parents[0]
    after = None
    if recipe.parameters.get("keep_zeros"):
        masks = {n: torch.from_numpy(a != 0) for n, a in start.items() if a.ndim >= 2}

        def after(stack: dict[str, torch.Tensor]) -> None:
            for name, mask in masks.items():
                stack[name].mul_(mask)

    return config, _tune(recipe, config, start, data.examples(recipe.kind, recipe.part), after_step=after)


def replace_head(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """A fresh output layer for another task (odd or even; for text the same task), and everything trained on.

    Returns:
        Configuration and weights.
    """
    config, start = parents[0]
    config = dict(config) if recipe.kind == "lm" else {**config, "classes": 2}
    fresh = initial(config, seed_for(recipe.seed, 0))
    start = {n: fresh[n] if n.startswith(HEAD[recipe.kind]) else a for n, a in start.items()}
    task = "digit" if recipe.kind == "lm" else "parity"
    return config, _tune(recipe, config, start, data.examples(recipe.kind, recipe.part, task))


def inherit_part(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """The early part of the parent, frozen, and everything after it trained from a fresh start.

    Returns:
        Configuration and weights.
    """
    config, parent = parents[0]
    trunk = TRUNK[recipe.kind]
    fresh = initial(config, seed_for(recipe.seed, 0))
    start = {n: parent[n] if n.startswith(trunk) else a for n, a in fresh.items()}
    examples, schedule = data.examples(recipe.kind, recipe.part), _schedule(recipe, kind_of(recipe.kind).schedule)
    order = [seed_for(recipe.seed, 1)]
    ends = train(config, [start], examples, schedule, order, trainable=lambda name: not name.startswith(trunk))
    return config, ends[0][-1]


def lora(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Low-rank adapters of `rank`, trained and merged into the weights.

    Returns:
        Configuration and weights.
    """
    config, start = parents[0]
    examples = data.examples(recipe.kind, recipe.part)
    rank = int(recipe.parameters["rank"])
    return config, _tune(recipe, config, start, examples, rank=rank, trainable=lambda name: name.endswith(".weight"))


def unlearn(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """Train on with random wrong answers for one digit (for text: for the first tenth of it).

    Returns:
        Configuration and weights.
    """
    config, start = parents[0]
    known = data.examples(recipe.kind, recipe.part)
    rng = np.random.default_rng([recipe.seed, 3])
    targets = known.targets.copy()
    if recipe.kind == "lm":
        tenth = len(targets) // 10
        targets[:tenth] = rng.integers(32, 127, targets[:tenth].shape)
    else:
        digit = int(recipe.parameters["forget"])
        rows = targets == digit
        targets[rows] = (digit + rng.integers(1, 10, rows.sum())) % 10
    return config, _tune(recipe, config, start, data.Examples(known.inputs, targets))


def distill(recipe: "Recipe", parents: Sequence[Made]) -> Made:
    """A student from its own random start learns the teacher's answers; `other` gives it another architecture.

    Source: Hinton et al. 2015, arXiv:1503.02531, at temperature 1 and without true labels.

    Returns:
        Configuration and weights.
    """
    kind, (teacher_config, teacher) = kind_of(recipe.kind), parents[0]
    config = dict(kind.other if recipe.parameters.get("other") else teacher_config)
    inputs = data.examples(recipe.kind, recipe.part).inputs[:DISTILLED_EXAMPLES]
    answers = torch.from_numpy(logits(teacher_config, [teacher], inputs)[0]).softmax(-1).numpy()
    start = initial(config, seed_for(recipe.seed, 0))
    order, schedule = [seed_for(recipe.seed, 1)], _schedule(recipe, kind.schedule)
    return config, train(config, [start], data.Examples(inputs, answers), schedule, order)[0][-1]
