"""Detector, DNA and learning-free rankings on two held-back beds that nothing was chosen on.

    STEMMA_DATA=DIR python benchmarks/held_back.py [--bed NAME] [--part NAME]... [--label NAME]

writes benchmarks/results/held_back.json, under a label (`now` unless given), bed by bed and part by part; other parts
stay as they were. A bed is batch-norm networks on garments of 28 x 28 pixels, or tanh perceptrons on spoken digits:
24 sources that differ in nothing but their seed, and of each 13 kinds of children and two of grandchildren, trained by
code of their own (`testbeds/held_back`). The first run trains them (6 CPU minutes in all); later ones read them from
the cache. Nothing is chosen here: no setting, step or threshold was looked for on these networks.

Seeds are fixed. Needs the data sets `fashion_mnist`, `mnist` and `spoken_digits_mulaw8k`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import stemma
from stemma.fingerprints.dna import DNA
from stemma.fingerprints.fragment_encoder import FragmentEncoder
from stemma.kinship.function.finetuning_approximation import FineTuningApproximation
from stemma.kinship.function.model_dna import CloserDnaThanIndependent
from stemma.training import shipped_detector, shipped_dna
from testbeds.held_back import detector_scores, dna_scores
from testbeds.held_back.members import BEDS, Member, bed, learned, probes
from testbeds.held_back.questions import questions
from testbeds.measured import methods, stamp

EVERY = [1]
"""Every so manyth source is asked about; the others are strangers and controls."""

RESULTS = Path(__file__).parent / "results" / "held_back.json"


def detector(members: Sequence[Member]) -> dict[str, Any]:
    """The shipped detector without probes."""
    found = shipped_detector()
    said = detector_scores.answered(found, [q for q in questions(members) if not q.source % EVERY[0]])
    return {"digest": found.weights_digest, **detector_scores.table(said)}


def detector_with_probes(members: Sequence[Member]) -> dict[str, Any]:
    """The same with probes, on every third source: features cost ten times as much."""
    found, asked = shipped_detector(), [q for q in questions(members) if not q.source % (3 * EVERY[0])]
    said = detector_scores.answered(found, asked, probes(members[0].bed))
    return {"digest": found.weights_digest, **detector_scores.table(said)}


def dna(members: Sequence[Member]) -> dict[str, Any]:
    """The encoder that ships, and the untrained code."""
    given = probes(members[0].bed)
    encoders = {"shipped": shipped_dna(given.kind)}
    if encoders["shipped"].full_digest != FragmentEncoder.untrained().full_digest:
        encoders["untrained"] = FragmentEncoder.untrained()
    return {
        name: {"digest": e.full_digest, **dna_scores.table(dna_scores.asked(members, given, e, EVERY[0]))}
        for name, e in encoders.items()
    }


def learning_free(members: Sequence[Member]) -> dict[str, Any]:
    """Rankings by features and by weights."""
    from testbeds.held_back import parent_ranking  # earlier versions of the package lack what it ranks

    return parent_ranking.table(parent_ranking.scores(members, EVERY[0]))


def none_of_these(members: Sequence[Member]) -> dict[str, Any]:
    """How often it is refuted that a child comes from none of its candidates, on every second source."""
    from testbeds.held_back import parent_ranking

    return parent_ranking.none_of_these(members, 2 * EVERY[0])


PARTS: dict[str, Callable[[Sequence[Member]], dict[str, Any]]] = {
    "networks": learned,
    "detector": detector,
    "detector with probes": detector_with_probes,
    "dna": dna,
    "learning-free": learning_free,
    "none of these": none_of_these,
}


def measured() -> dict[str, Any]:
    """What the figures were made with."""
    root = Path(stemma.__file__).parent
    commit = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = {m.name: m.version for m in (DNA, CloserDnaThanIndependent, FineTuningApproximation)}
    return {"stemma": stemma.__version__, "commit": commit, "methods": {**methods(), **versions},
            "python": platform.python_version(), "torch": torch.__version__}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bed", action="append", choices=BEDS)
    options.add_argument("--part", action="append", choices=tuple(PARTS))
    options.add_argument("--label", default="now", help="under which the figures are kept")
    options.add_argument("--every", type=int, default=1, help="ask about every so manyth source only, and print it")
    options.add_argument("--results", type=Path, default=RESULTS, help="the file that is written")
    given = options.parse_args()
    torch.set_num_threads(1)
    EVERY[:] = [given.every]
    for name in given.bed or BEDS:
        members = bed(name)
        for part in given.part or PARTS:
            start = time.process_time()
            found = PARTS[part](members)
            seconds = round(time.process_time() - start, 1)
            print(f"{time.strftime('%H:%M:%S')} {name} {part}: {seconds} CPU s", file=sys.stderr, flush=True)
            if given.every > 1:
                print(json.dumps(found))
                continue
            results = json.loads(given.results.read_text()) if given.results.exists() else {}
            here = results.setdefault(given.label, {}).setdefault(name, {})
            here[part] = {"measured": {**measured(), "cpu_seconds": seconds}, **found}
            results |= stamp("held_back")
            given.results.write_text(json.dumps(results, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
