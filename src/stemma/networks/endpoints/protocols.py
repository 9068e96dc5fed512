"""What a service is sent, and what its answers mean: a row of numbers for each input."""

import base64
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stemma.errors import EndpointError, MissingExtraError, MisuseError
from stemma.networks.endpoints.address import Endpoint
from stemma.networks.endpoints.asking import Asking, RefusedError

KINDS = ("logits", "probabilities", "labels")
"""What an answer may hold; the first that is there counts."""

LONGEST_LABEL = 10_000
"""Characters of an answer in words that count."""

TOP = 20
"""Words whose probabilities a chat service is asked for."""

Row = tuple[str, tuple[float, ...]]
"""A kind of `KINDS`, and the numbers: scores of classes, or one label."""


def ask_classifier(asking: Asking, inputs: np.ndarray) -> list[Row]:
    """Answers of a plain classifier to some inputs."""
    endpoint = asking.endpoint
    found = asking.post(_sent(endpoint, inputs), len(inputs))
    if not isinstance(found, Mapping):
        raise EndpointError(f"{endpoint.name} answers with {type(found).__name__}, not an object with one of "
                            f"{', '.join(KINDS)}")  # fmt: skip
    kind = next((k for k in (*KINDS, "outputs") if k in found), None)
    if kind is None:
        held = ", ".join(sorted(str(k) for k in found)[:5])[:100] or "nothing"
        raise EndpointError(f"{endpoint.name} answers with {held}: one of {', '.join(KINDS)} is needed")
    values = found[kind]
    if not isinstance(values, list) or len(values) != len(inputs):
        given = f"{len(values)} rows" if isinstance(values, list) else type(values).__name__
        raise EndpointError(f"{endpoint.name} answers {len(inputs)} inputs with {given} of {kind}")
    if kind == "labels":
        return [("labels", (_label(endpoint, value),)) for value in values]
    kind = "logits" if kind == "outputs" else kind
    return [(kind, _scores(endpoint, kind, row)) for row in values]


def ask_chat(asking: Asking, inputs: np.ndarray) -> list[Row]:
    """Answers of a chat service to some texts, one request each."""
    return [_chat_row(asking, text) for text in texts_of(inputs)]


def texts_of(inputs: np.ndarray) -> list[str]:
    """Texts from rows of UTF-8 bytes that are padded with zeros.

    Args:
        inputs: Bytes `[n, longest]`.

    Returns:
        A text per row.

    Raises:
        MisuseError: If the rows are something else.
    """
    if inputs.ndim != 2 or inputs.dtype.kind not in "iu" or inputs.max(initial=0) > 255:
        raise MisuseError("a chat service is asked in words: give --probes FILE.txt, with one question on each line")
    try:
        return [bytes(row.astype(np.uint8)).rstrip(b"\0").decode() for row in inputs]
    except UnicodeDecodeError as error:
        raise MisuseError("these probes are no UTF-8 text, which a chat service is asked in") from error


def _sent(endpoint: Endpoint, inputs: np.ndarray) -> dict[str, Any]:
    if endpoint.send == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, inputs=inputs)
        return {"npz": base64.b64encode(buffer.getvalue()).decode()}
    if endpoint.send == "png":
        return {"images": [base64.b64encode(_png(image)).decode() for image in inputs]}
    return {"inputs": inputs.tolist(), "dtype": str(inputs.dtype)}


def _png(image: np.ndarray) -> bytes:
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4) or image.min() < 0 or image.max() > 1:
        raise MisuseError(
            "send=png takes images with values from 0 to 1 and 1, 3 or 4 channels; other inputs: send=npz"
        )
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("sending images", "pillow", "images") from error
    pixels = np.round(image * 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _scores(endpoint: Endpoint, kind: str, row: Any) -> tuple[float, ...]:
    try:
        found = np.asarray(row, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise EndpointError(f"{endpoint.name} answers with {kind} that are no numbers") from error
    if found.ndim != 1 or not 2 <= found.size <= 1 << 20:
        raise EndpointError(f"{endpoint.name} answers with {kind} of shape {list(found.shape)} for one input: a number "
                            "for each class is needed, and two classes at least")  # fmt: skip
    if not np.isfinite(found).all():
        raise EndpointError(f"{endpoint.name} answers with {kind} that are NaN or infinite")
    if kind == "probabilities":
        if found.min() < 0 or abs(found.sum() - 1) > 0.02:
            raise EndpointError(f"{endpoint.name} answers with probabilities that are negative or do not add up to 1")
        found = np.log(np.maximum(found, 1e-12))
    return tuple(found.tolist())


def _label(endpoint: Endpoint, value: Any) -> float:
    """A number for a label: itself, its place among the classes, or one that only its words decide."""
    if isinstance(value, str):
        return word_label(value, endpoint.classes)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 53:
        raise EndpointError(f"{endpoint.name} answers with a label that is neither a word nor a class number")
    return float(value)


def word_label(text: str, classes: Sequence[str]) -> float:
    """A number for an answer in words, the same wherever the words are the same.

    Args:
        text: The answer; case and outer punctuation do not count.
        classes: Words among which it should be; their number stands for anything else.

    Returns:
        The place among the classes; without classes 52 bits of a hash.
    """
    said = text[:LONGEST_LABEL].strip().strip(".,;:!?\"'`*").strip().casefold()
    if not classes:
        return float(int.from_bytes(hashlib.sha256(said.encode(errors="replace")).digest()[:8], "big") >> 12)
    fitting = [i for i, c in enumerate(classes) if said.startswith(c.casefold())]
    longest = max(fitting, key=lambda i: len(classes[i]), default=len(classes))
    return float(longest)


def _chat_row(asking: Asking, text: str) -> Row:
    endpoint = asking.endpoint
    body: dict[str, Any] = {"model": endpoint.model, "messages": [{"role": "user", "content": text}],
                            "temperature": 0, "seed": 0, "max_tokens": 16}  # fmt: skip
    if endpoint.classes and asking.probabilities:
        try:
            return _choice(endpoint, asking.post({**body, "logprobs": True, "top_logprobs": TOP}, 1))
        except RefusedError as error:
            if error.status not in (400, 422):
                raise
            asking.probabilities = False
    return _choice(endpoint, asking.post(body, 1))


def _choice(endpoint: Endpoint, answer: Any) -> Row:
    try:
        choice = answer["choices"][0]
        said = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        lacks = "there is no choices[0].message"
        raise EndpointError(f"{endpoint.name} does not answer as a chat service does: {lacks}") from error
    if not isinstance(said, str):
        raise EndpointError(f"{endpoint.name} answers without words")
    if endpoint.classes and (scores := _class_scores(endpoint.classes, choice)) is not None:
        return "logits", scores
    return "labels", (word_label(said, endpoint.classes),)


def _class_scores(classes: Sequence[str], choice: Any) -> tuple[float, ...] | None:
    """Logarithms of the probabilities of the classes by the first word; None where they are not told."""
    try:
        told = [(str(t["token"]).strip().casefold(), float(t["logprob"])) for t in
                choice["logprobs"]["content"][0]["top_logprobs"]]  # fmt: skip
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    told = [(word, p) for word, p in told if word and math.isfinite(p)]
    if len(told) < 2:
        return None
    least, scores = min(p for _, p in told), []
    for name in classes:
        others = [c.casefold() for c in classes if c != name]
        own = [p for w, p in told if name.casefold().startswith(w) and not any(o.startswith(w) for o in others)]
        scores.append(float(np.logaddexp.reduce(own)) if own else least)
    return tuple(scores)
