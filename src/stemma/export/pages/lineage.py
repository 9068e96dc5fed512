"""What the page of family trees shows."""

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from stemma.export.answers import lineage_answer, lineage_closing
from stemma.export.figures import EXACT, count, number, p_value, percent
from stemma.export.trees import tree_svg
from stemma.export.trees.layout import MOST

Document = Mapping[str, Any]

LISTED = 500
"""Edges, and models without a relative, that tables list."""

MISSING = 20
"""Missing ancestors that are named."""

DRAWN = {"same": "as in the tree", "reversed": "reversed in the tree", "elsewhere": "another parent in the tree",
         "not": "not in the tree"}  # fmt: skip
"""What the weights say of an edit that a receipt tells of."""


def lineage_view(document: Document) -> dict[str, Any]:
    """Values of the template for family trees.

    Args:
        document: What `stemma lineage --json` prints.

    Returns:
        The answer, the picture, tables of edges and of what was not drawn, certainty and doubts.
    """
    meaning, following = lineage_closing(document)
    alone = [family[0] for family in document["families"] if len(family) == 1]
    untested = {entry["model"] for entry in document["not_tested"]}
    return {
        "title": "Family trees",
        "question": "Which models come from which?",
        "answer": lineage_answer(document),
        "tone": "related" if document["edges"] else "none",
        "meaning": meaning.replace("listed below its parent", "drawn to the right of its parent"),
        "next": following,
        "tree": Markup(tree_svg(document)),  # names in it are escaped
        "left_out": max(len(document["models"]) - MOST, 0),
        "edges": [_edge(edge) for edge in document["edges"][:LISTED]],
        "more_edges": max(len(document["edges"]) - LISTED, 0),
        "alone": [name for name in alone if name not in untested][:LISTED],
        "drawn": DRAWN,
        "findings": list(_findings(document)),
        "sure": list(_certainty(document)),
        "doubts": list(_doubts(document)),
    }


def _edge(edge: Mapping[str, Any]) -> dict[str, str]:
    shown = "verified exactly" if edge["relation"] in EXACT and edge["p_value"] is None else p_value(edge)
    sure = "shown by the change itself" if edge["confidence"] is None else percent(edge["confidence"])
    return {"parent": edge["parent"], "child": edge["child"], "relation": edge["relation"], "strength": shown,
            "sure": sure, "share": "" if edge["share"] is None else number(edge["share"])}  # fmt: skip


def _findings(document: Document) -> Iterator[str]:
    for one in document["missing_ancestors"][:MISSING]:
        yield f"{one['name']}: no model here can be the parent of {_few(one['children'])}."
    if len(document["missing_ancestors"]) > MISSING:
        yield f"{count(len(document['missing_ancestors']) - MISSING, 'further missing ancestor')} in the document."
    merged = {edge["child"] for edge in document["edges"] if edge["relation"] == "merged"}
    if merged:
        yield f"{count(len(merged), 'model')} made from several parents: {_few(sorted(merged))}."


def _few(names: Any, most: int = 6) -> str:
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + rest


def _certainty(document: Document) -> Iterator[tuple[str, str]]:
    known = [edge["confidence"] for edge in document["edges"] if edge["confidence"] is not None]
    if known:
        between = f"from {percent(min(known))} to {percent(max(known))}"
        measured = "each is the measured share of such edges that are correct"
        yield "directions", f"{count(len(known), 'edge')} with a probability, {between}; {measured}"
    shown = len(document["edges"]) - len(known)
    if shown:
        yield "directions shown", f"{count(shown, 'edge')}, by the change itself"
    yield "not drawn", f"{count(len(document['refused']), 'relation')} without a known direction, or not established"
    if document["missing_ancestors"]:
        yield "missing ancestors", count(len(document["missing_ancestors"]), "model")
    if document["asked"]["alpha"] is not None:
        yield "significance level", f"{number(document['asked']['alpha'])} over all pairs"


def _doubts(document: Document) -> Iterator[str]:
    if document["edges"]:
        yield "An edge names the nearest parent among these models. One that is not among them may stand in between."
        yield "An edge may run the other way round; its percentage is the probability that it does not."
    if any(len(family) == 1 for family in document["families"]):
        yield "A model without a relative here may come from one that is not among these models."
