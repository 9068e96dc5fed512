"""Finds the models that a person names among those of a lineage, and adds those that are named but not among them."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stemma.errors import UnknownNameError
from stemma.registry import model_records
from stemma.types import ModelRef
from stemma.workspace.lineage import ModelsToDraw
from stemma.workspace.workspace import Workspace

_DIGEST = re.compile(r"(partial:)?(?:sha256:)?([0-9a-f]{8,64})")


def find_named(text: str, models: Sequence[ModelRef]) -> str | None:
    """The name that a text means: a name, one with a file ending, or a digest prefix of at least 8 characters."""
    names = {m.name for m in models}
    for name in (text, text.rpartition(".")[0]):
        if name and name in names:
            return name
    prefix = _DIGEST.fullmatch(text)
    start = f"{prefix[1] or ''}sha256:{prefix[2]}" if prefix else ""
    found = sorted(m.name for m in models if prefix and m.digest.startswith(start))
    return found[0] if found else None


def with_named(found: ModelsToDraw, texts: Sequence[str], workspace: Workspace) -> tuple[ModelsToDraw, dict[str, str]]:
    """The models with those that are named: each is one of them, a path, or enrolled.

    Args:
        found: Models of a lineage.
        texts: What a person wrote.
        workspace: Holds the registry.

    Returns:
        The models with what had to be added, and the name of each model in question by what was written.

    Raises:
        UnknownNameError: If a text names no model; the message names similar ones.
    """
    names = dict[str, str]()
    for text in dict.fromkeys(texts):
        refs = [m.ref for m in found.models]
        known = find_named(text, refs) or _by_path(text, found)
        if known is None and (gone := [t for t in found.not_tested if t["model"] == text]):
            raise UnknownNameError(f"what is related to '{text}' cannot be told: {gone[0]['why']}")
        if known is None:
            found = _with_model(found, text, workspace)
            known = found.models[-1].name
        names[text] = known
    return found, names


def _by_path(text: str, found: ModelsToDraw) -> str | None:
    """The model that was read from a path."""
    if not text or not Path(text).exists():
        return None
    path = Path(text).resolve()
    return next((m.name for m in found.models if Path(m.source).resolve() == path), None)


def _with_model(found: ModelsToDraw, text: str, workspace: Workspace) -> ModelsToDraw:
    try:
        model = workspace.resolve(text)
    except UnknownNameError as e:
        names = [m.name for m in found.models]
        close = difflib.get_close_matches(text[:200], names, n=2, cutoff=0.6)
        meant = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        why = str(e) if not close else f"none of the {len(names):,} models searched is named '{text}'.{meant}"
        raise UnknownNameError(why) from None
    if model_records.has_no_weights(model):
        raise UnknownNameError(f"what is related to '{text}' cannot be told: {model.notes[0]}")
    taken, name = {m.name for m in found.models}, model.name
    while name in taken:
        name = f"{name} (named)"
    licences = {r.name: r.licence for r in workspace.registry.by_digest(model.digest) if r.licence}
    licence = licences.get(text) or next(iter(licences.values()), None)
    more = {**found.licences, name: licence} if licence else found.licences
    return replace(found, models=[*found.models, model_records.with_name(model, name)], licences=more)
