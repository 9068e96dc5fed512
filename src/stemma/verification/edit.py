"""Verification of an edit: the plan is carried out on the parent again, and the result compared with the folder."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.deprecation import current_names
from stemma.errors import StemmaError
from stemma.networks.load import load
from stemma.probes import Probes
from stemma.types import Digest, Plan, Receipt, Spec
from stemma.types.edits import PLAN, PROGRAM, RECEIPT, UNDO
from stemma.types.nouns import jsonable

if TYPE_CHECKING:
    from stemma.edits.artefacts.result import Edited
    from stemma.edits.pruning.pruning import Pruning
    from stemma.edits.unlearning.erasure import Erasure
    from stemma.edits.unlearning.unlearning import Unlearning

Arrays = Mapping[str, np.ndarray]

WEIGHT_TOLERANCE = 1e-4
"""Largest relative difference of a tensor between the recorded and the replayed edit: rounding on other hardware."""

MIN_SAME_UNITS = 0.95
"""Smallest fraction of units that are chosen again: rounding on other hardware exchanges a few of equal score."""

OUTPUT_TOLERANCE, HALF_TOLERANCE = 1e-3, 0.05
"""Largest relative difference of outputs that passes, and the same where weights are stored in half precision."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: What was checked.
        good: Whether it is as recorded; None where it could not be checked.
        reason: One sentence.
    """

    check: str
    good: bool | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"check": self.check, "good": self.good, "reason": self.reason}


@final
@dataclass(frozen=True)
class EditReplay:
    """Checks of an edited model's folder.

    Attributes:
        close: Largest relative difference of a tensor that passes.
        half: The same where the child is stored in half precision.
    """

    close: float = WEIGHT_TOLERANCE
    half: float = 0.01

    name = "edit-replay"
    version = 1

    def __call__(
        self,
        folder: Path,
        parent: Model | None = None,
        probes: Probes | None = None,
        retain: Probes | None = None,
        progress: Callable[[str, int, int | None], None] | None = None,
    ) -> list[Finding]:
        """Check a folder.

        Cost: reading both models; with the probes, the edit once more.

        Args:
            folder: As `stemma prune` or `stemma unlearn` wrote it.
            parent: The model before; without it, only the folder is checked.
            probes: The probes of the edit; without them, refitted weights are not recomputed.
            retain: Of unlearning: the retain inputs that were given.
            progress: Called with what happens, how much is done and of how much.

        Returns:
            The findings, in order.

        Raises:
            StemmaError: If the folder holds no plan and receipt.
        """
        from stemma.edits.artefacts.trainable import in_class_of

        plan, receipt = read(folder)
        program = folder / PROGRAM
        both = (folder / "config.json").is_file() and program.is_file()
        child = load(program if program.is_file() and not both else folder)
        found = list(_of_folder(plan, receipt, child))
        if both:
            found.append(_of_program(load(program), child, probes))
        if parent is None:
            return [*found, Finding("parent", None, f"the parent model ({receipt.parent_source}) is not available")]
        good = parent.digest == receipt.parent == plan.parent
        found.append(_finding("parent", good, "the parent is the model of the receipt",
                              f"the parent is {parent.digest}, not the recorded model"))  # fmt: skip
        if good:
            try:
                before, after = _arrays(parent), _arrays(child)
                found.append(_kept_rows(plan, before, after))
                child = in_class_of(parent, child, folder)
                if plan.operation == "unlearn":
                    found += _undo_file(folder)
                found += self._replayed(plan, receipt, parent, child, (probes, retain), progress)
            except (IndexError, KeyError, TypeError, ValueError, RuntimeError, StemmaError) as error:
                why = " ".join(str(error).split())[:200]
                found.append(Finding("replay", False, f"the plan cannot be carried out on the parent: {why}"))
        return found

    def _replayed(
        self, plan: Plan, receipt: Receipt, parent: Model, child: Model,
        given: tuple[Probes | None, Probes | None], progress: Any,
    ) -> Iterator[Finding]:  # fmt: skip
        probes, retain = given
        if probes is None:
            missing = f"the probes ({receipt.probes.get('source')}) were not given"
            yield Finding("choice", None, f"{missing}: the choice of units or entries was not repeated")
            yield Finding("replay", None, f"{missing}: refitted weights were not recomputed")
            yield Finding("measured", None, f"{missing}: the figures were not measured again")
            return
        if probes.digest != plan.probes:
            why = f"the probes are {probes.digest}, but the edit was made with {plan.probes} (inputs or labels differ)"
            yield from (Finding(check, None, why) for check in ("choice", "replay", "measured"))
            return
        try:
            _ = parent.network
        except StemmaError as error:  # nothing about the record: it was not given what runs these weights
            why = f"the parent cannot be run: {' '.join(str(error).split())}"
            yield from (Finding(check, None, why) for check in ("choice", "replay", "measured"))
            return
        known = str(plan.expected.get("others") or "")
        if known and retain is None:
            yield Finding("replay", None, f"the edit used other inputs ({known}) that were not given: add --retain")
            return
        if retain is not None and known != str(retain.digest):
            why = f"the other inputs are {retain.digest}, but the edit was made with {known or 'none'}"
            yield Finding("replay", False, why)
            return
        replayed = _replayed_edit(plan, parent, probes, retain, progress)
        yield _choice(plan, replayed, parent, probes)
        half = any(t.dtype in ("F16", "BF16") for t in child.tensors.values())
        yield self._same_weights(replayed, child, self.half if half else self.close)
        yield _measured(receipt, replayed, child, probes, HALF_TOLERANCE if half else OUTPUT_TOLERANCE)

    def _same_weights(self, replayed: "Edited", child: Model, close: float) -> Finding:
        same = replayed.model.digest == child.digest
        difference = 0.0 if same else _largest_difference(_state(replayed.editable.module), _arrays(child))
        if not difference:
            return Finding("replay", True, "the replayed edit gives identical weights")
        words = f"the replayed edit differs by at most {difference:.2g}"
        return Finding("replay", difference <= close, f"{words} (relative, per tensor; tolerance {close:g})")


def read(folder: Path) -> tuple[Plan, Receipt]:
    """The plan and the receipt of a folder; `StemmaError` if they are missing or damaged."""
    try:
        plan = json.loads((folder / PLAN).read_text("utf-8"))
        receipt = json.loads((folder / RECEIPT).read_text("utf-8"))
        spec = Spec(plan["spec"]["name"], int(plan["spec"]["version"]), plan["spec"]["params"])
        kept = {g: tuple(int(i) for i in k) for g, k in plan["kept"].items()}
        slices = {t: {a: tuple(int(i) for i in r) for a, r in x.items()} for t, x in plan["slices"].items()}
        entries = {t: tuple((int(a), int(b)) for a, b in e) for t, e in plan["entries"].items()}
        given = {"parent": Digest(plan["parent"]), "probes": Digest(plan["probes"]), "expected": plan["expected"]}
        first = Plan(
            operation=str(plan["operation"]), spec=spec, kept=kept, slices=slices, entries=entries,
            action=str(plan["action"]), **given,
        )  # fmt: skip
        second = Receipt(**{f.name: receipt[f.name] for f in fields(Receipt)})
        _expect(Mapping, spec.params, first.expected, second.probes, second.versions, second.measured)
        _expect(str, second.operation, second.parent, second.child, second.plan, second.parent_source)
        _ = first.digest, json.dumps(second.to_dict())
        return first, second
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StemmaError(
            f"{PLAN} or {RECEIPT} is missing in {folder} or cannot be read ({type(error).__name__}): give a folder "
            "that stemma prune or stemma unlearn wrote"
        ) from error


def _expect(kind: type, *values: object) -> None:
    if not all(isinstance(v, kind) for v in values):
        raise TypeError(f"a {kind.__name__} was expected")


def _finding(check: str, good: bool, passed: str, failed: str) -> Finding:
    return Finding(check, good, passed if good else failed)


def _of_folder(plan: Plan, receipt: Receipt, child: Model) -> Iterator[Finding]:
    yield _finding("plan", plan.digest == receipt.plan, "the plan matches the receipt",
                   "the plan was changed after the edit")  # fmt: skip
    same = (receipt.operation, receipt.probes.get("digest")) == (plan.operation, str(plan.probes))
    yield _finding("receipt", same, "the receipt names the plan's operation and probes",
                   "the receipt names another operation or probes")  # fmt: skip
    yield _finding("weights", child.digest == receipt.child, "the weights match the receipt",
                   "the weights differ from those of the receipt")  # fmt: skip


def _of_program(program: Model, child: Model, probes: Probes | None) -> Finding:
    """Whether the program beside the weights holds the same weights and, with probes, has the same outputs."""
    if not set(program.tensor_digests.values()) >= set(child.tensor_digests.values()):
        return Finding("program", False, f"{PROGRAM} holds other weights")
    if probes is None:
        return Finding(
            "program", None, f"{PROGRAM} holds the same weights; it was not run, because no probes were given"
        )
    inputs = probes.inputs[:64]
    a, b = (_outputs(m, inputs) for m in (child, program))
    same = a.shape == b.shape and _relative_difference(a, b) <= OUTPUT_TOLERANCE
    return _finding("program", same, f"{PROGRAM} has the same outputs", f"{PROGRAM} has other outputs")


def _outputs(model: Model, inputs: np.ndarray) -> np.ndarray:
    from stemma.edits.editable_network import editable_copy

    return editable_copy(model).outputs(inputs).double().numpy()


def _relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-30))


def _choice(plan: Plan, replayed: "Edited", parent: Model, probes: Probes) -> Finding:
    """Whether the method that the plan names makes the same choice."""
    from stemma.edits.pruning.pruning import Pruning

    if plan.operation != "prune":
        same = replayed.plan.entries == plan.entries and replayed.plan.expected == plan.expected
        return _finding("choice", same, "the recorded method makes the same changes",
                        "the recorded method makes other changes")  # fmt: skip
    method = _method(plan)
    assert isinstance(method, Pruning)
    recorded = Spec(plan.spec.name, plan.spec.version, _params(plan, Pruning))
    if recorded not in [replace(method.spec, version=v) for v in (method.version, *method.equivalent_versions)]:
        return Finding("choice", False, f"the recorded method is not {method.name} {method.version} of this Stemma")
    replanned = method.plan(parent, probes)
    expected, found = plan.expected, jsonable(replanned.expected)
    wrong = [k for k in ("macs", "parameters") if not _near(expected.get(k), [found[k][0], _left(plan, replayed)[k]])]
    units, new = (Counter((g, i) for g, kept in p.kept.items() for i in kept) for p in (plan, replanned))
    share = (units & new).total() / max(1, (units | new).total())
    if share == 1:
        wrong += [k for k in found if k not in wrong and not _near(expected.get(k), found[k])]
    if wrong:
        return Finding("choice", False, f"the plan's expected figures are not reproduced: {', '.join(wrong)}")
    said = "all" if share == 1 else f"{share:.1%}"
    if method.budget == "latency" and share < MIN_SAME_UNITS:
        return Finding("choice", None, f"a latency budget depends on the machine: {said} of the units are chosen again")
    again = f"the recorded method chooses {said} of the units again (required {MIN_SAME_UNITS:.0%})"
    return Finding("choice", share >= MIN_SAME_UNITS, again)


def _left(plan: Plan, replayed: "Edited") -> dict[str, float]:
    """MACs and parameters of the network that the plan leaves."""
    return {k: replayed.receipt.measured[k][1] for k in ("macs", "parameters")}


def _measured(receipt: Receipt, replayed: "Edited", child: Model, probes: Probes, off: float) -> Finding:
    """Whether the receipt's figures and the outputs of the folder's model are reproduced."""
    expected = {k: v for k, v in receipt.measured.items() if k != "seconds"}
    found = {k: v for k, v in jsonable(replayed.receipt.measured).items() if k != "seconds"}
    close = 1e-6 if replayed.model.digest == receipt.child else 0.02
    wrong = sorted(k for k in expected.keys() | found.keys() if not _near(expected.get(k), found.get(k), close))
    wrong += ["number of inputs"] if receipt.probes.get("count") != str(len(probes)) else []
    if wrong:
        return Finding("measured", False, f"not reproduced: {', '.join(wrong)}")
    inputs = probes.inputs[:64]
    if _relative_difference(replayed.editable.outputs(inputs).double().numpy(), _outputs(child, inputs)) > off:
        return Finding("measured", False, "the model in the folder has other outputs than the replayed edit")
    return Finding("measured", True, "the figures are reproduced; seconds and versions were not checked")


def _near(a: Any, b: Any, close: float = 0.01) -> bool:
    """Whether values are equal; numbers within a fraction of the larger one, at least of 0.1."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_near(v, b[k], close) for k, v in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_near(x, y, close) for x, y in zip(a, b, strict=True))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= close * max(0.1, abs(a), abs(b))
    return a == b


def _arrays(model: Model) -> Arrays:
    """Weights under the names of the network's own module, which plans use."""
    from stemma.edits.editable_network import editable_copy

    try:
        return _state(editable_copy(model).module)
    except StemmaError:
        return {n: t.array() for n, t in model.tensors.items()}


def _state(module: Any) -> Arrays:
    state = {n: t.detach().cpu() for n, t in module.state_dict().items() if hasattr(t, "detach")}
    prefix = "inner." if all(n.startswith("inner.") for n in state) else ""  # what a program is wrapped in
    return {n.removeprefix(prefix): (t.float() if t.is_floating_point() else t).numpy() for n, t in state.items()}


def _kept_rows(plan: Plan, parent: Arrays, child: Arrays) -> Finding:
    """Whether every tensor has the planned shape, and those that may not change equal the parent's rows."""
    wrong, equal, refitted = [], 0, 0
    for name, array in child.items():
        if name not in parent:
            wrong.append(name)
            continue
        called = _planned_name(plan, parent, name)
        rows = plan.slices.get(called, {})
        shape = tuple(len(rows[str(a)]) if str(a) in rows else n for a, n in enumerate(parent[name].shape))
        if shape != array.shape:
            wrong.append(name)
            continue
        expected = parent[name]
        for axis, keep in rows.items():
            expected = np.take(expected, keep, int(axis))
        if np.array_equal(expected, array):
            equal += 1
        elif _may_change(plan, called, expected, array):
            refitted += 1
        else:
            wrong.append(name)
    if wrong:
        return Finding("slices", False, f"{len(wrong)} tensors are not what the plan leaves, the first is {wrong[0]}")
    return Finding("slices", True, f"{equal} tensors are rows of the parent's, {refitted} were refitted")


def _planned_name(plan: Plan, parent: Arrays, name: str) -> str:
    """The name under which the plan lists a tensor that has several names in the parent."""
    spoken_of = {*plan.slices, *plan.entries, *plan.expected.get("refitted", ())}
    spoken_of |= {f"{n}.weight" for n in plan.expected.get("layers", ())}
    if name in spoken_of:
        return name
    own, tail = parent[name], name.rpartition(".")[2]
    twins = (n for n in sorted(spoken_of) if n in parent and n.rpartition(".")[2] == tail)
    return next((n for n in twins if np.array_equal(parent[n], own)), name)


def _undo_file(folder: Path) -> Iterator[Finding]:
    """Whether the original weights lie in the folder, where earlier versions wrote them."""
    if (folder / UNDO).exists():
        why = f"{UNDO} holds the original weights, and so what was to be forgotten: move it out of the folder"
        yield Finding("undo", False, why)


def _may_change(plan: Plan, name: str, before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the plan allows a tensor to change: layers that lost inputs, their biases, statistics of norms."""
    if plan.entries:
        changed = np.argwhere((before != after).reshape(*before.shape[:2], -1).any(-1))
        return name in plan.entries and {tuple(map(int, c)) for c in changed} <= set(plan.entries[name])
    if plan.operation == "unlearn":
        return name.rpartition(".")[0] in plan.expected.get("layers", ())
    statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    return statistic or name in plan.expected.get("refitted", ())


def _method(plan: Plan) -> "Pruning | Unlearning | Erasure":
    """The method that a plan names; fields that were renamed since are read under their old names too."""
    from stemma.edits.pruning.pruning import Pruning
    from stemma.edits.unlearning.erasure import Erasure
    from stemma.edits.unlearning.unlearning import Unlearning

    kind = Pruning if plan.operation == "prune" else Erasure if plan.spec.name == Erasure.name else Unlearning
    return kind(**_params(plan, kind))


def _params(plan: Plan, kind: type) -> dict[str, Any]:
    params = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in plan.spec.params.items()}
    return current_names(kind, params)


def _replayed_edit(plan: Plan, parent: Model, probes: Probes, retain: Probes | None, progress: Any) -> "Edited":
    from stemma.edits.pruning.pruning import Pruning

    method = _method(plan)
    if isinstance(method, Pruning):
        return method.apply(parent, plan, probes, progress=progress)
    return method(parent, probes, retain, progress)


def _largest_difference(a: Arrays, b: Arrays) -> float:
    """Largest relative difference of any tensor; infinite where names or shapes differ."""
    if {n: x.shape for n, x in a.items()} != {n: x.shape for n, x in b.items()}:
        return float("inf")
    return max((_relative_difference(x.astype(np.float64), b[n].astype(np.float64)) for n, x in a.items()), default=0.0)
