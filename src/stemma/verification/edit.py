"""Was an edit done as its receipt says? The plan is laid on the parent again, and the result compared."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

import numpy as np

from stemma.errors import StemmaError
from stemma.models.load import load
from stemma.models.model import Model
from stemma.probes import Probes
from stemma.types import Digest, Plan, Receipt, Spec

PLAN, RECEIPT, PROGRAM = "plan.json", "receipt.json", "network.pt2"

CLOSE = 1e-4
"""Largest relative difference of a tensor between the edit as recorded and as replayed: what other hardware leaves."""


@dataclass(frozen=True)
class Finding:
    """What one check says.

    Attributes:
        check: What was checked.
        good: Whether it is as recorded; None where it could not be checked.
        reason: One sentence.
    """

    check: str
    good: bool | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON form.

        Returns:
            Plain values.
        """
        return {"check": self.check, "good": self.good, "reason": self.reason}


@final
@dataclass(frozen=True)
class Replaying:
    """Checks of an edited model's folder.

    Attributes:
        close: Largest relative difference of a tensor that passes.
        half: The same where the child is stored in half precision.
    """

    close: float = CLOSE
    half: float = 0.01

    name = "edit-replay"
    version = 1

    def __call__(
        self,
        folder: Path,
        parent: Model | None = None,
        probes: Probes | None = None,
        others: Probes | None = None,
        progress: Callable[[str, int, int | None], None] | None = None,
    ) -> list[Finding]:
        """Check a folder.

        Cost: reading both models; with the probes, the edit once more.

        Args:
            folder: As `stemma prune` or `stemma unlearn` wrote it.
            parent: The model before; without, only what lies in the folder is checked.
            probes: The inputs that the edit rests on; without, refitted weights are taken as they are.
            others: Of unlearning: the other inputs that were given.
            progress: Told how far it is.

        Returns:
            What was found, in order.

        Raises:
            StemmaError: If the folder holds no plan and receipt.
        """
        plan, receipt = read(folder)
        program = folder / PROGRAM
        child = load(program if program.is_file() and not (folder / "config.json").is_file() else folder)
        found = list(_of_folder(plan, receipt, child))
        if parent is None:
            return [*found, Finding("parent", None, f"the model before ({receipt.parent_source}) is not there")]
        good = parent.digest == receipt.parent == plan.parent
        why = "the model before is the one of the receipt" if good else f"the model before is {parent.digest}"
        found.append(Finding("parent", good, why))
        if good:
            try:
                found.append(_untouched(plan, parent, child))
                found.append(self._replayed(plan, receipt, parent, child, (probes, others), progress))
            except (IndexError, KeyError, TypeError, ValueError, RuntimeError, StemmaError) as error:
                why = " ".join(str(error).split())[:200]
                found.append(Finding("replay", False, f"the plan cannot be carried out on the parent: {why}"))
        return found

    def _replayed(
        self, plan: Plan, receipt: Receipt, parent: Model, child: Model,
        given: tuple[Probes | None, Probes | None], progress: Any,
    ) -> Finding:  # fmt: skip
        probes, others = given
        if probes is None:
            unseen = f"the inputs ({receipt.probes.get('source')}) are not there"
            return Finding("replay", None, f"{unseen}: refitted weights were not worked out again")
        if probes.digest != plan.probes:
            return Finding("replay", False, f"these inputs are {probes.digest}, but the edit rests on {plan.probes}")
        made = _made_again(plan, parent, probes, others, progress)
        if made.digest == child.digest:
            return Finding("replay", True, "the edit done again gives the same weights, bit by bit")
        apart = _largest(made, child)
        close = self.half if any(t.dtype in ("F16", "BF16") for t in child.tensors.values()) else self.close
        words = f"the edit done again differs by {apart:.2g} at most"
        return Finding("replay", apart <= close, f"{words} (relative, per tensor; {close:g} passes)")


def read(folder: Path) -> tuple[Plan, Receipt]:
    """The plan and the receipt of a folder.

    Returns:
        Both.

    Raises:
        StemmaError: If they are not there or damaged.
    """
    try:
        plan = json.loads((folder / PLAN).read_text("utf-8"))
        receipt = json.loads((folder / RECEIPT).read_text("utf-8"))
        spec = Spec(plan["spec"]["name"], int(plan["spec"]["version"]), plan["spec"]["params"])
        kept = {g: tuple(int(i) for i in k) for g, k in plan["kept"].items()}
        slices = {t: {a: tuple(int(i) for i in r) for a, r in x.items()} for t, x in plan["slices"].items()}
        entries = {t: tuple((int(a), int(b)) for a, b in e) for t, e in plan["entries"].items()}
        given = str(plan["operation"]), Digest(plan["parent"]), spec, Digest(plan["probes"])
        first = Plan(*given, kept, slices, entries, str(plan["action"]), plan["expected"])
        return first, Receipt(**{f.name: receipt[f.name] for f in fields(Receipt)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StemmaError(
            f"{folder} holds no {PLAN} and {RECEIPT} that can be read ({type(error).__name__}): give a folder that "
            "stemma prune or stemma unlearn wrote"
        ) from error


def _of_folder(plan: Plan, receipt: Receipt, child: Model) -> Iterator[Finding]:
    same = plan.digest == receipt.plan
    yield Finding("plan", same, "the plan is the one of the receipt" if same else "the plan was changed after the edit")
    same = child.digest == receipt.child
    yield Finding("weights", same, "the weights are those of the receipt" if same else "the weights are other ones")


def _untouched(plan: Plan, parent: Model, child: Model) -> Finding:
    """Every tensor of the child as large as the plan says; those that nothing reads anew equal the parent's rows."""
    wrong, equal, refitted = [], 0, 0
    for name, tensor in child.tensors.items():
        if name not in parent.tensors:
            wrong.append(name)
            continue
        rows = plan.slices.get(name, {})
        shape = tuple(len(rows[str(a)]) if str(a) in rows else n for a, n in enumerate(parent.tensors[name].shape))
        if shape != tuple(tensor.shape):
            wrong.append(name)
            continue
        expected = parent.tensors[name].array()
        for axis, keep in rows.items():
            expected = np.take(expected, keep, int(axis))
        if np.array_equal(expected, tensor.array()):
            equal += 1
        elif _may_change(plan, name, expected, tensor.array()):
            refitted += 1
        else:
            wrong.append(name)
    if wrong:
        return Finding("slices", False, f"{len(wrong)} tensors are not what the plan leaves, first {wrong[0]}")
    return Finding("slices", True, f"{equal} tensors are rows of the parent's, {refitted} were refitted")


def _may_change(plan: Plan, name: str, before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the plan lets a tensor's numbers change: layers that lost inputs, their biases, statistics of norms."""
    if plan.entries:
        changed = np.argwhere((before != after).reshape(*before.shape[:2], -1).any(-1))
        return name in plan.entries and {tuple(map(int, c)) for c in changed} <= set(plan.entries[name])
    if plan.operation == "unlearn":
        return name.rpartition(".")[0] in plan.expected.get("layers", ())
    statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    return statistic or name in plan.expected.get("refitted", ())


def _made_again(plan: Plan, parent: Model, probes: Probes, others: Probes | None, progress: Any) -> Model:
    from stemma.edits.forgetting import Unlearning
    from stemma.edits.pruning import Pruning

    params: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plan.spec.params.items()}
    if plan.operation == "prune":
        return Pruning(**params).apply(parent, plan, probes, progress=progress).model
    return Unlearning(**params)(parent, probes, others, progress).model


def _largest(a: Model, b: Model) -> float:
    """Largest relative difference of any tensor; infinite where names or shapes differ."""
    if {n: tuple(t.shape) for n, t in a.tensors.items()} != {n: tuple(t.shape) for n, t in b.tensors.items()}:
        return float("inf")
    worst = 0.0
    for name, tensor in a.tensors.items():
        x, y = tensor.array().astype(np.float64), b.tensors[name].array().astype(np.float64)
        worst = max(worst, float(np.abs(x - y).max(initial=0) / max(np.abs(x).max(initial=0), 1e-30)))
    return worst
