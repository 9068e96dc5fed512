"""The small family behind `make demo`: made in seconds, written as checkpoints, with a disguised suspect."""

from dataclasses import dataclass
from pathlib import Path

from stemma.checkpoints.save import save
from stemma.zoo.collection import Zoo
from stemma.zoo.disguises import Step, disguise
from stemma.zoo.pedigree import family

MEMBERS = (
    "root",
    "finetuned",
    "finetuned-other-data",
    "weights-pruned",
    "distilled",
    "independent-1",
    "independent-2",
    "independent-3",
    "untrained",
)
"""Members that the demo enrols of each kind."""


@dataclass(frozen=True)
class Demo:
    """The models of the demo.

    Attributes:
        zoo: The enrolled models and their truth.
        models: Folder of their checkpoints, with `truth.json`.
        suspect: A disguised checkpoint, without configuration.
        parent: Name of the enrolled model that the suspect really is.
        steps: How it was disguised.
    """

    zoo: Zoo
    models: Path
    suspect: Path
    parent: str
    steps: tuple[Step, ...]


def demo(folder: Path | str, seed: int = 0, *, keep: bool = True) -> Demo:
    """Make the demo's family and its suspect: permuted, rescaled, renamed and stored in half precision.

    Cost: under ten seconds on one core the first time, one second afterwards.

    Args:
        folder: Gets `models/` and `suspect.safetensors`; existing ones are replaced.
        seed: Of the family and the disguise.
        keep: Use the cache.

    Returns:
        The models, the suspect and the truth.
    """
    folder = Path(folder)
    zoos = [family(kind, seed, only=MEMBERS, keep=keep) for kind in ("mlp", "cnn")]
    history = {name: parents for z in zoos for name, parents in z.history.items()}
    zoo = Zoo(tuple(m for z in zoos for m in z.members), history)
    parent = "cnn/finetuned"
    disguised, steps = disguise(
        zoo[parent].model, seed, operations=("permute", "rescale"), dtype="float16", rename=True, keep_config=False
    )
    path = save(disguised, folder / "suspect.safetensors", replace=True)
    return Demo(zoo, zoo.write(folder / "models", replace=True), path, parent, tuple(steps))
