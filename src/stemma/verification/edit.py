"""Was an edit done as its receipt says? The plan is laid on the parent again, and the result compared."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.networks.load import load
from stemma.probes import Probes
from stemma.types import Digest, Plan, Receipt, Spec
from stemma.types.edits import PLAN, PROGRAM, RECEIPT, UNDO
from stemma.types.nouns import jsonable

if TYPE_CHECKING:
    from stemma.edits.result import Edited

Arrays = Mapping[str, np.ndarray]

CLOSE = 1e-4
"""Largest relative difference of a tensor between the edit as recorded and as replayed: what other hardware leaves."""

ALIKE = 0.95
"""Share of units that are chosen again: rounding on other hardware moves a few that are worth the same."""

ANSWERS, HALF = 1e-3, 0.05
"""Largest relative difference of answers that passes, and the same where weights are stored in half precision."""


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
        both = (folder / "config.json").is_file() and program.is_file()
        child = load(program if program.is_file() and not both else folder)
        found = list(_of_folder(plan, receipt, child))
        if both:
            found.append(_of_program(load(program), child, probes))
        if parent is None:
            return [*found, Finding("parent", None, f"the model before ({receipt.parent_source}) is not there")]
        good = parent.digest == receipt.parent == plan.parent
        why = "the model before is the one of the receipt" if good else f"the model before is {parent.digest}"
        found.append(Finding("parent", good, why))
        if good:
            try:
                before, after = _arrays(parent), _arrays(child)
                found.append(_untouched(plan, before, after))
                if plan.operation == "unlearn":
                    found.append(_way_back(folder, before, plan))
                found += self._replayed(plan, receipt, parent, child, (probes, others), progress)
            except (IndexError, KeyError, TypeError, ValueError, RuntimeError, StemmaError) as error:
                why = " ".join(str(error).split())[:200]
                found.append(Finding("replay", False, f"the plan cannot be carried out on the parent: {why}"))
        return found

    def _replayed(
        self, plan: Plan, receipt: Receipt, parent: Model, child: Model,
        given: tuple[Probes | None, Probes | None], progress: Any,
    ) -> Iterator[Finding]:  # fmt: skip
        probes, others = given
        if probes is None:
            unseen = f"the inputs ({receipt.probes.get('source')}) are not there"
            yield Finding("choice", None, f"{unseen}: what goes was not chosen again")
            yield Finding("replay", None, f"{unseen}: refitted weights were not worked out again")
            yield Finding("measured", None, f"{unseen}: nothing was measured again")
            return
        if probes.digest != plan.probes:
            why = f"these are other inputs ({probes.digest}) than the edit rests on ({plan.probes}), or other labels"
            yield from (Finding(check, None, why) for check in ("choice", "replay", "measured"))
            return
        known = str(plan.expected.get("others") or "")
        if known and others is None:
            yield Finding("replay", None, f"other inputs ({known}) were given too and are not there: say --retain")
            return
        if others is not None and known != str(others.digest):
            yield Finding(
                "replay", False, f"the other inputs are {others.digest}, but the edit rests on {known or 'none'}"
            )
            return
        made = _made_again(plan, parent, probes, others, progress)
        yield _chosen_again(plan, made, parent, probes)
        half = any(t.dtype in ("F16", "BF16") for t in child.tensors.values())
        yield self._same_weights(made, child, self.half if half else self.close)
        yield _measured_again(receipt, made, child, probes, HALF if half else ANSWERS)

    def _same_weights(self, made: "Edited", child: Model, close: float) -> Finding:
        apart = 0.0 if made.model.digest == child.digest else _largest(_state(made.asked.module), _arrays(child))
        if not apart:
            return Finding("replay", True, "the edit done again gives the same weights, bit by bit")
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
        second = Receipt(**{f.name: receipt[f.name] for f in fields(Receipt)})
        _expect(Mapping, spec.params, first.expected, second.probes, second.versions, second.measured)
        _expect(str, second.operation, second.parent, second.child, second.plan, second.parent_source)
        _ = first.digest, json.dumps(second.to_dict())
        return first, second
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StemmaError(
            f"{folder} holds no {PLAN} and {RECEIPT} that can be read ({type(error).__name__}): give a folder that "
            "stemma prune or stemma unlearn wrote"
        ) from error


def _expect(kind: type, *values: object) -> None:
    if not all(isinstance(v, kind) for v in values):
        raise TypeError(f"a {kind.__name__} was expected")


def _of_folder(plan: Plan, receipt: Receipt, child: Model) -> Iterator[Finding]:
    same = plan.digest == receipt.plan
    yield Finding("plan", same, "the plan is the one of the receipt" if same else "the plan was changed after the edit")
    same = (receipt.operation, receipt.probes.get("digest")) == (plan.operation, str(plan.probes))
    why = (
        "the receipt names the plan's operation and inputs" if same else "the receipt names another operation or inputs"
    )
    yield Finding("receipt", same, why)
    same = child.digest == receipt.child
    yield Finding("weights", same, "the weights are those of the receipt" if same else "the weights are other ones")


def _of_program(program: Model, child: Model, probes: Probes | None) -> Finding:
    """Whether the program beside the weights holds the same ones and, where inputs are there, answers alike."""
    if not set(program.tensor_digests.values()) >= set(child.tensor_digests.values()):
        return Finding("program", False, f"{PROGRAM} holds other weights")
    if probes is None:
        return Finding("program", None, f"{PROGRAM} holds the same weights; it was not run, for there are no inputs")
    inputs = probes.inputs[:64]
    a, b = (_answers(m, inputs) for m in (child, program))
    same = a.shape == b.shape and _apart(a, b) <= ANSWERS
    return Finding("program", same, f"{PROGRAM} answers {'as the weights do' if same else 'otherwise'}")


def _answers(model: Model, inputs: np.ndarray) -> np.ndarray:
    from stemma.edits.editable_network import own_network

    return own_network(model).answers(inputs).double().numpy()


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-30))


def _chosen_again(plan: Plan, made: "Edited", parent: Model, probes: Probes) -> Finding:
    """Whether the method that the plan names chooses what the plan says."""
    from stemma.edits.pruning.pruning import Pruning

    if plan.operation != "prune":
        same = made.plan.entries == plan.entries and made.plan.expected == plan.expected
        return Finding("choice", same, f"the method named chooses {'the same' if same else 'other'} changes")
    method = Pruning(**_params(plan))
    if method.spec != Spec(plan.spec.name, plan.spec.version, _params(plan)):
        return Finding("choice", False, f"the method named is not that of this Stemma ({method.name} {method.version})")
    again = method.plan(parent, probes)
    told, found = plan.expected, jsonable(again.expected)
    wrong = [k for k in ("macs", "parameters") if not _near(told.get(k), [found[k][0], _left(plan, made)[k]])]
    units, new = (Counter((g, i) for g, kept in p.kept.items() for i in kept) for p in (plan, again))
    share = (units & new).total() / max(1, (units | new).total())
    if share == 1:
        wrong += [k for k in found if k not in wrong and not _near(told.get(k), found[k])]
    if wrong:
        return Finding("choice", False, f"the plan expects other figures than it leads to: {', '.join(wrong)}")
    said = "all" if share == 1 else f"{share:.1%}"
    if method.budget == "latency" and share < ALIKE:
        return Finding("choice", None, f"a budget in latency depends on the machine: {said} of the units chosen again")
    return Finding("choice", share >= ALIKE, f"the method named chooses {said} of the units again ({ALIKE:.0%} pass)")


def _left(plan: Plan, made: "Edited") -> dict[str, float]:
    """Operations and parameters of the network that the plan leaves."""
    return {k: made.receipt.measured[k][1] for k in ("macs", "parameters")}


def _measured_again(receipt: Receipt, made: "Edited", child: Model, probes: Probes, off: float) -> Finding:
    """Whether the receipt's figures are found again, and whether what lies in the folder answers like the edit."""
    told = {k: v for k, v in receipt.measured.items() if k != "seconds"}
    found = {k: v for k, v in jsonable(made.receipt.measured).items() if k != "seconds"}
    close = 1e-6 if made.model.digest == receipt.child else 0.02
    wrong = sorted(k for k in told.keys() | found.keys() if not _near(told.get(k), found.get(k), close))
    wrong += ["number of inputs"] if receipt.probes.get("count") != str(len(probes)) else []
    if wrong:
        return Finding("measured", False, f"not found again: {', '.join(wrong)}")
    inputs = probes.inputs[:64]
    if _apart(made.asked.answers(inputs).double().numpy(), _answers(child, inputs)) > off:
        return Finding("measured", False, "the model in the folder answers otherwise than the edit done again")
    return Finding("measured", True, "the figures are found again; seconds and versions were not checked")


def _near(a: Any, b: Any, close: float = 0.01) -> bool:
    """Equal, numbers to a share of the larger one, and of a tenth for small ones."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_near(v, b[k], close) for k, v in a.items())
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_near(x, y, close) for x, y in zip(a, b, strict=True))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) <= close * max(0.1, abs(a), abs(b))
    return a == b


def _arrays(model: Model) -> Arrays:
    """Weights under the names that the network's own module gives them, which is what plans speak of."""
    from stemma.edits.editable_network import own_network

    try:
        return _state(own_network(model).module)
    except StemmaError:
        return {n: t.array() for n, t in model.tensors.items()}


def _state(module: Any) -> Arrays:
    state = {n: t.detach().cpu() for n, t in module.state_dict().items() if hasattr(t, "detach")}
    prefix = "inner." if all(n.startswith("inner.") for n in state) else ""  # what a program is wrapped in
    return {n.removeprefix(prefix): (t.float() if t.is_floating_point() else t).numpy() for n, t in state.items()}


def _untouched(plan: Plan, parent: Arrays, child: Arrays) -> Finding:
    """Every tensor of the child as large as the plan says; those that nothing reads anew equal the parent's rows."""
    wrong, equal, refitted = [], 0, 0
    for name, array in child.items():
        if name not in parent:
            wrong.append(name)
            continue
        called = _known_as(plan, parent, name)
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
        return Finding("slices", False, f"{len(wrong)} tensors are not what the plan leaves, first {wrong[0]}")
    return Finding("slices", True, f"{equal} tensors are rows of the parent's, {refitted} were refitted")


def _known_as(plan: Plan, parent: Arrays, name: str) -> str:
    """Under which name the plan speaks of a tensor that stands under several in the parent."""
    spoken_of = {*plan.slices, *plan.entries, *plan.expected.get("refitted", ())}
    spoken_of |= {f"{n}.weight" for n in plan.expected.get("layers", ())}
    if name in spoken_of:
        return name
    own, tail = parent[name], name.rpartition(".")[2]
    twins = (n for n in sorted(spoken_of) if n in parent and n.rpartition(".")[2] == tail)
    return next((n for n in twins if np.array_equal(parent[n], own)), name)


def _way_back(folder: Path, parent: Arrays, plan: Plan) -> Finding:
    """Whether the file that undoes a change holds the parent's weights."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        kept = {n: t.float().numpy() for n, t in load_file(folder / UNDO).items()}
    except (OSError, SafetensorError, ValueError):
        return Finding("undo", False, f"{UNDO} is not there or cannot be read")
    wanted = [parent.get(f"{n}.weight") for n in plan.expected.get("layers", ())]
    good = len(kept) == len(wanted) and all(
        w is not None and any(np.array_equal(w, k) for k in kept.values()) for w in wanted
    )
    return Finding("undo", good, f"{UNDO} holds {'the' if good else 'other'} weights as they were")


def _may_change(plan: Plan, name: str, before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the plan lets a tensor's numbers change: layers that lost inputs, their biases, statistics of norms."""
    if plan.entries:
        changed = np.argwhere((before != after).reshape(*before.shape[:2], -1).any(-1))
        return name in plan.entries and {tuple(map(int, c)) for c in changed} <= set(plan.entries[name])
    if plan.operation == "unlearn":
        return name.rpartition(".")[0] in plan.expected.get("layers", ())
    statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    return statistic or name in plan.expected.get("refitted", ())


def _params(plan: Plan) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in plan.spec.params.items()}


def _made_again(plan: Plan, parent: Model, probes: Probes, others: Probes | None, progress: Any) -> "Edited":
    from stemma.edits.pruning.pruning import Pruning
    from stemma.edits.unlearning.unlearning import Unlearning

    if plan.operation == "prune":
        return Pruning(**_params(plan)).apply(parent, plan, probes, progress=progress)
    return Unlearning(**_params(plan))(parent, probes, others, progress)


def _largest(a: Arrays, b: Arrays) -> float:
    """Largest relative difference of any tensor; infinite where names or shapes differ."""
    if {n: x.shape for n, x in a.items()} != {n: x.shape for n, x in b.items()}:
        return float("inf")
    return max((_apart(x.astype(np.float64), b[n].astype(np.float64)) for n, x in a.items()), default=0.0)
