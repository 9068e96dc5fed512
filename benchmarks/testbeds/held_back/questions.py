"""Questions about the parents of members of a held-back bed, and what counts as right.

| scenario | who is asked | candidates beside strangers | right |
|---|---|---|---|
| parent | a child or grandchild of every kind | its source | the source |
| student | a distilled student | its teacher | none: its weights are strangers |
| none | a child of every kind | nobody | none |
| siblings and parent | a child | its source, one to five siblings | the source |
| orphan, siblings | a child | one to five siblings | none |
| orphan, like sibling | `new head` | `new head, again` | none |
| root and child | a source | one of its children | none |
| root and all children | a source | five of its children | none |
| parent and root | a grandchild | its parent, its source | its parent |
| root and grandchild | a child | its source, its own child | the source |
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from testbeds.held_back.members import GRANDCHILDREN, KINDS, SAME_START, Member

STRANGERS = 7
DESCENDED = tuple(k for k in KINDS if k in SAME_START)
"""Kinds of children whose weights come from their source."""


@dataclass(frozen=True, eq=False)
class Question:
    """Who of these is the parent?

    Attributes:
        scenario: Of the table above.
        kind: Of the child; of the relative where a source is asked about.
        source: Number of the child's source, which intervals are over.
        child: The network in question.
        candidates: Possible parents, in an order that says nothing.
        parent: Name of the right one, None where none is.
    """

    scenario: str
    kind: str
    source: int
    child: Member
    candidates: tuple[Member, ...]
    parent: str | None


def questions(members: Sequence[Member], seed: int = 5) -> list[Question]:
    """All questions about a bed.

    Args:
        members: The bed.
        seed: Of strangers, siblings and order.

    Returns:
        The questions, source by source.
    """
    known = {(m.source, m.kind): m for m in members}
    sources = sorted({m.source for m in members})
    return [q for s in sources for q in _of(s, known, sources, np.random.default_rng([seed, s]))]


def _of(
    s: int, known: dict[tuple[int, str], Member], sources: Sequence[int], rng: np.random.Generator
) -> Iterator[Question]:
    root = known[s, "source"]

    def strangers() -> list[Member]:
        chosen = rng.choice([i for i in sources if i != s], STRANGERS, replace=False)
        return [known[int(i), "source"] for i in chosen]

    def asked(scenario: str, kind: str, child: Member, relatives: Sequence[Member], parent: Member | None) -> Question:
        everyone = [*relatives, *strangers()]
        order = rng.permutation(len(everyone))
        return Question(
            scenario, kind, s, child, tuple(everyone[i] for i in order), None if parent is None else parent.name
        )

    for kind in (*DESCENDED, *GRANDCHILDREN):
        yield asked("parent", kind, known[s, kind], [root], root)
        yield asked("none", kind, known[s, kind], [], None)
    yield asked("student", "distilled", known[s, "distilled"], [root], None)
    yield asked("none", "distilled", known[s, "distilled"], [], None)
    yield from _among_siblings(s, known, rng, asked)
    for kind in DESCENDED:
        yield asked("root and child", kind, root, [known[s, kind]], None)
    several = [known[s, str(k)] for k in rng.choice(DESCENDED, 5, replace=False)]
    yield asked("root and all children", "source", root, several, None)
    for kind, above in GRANDCHILDREN.items():
        child, parent = known[s, kind], known[s, above]
        yield asked("parent and root", kind, child, [parent, root], parent)
        yield asked("root and grandchild", above, parent, [root, child], root)


def _among_siblings(
    s: int, known: dict[tuple[int, str], Member], rng: np.random.Generator, asked: Callable[..., Question]
) -> Iterator[Question]:
    root = known[s, "source"]
    like = known[s, "new head"], known[s, "new head, again"]
    yield asked("orphan, like sibling", "new head", like[0], [like[1]], None)
    for count in range(1, 6):
        for _ in range(2):
            kinds = [str(k) for k in rng.choice(DESCENDED, count + 1, replace=False)]
            child, others = known[s, kinds[0]], [known[s, k] for k in kinds[1:]]
            yield asked(f"{count} siblings and parent", kinds[0], child, [root, *others], root)
            yield asked(f"orphan, {count} siblings", kinds[0], child, others, None)
