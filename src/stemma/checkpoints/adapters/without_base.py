"""Refuse files that contain only an adapter, recognised by tensor names of PEFT, kohya, diffusers and llama.cpp."""

import re
from pathlib import Path

from stemma.checkpoints.model import Model
from stemma.errors import UnreadableModelError

PART = re.compile(
    r"(^|[._])(?P<kind>lora_(A|B|a|b|E|down|up|mid|embedding_[AB]|magnitude_vector)|lora\.(down|up)|"
    r"lora_linear_layer\.(down|up)|(hada|lokr)_[wt][12](_[ab])?|ia3_l|vera_(A|B|lambda_[bd])|oft_[rR]|boft_[RS]|"
    r"ln_tuning_layers|trainable_tokens_delta|prompt_embeddings|dora_scale)(\.\w+)?(\.weight|\.bias)?$"
)


def refuse_without_base(source: Path, models: tuple[Model, ...]) -> tuple[Model, ...]:
    """Return the models, or raise if the tensors are an adapter and most of the layers they change are absent."""
    names = models[0].tensors if models else {}
    parts = {n: m for n in names if (m := PART.search(n))}
    modules = {n[: m.start()] for n, m in parts.items()}
    present = sum(f"{m}.weight" in names or f"{m}.base_layer.weight" in names or m in names for m in modules)
    if 2 * len(parts) < len(names) or 2 * present > len(modules) or not parts:
        return models
    kind = next(iter(parts.values()))["kind"]
    raise UnreadableModelError(
        f"{source} is an adapter ({len(parts)} tensors such as '{kind}') without its base model. "
        "Use the base, or merge both with the program that made it (PEFT: merge_and_unload)"
    )
