"""What the pages of a distance and of a competition of modalities show."""

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from stemma.export.answers import (
    between,
    competition_answer,
    competition_closing,
    distance_answer,
    distance_closing,
)
from stemma.export.figures import count, number, percent
from stemma.export.modality_bars import modality_sections

Document = Mapping[str, Any]


def distance_view(document: Document) -> dict[str, Any]:
    """Values of the template for a distance.

    Args:
        document: What `stemma distance --json` prints.

    Returns:
        The answer, certainty and doubts.
    """
    meaning, following = distance_closing(document)
    return {
        "title": f"{document['a']['name']} and {document['b']['name']}",
        "question": "How far apart are the two models in what they compute?",
        "answer": distance_answer(document),
        "tone": "none",
        "meaning": meaning,
        "next": following,
        "findings": list(_distance_findings(document)),
        "sure": list(_distance_certainty(document)),
        "doubts": [
            "A distance alone is no verdict: its scale depends on the task. Compare it with independent models.",
            "Two models can be close because one comes from the other, or because both learned the same task.",
            "A model can be trained to give the same outputs in another way, so a large distance proves nothing.",
        ],
        "cannot_see": ["inputs unlike these", "whether one model comes from the other"],
        "not_tested": [],
    }


def _distance_findings(document: Document) -> Iterator[str]:
    yield f"Compared: {document['method']}, by {document['measure']}, on {count(document['n_probes'], 'probe input')}."
    agreement = document["agreement"]
    if agreement["alike"] is not None:
        yield f"Both give the same class for {percent(agreement['alike'])} of the probe inputs."
    known = [f"{document[side]['name']} {percent(agreement[f'accuracy_{side}'])}" for side in ("a", "b")
             if agreement[f"accuracy_{side}"] is not None]  # fmt: skip
    if known:
        yield f"Accuracy on these inputs: {', '.join(known)}."


def _distance_certainty(document: Document) -> Iterator[tuple[str, str]]:
    if document["interval"] is not None:
        yield "interval", f"{between(document['value'], document['interval'])}, 95 % over the probe inputs"
    yield "coverage", f"defined at {percent(document['coverage'])} of the probe inputs"
    yield "probe inputs", f"{document['n_probes']:,}: {document['probes']['source']}"


def competition_view(document: Document) -> dict[str, Any]:
    """Values of the template for a competition of modalities.

    Args:
        document: What `stemma competition --json` prints.

    Returns:
        The answer, bars with intervals, certainty and doubts.
    """
    meaning, following = competition_closing(document)
    return {
        "title": f"{document['model']['name']}: modalities",
        "question": "Which modality does the model rely on?",
        "answer": competition_answer(document),
        "tone": "none",
        "meaning": meaning,
        "next": following,
        "pictures": tuple(map(Markup, modality_sections(document))),  # names in it are escaped
        "findings": [document["reason"]] if document["reason"] else [],
        "sure": list(_competition_certainty(document)),
        "doubts": [
            "How a modality is hidden changes its share: try another mask, and see whether the order stays.",
            "A modality with a small share may still decide single inputs.",
        ],
        "cannot_see": ["inputs unlike these", "what a modality alone could do, without networks of it alone"],
        "not_tested": [{"what": "missing", "model": "", "why": why} for why in document["missing"]],
    }


def _competition_certainty(document: Document) -> Iterator[tuple[str, str]]:
    yield "probe inputs", f"{document['probes']['n']:,} pairs: {document['probes']['source']}"
    yield "intervals", "95 %, by bootstrap over the probe inputs"
    for name, how in document["masks"].items():
        yield f"{name} is hidden by", str(how)
    if document["hidden"] is not None:
        yield "all modalities hidden", f"{number(document['hidden'])} (total variation) from the class frequencies"
