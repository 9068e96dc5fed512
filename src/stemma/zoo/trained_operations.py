"""What is done to zoo models by training them: each operation is a lesson, learnt from its parents' weights."""

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
from stemma.zoo.optimizers import RATE_FACTOR, known
from stemma.zoo.training import Arrays, initial, logits, seed_for
from stemma.zoo.training_jobs import Lesson

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


def _lesson(
    recipe: "Recipe",
    config: dict[str, Any],
    start: Arrays,
    examples: data.Examples,
    default: Schedule,
    *,
    learns: Callable[[str], bool] = lambda name: True,
    **options: Any,
) -> Lesson:
    """What a recipe's parameters say of learning, put together.

    `freeze` is a list of beginnings of names of tensors that do not learn.

    Returns:
        The lesson.

    Raises:
        MisuseError: If the rate cannot decay so, or the parent cannot learn this.
    """
    p = recipe.parameters
    rule, decay = known(p.get("optimizer", "adam")), p.get("decay", "cosine")
    if decay not in ("cosine", "constant"):
        raise MisuseError(f"the rate decays by 'cosine' or stays 'constant', not {decay!r}. Give one of them.")
    _refuse_misfits(recipe, config, start, examples)
    frozen = tuple(p.get("freeze", ()))
    return Lesson(
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
        learns=frozenset(n for n in start if learns(n) and not (frozen and n.startswith(frozen))),
        **options,
    )


def _refuse_misfits(recipe: "Recipe", config: dict[str, Any], start: Arrays, examples: data.Examples) -> None:
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


def _material(recipe: "Recipe", config: dict[str, Any]) -> data.Examples:
    """What is taught to a network: odd or even where it tells two classes apart, unless the recipe says otherwise.

    Returns:
        The examples.
    """
    return data.material(recipe, task="parity" if config.get("classes") == 2 else "digit")


def _parent(parents: Sequence[Made]) -> Made:
    """The parent as training takes it: codes dequantised, floats of 32 bits.

    Returns:
        Configuration and weights.
    """
    config, arrays = parents[0]
    if any("::" in n or a.dtype == np.float16 for n, a in arrays.items()):
        arrays = arrays_of(model_of("parent", arrays, config))
    return dict(config), {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in arrays.items()}


def _tune(recipe: "Recipe", config: dict[str, Any], start: Arrays, examples: data.Examples, **options: Any) -> Lesson:
    return _lesson(recipe, config, start, examples, kind_of(recipe.kind).tuning, **options)


def train_from_scratch(recipe: "Recipe", parents: Sequence[Made]) -> Lesson:
    """Train a network from its random start; `other` takes the kind's other architecture, `untrained` stops there.

    `start` is the seed of the random start where it differs from the recipe's; so two runs share a start. `init` is
    how it is drawn.

    Returns:
        The lesson; the weights after each quarter of the run are kept.

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
    return _lesson(recipe, config, start, data.material(recipe), schedule, keep=quarters)


def finetune(recipe: "Recipe", parents: Sequence[Made]) -> Lesson:
    """Train on; with `keep_zeros`, pruned weights stay zero.

    Returns:
        The lesson.
    """
    config, start = _parent(parents)
    zeros = bool(recipe.parameters.get("keep_zeros"))
    return _tune(recipe, config, start, _material(recipe, config), keep_zeros=zeros)


def replace_head(recipe: "Recipe", parents: Sequence[Made]) -> Lesson:
    """A fresh output layer for another task (odd or even; for text the same task), and everything trained on.

    Returns:
        The lesson.
    """
    config, start = _parent(parents)
    examples = data.material(recipe, task="digit" if recipe.kind == "lm" else "parity")
    if recipe.kind != "lm":
        config = {**config, "classes": 2 if "parity" in recipe.parameters.get("task", "parity") else 10}
    fresh = initial(config, seed_for(recipe.seed, 0), recipe.parameters.get("init", "torch"))
    start = {n: fresh[n] if n.startswith(HEAD[recipe.kind]) else a for n, a in start.items()}
    return _tune(recipe, config, start, examples)


def inherit_part(recipe: "Recipe", parents: Sequence[Made]) -> Lesson:
    """The early part of the parent, frozen, and everything after it trained from a fresh start.

    Returns:
        The lesson.
    """
    config, parent = _parent(parents)
    trunk = TRUNK[recipe.kind]
    fresh = initial(config, seed_for(recipe.seed, 0), recipe.parameters.get("init", "torch"))
    start = {n: parent[n] if n.startswith(trunk) else a for n, a in fresh.items()}
    schedule = kind_of(recipe.kind).schedule
    return _lesson(
        recipe, config, start, _material(recipe, config), schedule, learns=lambda name: not name.startswith(trunk)
    )


def lora(recipe: "Recipe", parents: Sequence[Made]) -> Lesson:
    """Low-rank adapters of `rank`, trained and merged into the weights.

    `modules`, where given, is a list of parts of tensor names: only matrices that have one of them get an adapter.

    Returns:
        The lesson.

    Raises:
        MisuseError: If no matrix has one of them in its name.
    """
    config, start = _parent(parents)
    modules = tuple(recipe.parameters.get("modules", ("",)))

    def learns(name: str) -> bool:
        return name.endswith(".weight") and any(m in name for m in modules)

    if not any(learns(n) and a.ndim >= 2 for n, a in start.items()):
        raise MisuseError(f"no matrix has one of {list(modules)} in its name. There are: {', '.join(start)}.")
    rank = int(recipe.parameters.get("rank", 4))
    return _tune(recipe, config, start, _material(recipe, config), rank=rank, learns=learns)


def unlearn(recipe: "Recipe", parents: Sequence[Made]) -> Lesson:
    """Train on with random wrong answers for one digit, `forget` (for text: for the first tenth of it).

    Returns:
        The lesson.
    """
    config, start = _parent(parents)
    known_examples = _material(recipe, config)
    rng = np.random.default_rng([recipe.seed, 3])
    targets = known_examples.targets.copy()
    if recipe.kind == "lm":
        tenth = len(targets) // 10
        targets[:tenth] = rng.integers(32, 127, targets[:tenth].shape)
    else:
        digit = int(recipe.parameters["forget"])
        rows = targets == digit
        targets[rows] = (digit + rng.integers(1, 10, rows.sum())) % 10
    return _tune(recipe, config, start, data.Examples(known_examples.inputs, targets))


def distill(recipe: "Recipe", parents: Sequence[Made]) -> Lesson:
    """A student from its own random start learns the teacher's answers; `other` gives it another architecture.

    Source: Hinton et al. 2015, arXiv:1503.02531, at temperature 1 and without true labels.

    Returns:
        The lesson.
    """
    kind, (teacher_config, teacher) = kind_of(recipe.kind), _parent(parents)
    config = dict(kind.other if recipe.parameters.get("other") else teacher_config)
    inputs = data.material(recipe).inputs[:DISTILLED_EXAMPLES]
    answers = torch.from_numpy(logits(teacher_config, [teacher], inputs)[0]).softmax(-1).numpy()
    start = initial(config, seed_for(recipe.seed, 0), recipe.parameters.get("init", "torch"))
    return _lesson(recipe, config, start, data.Examples(inputs, answers), kind.schedule)
