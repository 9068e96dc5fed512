"""A model card as Hugging Face reads it: `base_model` in its head, and what was found, how sure, and what was not."""

import re
from collections.abc import Iterator

from stemma.errors import StatementError
from stemma.export.standards.findings import NO_ANCESTOR, TOOL, ExportedFindings, Kin, ModelFindings, clean
from stemma.types import RelationKind

MEDIA_TYPE = "text/markdown"

RELATIONS = {
    RelationKind.QUANTIZED: "quantized", RelationKind.MERGED: "merge", RelationKind.LORA: "finetune",
    RelationKind.FINETUNED: "finetune", RelationKind.HEAD_REPLACED: "finetune", RelationKind.UNLEARNED: "finetune",
    RelationKind.PRUNED: "finetune", RelationKind.PART_INHERITED: "finetune",
}  # fmt: skip
"""Hugging Face's words for relations; what was changed by an adapter and holds all weights is a fine-tune there."""

ADAPTER = re.compile(r"(^|/)adapter_config\.json$")

_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$-])")


def model_card(findings: ExportedFindings) -> bytes:
    """A model card (README.md) for one model.

    The head names as base only established parents; the licence in it is the one that the model's files or people
    state, and the text says so.

    Args:
        findings: What was found about one model.

    Returns:
        Markdown with YAML before it, in UTF-8.

    Raises:
        StatementError: If there are several models: a card is about one.
    """
    from huggingface_hub import ModelCardData

    if len(findings.models) != 1:
        raise StatementError("a model card is about one model: give MODEL instead of --all")
    (model,) = findings.models
    parents = [clean(p.name) for p in model.parents]
    data = ModelCardData(
        license=clean(model.licence) if model.licence else None,
        base_model=(parents[0] if len(parents) == 1 else parents) or None,
        base_model_relation=relation_of(model),
    )
    text = "\n".join(_lines(findings, model))
    head = f"---\n{data.to_yaml()}\n---\n\n" if data.to_dict() else ""
    return f"{head}{text}\n".encode()


def relation_of(model: ModelFindings) -> str | None:
    """Hugging Face's word for what a model is to its established parents.

    Args:
        model: What was found.

    Returns:
        `finetune`, `adapter`, `merge` or `quantized`; None where it has no word, or no parent is established.
    """
    if not model.parents:
        return None
    if len(model.parents) > 1:
        return "merge"
    (parent,) = model.parents
    if RelationKind.QUANTIZED in (parent.relation, *parent.steps):
        return "quantized"
    if any(ADAPTER.search(f.name) for f in model.files):
        return "adapter"
    return next((RELATIONS[kind] for kind in RELATIONS if kind == parent.relation), None)


def _lines(findings: ExportedFindings, model: ModelFindings) -> Iterator[str]:
    yield from (f"# {_safe(model.name)}", "", "## Provenance", "")
    yield f"{TOOL} {findings.version} compared the weights of this model ({findings.created}). It says:"
    yield ""
    yield from (f"- {sentence}" for sentence in _found(model))
    others = [k for k in model.others if k.role != "copy"]
    known = {parent.name for parent in model.parents}
    possible = [p for p in model.possible if p["name"] not in known]
    if others or possible:
        yield from ("", "### Not established", "")
        yield from (f"- Related to {_safe(k.name)}{_how(k)}." for k in others)
        for p in possible:
            same = f" (or {', '.join(map(_safe, p['or']))})" if p["or"] else ""
            yield f"- Possible parent: {_safe(p['name'])}{same}, probability {p['probability']:.2g}."
    yield from ("", "### Not looked at", "")
    yield from (f"- {_safe(text)}" for text in model.untested)
    if model.claims or model.licence:
        yield from ("", "## What the files of this model claim", "", "Claims are no findings.", "")
        told = ("contradicted.", "not checked.")
        for line in model.claims:
            verdict = "" if line.sentence.endswith(told) else f" ({line.verdict if line.stated else 'nothing claimed'})"
            yield f"- {_safe(line.sentence)}{verdict}"
        source = "as a person stated it" if model.licence_source == "stated" else "as the files of the model state it"
        if model.licence:
            yield f"- The licence at the head of this card is {_safe(model.licence)}, {source}."
    if model.files:
        yield from ("", "## Files", "", "| file | SHA-256 |", "|---|---|")
        yield from (f"| {_safe(f.name)} | {f.sha256} |" for f in model.files)


def _found(model: ModelFindings) -> Iterator[str]:
    for copy in (k for k in model.others if k.role == "copy"):
        by = f"; {_safe(copy.known_from)}" if copy.known_from else ""
        yield f"The same weights are known as {_safe(copy.name)} ({copy.relation}{by}); which came first is not shown."
    for parent in model.parents:
        share = f", share {parent.share:.2g}" if parent.relation == RelationKind.MERGED and parent.share else ""
        yield f"The weights were made from those of {_safe(parent.name)}{_how(parent)}{share}."
    if not model.parents and model.verdict in NO_ANCESTOR and model.verdict != "copy":
        yield NO_ANCESTOR[model.verdict]
    if model.n_searched is not None:
        level = f", at significance level {model.alpha:g}" if model.alpha is not None else ""
        yield f"Models searched: {model.n_searched:,}{level}."


def _how(kin: Kin) -> str:
    words = [] if kin.relation == RelationKind.RELATED else [kin.relation]
    if kin.known_from:
        words.append(kin.known_from)
    if kin.p_value is not None:
        small = kin.log10_p is not None and kin.log10_p < -300
        words.append("p < 1e-300" if small else f"p = {kin.p_value:.2g}")
    if kin.established:
        sure = "shown by the change itself" if kin.confidence is None else f"probability {kin.confidence:.2g}"
        words.append(f"came first: {sure}")
    return f" ({_safe(', '.join(words))})" if words else ""


def _safe(text: object) -> str:
    """Text without the power to format, link or run anything in Markdown."""
    return _MARKUP.sub(lambda m: f"&#{ord(m[0])};" if m[0] in "<>&|" else f"\\{m[0]}", clean(text))
