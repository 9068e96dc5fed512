"""Documents of every kind for the tests of pages: every verdict, every relation, hostile names."""

from collections.abc import Iterator
from typing import Any

from stemma.types import RelationKind

HOSTILE = "<script>alert(1)</script>\u202e&\x1b[2J\n\"'" + "long" * 2_500
"""A name that would run, turn, clear a terminal, break a line, and fill ten thousand characters."""

NETWORKS = {"network": None, "allow_code": False, "device": None, "data": None}


def ref(name: str) -> dict[str, str]:
    return {"name": name, "digest": "sha256:" + f"{sum(map(ord, name[:40])):x}".ljust(64, "0")}


def header(schema: str, **asked: Any) -> dict[str, Any]:
    given = {"registry": None, **asked}
    return {"schema": {"name": f"stemma.{schema}", "version": 1}, "stemma_version": "0", "created": "", "asked": given}


def finding(name: str, role: str = "parent", relation: str | None = "finetuned", **more: Any) -> dict[str, Any]:
    direction = "parent" if role == "parent" else "unknown"
    return {**ref(name), "relation": relation, "steps": [relation or "changed", "pruned"], "p_value": 1e-30,
            "log10_p": -30.0, "confidence": 0.9, "direction": direction, "role": role, "share": 0.4,
            "reason": f"why {name}", "licence": name, "licence_source": "card", **more}  # fmt: skip


def axis(verdict: str = "related", p: float | None = 1e-30, reason: str = "units in place") -> dict[str, Any]:
    exponent = None if p is None else -30.0
    return {"verdict": verdict, "p_value": p, "log10_p": exponent, "effect": 0.5, "reason": reason,
            "statistic": "units-alike", "details": {}}  # fmt: skip


def function(verdict: str = "related") -> dict[str, Any]:
    return {**axis(verdict, 0.01, "closer than independent models"), "distance": 0.3,
            "null": {"source": "99 models", "n": 99, "floor": 0.01}, "details": {"agreement": 0.9}}  # fmt: skip


def candidate(name: str, relation: str | None = "finetuned", *, asked: bool = True) -> dict[str, Any]:
    return {**ref(name), "verdict": "related", "relation": relation, "steps": [], "parameters": {},
            "relation_reason": "", "effect": 0.5, "weights": axis(), "function": function() if asked else None,
            "licence": None, "licence_source": None, "claims": {}}  # fmt: skip


def trace_document(name: str, verdict: str, other: str = "base", **more: Any) -> dict[str, Any]:
    asked = {"model": name, "against": [other], "probes": None, "networks": NETWORKS}
    return {**header("trace", **asked), "model": ref(name), "verdict": verdict, "copies": [], "parents": [],
            "relatives": [], "candidates": [], "alpha": 0.01, "n_searched": 3, "cannot_see": ["training data", name],
            "not_tested": [{"what": "x", "model": name, "why": f"cannot read {name}"}], "parent_set": [],
            "coverage": None, "notes": [{"model": name, "note": "a note"}], **more}  # fmt: skip


def policy(name: str, *, closed: bool = True) -> dict[str, Any]:
    return {"closed": closed, "violations": [f"the relation to {name} is copy"] if closed else [],
            "not_tested": [name], "allow_untested": not closed, "notes": [name]}  # fmt: skip


def traces(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    copies = [{**ref(f"{name}{i}"), "relation": "copy" if i else "reformatted", "reason": "the same digests",
               "licence": "mit", "licence_source": "stated", "claims": {}} for i in range(50)]  # fmt: skip
    yield "50 copies", trace_document(name, "copy", copies=copies, policy=policy(name))
    possible = [{"name": name, "digest": None, "probability": 0.7, "or": [name, "x", "y"]}] * 20
    for kind in RelationKind:
        parents = [finding(f"{name}p", relation=kind.value, licence=None)]
        yield f"descends {kind}", trace_document(name, "descends", parents=parents, parent_set=possible, coverage=0.95,
                                                 candidates=[candidate(f"{name}p", kind.value)])  # fmt: skip
    merged = [finding(f"{name}{i}", relation="merged", confidence=None) for i in range(9)]
    kin = [finding(name, role) for role in ("child", "same", "relative", "unknown") for _ in range(3)]
    yield "merge", trace_document(name, "descends", parents=merged, relatives=kin)
    for role in ("child", "same", "relative", "unknown"):
        yield f"related {role}", trace_document(name, "related", relatives=[finding(name, role)],
                                                policy=policy(name, closed=False))  # fmt: skip
    yield "possible parents", trace_document(name, "related", parents=[finding(name, "same")])
    by_function = candidate(name, "distilled") | {"weights": axis("independent", 0.5)}
    yield "by function", trace_document(name, "related", relatives=[finding(name, "unknown", "distilled")],
                                        candidates=[by_function, candidate(name, None, asked=False)])  # fmt: skip
    yield "no parent", trace_document(name, "no-known-parent", not_tested=[])
    yield "inconclusive", trace_document(name, "inconclusive")
    yield "nothing searched", trace_document(name, "inconclusive", n_searched=0)


def evidence_of(name: str, verdict: str = "supported") -> dict[str, Any]:
    return {"claim": f"claim {name}", "axis": "weights", "statistic": "s", "value": 1.0,
            "null": {"source": name, "size": 3, "floor": 0.0}, "p_value": 0.5, "log10_p": -0.3, "effect": 0.5,
            "verdict": verdict, "reason": name, "spec": {"name": "s", "version": 1, "params": {}}, "inputs": [],
            "details": {}}  # fmt: skip


def comparison(name: str, verdict: str, relation: str | None, **more: Any) -> dict[str, Any]:
    asked = {"a": name, "b": "b", "probes": None, "networks": NETWORKS}
    tests = [evidence_of(name, v) for v in ("supported", "refuted", "inconclusive")]
    return {**header("compare", **asked), "a": ref(name), "b": ref("b"), "verdict": verdict, "relation": relation,
            "steps": ["pruned", "finetuned"], "relation_parameters": {"bits": 8, "ratio": 0.5, "where": name},
            "relation_reason": name, "direction": "unknown", "direction_confidence": None, "function": None,
            "weights": axis(reason=name), "evidence": tests, "cannot_see": [name], "not_tested": [], "notes": [],
            **more}  # fmt: skip


def comparisons(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in RelationKind:
        yield f"related {kind}", comparison(name, "related", kind.value, direction="a->b", direction_confidence=0.8)
    words = ("related", "independent", "inconclusive")
    for first in words:
        for second in words:
            verdict = next((word for word in words if word in (first, second)), "")
            relation = {"related": "related", "independent": "unrelated"}.get(verdict)
            axes = {"weights": axis(first, None if first == "inconclusive" else 0.3), "function": function(second)}
            yield f"{first} {second}", comparison(name, verdict, relation, direction="b->a", **axes)
        alone = {"related": "related", "independent": "unrelated"}.get(first)
        yield first, comparison(name, first, alone, weights=axis(first, None), policy=policy(name))


STATUSES = ("inherited", "mapped", "rounded", "rescaled", "changed", "replaced", "gathered", "new", "removed",
            "not inherited", "not compared")  # fmt: skip


def layers(name: str, n: int, block: str = "blocks.{}.w{}.weight") -> list[dict[str, Any]]:
    return [{"name": name + block.format(i // 9, i % 9), "parent": name * (i % 2), "status": STATUSES[i % 11],
             "size": 10 + i, "relative": None if i % 5 == 0 else 1.5 * i / n, "marks": [name, "4 bits"]}
            for i in range(n)]  # fmt: skip


def explanation(name: str, kind: str | None, tensors: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    fitted = {"bits": 4, "grid": name, "ratio": 0.5, "parts": {"x": 1}}
    steps = [{"name": "quantized", "kind": "quantized", "sentence": name, "parameters": fitted, "bits": 3.0,
              "place": place} for place in (0.0, 1.0, 2.0, 1.5)]  # fmt: skip
    return {**header("explain", parent=name, child="b", alpha=0.05), "parent": ref(name), "child": ref("b"),
            "kind": kind, "steps": steps if kind not in (None, "unrelated") else [], "sentence": name, "relative": 0.5,
            "residual": 0.01, "floor": 1e-4, "fitted": 0.9, "bits": 3.0, "plain_bits": 9.0, "layers": tensors,
            "others": [{"steps": [name, "pruned"], "bits": 4.0}], "notes": [name], "cannot_see": [name],
            "not_tested": [], **more}  # fmt: skip


def explanations(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in RelationKind:
        yield f"{kind}", explanation(name, kind.value, layers(name, 12))
    yield "undetermined", explanation(name, None, layers(name, 3), relative=None)
    yield "1,000 tensors", explanation(name, "finetuned", layers(name, 1_000))
    yield "1,000 blocks", explanation(name, "finetuned", layers(name, 1_000, "{}{}"), fitted=0.0)
    yield "nothing", explanation(name, "copy", [])


def edge(parent: str, child: str, relation: str = "finetuned", **more: Any) -> dict[str, Any]:
    return {"parent": parent, "child": child, "relation": relation, "p_value": 1e-30, "log10_p": -30.0,
            "confidence": 0.9, "share": None, "length": 0.1, "reason": f"why {child}", **more}  # fmt: skip


def lineage_document(edges: list[dict[str, Any]], families: list[list[str]], **more: Any) -> dict[str, Any]:
    names = [name for family in families for name in family]
    children = {e["child"] for e in edges}
    return {**header("lineage", paths=["models"], alpha=0.01), "models": [ref(n) for n in names], "edges": edges,
            "roots": [n for n in names if n not in children], "families": families, "missing_ancestors": [],
            "refused": [], "receipts": [], "evidence": [], "cannot_see": ["training data"], "not_tested": [],
            **more}  # fmt: skip


def lineages(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    kinds = [edge("root", f"{name}{kind}", kind.value) for kind in RelationKind]
    family = ["root", *(e["child"] for e in kinds), "merge"]
    kinds += [edge(e["child"], "merge", "merged", share=0.3, confidence=None) for e in kinds[:4]]
    missing = [{"name": "(missing 1)", "children": ["x", "y"], "parent": None}]
    kinds += [edge("(missing 1)", "x"), edge("(missing 1)", "y", p_value=None)]
    drawn = [{"parent": name, "child": "x", "operation": "prune", "drawn": d}
             for d in ("same", "reversed", "elsewhere", "not")]  # fmt: skip
    untested = [{"what": "weights-gone", "model": name, "why": name}]
    yield "every relation", lineage_document(
        kinds, [family, ["x", "y", "z"], [f"{name}!"], ["alone"]], missing_ancestors=missing, receipts=drawn,
        refused=[{"models": ["x", name], "reason": name}], not_tested=untested,
    )  # fmt: skip
    yield "no edges", lineage_document([], [["a", "b"], [name]])
    yield "nothing", lineage_document([], [])
    yield "one", lineage_document([], [[name]])


def plan(name: str, operation: str) -> dict[str, Any]:
    groups = {f"{name}{i}": {"kept": 10 + i, "of": 64, "error": 1e-4} for i in range(3)}
    expected = {"macs": [100.0, 50.0], "parameters": [100, 50], "groups": groups, "refitted": [],
                "refused": {name: name}, "class": 3, "recognised": 0.9, "strength": 1.0, "layers": [name, "head"],
                "held to": "batch norm", "unlike": 0.1, "others": ""}  # fmt: skip
    return {"operation": operation, "parent": ref(name)["digest"], "probes": "sha256:0", "kept": {}, "slices": {},
            "entries": {"head": [[1, 2]]}, "action": "zero", "expected": expected,
            "spec": {"name": "method", "version": 1, "params": {"score": name}}}  # fmt: skip


def receipt(name: str, operation: str) -> dict[str, Any]:
    measured = {"macs": [100.0, 50.0], "parameters": [100, 50], "seconds": [0.01, 0.005], "layers": {name: 0.1},
                "error": 0.1, "same_top_answer": 0.99, "accuracy": [0.9, 0.8], "forget": [0.9, 0.0],
                "retain": [0.9, 0.88]}  # fmt: skip
    return {"operation": operation, "parent": ref(name)["digest"], "child": ref("c")["digest"], "plan": "sha256:1",
            "probes": {"digest": "sha256:2", "source": name, "count": "64"}, "versions": {"torch": name},
            "measured": measured, "parent_source": name}  # fmt: skip


def edits(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    prune = {**header("prune", model=name, ratio=0.3, probes=None, networks=NETWORKS), "model": ref(name)}
    prune["plan"] = plan(name, "prune")
    yield "prune", {**prune, "receipt": receipt(name, "prune"), "folder": name}
    yield "prune, plan alone", {**prune, "receipt": None, "folder": None}
    yield "unlearn", {**header("unlearn", model=name, forget=name, out=name), "model": ref(name),
                      "plan": plan(name, "unlearn"), "receipt": receipt(name, "unlearn"), "folder": name}  # fmt: skip
    erased = plan(name, "unlearn")
    erased["expected"] |= {"class": None, "classes": [1, 3], "silenced": name, "rank": 1, "strength": 3}
    point = {"layers": 4, "directions": 1, "forget": 0.0, "same": 0.98, "kept": None, "worst": 0.1, "relearning": 61,
             "verdict": "inconclusive", "p_value": None, "reason": name}  # fmt: skip
    points = [{"strength": 0, **point, "verdict": "refuted", "relearning": 40}, {"strength": 1, **point, "worst": None},
              {"strength": 2, **point, "relearning": None}]  # fmt: skip
    curve = {"points": points, "steps": 60, "before": None, "retrained": [44, 61], "measured_on": [10, 100]}
    asked = header("unlearn", model=name, forget=name, out=name, curve=True)
    yield "unlearn, curve", {**asked, "model": ref(name), "plan": erased, "receipt": receipt(name, "unlearn"),
                             "folder": name, "curve": curve}  # fmt: skip
    for good in (True, False, None):
        checks = [{"check": "plan", "good": True, "reason": name}, {"check": "replay", "good": good, "reason": name}]
        yield f"verify edit {good}", {**header("verify-edit", folder=name), "folder": name, "good": good,
                                      "checks": checks}  # fmt: skip
    view = {"to_original": 0.1, "to_retrained": 0.2, "original_to_retrained": 0.3, "between_retrained": 0.2,
            "sees_the_original": True, "excess": 0.1, "excess_low": 0.0, "excess_high": 0.3}  # fmt: skip
    details = {"original": name, "unlearned": [name], "retrained": [name] * 19, "left_out": {"maps": name},
               "views": {name: view, "outputs": {"to_original": 0.3}}, "control_p_value": 0.05, "missing": 3,
               "forget_accuracy": {"original": 0.9, "unlearned": 0.1},
               "samples": {"verdict": "inconclusive", "reason": name, "p_value": 0.4, "left_out": {name: name},
                           "forms": {name: {"p_value": 0.4, "original_p_value": 0.2, "control": name,
                                            "control_p_value": 0.01, "assumption": name, "figures": {name: 0.1},
                                            "shown_to_have_power": False, "sound": False}}}}  # fmt: skip
    for verdict in ("supported", "refuted", "inconclusive"):
        evidence = evidence_of(name, verdict) | {"axis": "function", "details": details}
        yield f"verify unlearning {verdict}", {
            **header("verify-unlearning", original=name, unlearned=[name], forget=name), **evidence,
            "original": ref(name), "unlearned": [ref(name)],
        }  # fmt: skip


def functions(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    asked = {"a": name, "b": "b", "probes": name, "networks": NETWORKS}
    agreement = {"alike": 0.9, "accuracy_a": 0.8, "accuracy_b": None}
    yield "distance", {**header("distance", **asked), "a": ref(name), "b": ref("b"), "method": name,
                       "measure": "field-cosine", "value": 0.3, "interval": [0.2, 0.4], "n_probes": 16, "coverage": 0.9,
                       "agreement": agreement, "per_probe": [0.3], "networks": ["sha256:0"] * 2, "html": None,
                       "probes": {"digest": "sha256:1", "kind": "image", "source": name, "labelled": ""}, "specs": {},
                       "notes": []}  # fmt: skip
    figure = {"value": 0.5, "interval": [0.4, 0.6]}
    part = {"share": figure, "response": figure, "alone": figure, "without": None}
    strength = {"whitened": 0.5, "interval": [0.4, 0.6]}
    yield "competition", {**header("competition", model=name, probes=name), "model": ref(name),
                          "modalities": {name: part, "audio": part}, "accuracy": figure, "hidden": 0.1,
                          "masks": {"audio": name}, "probes": {"digest": "sha256:1", "source": name, "n": 9},
                          "reason": name, "strength": {name: strength, "audio": None}, "layer": None,
                          "missing": [name], "html": None}  # fmt: skip


def documents(name: str) -> dict[str, dict[str, Any]]:
    """Documents of all kinds about a model of this name, by what they are."""
    kinds = {"trace": traces, "compare": comparisons, "explain": explanations, "lineage": lineages, "edit": edits,
             "function": functions}  # fmt: skip
    return {f"{kind}: {what}": document for kind, made in kinds.items() for what, document in made(name)}
