"""What somebody who mistyped a name may have meant."""

import difflib
from collections.abc import Iterable

CLOSE = 0.6
"""Similarity of two words from which the one is suggested for the other."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for a word that is close to known ones; empty for any other."""
    close = difflib.get_close_matches(word.casefold()[:60], list(known), n=2, cutoff=CLOSE)
    return f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
