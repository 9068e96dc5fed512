"""Which models may descend from another one although no edge says so."""

from collections.abc import Callable

from stemma.ancestry.trees.forms import Forms, chance_of, missing_names
from stemma.types import UNREAD, Lineage
from stemma.types.claims import SURE

NOT_CONNECTED = "of the same family, but no edges connect the two"
NO_DIRECTION = "its place in the family, or that of an ancestor, is not established"
UNSURE = f"an edge above one of the two has a probability below {SURE:g}, or none"


class Unresolved:
    """What a lineage leaves open about descent.

    That a model does not descend from another one is decided where it is surely the older of the two. Otherwise it is
    decided only where everything above both is: every ancestor is placed, every edge there is sure, and each root above
    the one also lies above the other.
    """

    def __init__(self, lineage: Lineage, forms: Forms) -> None:
        self.lineage, self.forms = lineage, forms
        missing = missing_names(lineage)
        self.parents: dict[int, set[int]] = {}
        self.chances: dict[tuple[int, int], float] = {}
        self.unsure: set[int] = set()
        for e in lineage.edges:
            a, b = forms.number[e.parent], forms.number[e.child]
            if a == b:
                continue
            self.parents.setdefault(b, set()).add(a)
            chance = chance_of(e, missing)
            self.chances[a, b] = max(self.chances.get((a, b), 0.0), chance or 0.0)
            if chance is None or chance < SURE:
                self.unsure.add(b)
        self.untested = {t["model"]: t["why"] for t in lineage.not_tested}
        self.sampled = {t["model"] for t in lineage.not_tested if t["what"] == UNREAD}
        self.open = self._without_place()
        self.above: dict[int, frozenset[int]] = {}
        self.older: dict[int, frozenset[int]] = {}

    def _without_place(self) -> set[int]:
        """Networks that a refused relation leaves without a parent; all of a relation where each has one."""
        out = set[int]()
        for refused in self.lineage.refused:
            networks = {self.forms.number[m] for m in refused["models"] if m in self.forms.number}
            out |= {n for n in networks if n not in self.parents} or networks
        return out

    def descendants(self, name: str) -> dict[str, str]:
        """By name, why it is open whether a model descends from this one; what edges show is not asked."""
        return {**self._untested(name), **self._within_family(name, lambda other: self._why(name, other))}

    def ancestors(self, name: str) -> dict[str, str]:
        """By name, why it is open whether this model descends from another one; what edges show is not asked."""
        return {**self._untested(name), **self._within_family(name, lambda other: self._why(other, name))}

    def _untested(self, name: str) -> dict[str, str]:
        """What nothing is known of; everything, where that is so of the model in question."""
        if name in self.untested and name not in self.sampled:
            return {m.name: f"{name} could not be compared" for m in self.lineage.models}
        return dict(self.untested)

    def _within_family(self, name: str, why: Callable[[str], str]) -> dict[str, str]:
        names = self._family_of(name)
        return {other: reason for other in sorted(names - {name}) if (reason := why(other))}

    def _family_of(self, name: str) -> set[str]:
        """The models of the families that the forms of a network, or what was made from a missing one, belong to."""
        seeds, number = set(self.forms.groups[self.forms.number[name]]), self.forms.number
        for lost in self.lineage.missing_ancestors:
            if number[str(lost["name"])] == number[name]:
                seeds |= set(lost["children"])
        return {other for f in self.lineage.families if seeds & set(f) for other in f}

    def _why(self, ancestor: str, model: str) -> str:
        """Why it is open whether a model descends from another one, empty where it certainly does not."""
        a, m = self.forms.number[ancestor], self.forms.number[model]
        if m in self._surely_above(a):
            return ""  # it is the older one
        above_a, above_m = self._above(a), self._above(m)
        if (above_a | above_m) & self.open:
            return NO_DIRECTION
        if any(not self.parents.get(n) and n not in above_a for n in above_m):
            return NOT_CONNECTED
        return UNSURE if (above_a | above_m) & self.unsure else ""

    def _surely_above(self, network: int) -> frozenset[int]:
        """The networks from which one descends by a path that leaves nothing open."""
        if network not in self.older:
            best, todo = {network: 1.0}, [network]
            while todo:
                here = todo.pop()
                for parent in self.parents.get(here, ()):
                    chance = best[here] * self.chances[parent, here]
                    if chance >= SURE and chance > best.get(parent, 0.0):
                        best[parent] = chance
                        todo.append(parent)
            self.older[network] = frozenset(best.keys() - {network})
        return self.older[network]

    def _above(self, network: int) -> frozenset[int]:
        """A network and everything that it descends from along edges."""
        if network not in self.above:
            seen, todo = {network}, [network]
            while todo:
                new = self.parents.get(todo.pop(), set()) - seen
                seen |= new
                todo += new
            self.above[network] = frozenset(seen)
        return self.above[network]
