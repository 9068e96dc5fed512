"""Every model of a question is loaded and asked once, for all methods of the function axis."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from stemma.checkpoints.model import Model
from stemma.errors import StemmaError
from stemma.fingerprints.evaluation import keeping_answers
from stemma.kinship.function.null_models import NullModels, Subject
from stemma.probes import Probes


@dataclass(eq=False)
class AskedOnce:
    """Subjects of one question.

    The pair is held with its answers. Of the controls and candidates one is held at a time: when it is loaded for the
    first method, `at_first` takes from it whatever the later ones need.

    Attributes:
        probes: The inputs of the question.
        at_first: Called with a subject when it is loaded, to fill its `kept`.
    """

    probes: Probes
    at_first: Callable[[Subject], None]
    _held: tuple[object, Model] | None = field(default=None, repr=False)

    def party(self, subject: Subject) -> Subject:
        """A model in question, with its answers for as long as the subject is held."""
        if subject.load is None:
            return subject
        load, held = subject.load, []

        def loaded() -> Model:
            if not held:
                held.append(_keeping(load(), self.probes))
            return held[0]

        return replace(subject, load=loaded)

    def other(self, subject: Subject) -> Subject:
        """A control model or candidate, which gives way to the next one."""
        if subject.load is None:
            return subject
        load, mark = subject.load, object()

        def loaded() -> Model:
            if self._held is None or self._held[0] is not mark:
                self._held = None  # before the next one is read
                self._held = mark, _keeping(load(), self.probes)
                if not made.kept:
                    self.at_first(made)
            return self._held[1]

        made = replace(subject, load=loaded, kept={})
        return made

    def controls(self, null: NullModels) -> NullModels:
        """Control models, each as `other`."""
        return replace(null, models=tuple(map(self.other, null)))


def _keeping(model: Model, probes: Probes) -> Model:
    try:
        return keeping_answers(model, probes)
    except StemmaError:  # no network can be built: whoever needs one says so
        return model
