"""Models without weights among those of a question: services (`endpoint:URL`), recorded answers (`outputs:FILE`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.application.document import Progress
from stemma.application.network_options import NetworkOptions
from stemma.errors import MisuseError, UnreadableModelError

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.networks.endpoints import Budget, Endpoint
    from stemma.probes import Probes
    from stemma.types.network import Network
    from stemma.workspace import Workspace

SERVICE, RECORDED = "endpoint:", "outputs:"
"""What a text begins with that names a model without weights."""

MAX_QUERIES = 1000
"""Inputs that may be sent to services where no number is given."""


def is_black_box(text: str) -> bool:
    """Whether a text names a model without weights."""
    return text.startswith((SERVICE, RECORDED))


@dataclass(frozen=True)
class BlackBoxes:
    """Finds models without weights and their answers.

    Attributes:
        networks: How other models are run, and what reads probes.
        max_queries: Inputs that may be sent, over all services.
        progress: Told how many are answered.
        tell: Told what asking will cost, before it begins; without anybody to be told, no service is asked and no file
            of answers is read: texts such as `endpoint:URL` may then come from strangers, as on the web page.
    """

    networks: NetworkOptions
    max_queries: int | None = None
    progress: Progress | None = None
    tell: Callable[[str], None] | None = None

    @cached_property
    def _budget(self) -> "Budget":
        from stemma.networks.endpoints import Budget

        return Budget(MAX_QUERIES if self.max_queries is None else self.max_queries)

    def resolve(self, workspace: "Workspace", text: str) -> "Model":
        """The model that a text names; one without weights has no answers before the probes are known.

        Args:
            workspace: Finds models with weights.
            text: As typed.

        Returns:
            The model.
        """
        if self.tell is None or not is_black_box(text):
            return workspace.resolve(text)
        from stemma.checkpoints.model import Model

        def build(model: "Model") -> "Network":
            raise UnreadableModelError(
                f"{model.name} is known by its answers alone, so that nothing says what its inputs are: give probes "
                "that are files, for example an .npz with 'inputs'"
            )

        return Model(self._name(text), text, {}, network_builder=build, black_box=True)

    def options(
        self,
        probes: str | None,
        null: Sequence[str] | None,
        recipe: str | None,
        models: "Sequence[Model]",
        seed: int | None,
        workspace: "Workspace",
        searched: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """What `NetworkOptions.function_options` gives, where some models, control models too, have no weights.

        Args:
            probes: As given with `--probes`.
            null: Control models: paths, services and recorded answers.
            recipe: How to train control models instead.
            models: The models in question.
            seed: Of whatever is drawn at random.
            workspace: Finds models.
            searched: Files that are searched; one of them may say what inputs are.

        Returns:
            Keyword arguments of a comparison.

        Raises:
            MisuseError: If a model has no weights, and no probes are given.
        """
        boxes = [m for m in models if is_black_box(m.source)]
        asked = [text for text in null or () if is_black_box(text) and self.tell is not None]
        if probes is None and boxes:
            raise MisuseError(f"{boxes[0].name} has no weights and is compared by its answers alone: give --probes P")
        local = next((m for m in models if not is_black_box(m.source)), None)
        if local is None and searched:
            local = self.networks.first_runnable([Path(path) for path in searched])
        local = local or models[0]
        plain = [text for text in null or () if text not in asked] or None
        if not (boxes or asked):
            return self.networks.function_options(probes, null, recipe, local, seed)
        if any(_is_chat(m.source) for m in boxes) or any(map(_is_chat, asked)):
            options: dict[str, Any] = {"probes": _questions(probes)}
            if plain or recipe:
                raise MisuseError("control models of a chat service are chat services too: --null endpoint:chat+…")
        else:
            options = self.networks.function_options(probes, plain, recipe, local, seed)
        if asked:
            if recipe:
                raise MisuseError("--null and --null-recipe both say which control models to use: give one of them")
            given = [self.answered(self.resolve(workspace, text), options["probes"]) for text in asked]
            options["null"] = [*options.get("null", ()), *given]
        return options

    def probes(self, text: str | None, models: "Sequence[Model]", seed: int | None) -> "Probes":
        """Probe inputs for models of which some have no weights.

        Args:
            text: As given with `--probes`.
            models: The models.
            seed: Of synthetic inputs.

        Returns:
            The probes.
        """
        if any(_is_chat(m.source) for m in models):
            return _questions(text)
        local = next((m for m in models if not is_black_box(m.source)), models[0])
        return self.networks.read_probes(text, local, seed)

    def answered(self, model: "Model", probes: "Probes | None") -> "Model":
        """A model with its answers to the probes; one with weights, or without probes, as it is.

        Args:
            model: The model.
            probes: The probes.

        Returns:
            The model.
        """
        if probes is None or self.tell is None or not is_black_box(model.source):
            return model
        from stemma.networks.endpoints import answered_model, ask, read_recorded

        if model.source.startswith(RECORDED):
            path = Path(model.source.removeprefix(RECORDED))
            outputs, notes = read_recorded(path, len(probes), probes.digest), ()
        else:
            found = ask(self._endpoint(model.source), probes.inputs, self._budget, self.tell, self.progress)
            outputs, notes = found.outputs, found.notes
        if probes.kind == "tokens" and outputs.ndim == 2 and outputs.shape[1] == 1:
            outputs = outputs[:, None]  # one answer for a whole text is one position
        return answered_model(model.name, model.source, probes.inputs, outputs, notes)

    def _name(self, text: str) -> str:
        if text.startswith(SERVICE):
            return self._endpoint(text).name
        path = Path(text.removeprefix(RECORDED))
        if not path.is_file():
            raise MisuseError(f"there is no file {path} of recorded answers. Check the path")
        return path.stem

    def _endpoint(self, text: str) -> "Endpoint":
        from stemma.networks.endpoints import Endpoint

        return Endpoint.parse(text.removeprefix(SERVICE))


def _is_chat(text: str) -> bool:
    from stemma.networks.endpoints import Endpoint

    return text.startswith(SERVICE) and Endpoint.parse(text.removeprefix(SERVICE)).protocol == "chat"


def _questions(text: str | None) -> "Probes":
    from stemma.probes.text import read_lines

    if not text:
        raise MisuseError("a chat service is asked in words: give --probes FILE.txt, with one question on each line")
    return read_lines(Path(text))
