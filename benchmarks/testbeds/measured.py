"""What a result file was made with: versions of the methods that it measures, and the commit.

Every script writes its results by `write_result`. Pages list the files that are older than a method they measure
(`docs/figures.py`), so raising a version without measuring again shows there.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stemma.kinship.weights.version import VERSION

ROOT = Path(__file__).parents[2]

VERSIONS = {
    "kinship.weights": ("kinship/weights/version.py", r"^VERSION = (\d+)"),
    "gradient-field": ("fingerprints/gradient_field.py", r"^    version = (\d+)"),
    "dna": ("fingerprints/dna.py", r"^    version: ClassVar\[int\] = (\d+)"),
    "closer-dna-than-independent": ("kinship/function/model_dna.py", r"^    version: ClassVar\[int\] = (\d+)"),
    "closer-than-independent": ("kinship/function/closer_than_independent.py", r"^    version = (\d+)"),
    "lineage-detector": ("kinship/learned/detector.py", r"^    version = (\d+)"),
    "unlearning-test": ("verification/unlearning.py", r"^    version = (\d+)"),
    "partition-agreement": ("kinship/function/partition_agreement.py", r"^    version = (\d+)"),
    "finetuning-approximation": ("kinship/function/finetuning_approximation.py", r"^    version = (\d+)"),
    "forest": ("ancestry/trees/forest.py", r"^    version = (\d+)"),
    "merge-regression": ("ancestry/merges/regression.py", r"^    version = (\d+)"),
    "pruning": ("edits/pruning/settings.py", r"^    version = (\d+)"),
    "unlearning": ("edits/unlearning/settings.py", r"^    version = (\d+)"),
    "erasure": ("edits/unlearning/erasure.py", r"^    version = (\d+)"),
    "modulation": ("multimodal/strategies/agm.py", r"^    version = (\d+)"),
    "geometry": ("kinship/relation/geometry.py", r"^VERSION = (\d+)"),
}
"""Where the version of a method is written, below `src/stemma`, and how."""

_FIELDS = ("gradient-field", "closer-than-independent")
METHODS = {
    **dict.fromkeys(
        ("descent", "disguise", "enrolment", "framed_plans", "large_models", "layouts", "lineage_scale", "names_lost",
         "null", "parents", "pretrained_children", "pruned_language", "real_zoo", "relations", "remote",
         "search_recall", "speed", "trained_round_trip",
         "verdicts_attack", "verdicts_framing", "verdicts_independent"),
        ("kinship.weights",),
    ),
    **dict.fromkeys(("field_choices", "field_speed", "language_fields", "taskonomy", "task_relatedness"),
                    ("gradient-field",)),
    **dict.fromkeys(("ip_protection", "few_controls", "functional", "asked_once"), _FIELDS),
    **dict.fromkeys(("dna", "dna_order", "dna_outside"), ("dna", "closer-dna-than-independent")),
    "held_back": ("lineage-detector", "dna", "closer-dna-than-independent", "finetuning-approximation"),
    "partition_agreement": ("partition-agreement",),
    "learning_free": ("finetuning-approximation",),
    "lineage_detector": ("lineage-detector", "finetuning-approximation"),
    "forest": ("kinship.weights", "forest"),
    "merges": ("kinship.weights", "merge-regression"),
    "unlearning": ("gradient-field", "unlearning"),
    "unlearning_few": ("unlearning-test",),
    **dict.fromkeys(("forgetting_full_resnet18", "forgetting_small_cnn", "forgetting_small_vit",
                     "forgetting_verified", "forgetting"), ("unlearning",)),
    **dict.fromkeys(("pruning_full_resnet18", "pruning_full_resnet20", "pruning_small", "pruning_small_cnn",
                     "pruning", "edit_cost", "edit_round_trip"), ("pruning",)),
    **dict.fromkeys(("multimodal_balance", "multimodal_competition", "multimodal_overhead"), ("modulation",)),
    **dict.fromkeys(("erasure_small", "erasure_whole", "erasure_verified"), ("erasure", "unlearning-test")),
    "relation_geometry": ("geometry",),
}  # fmt: skip
"""Methods that a result file measures, by its name; files of no method (of storage, of hostile files) have none."""


def version_in(source: str, method: str) -> int:
    """The version of a method in the text of its file; 0 where there was none yet."""
    found = re.search(VERSIONS[method][1], source, re.MULTILINE)
    return int(found[1]) if found else 0


def current(method: str, root: Path = ROOT) -> int:
    """The version of a method in this checkout."""
    return version_in((root / "src" / "stemma" / VERSIONS[method][0]).read_text(), method)


def methods() -> dict[str, int]:
    """The versions of the stages that benchmarks of comparisons measure.

    Returns:
        By stage; a result file keeps them under `measured_with`.
    """
    return {"kinship.weights": VERSION}


def machine() -> str:
    """Cores and versions, for a result file."""
    import numpy as np

    return f"{os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}"


def commit() -> str:
    """The commit of this checkout, with `+` where its source has changed since; empty outside of one."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "src"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if head.stdout and changed.stdout.strip() else "")


def stamp(name: str) -> dict[str, Any]:
    """What a result file of this name is made with now."""
    return {"made_with": {"commit": commit(), "methods": {m: current(m) for m in METHODS.get(name, ())}}}


def write_result(path: Path, result: Mapping[str, Any], indent: int = 1, **options: Any) -> None:
    """Write a result file with its stamp.

    Args:
        path: The file; its stem says which methods it measures.
        result: What was measured.
        indent: Of the JSON.
        options: As `json.dumps` takes them.
    """
    path.write_text(json.dumps({**result, **stamp(path.stem)}, indent=indent, **options) + "\n")
