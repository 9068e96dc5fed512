"""Licences as people and cards write them: which are one, which are refused, and that nothing unclear passes."""

import re
import time
from collections import defaultdict
from pathlib import Path

import pytest

from stemma.application.policies import why_unclear
from stemma.application.policies.licence_names import known_names, parse_name
from stemma.application.policies.licences import judge_licence, parse_denied
from stemma.checkpoints.cards import front_matter, licence
from stemma.errors import MisuseError

pytestmark = pytest.mark.anywhere

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "gates.md").read_text()


def kind(text: str, *refused: str, stated: bool = False) -> str:
    return judge_licence(text, parse_denied(refused), stated=stated).kind


def rows() -> list[tuple[str, list[str], list[str]]]:
    table = PAGE.split("| refused | refuses | leaves open |")[1].split("\n\n")[0]
    cells = [[re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:4]] for line in table.splitlines()[2:]]
    return [(word, closed, free) for (word,), closed, free in cells]


@pytest.mark.parametrize(("word", "closed", "free"), rows(), ids=[row[0] for row in rows()])
def test_the_spellings_of_the_page_are_those_of_the_code(word: str, closed: list[str], free: list[str]) -> None:
    assert closed
    for text in (word, *closed):
        assert kind(text, word) == "denied", text
        assert kind(text.upper(), word) == "denied", text
        assert kind(f"MIT AND ({text.removeprefix('other: ')})", word) == "denied"
    for text in free:
        assert kind(text, word) == "free", text


@pytest.mark.parametrize(
    ("text", "refused", "said"),
    [
        ("MIT OR GPL-3.0-only", "gpl-3.0", "free"),
        ("(mit or gplv3) and apache-2.0", "gpl-3.0", "free"),
        ("GPL-3.0-only OR AGPL-3.0-only", "gpl", "denied"),
        ("MIT AND GPL-3.0-only", "gpl-3.0", "denied"),
        ("MIT AND (Apache-2.0 AND (BSD-3-Clause AND GPL v3))", "gpl-3.0", "denied"),
        ("MIT OR acme", "gpl-3.0", "free"),
        ("GPL-3.0 OR acme", "gpl-3.0", "unclear"),
        ("MIT AND acme", "gpl-3.0", "unclear"),
        ("mit, gpl-3.0", "gpl-3.0", "denied"),
        ("mit/gpl-3.0", "gpl-3.0", "denied"),
        ("mit; cc-by-nc-4.0", "cc-by-nc-4.0", "denied"),
        ("mit & apache-2.0", "gpl-3.0", "free"),
        ("GPL-2.0-or-later", "gpl-3.0", "free"),
        ("GPL-2.0+", "gpl-3.0", "free"),
        ("GPL-2.0-or-later", "gpl-2.0", "denied"),
        ("GPL-3.0 WITH Classpath-exception-2.0", "gpl-3.0", "denied"),
        ("GPL-3.0 with classpath-exception-2.0", "GPL-3.0 WITH Classpath-exception-2.0", "denied"),
        ("GPL-3.0", "GPL-3.0 WITH Classpath-exception-2.0", "free"),
        ("Apache-2.0 WITH LLVM-exception", "gpl-3.0", "free"),
        ("Apache-2.0 WITH Commons-Clause", "gpl-3.0", "unclear"),
        ("gpl", "gpl-3.0", "unclear"),
        ("cc", "cc-by-nc-4.0", "unclear"),
        ("Apache Software License", "apache-2.0", "unclear"),
        ("openrail", "creativeml-openrail-m", "unclear"),
        ("llama3", "llama3.1", "free"),
        ("llama3.1", "llama3", "denied"),
        ("bsd-3-clause", "BSD-3-Clause-Clear", "free"),
        ("other", "gpl-3.0", "unclear"),
        ("other", "other", "denied"),
        ("other: llama3.1", "other", "denied"),
        ("other: mit", "gpl-3.0", "free"),
        ("Other (LICENSE)", "other", "denied"),
        ("mit, other", "other", "denied"),
        ("unknown", "unknown", "denied"),
        ("unknown", "other", "unclear"),
    ],
)
def test_expressions_lists_and_families(text: str, refused: str, said: str) -> None:
    assert kind(text, refused) == said


@pytest.mark.parametrize(
    "text",
    [
        "acme", "acme-1.0", "gpl-7.0", "mit-2.0", "LicenseRef-acme", "GРL-3.0", "gpl\u200b-3.0", "ɢᴘʟ-3.0", "gpl ✓",
        "", " ", "null", "NONE", "NOASSERTION", "n/a", "3", "0", "-1", "true", "(MIT", "MIT)", "MIT OR", "OR",
        "AND MIT", "MIT WITH", "MIT OR OR Apache-2.0", "MIT Apache-2.0", "NOT MIT", "MIT | ISC", "MIT and/or GPL-3.0",
        "{name: mit}", "name: mit", "https://opensource.org/licenses/MIT", "a" * 100_000, "MIT OR " * 5000 + "MIT",
        "(" * 5000 + "MIT" + ")" * 5000, "see LICENSE", "all rights reserved", "UNLICENSED", "proprietary",
        "MIT WITH LLVM-exception WITH GCC-exception-3.1",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_never_free(text: str) -> None:
    start = time.perf_counter()
    assert kind(text, "gpl-3.0") == "unclear"
    assert kind(text, "mit") in {"unclear", "denied"}
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "word",
    ["gpl-3.O", "gplv33", "llama3.1-comunity", "gрl-3.0", "acme", "*", "gpl-*", "(", "null", "3.0", "LicenseRef-",
     "only", "MIT OR GPL-3.0", "mit/gpl-3.0", "GPL-3.0 WITH Commons-Clause", "noncommercial", "x", "a" * 1000],
)  # fmt: skip
def test_a_refused_word_that_is_no_licence_is_misuse(word: str) -> None:
    with pytest.raises(MisuseError, match="--deny-license"):
        parse_denied([word])


def test_a_slip_of_the_pen_is_answered_with_what_was_meant() -> None:
    with pytest.raises(MisuseError, match=r"Did you mean llama3\.1\?"):
        parse_denied(["llama3.1-comunity"])


def test_a_licence_of_ones_own_is_known_only_from_oneself() -> None:
    assert kind("LicenseRef-acme", "gpl-3.0", stated=True) == "free"
    assert kind("LicenseRef-acme", "gpl-3.0") == "unclear"
    assert kind("LicenseRef-acme", "LicenseRef-ACME", stated=True) == "denied"
    assert (why_unclear("LicenseRef-acme"), why_unclear("GNU GPL v3"), why_unclear("MIT OR gpl")) == ("", "", "")
    assert "acme" in why_unclear("acme")


def test_the_choice_that_an_or_leaves_is_named() -> None:
    assert judge_licence("GPL-3.0-only OR MIT", parse_denied(["gpl-3.0"])).choice == "MIT"
    assert judge_licence("MIT OR Apache-2.0", parse_denied(["gpl-3.0"])).choice == ""
    assert "GPL-2.0-or-later" in judge_licence("GPL-2.0-or-later", parse_denied(["gpl-3.0"])).choice
    both = judge_licence("(MIT OR GPL-3.0) AND (ISC OR GPL-3.0)", parse_denied(["gpl-3.0"]))
    assert both.choice == "MIT AND ISC"


def test_every_listed_name_is_understood_and_no_two_licences_are_one_name() -> None:
    one_name = defaultdict(set)
    for text in known_names():
        name = parse_name(text)
        assert name is not None, text
        assert name.known, text
        assert kind(text, text) == "denied"
        plain = re.sub(r"(-only|-or-later|\+)$", "", text.casefold()).replace(" ", "-")
        one_name[tuple(re.sub(r"\.0$", "", w) for w in name.words)].add(plain)
    aliases = [{"bsd-2", "bsd-2-clause"}, {"bsd-3", "bsd-3-clause"}]
    assert [v for v in one_name.values() if len(v) > 1 and v not in aliases] == []


CARDS = {
    "license: mit": "mit",
    "license: [mit]": "mit",
    "license: [mit, gpl-3.0]": "mit, gpl-3.0",
    "license: [mit,\n  gpl-3.0]": "mit, gpl-3.0",
    "license: [ 'mit' , \"gpl-3.0\" ] # two": "mit, gpl-3.0",
    "license:\n  - mit\n  - gpl-3.0": "mit, gpl-3.0",
    "license:\n\n- mit\n# and\n- gpl-3.0": "mit, gpl-3.0",
    "license: >-\n  MIT OR\n  GPL-3.0": "MIT OR GPL-3.0",
    "license: |\n  gpl-3.0": "gpl-3.0",
    "license: mit\nlicense: gpl-3.0": "mit, gpl-3.0",
    '"license": gpl-3.0': "gpl-3.0",
    "License: gpl-3.0": "gpl-3.0",
    "licence: gpl-3.0": "gpl-3.0",
    "license : gpl-3.0": "gpl-3.0",
    "license: mit # or so": "mit",
    "license:\n  name: llama3.1": "name: llama3.1",
    "license: {name: llama3.1}": "{name: llama3.1}",
    "license: 3": "3",
    "license: null": None,
    "license: ~": None,
    "license: ''": None,
    "license: []": None,
    "license:": None,
    "tags:\n- license": None,
    "license: other\nlicense_name: llama3.1\nlicense_link: LICENSE": "other: llama3.1",
    "license: other\nlicense_link: LICENSE": "other (LICENSE)",
    "license: other\nlicense_name: null": "other",
    "license: unknown\nlicense_name: acme": "unknown: acme",
    "license: mit\nlicense_name: llama3.1": "mit, llama3.1",
    "license: mit\nlicense_name: MIT": "mit",
    "license_name: llama3.1": "llama3.1",
    "license_link: https://x.y/LICENSE": "other (https://x.y/LICENSE)",
}


@pytest.mark.parametrize(("front", "read"), CARDS.items())
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_card_of_any_shape_loses_no_licence(tmp_path: Path, front: str, read: str | None, mark: str) -> None:
    (tmp_path / "README.md").write_text(f"{mark}---\n{front}\n---\n# Text\nlicense: no\n")
    assert licence(front_matter(tmp_path / "README.md")) == read


def test_other_files_state_licences_too() -> None:
    assert licence({"license": "other", "license.name": "llama3.1"}) == "other: llama3.1"  # as GGUF has it
    assert licence({"modelspec.license": "gpl-3.0"}) == "gpl-3.0"
    assert licence({"format": "pt"}) is None
