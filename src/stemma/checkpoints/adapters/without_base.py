"""Files that hold an adapter and nothing else: they are no models, and are refused by name.

Known by the names of their tensors: PEFT's, kohya's (also LyCORIS), diffusers' and llama.cpp's.
"""

import re
from pathlib import Path

from stemma.checkpoints.model import Model
from stemma.errors import UnreadableModelError

PART = re.compile(
    r"(^|[._])(?P<kind>lora_(A|B|a|b|E|down|up|mid|embedding_[AB]|magnitude_vector)|lora\.(down|up)|"
    r"lora_linear_layer\.(down|up)|(hada|lokr)_[wt][12](_[ab])?|ia3_l|vera_(A|B|lambda_[bd])|oft_[rR]|boft_[RS]|"
    r"ln_tuning_layers|trainable_tokens_delta|prompt_embeddings|dora_scale)(\.\w+)?(\.weight|\.bias)?$"
)


def refuse_alone(source: Path, models: tuple[Model, ...]) -> tuple[Model, ...]:
    """Let models through, and refuse an adapter without its base.

    Args:
        source: The file or folder.
        models: What it holds.

    Returns:
        The models.

    Raises:
        UnreadableModelError: If its tensors are the parts of an adapter, and most of what they change is not there.
    """
    names = models[0].tensors if models else {}
    parts = {n: m for n in names if (m := PART.search(n))}
    modules = {n[: m.start()] for n, m in parts.items()}
    present = sum(f"{m}.weight" in names or f"{m}.base_layer.weight" in names or m in names for m in modules)
    if 2 * len(parts) < len(names) or 2 * present > len(modules) or not parts:
        return models
    kind = next(iter(parts.values()))["kind"]
    raise UnreadableModelError(
        f"{source} is an adapter ({len(parts)} tensors such as '{kind}') without its base, and no model by itself; "
        "give its base, or the two merged by the program that made it (PEFT: merge_and_unload)"
    )
