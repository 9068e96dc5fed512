"""Text in markup: escaped, without what cannot be printed, and measured before it is drawn."""

import html
import unicodedata
from collections.abc import Iterator

from stemma.types.text import plain


def escape(text: object) -> str:
    r"""Text escaped for HTML and SVG; unprintable characters are shown as `\u202e`."""
    return html.escape(plain(text))


def columns(text: str) -> int:
    """How many columns of a monospaced font a text takes: two for each wide character, none for a combining one."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: object, most: int) -> str:
    """A text in at most so many columns, with an ellipsis where it is cut."""
    shown = plain(text)
    if columns(shown) <= most:
        return shown
    out, used = "", 0
    for character in shown:
        used += _columns(character)
        if used > most - 1:
            break
        out += character
    return f"{out}…"


def cut_between(text: object, most: int) -> str:
    """A name in at most so many columns, cut in the middle: names in one folder often differ in their endings."""
    shown = plain(text)
    if columns(shown) <= most:
        return shown
    tail = cut(shown[::-1], most // 2).removesuffix("…")[::-1]
    return f"{cut(shown, most - columns(tail))}{tail}"


def lines_within(text: object, most: int, lines: int = 2) -> list[str]:
    """A name in few lines of few columns, broken behind a separator where there is one; the last keeps both ends."""
    left = plain(text)
    return list(_broken(_ends(left, 4 * most * lines), most, lines)) or [""]


def _ends(text: str, most: int) -> str:
    """Both ends of a very long text: enough of it to fill lines."""
    return text if len(text) <= most else text[: most // 2] + text[-most // 2 :]


def _broken(left: str, most: int, lines: int) -> Iterator[str]:
    for line in range(lines):
        if columns(left) <= most:
            if left:
                yield left
            return
        if line == lines - 1:
            yield cut_between(left, most)
            return
        head = cut(left, most + 1).removesuffix("…")
        at = max(head.rfind(sign) for sign in "/-_. ") + 1
        head = head[:at] if at > most // 2 else head
        yield head
        left = left[len(head) :]
