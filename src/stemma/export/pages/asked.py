"""What was asked, as label and value in plain words."""

from collections.abc import Iterator, Mapping
from typing import Any

LABELS = {
    "model": "model", "a": "first model", "b": "second model", "parent": "parent", "child": "child", "paths": "models",
    "folder": "folder", "original": "original model", "unlearned": "unlearned model", "retrained": "retrained models",
    "against": "searched", "probes": "probe inputs", "forget": "inputs to forget", "retain": "other inputs",
    "retained": "inputs to keep", "fit_probes": "inputs to fit on", "null": "control models",
    "null_recipe": "control models, trained as", "registry": "registry", "alpha": "significance level",
    "coverage": "coverage of the possible parents", "margin": "margin", "fail_on": "refused relations and verdicts",
    "deny_license": "refused licences", "allow_untested": "what was not tested is let pass", "out": "written to",
    "ratio": "share of units to remove", "budget": "to keep", "dry_run": "plan only", "statistics": "layer statistics",
    "strength": "strength", "curve": "every strength is measured",
    "parameters": "settings", "replace": "an existing folder may be replaced",
    "method": "compared", "measure": "measure",
    "concepts": "networks of one modality", "mask": "how a modality is hidden", "layer": "layer",
    "concept_networks": "their networks are built by", "network": "networks are built by",
    "allow_code": "code of the user was run", "device": "device", "data": "data sets", "seed": "random seed",
}  # fmt: skip
"""By field of a request: what a page calls it."""

UNASKED = frozenset({"jobs", "cluster", "html", "svg", "dot"})
"""Fields that change nothing of the answer."""


def asked_facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was asked: every option that is not at its default.

    Args:
        document: A document with `asked`.

    Returns:
        Label and value.
    """
    asked = {k: v for k, v in document["asked"].items() if k != "networks"} | (document["asked"].get("networks") or {})
    facts = list(_facts(asked))
    if not any(asked.get(name) for name in ("registry", "against", "paths", "folder")):
        facts.append(("registry", "the default one of the person who asked"))
    return facts


def _facts(asked: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in asked.items():
        if name in UNASKED or value is None or value is False or value == []:
            continue
        label = LABELS.get(name, name.replace("_", " "))
        yield label, "yes" if value is True else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
