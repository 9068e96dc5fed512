"""What the page of a trace shows."""

from collections.abc import Iterator, Mapping
from typing import Any

from stemma.export.answers import closest_finding, told, trace_answer, trace_closing
from stemma.export.figures import count, number, odds, percent, strength

Document = Mapping[str, Any]

SHOWN = 12
"""Models compared in detail that the page lists."""

EXCLUDED = 3
"""Models among them that are shown to be independent."""

ABOVE = 6
"""Models above the one in question that the picture shows."""


def trace_view(document: Document) -> dict[str, Any]:
    """Values of the template for a trace.

    Args:
        document: What `stemma trace --json` prints.

    Returns:
        The answer, the models around the one in question, findings, certainty and doubts in sentences.
    """
    meaning, following = trace_closing(document)
    above = list(_above(document))
    return {
        "title": document["model"]["name"],
        "question": "Where does this model come from?",
        "answer": trace_answer(document),
        "claims": document.get("claims", ()),
        "tone": document["verdict"],
        "meaning": meaning,
        "next": following,
        "above": above[:ABOVE],
        "link": _link(above),
        "more_above": max(len(above) - ABOVE, 0),
        "findings": list(_findings(document)),
        "sure": list(_certainty(document)),
        "doubts": list(_doubts(document)),
        **_evidence(document["candidates"]),
    }


def _evidence(candidates: list[dict[str, Any]]) -> dict[str, Any]:
    """The candidates to list: relatives, then what is open, then the independent ones that came closest."""
    rank = {"related": 0, "inconclusive": 1}

    def place(row: dict[str, Any]) -> tuple[int, bool]:
        return rank.get(row["verdict"], 2), row["weights"]["p_value"] is None

    ordered = sorted(candidates, key=place)
    excluded = [row for row in ordered if row["verdict"] == "independent"][EXCLUDED:]
    shown = [row for row in ordered if row not in excluded][:SHOWN]
    left = [row for row in ordered if row not in shown]
    return {"rows": shown, "left": len(left), "left_independent": all(r["verdict"] == "independent" for r in left)}


def _above(document: Document) -> Iterator[dict[str, Any]]:
    """The models that the one in question is a copy of or was made from, else those that it is related to."""
    for copy in document["copies"]:
        label = "the same weights" if copy["relation"] == "copy" else "the same weights under other names"
        yield _card(copy, "copy", label, copy["relation"], "equal")
    for parent in document["parents"]:
        known = parent["direction"] == "parent"
        label, kind = ("parent", "parent") if known else (_ROLES.get(parent["role"], "possible parent"), "relative")
        yield _card(parent, kind, label, _edge(parent), "down" if known else "unknown")
    if not document["copies"] and not document["parents"]:
        for kin in document["relatives"]:
            link = "up" if kin["role"] == "child" else "unknown"
            yield _card(kin, "relative", _ROLES.get(kin["role"], "relative"), _edge(kin), link)


_ROLES = {"child": "made from this model", "same": "the same network in another form", "unknown": "relative; which of "
          "the two came first is not known", "relative": "relative, not shown to be a parent"}  # fmt: skip

_PROBABLE = {"parent": "that it is the parent", "child": "that it was made from this model",
             "same": "that both are the same network", "relative": "that it is the parent"}  # fmt: skip
"""By role: what its probability is of."""

_OTHERWISE = {"relative": "the parent after all", "parent": "no parent, but another relative",
              "child": "no child of this model, but another relative"}  # fmt: skip
"""By role: what the model is where the role is wrong."""

LINKS = {
    "equal": ("=", "has the same weights as"),
    "down": ("↓", "from which was made"),
    "up": ("↑", "which was made from"),
    "unknown": ("|", "related; no direction is known"),
}
"""By direction: the sign between the models above and the one in question, and its words."""


def _link(above: list[dict[str, Any]]) -> tuple[str, str]:
    """What stands between the models above and the one in question: an arrow only where a direction is known."""
    links = {card["link"] for card in above}
    return LINKS[links.pop()] if len(links) == 1 else LINKS["unknown"]


def _card(kin: Mapping[str, Any], kind: str, label: str, edge: str, link: str) -> dict[str, Any]:
    return {"name": kin["name"], "digest": kin["digest"], "kind": kind, "label": label, "edge": edge, "link": link,
            "licence": kin["licence"], "told": told(kin)}  # fmt: skip


def _edge(kin: Mapping[str, Any]) -> str:
    """What stands at a model: relation, share in a merge, and what is how probable."""
    words = [str(kin["relation"] or "related")]
    if kin["relation"] == "merged":
        words.append(f"share {number(kin['share'])}")
    if kin["confidence"] is not None:
        sure = 1 - kin["confidence"] if kin["role"] == "relative" else kin["confidence"]
        words.append(f"probability {_PROBABLE.get(kin['role'], 'of this')}: {percent(sure)}")
    return " · ".join(words)


def _findings(document: Document) -> Iterator[str]:
    """What was found, in sentences."""
    closest = closest_finding(document)
    if closest is not None and closest.get("reason"):
        steps = [str(step) for step in closest.get("steps") or ()]
        order = f" Steps, in their order: {', '.join(steps)}." if len(steps) > 1 else ""
        yield f"{sentence(closest['reason'])}{order}"
    if closest is None and document["verdict"] == "no-known-parent":
        yield f"All {count(document['n_searched'], 'model')} searched were tested and excluded."
    if closest is None and document["verdict"] == "inconclusive" and document["candidates"]:
        apart = sum(row["verdict"] == "independent" for row in document["candidates"])
        searched = count(document["n_searched"], "model")
        yield f"{apart:,} of {searched} searched excluded; what could not be tested of the others is listed below."
    rest = document["relatives"] if document["parents"] or document["copies"] else ()
    for kin in rest[:ABOVE]:
        role = _ROLES.get(kin["role"], "relative")
        by = f"; {told(kin)}" if told(kin) else ""
        yield f"{kin['name']}: {role} ({kin['relation'] or 'related'}, {strength(kin)}{by})."
    if len(rest) > ABOVE:
        yield f"{count(len(rest) - ABOVE, 'further relative')}."
    licensed = [kin for kin in (*document["copies"], *document["parents"]) if kin["licence"]]
    for kin in licensed[:ABOVE]:
        by = "as stated when it was enrolled" if kin["licence_source"] == "stated" else "by its own card"
        by = f"as told by another registry; {told(kin)}" if told(kin) else by
        yield f"Licence of {kin['name']}: {kin['licence']}, {by}."
    if len(licensed) > ABOVE:
        yield f"{count(len(licensed) - ABOVE, 'further licence')}."


def sentence(text: object) -> str:
    """Words as a sentence: with a capital letter and a full stop."""
    words = str(text).strip()
    return f"{words[:1].upper()}{words[1:]}{'' if words.endswith(('.', '!', '?')) else '.'}"


def _certainty(document: Document) -> Iterator[tuple[str, str]]:
    searched = count(document["n_searched"], "model")
    yield "models searched", f"{searched}; {count(len(document['candidates']), 'model')} compared in detail"
    closest = closest_finding(document)
    if closest is not None and "p_value" in closest:
        yield "chance of a coincidence", ", ".join(x for x in (strength(closest), odds(closest)) if x)
    known = [parent for parent in document["parents"] if parent["direction"] == "parent"]
    if known:
        sure = known[0]["confidence"]
        shown = "shown by the change itself" if sure is None else f"probability that it is the parent: {percent(sure)}"
        yield "which came first", f"{known[0]['name']}; {shown}"
    elif document["parents"] or document["relatives"]:
        yield "which came first", "not known: nothing establishes which of the related models came first"
    yield "significance level", f"{number(document['alpha'])} for the whole search, corrected for {searched}"


def _doubts(document: Document) -> Iterator[str]:
    verdict, closest = document["verdict"], closest_finding(document)
    if verdict in ("descends", "related"):
        yield (
            "The model named is the nearest among those searched. A model between the two, or a nearer one, that was "
            "not searched would take its place."
        )
    if document.get("known_from"):
        yield "The verdict rests on the word of another registry. This one read none of the models that it names."
    if verdict == "copy":
        yield "Both files may come from a third one: equal weights do not say which was published first."
    if verdict == "no-known-parent":
        yield (
            "The parent may be a model that is not enrolled. Training for very long, or from the outputs of another "
            "model (distillation), leaves no trace in weights."
        )
    if verdict == "inconclusive":
        yield "A relative may be among what could not be tested. This answer clears nothing."
    if closest is not None and closest.get("confidence") is not None and closest["confidence"] < 1:
        wrong = percent(1 - closest["confidence"])
        yield f"{closest['name']} may be {_OTHERWISE.get(closest['role'], 'something else')}: probability {wrong}."
    if verdict in ("descends", "related", "no-known-parent"):
        yield (
            f"By chance alone, {percent(document['alpha'])} of searches for a model without any relative here would "
            "name one, at most."
        )
