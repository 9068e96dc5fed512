"""What typer's parser cannot do: options that take several values, and `--debug` and `--threads` anywhere."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from stemma.errors import MisuseError

_GIVING = ("--deny-license", "--fail-on")
_GREEDY = (
    "--against", "--null", "--unlearned", "--retrained", "--concept", "--concept-network", "--fail-on-descendant-of",
    *_GIVING,
)  # fmt: skip
_SINGLE = ("--registry", "--alpha")
_PATHS = ("add", "lineage", "scan")
_SERVER = re.compile(r"(?i)postgres(?:ql)?(?:\+\w+)?:/")
_OPERANDS = {"trace": 1, "compare": 2, "verify": 1, "competition": 1, "lineage": 0, "scan": 0}


def arrange(typed: Sequence[str]) -> list[str]:
    """Let list options take several values (`--fail-on copy pruned`), `--debug` and `--threads` stand anywhere.

    A list option takes everything up to the next option. Where the command's own operands would be missing then, the
    last values of `--deny-license` and `--fail-on` are taken for them; those of `--against` and `--null` are not,
    because a model that was forgotten would go unnoticed.

    Args:
        typed: The arguments as typed.

    Returns:
        The arguments with one option per value.
    """
    end = list(typed).index("--") if "--" in typed else len(typed)
    words = [word for word in typed[:end] if word != "--debug"]
    head = ["--debug"] * (len(words) < end)
    for at in [i for i, word in enumerate(words) if word == "--threads"][:1]:
        head, words = [*head, *words[at : at + 2]], [*words[:at], *words[at + 2 :]]
    command = next((word for word in words if not word.startswith("-")), None)
    if command not in _OPERANDS:
        return [*head, *words, *typed[end:]]
    at = words.index(command) + 1
    runs = list(_runs(words[at:]))
    missing = _OPERANDS[command] - sum(len(plain) for option, plain in runs if option not in _GREEDY)
    missing -= len(typed[end + 1 :])
    operands: list[str] = []
    for option, values in reversed(runs):
        while option in _GIVING and missing > len(operands) and len(values) > 1:
            operands.insert(0, values.pop())
    out = [*head, *words[:at]]
    for option, values in runs:
        if option in _GREEDY:
            out += [part for value in values for part in (option, value)] or [option]
        else:
            out += [*([option] if option else []), *values]
    return [*out, *operands, *typed[end:]]


def refuse_empty_paths(words: Sequence[str]) -> None:
    """Refuse an empty text where a path is wanted: it would be read as the working directory.

    Args:
        words: Arguments, arranged.

    Raises:
        MisuseError: If there is one.
    """
    command = next((word for word in words if not word.startswith("-")), None)
    for before, word in pairwise(words):
        listed = before in _GREEDY and before not in _GIVING
        operand = command in _PATHS and not before.startswith("-")
        if not word and (listed or operand):
            what = before if listed else f"stemma {command}"
            raise MisuseError(f"{what} is given an empty path. Is a variable of the shell not set?")


def refuse_misplaced_registries(words: Sequence[str]) -> None:
    """Refuse the address of a registry on a server where a model or a path is wanted, and do not repeat its password.

    Args:
        words: Arguments, arranged.

    Raises:
        MisuseError: If there is one.
    """
    command = next((word for word in words if not word.startswith("-")), None)
    for before, word in pairwise(words):
        if command != "registry" and before != "--registry" and _SERVER.match(word):
            raise MisuseError(
                "the address of a registry stands where a model or a path is wanted. Write --registry ADDRESS"
            )


def _runs(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with the plain words that follow it; the words before any option come with an empty one."""
    option, values = "", []
    for i, word in enumerate(words):
        if word.startswith("-") and word != "-" and not (i and words[i - 1] in _SINGLE):
            yield option, values
            option, values = word, []
        else:
            values.append(word)
    yield option, values
