"""What is new in the model stores of this machine? Request, answer and JSON document of `stemma scan`."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stemma.application.document import Document, Progress, Schema
from stemma.application.parts import NotTestedPart, PolicyPart
from stemma.application.scan_parts import LeftOutPart, ScannedPart, StorePart, finding_parts, scanned_part
from stemma.errors import MisuseError, NotAModelError, StemmaError, UnusableRegistryError

if TYPE_CHECKING:
    from stemma.application.policies import Policy, Ruling
    from stemma.checkpoints.model import Model
    from stemma.checkpoints.stores.store import Store
    from stemma.checkpoints.stores.stored_model import Omitted
    from stemma.registry.records import ScannedCheckpoint
    from stemma.workspace.scan import Found
    from stemma.workspace.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class ScanRequest:
    """What `stemma scan` is asked.

    Attributes:
        paths: Folders of models or of stores; the usual stores of this machine if null.
        hf: Whether the usual cache of the Hugging Face hub is scanned.
        ollama: Whether the usual store of Ollama is scanned.
        registry: Registry that is searched and remembers the scan; the default one if null.
        add: Whether new models are enrolled.
        again: Whether everything is read, whatever was recorded.
        alpha: Significance level over all models searched; the default if null.
        fail_on_new: Whether new and changed models are refused.
        fail_on: Relations and verdicts that are refused.
        deny_license: Licences that are refused.
        fail_on_descendant_of: Models from which none may descend.
        allow_untested: Whether a policy lets pass what could not be tested.
        jobs: Models that are compared at once.
    """

    paths: tuple[str, ...] | None = None
    hf: bool = False
    ollama: bool = False
    registry: str | None = None
    add: bool = False
    again: bool = False
    alpha: float | None = None
    fail_on_new: bool = False
    fail_on: tuple[str, ...] | None = None
    deny_license: tuple[str, ...] | None = None
    fail_on_descendant_of: tuple[str, ...] | None = None
    allow_untested: bool = False
    jobs: int = 1


@dataclass(frozen=True, kw_only=True)
class ScanDocument(Document):
    """What the model stores of a machine hold, and what changed since the last scan.

    Attributes:
        stores: The stores.
        n_models: Number of models in them.
        n_new: Number of models that the last scan did not find.
        n_changed: Number of models that have other weights under the same name.
        n_gone: Number of models that the last scan found and that are not there any more.
        models: Every model, those that are gone included.
        left_out: What is no model, or no complete one yet.
        not_tested: Models that could not be read or compared.
        cannot_see: What the answer does not cover.
        policy: What the policy says; only where there is one.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = ("policy",)
    SCHEMA: ClassVar[Schema] = Schema("stemma.scan", 1)

    asked: ScanRequest
    stores: tuple[StorePart, ...]
    n_models: int
    n_new: int
    n_changed: int
    n_gone: int
    models: tuple[ScannedPart, ...]
    left_out: tuple[LeftOutPart, ...]
    not_tested: tuple[NotTestedPart, ...]
    cannot_see: tuple[str, ...]
    policy: PolicyPart | None = None


@dataclass(frozen=True, kw_only=True)
class ScanAnswer:
    """What model stores hold.

    Attributes:
        request: What was asked.
        stores: The stores that were scanned.
        models: Every model, those that are gone included.
        left_out: What is no model, or no complete one yet.
        not_tested: Models that could not be read or compared.
        ruling: What the policy says; an empty ruling where there is none.
    """

    request: ScanRequest
    stores: "tuple[Store, ...]"
    models: tuple[ScannedPart, ...]
    left_out: tuple[LeftOutPart, ...]
    not_tested: tuple[NotTestedPart, ...]
    ruling: "Ruling"

    def count(self, *status: str) -> int:
        """Number of models with one of these statuses."""
        return sum(m.status in status for m in self.models)

    @property
    def present(self) -> int:
        """Number of models that are there."""
        return len(self.models) - self.count("gone")

    @property
    def cannot_see(self) -> tuple[str, ...]:
        """What the answer does not cover."""
        apart = () if self.request.add else ("relations among new models: they are compared once they are enrolled",)
        return ("models that are in no store that was scanned", "what unchanged models are to new ones", *apart)

    def document(self) -> dict[str, Any]:
        """The document that `stemma scan --json` prints."""
        held = [(s, [m for m in self.models if m.store == s.kind and m.status != "gone"]) for s in self.stores]
        return ScanDocument.of(
            self.request,
            stores=tuple(
                StorePart(s.kind, str(s.path), sum(Path(m.path).is_relative_to(s.path) for m in inside))
                for s, inside in held
            ),
            n_models=self.present,
            n_new=self.count("new"),
            n_changed=self.count("changed"),
            n_gone=self.count("gone"),
            models=self.models,
            left_out=self.left_out,
            not_tested=self.not_tested,
            cannot_see=self.cannot_see,
            policy=self.ruling.part if _has_policy(self.request) else None,
        ).to_dict()


def scan(request: ScanRequest, progress: Progress | None = None) -> ScanAnswer:
    """Tell what is new, changed and gone in model stores, and trace what is new.

    What a policy refuses, and what cannot be read, is not remembered: the next scan reports it again.

    Args:
        request: The stores, and what is refused.
        progress: Told what is being done.

    Returns:
        Every model, and what the policy says.

    Raises:
        MisuseError: If new models are both refused and to be enrolled.
        NotAModelError: If there is nothing to scan.
    """
    from stemma.application.opening import open_workspace
    from stemma.application.policies import Policy, Ruling

    if request.add and request.fail_on_new:
        raise MisuseError("--add enrols new models and --fail-on-new refuses them: give one of the two")
    refused = (request.fail_on, request.deny_license, request.fail_on_descendant_of)
    policy = Policy.of(*refused, allow_untested=request.allow_untested)
    stores = _stores(request)
    workspace = open_workspace(request.registry, request.jobs, progress)
    workspace.registry.make_writable()
    for name in policy.ancestors:
        if not Path(name).exists():
            workspace.show(name)  # a mistyped name is told before the scan
    state = _Scan(request, policy, workspace, progress)
    for store in stores:
        state.of_store(store)
    if not state.models and not state.not_tested:
        where = " nor ".join(str(s.path) for s in stores)
        raise NotAModelError(f"nothing was scanned: {'neither ' if len(stores) > 1 else ''}{where} holds "
                             f"{'a' if len(stores) > 1 else 'no'} model that can be read")  # fmt: skip
    untested = [f"{t.model}: {t.why}" for t in state.not_tested] if _has_policy(request) else []
    ruling = Ruling(
        tuple(state.violations), tuple(dict.fromkeys((*untested, *state.untested))), tuple(dict.fromkeys(state.notes)),
        request.allow_untested,
    )  # fmt: skip
    return ScanAnswer(
        request=request, stores=tuple(stores), models=tuple(state.models), left_out=tuple(state.left_out),
        not_tested=tuple(state.not_tested), ruling=ruling,
    )  # fmt: skip


def _has_policy(request: ScanRequest) -> bool:
    options = (request.fail_on, request.deny_license, request.fail_on_descendant_of)
    return request.fail_on_new or any(x is not None for x in options)


def _stores(request: ScanRequest) -> "list[Store]":
    from stemma.checkpoints.stores.store import Store, StoreKind, store_at, usual_stores

    given = [store_at(Path(path)) for path in dict.fromkeys(request.paths or ())]
    usual = usual_stores()
    asked: list[StoreKind] = [kind for kind in usual if (request.hf if kind == "hf" else request.ollama)]
    for kind in asked:
        if not usual[kind].is_dir():
            raise NotAModelError(f"there is no {TITLES[kind]} at {usual[kind]}. {MOVED[kind]}")
    if not given and not asked:
        asked = [kind for kind in usual if usual[kind].is_dir()]
        if not asked:
            places = " nor ".join(f"{TITLES[kind]} at {path}" for kind, path in usual.items())
            raise NotAModelError(f"nothing was scanned: there is neither {places}. Give a folder: stemma scan PATH")
    return [*given, *(Store(kind, usual[kind]) for kind in asked)]


TITLES = {"hf": "cache of the Hugging Face hub", "ollama": "store of Ollama"}
MOVED = {"hf": "Set HF_HUB_CACHE to its place", "ollama": "Set OLLAMA_MODELS to its place"}


@dataclass
class _Scan:
    """What was found so far."""

    request: ScanRequest
    policy: "Policy"
    workspace: "Workspace"
    progress: Progress | None
    models: list[ScannedPart] = field(default_factory=list)
    left_out: list[LeftOutPart] = field(default_factory=list)
    not_tested: list[NotTestedPart] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of_store(self, store: "Store") -> None:
        """Look at every checkpoint of a store; what is done is remembered even if the scan is interrupted."""
        from stemma.checkpoints.stores.stored_model import Omitted
        from stemma.workspace.scan import look_at, remember

        last = self.workspace.registry.last_scan(store.place)
        before = last.checkpoints if last else ()
        pending = {id(c): c for c in before}
        done: list[ScannedCheckpoint] = []
        seen: dict[tuple[str, ...], tuple[list[int], ScannedCheckpoint | None]] = {}
        try:
            for item in look_at(store, before, again=self.request.again, progress=self.progress):
                if isinstance(item, Omitted):
                    self.omit(item)
                    continue
                if item.status == "gone":
                    pending.pop(id(item.before), None)
                    self.models += [scanned_part(item, m) for m in item.digests]
                    continue
                if item.contents in seen and item.status != "changed":
                    rows, record = seen[item.contents]
                    self.add_names(rows, item.names)
                else:
                    first = len(self.models)
                    record = self.judge(item)
                    seen[item.contents] = list(range(first, len(self.models))), record
                if record is not None:  # what is refused stays as it was recorded before
                    pending.pop(id(item.before), None)
                    done.append(item.record(record.passed))
        finally:
            remember(store, [*done, *pending.values()], self.workspace.registry)

    def omit(self, item: "Omitted") -> None:
        """Note what is not read."""
        if item.is_model:
            self.not_tested.append(NotTestedPart(item.what, item.name, item.why))
        else:
            self.left_out.append(LeftOutPart(item.what, item.name, item.why))

    def add_names(self, rows: Sequence[int], names: Sequence[str]) -> None:
        """Further names of models that were met under another one."""
        for k in rows:
            row = self.models[k]
            self.models[k] = replace(row, names=tuple(dict.fromkeys((*row.names, *names))))

    def judge(self, item: "Found") -> "ScannedCheckpoint | None":
        """Trace what is new; returns what is to be remembered, None for nothing."""
        passed = item.before.passed if item.before is not None and item.status == "unchanged" else ()
        key = _key(self.policy)
        fresh = item.status != "unchanged"
        if not fresh and not self.request.again and (not self.policy.refuses_anything or key in passed):
            self.models += [scanned_part(item, m) for m in item.digests]
            return item.record(passed)
        closed = False
        try:
            opened = item.opened()
        except (StemmaError, OSError) as e:
            self.not_tested.append(NotTestedPart("unreadable-file", item.names[0], str(e)))
            return None
        for model in opened:
            part, refused = self.trace(item, model)
            self.models.append(part)
            closed = closed or refused
        return None if closed else item.record((*passed, key))

    def trace(self, item: "Found", model: "Model") -> tuple[ScannedPart, bool]:
        """Trace one model, and enrol it where that is asked for and the policy has nothing against it."""
        from stemma.application.policies import judge_trace
        from stemma.workspace.scan import enrol_model

        part, options = scanned_part(item, (model.name, model.digest)), {}
        if self.request.alpha is not None:
            options["alpha"] = self.request.alpha
        if self.progress:
            self.progress(f"tracing {model.name}", 0, None)
        before = len(self.violations), len(self.untested)
        if self.request.fail_on_new and item.status != "unchanged":
            self.violations.append(f"{model.name} is {item.status}")
        try:
            result = self.workspace.trace(model, **options)
            ruling = judge_trace(self.policy, result, model, self.workspace)
        except UnusableRegistryError:
            raise
        except (StemmaError, OSError) as e:
            self.not_tested.append(NotTestedPart("comparison-failed", model.name, str(e)))
            return replace(part, refused=True), True
        self.violations += [f"{model.name}: {text}" for text in ruling.violations]
        self.untested += [f"{model.name}: {text}" for text in ruling.untested]
        self.notes += [f"{model.name}: {text}" for text in ruling.notes]
        refused = ruling.closed or len(self.violations) > before[0]
        values: dict[str, Any] = {"verdict": result.verdict, "findings": finding_parts(result)}
        if self.request.add and not refused:
            values["enrolled_as"], values["enrolled"] = enrol_model(model, item.store, self.workspace.registry)
        return replace(part, **values, claims=_shown(model.claims), refused=refused), refused


def _shown(claims: Mapping[str, str]) -> dict[str, str]:
    """The claims on licence and base."""
    from stemma.checkpoints import cards

    return cards.provenance_claims(claims)


def _key(policy: "Policy") -> str:
    """What tells one policy from another: a model that one let pass is judged anew by another."""
    text = repr((sorted(policy.relations), policy.licences, sorted(policy.ancestors), policy.allow_untested))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
