"""Text from files and people, made safe to show."""

LONGEST_NAME = 100
"""Characters of a name that a short description of a result shows."""


def plain(text: object) -> str:
    r"""Text that cannot drive a terminal: control, direction and other unprintable characters become escapes.

    Returns:
        The same text, every unprintable character written as `\x1b`, `\u202e` and so on.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def short_name(name: object, most: int = LONGEST_NAME) -> str:
    """A name in a short description: plain, and cut in the middle where it is long.

    Names in one folder often begin alike and differ in their endings, so that both ends are kept.

    Returns:
        At most so many characters.
    """
    shown = plain(name)
    if len(shown) <= most:
        return shown
    tail = (most - 1) // 3
    return f"{shown[: most - 1 - tail]}…{shown[len(shown) - tail :]}"
