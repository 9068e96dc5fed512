"""Makes the trained networks that lie beside this file, so that tests of edits see the same weights on every machine.

Run it with `.venv/bin/python tests/data/make_networks.py`; other weights may change what those tests measure.
"""

from pathlib import Path

from stemma.checkpoints.save import save
from stemma.zoo.memory import arrays_of, model_of
from stemma.zoo.recipe import Recipe
from stemma.zoo.recipe_builder import build

SEED = 21


def main() -> None:
    """Train one network of each kind on digits and write it in half precision, with its configuration."""
    for kind in ("cnn", "mlp", "vit"):
        made = build(Recipe(kind, "train", seed=SEED), keep=False)
        half = model_of(kind, arrays_of(made), made.config, "float16")
        save(half, Path(__file__).parent / kind, made.config, replace=True)


if __name__ == "__main__":
    main()
