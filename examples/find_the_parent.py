"""From Python: disguise a small network, then find out what it was made from.

Run it with `.venv/bin/python examples/find_the_parent.py`; it takes a few seconds and leaves nothing behind.
"""

import tempfile
from pathlib import Path

import stemma
from stemma import zoo
from stemma.checkpoints.save import save


def main() -> None:
    """Build a family, disguise one member, trace it among the others, and compare with a stranger."""
    with tempfile.TemporaryDirectory() as folder:
        family = zoo.family("mlp", only=["root", "finetuned", "independent-1"])
        models = family.write(Path(folder) / "models")
        disguised, steps = zoo.disguise(family["mlp/root"].model, seed=3, dtype="float16", keep_config=False)
        suspect = save(disguised, Path(folder) / "suspect.safetensors")
        print("disguised by:", ", ".join(step.name for step in steps))

        answer = stemma.trace(suspect, against=[models])
        for parent in answer.parents:
            print(f"{answer.verdict} to {parent['name']}: {parent['relation']}; {parent['reason']}")

        stranger = stemma.compare(suspect, models / "mlp" / "independent-1")
        print(f"the stranger is {stranger.verdict}: {stranger.weights.reason}")


if __name__ == "__main__":
    main()
