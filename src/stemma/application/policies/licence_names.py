"""Names and aliases of licences as people write them, parsed so that they can be compared.

`gpl-3.0`, `GPLv3`, `GNU GPL v3` and `GPL-3.0-only` are one name: the word `gpl` and the version 3.0. What is known
comes from the SPDX list (the package `license-expression` carries it) and from the names that licences of models have.
Add a name that is missing to `MODELS`, and a long form or alias to `_PHRASES`.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

LONGEST = 300
"""Characters of a text that may be a name; longer ones are texts."""

MODELS = (
    "apple-amlr", "apple-ascl", "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd-2",
    "bsd-3", "c-uda", "creativeml-openrail-m", "deepfloyd-if-license", "deepseek", "etalab-2.0",
    "fair-noncommercial-research-license", "falcon-llm-license", "flux-1-dev-non-commercial-license", "gemma",
    "grok2-community", "h-research", "health-ai-developer-foundations", "intel-research", "lgpl-lr", "llama2", "llama3",
    "llama3.1", "llama3.2", "llama3.3", "llama4", "mnpl", "mrl", "nvidia-open-model-license", "openmdw-1.0", "openrail",
    "openrail++", "qwen", "qwen-research", "stabilityai-ai-community", "tongyi-qianwen",
)  # fmt: skip
"""Names in Hugging Face's list, and in cards of well-known models, that are not in the SPDX list."""

FAMILIES = {
    "gpl": ("gpl", "agpl"),
    "bsd": ("bsd", "0bsd"),
    "openrail": ("openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "bigcode-openrail-m"),
    "rail": ("rail", "openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "bigcode-openrail-m",
             "bigscience-bloom-rail-1.0"),
    "qwen": ("qwen", "tongyi-qianwen"),
}  # fmt: skip
"""Words without a version that stand for more than the names that begin with them."""

_PHRASES = tuple(
    (re.compile(rf"\b(?:{pattern})(?![a-z])"), short)
    for pattern, short in (
        (r"(?:or|and) (?:any )?(?:later|newer|above|greater|higher)(?: versions?)?", "later"),
        (r"new or revised|revised or new", ""),
        (r"affero (?:general public|gpl)", "agpl"),
        (r"(?:lesser|library) (?:general public|gpl)", "lgpl"),
        (r"general public", "gpl"),
        (r"free documentation", "gfdl"),
        (r"mozilla public", "mpl"),
        (r"eclipse public", "epl"),
        (r"european union public", "eupl"),
        (r"academic free", "afl"),
        (r"boost software", "bsl"),
        (r"open software", "osl"),
        (r"(?:sil )?open font", "ofl"),
        (r"apache software|asl(?= ?v? ?\d)", "apache"),
        (r"expat", "mit"),
        (r"(?:new|modified|revised) bsd|bsd (?:new|modified|revised)", "bsd 3 clause"),
        (r"(?:simplified) bsd|bsd (?:simplified)|freebsd", "bsd 2 clause"),
        (r"([234])[ -]?clause bsd", r"bsd \1 clause"),
        (r"bsd ([234])(?: clause)? (?:new|modified|revised|simplified)", r"bsd \1 clause"),
        (r"bsd ?([234])(?=$| *clause)", r"bsd \1 clause "),
        (r"clause +clause", "clause"),
        (r"meta llama", "llama"),
        (r"open ?rail\+\+(?: m)?|open ?rail plus plus", "openrail plusplus"),
        (r"open rail", "openrail"),
        (r"creative commons", "cc"),
        (r"gemma terms of use|gemma terms", "gemma"),
    )
)
"""Long forms and their short ones, in text of small letters with single spaces; in this order."""

_CREATIVE_COMMONS = (
    (r"attribution", "by"), (r"non ?commercial", "nc"), (r"share ?alike", "sa"),
    (r"no ?(?:derivatives|derivs|derivative works)", "nd"), (r"zero", "0"), (r"international|unported|universal", ""),
)  # fmt: skip
"""The same, for what begins with `cc`."""

_FILLERS = frozenset({"the", "license", "licence", "licensed", "under", "gnu", "agreement", "community", "family"})
"""Words that tell no licence from another."""

_PLAIN = re.compile(r"[a-z0-9 .+]+")
_TOKEN = re.compile(r"[a-z]+|\d+(?:\.\d+)*|\+")
_CUSTOM = re.compile(r"(?:documentref-[a-z0-9.-]+:)?licenseref-(?=[a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Name:
    """A licence's name, taken apart.

    Attributes:
        text: As it was written.
        words: Words and versions in their order, such as `("gpl", "3.0")`; `only` and `or later` are left out.
        later: Whether it says "or any later version".
        custom: Whether it is written as `LicenseRef-NAME`: a licence of somebody's own, in no list.
    """

    text: str
    words: tuple[str, ...]
    later: bool = False
    custom: bool = False

    @property
    def known(self) -> bool:
        """Whether it is on a list, or a name there without its version (`gpl`, `bsd`, `cc-by`)."""
        return _plain(self.words) in _names() or " ".join(self.words) in FAMILIES

    def covers(self, other: "Name") -> bool:
        """Whether refusing this name refuses the other one too.

        A name covers those that go on where it ends: `cc-by-nc` the licences `cc-by-nc-4.0` and `cc-by-nc-sa-4.0`,
        `gpl-3` every 3.x; of `gpl-3.0` it makes no difference whether "only" or "or later" is said. With "or later" a
        name covers later versions as well; a word without a version may stand for a family.

        Returns:
            Whether it does.
        """
        if any(_begins(words, other.words) for words in _family(self.words)):
            return True
        stem = len(self.words) - 1
        if not self.later or stem >= len(other.words) or self.words[:stem] != other.words[:stem]:
            return False
        ends = self.words[stem], other.words[stem]
        return all(_is_version(w) for w in ends) and _numbers(ends[0]) <= _numbers(ends[1])

    def may_be(self, other: "Name") -> bool:
        """Whether this name leaves open that a more precise one is meant, as `gpl` does for `gpl-3.0`."""
        if self.words in _precise():
            return False
        return any(_begins(words, other.words) for words in _family(self.words))

    def goes_on_to(self, other: "Name") -> bool:
        """Whether "or later" of this name reaches a version that the other one names.

        Args:
            other: A name with a version.

        Returns:
            Whether it does.
        """
        return self.later and self.covers(other) and not other.covers(self)


def parse_name(text: str) -> Name | None:
    """Read one name.

    Args:
        text: Without operators such as OR.

    Returns:
        The name, None where the text is empty, too long, or holds characters that no name of a licence has: letters of
        another alphabet that look like those of this one are no spelling.
    """
    if len(text) > LONGEST:
        return None
    own = _CUSTOM.sub("", text.strip())
    plain = unicodedata.normalize("NFKC", own).casefold()
    plain = re.sub(r"[\u2010-\u2015\u2212]", "-", plain)
    plain = re.sub(r"(?<=\d)_(?=\d)", ".", plain)
    plain = re.sub(r"[\s\-_/,()\"'“”‘’:]+", " ", plain).strip()
    plain = re.sub(r"(?<=[a-z])v(?=\d)", " v", plain)
    if not _PLAIN.fullmatch(plain):
        return None
    for pattern, short in _PHRASES:
        plain = pattern.sub(short, plain)
    if plain.startswith("cc"):
        for long, short in _CREATIVE_COMMONS:
            plain = re.sub(rf"\b{long}\b", short, plain)
    words, later = _words(_TOKEN.findall(plain))
    return Name(text.strip(), words, later, own != text.strip()) if words else None


def _words(tokens: list[str]) -> tuple[tuple[str, ...], bool]:
    """The telling words, and whether "or later" is said."""
    out: list[str] = []
    later = False
    for i, token in enumerate(tokens):
        following = tokens[i + 1] if i + 1 < len(tokens) else ""
        if token == "later" or (token == "+" and out and _is_version(out[-1])):
            later = True
        elif token == "+":
            out.append("plus")
        elif token in ("v", "version", "ver") and (_is_version(following) or not following):
            continue
        elif token not in _FILLERS and not (token == "only" and out) and token not in out[-1:]:
            out.append(token)
    return tuple(out), later


def _is_version(word: str) -> bool:
    return word[:1].isdigit()


def _numbers(version: str) -> tuple[int, ...]:
    """A version without the zeros at its end: 3.0 and 3 are one."""
    parts = [int(p) for p in version.split(".")]
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return tuple(parts)


def _plain(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(".".join(map(str, _numbers(w))) if _is_version(w) else w for w in words)


def _begins(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    return len(short) <= len(long) and all(_same(a, b) for a, b in zip(short, long, strict=False))


def _same(asked: str, found: str) -> bool:
    """Whether a word is the one asked for; the version 3 asks for every 3.x, 3.0 for itself."""
    if not (_is_version(asked) and _is_version(found)):
        return asked == found
    one, other = ([int(p) for p in version.split(".")] for version in (asked, found))
    other += [0] * (len(one) - len(other))
    return other[: len(one)] == one


def _family(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The names that a word without a version stands for; each name stands for itself."""
    yield words
    for member in FAMILIES.get(" ".join(words), ()):
        found = parse_name(member)
        if found is not None:
            yield found.words


@cache
def _symbols() -> tuple[tuple[str, tuple[str, ...], bool], ...]:
    """The SPDX list: identifier, other forms, and whether it is an exception."""
    from license_expression import get_spdx_licensing

    return tuple((s.key, tuple(s.aliases), s.is_exception) for s in get_spdx_licensing().known_symbols.values())


def known_names() -> Iterator[str]:
    """The names that are known: SPDX identifiers and their deprecated forms, then those of models.

    Yields:
        As they are written there.
    """
    for key, aliases, is_exception in _symbols():
        if not is_exception or "-with-" in key:
            yield from (n for n in (key, *aliases) if not n.startswith("LicenseRef-"))
    yield from MODELS


@cache
def exceptions() -> frozenset[str]:
    """The exceptions that SPDX lists (`LLVM-exception`), in small letters."""
    return frozenset(key.casefold() for key, _, is_exception in _symbols() if is_exception)


@cache
def _names() -> frozenset[tuple[str, ...]]:
    """Every known name, whole and without its version."""
    found = [_plain(name.words) for text in known_names() if (name := parse_name(text))]
    return frozenset((*found, *(w for w in _cut() if len(w[0]) > 1)))


@cache
def _cut() -> frozenset[tuple[str, ...]]:
    """What stands before a version in a known name: `gpl`, `cc by nc`."""
    found = [name.words for text in known_names() if (name := parse_name(text))]
    return frozenset(w[:i] for w in found for i in range(1, len(w)) if _is_version(w[i]))


@cache
def _precise() -> frozenset[tuple[str, ...]]:
    """Known names to the letter: `llama3` and `isc` are licences of their own, not any Llama 3.x."""
    found = {name.words for text in known_names() if (name := parse_name(text))}
    return frozenset(words for words in found - _cut() if " ".join(words) not in FAMILIES)
