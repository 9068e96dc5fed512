"""How the networks of models are built and run, and which probe inputs they are given."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.errors import MisuseError, StemmaError, UnreadableModelError

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.probes import Probes
    from stemma.types.network import Network
    from stemma.workspace import Workspace


@dataclass(frozen=True)
class NetworkOptions:
    """How networks are built, where they run, and where data sets lie.

    Attributes:
        network: `MODULE:FACTORY` that builds the networks of bare weights.
        allow_code: Whether that code may run.
        device: Device that networks run on; null leaves them where they are built, on the CPU.
        data: Folder of data sets.
        trains: Whether the command names further code that is to be allowed, a recipe that trains; not kept.

    Raises:
        MisuseError: If the code is named and not allowed, or allowed and not named, or the folder does not exist.
    """

    network: str | None = None
    allow_code: bool = False
    device: str | None = None
    data: str | None = None
    trains: InitVar[bool] = False

    def __post_init__(self, trains: bool) -> None:
        if self.network is not None and not self.allow_code:
            raise MisuseError(
                f"--network {self.network} runs the code of that module: if you trust it, add --allow-code"
            )
        if self.network is not None and not all(self.network.partition(":")):
            raise MisuseError(f"--network takes MODULE:FACTORY, for example mynets:resnet, not '{self.network}'")
        if self.allow_code and self.network is None and not trains:
            raise MisuseError("--allow-code is given without --network MODULE:FACTORY, the code that it allows to run")
        if self.data is not None:
            if not Path(self.data).is_dir():
                raise MisuseError(f"--data {self.data} is not a folder")
            os.environ["STEMMA_DATA"] = self.data

    def open_model(self, workspace: "Workspace", text: str) -> "Model":
        """The model of this path, registry name or digest prefix; its network is built when it is first run."""
        return self.with_network(workspace.resolve(text))

    def open_models(self, workspace: "Workspace", texts: Sequence[str]) -> "Iterator[Model]":
        """Models by path, name or digest prefix; a folder of several checkpoints stands for all of them."""
        from stemma.checkpoints.load import discover
        from stemma.networks.load import open_models

        for text in texts:
            inside = list(discover(Path(text))) if Path(text).is_dir() else []
            if len(inside) > 1:
                yield from (self.with_network(open_models(c.path, c.name)[0]) for c in inside)
            else:
                yield self.open_model(workspace, text)

    def with_network(self, model: "Model") -> "Model":
        """The same model with the network that these options give it."""
        from stemma.checkpoints.model import Model

        if model.black_box or (self.network is None and self.device is None):
            return model

        def runs(_: Model) -> "Network":
            return self._placed(self._built(replace(model)))  # a network of its own, each time

        able = replace(model, network_builder=runs)
        able.__dict__.update({k: v for k, v in model.__dict__.items() if k not in able.__dict__ and k != "network"})
        return able

    def first_runnable(self, paths: Sequence[Path | str]) -> "Model | None":
        """The first model among checkpoints and folders whose network can be built; None where there is none."""
        from stemma.checkpoints.load import discover
        from stemma.networks.load import open_models

        for path in paths:
            for checkpoint in discover(path):
                with contextlib.suppress(StemmaError, OSError):
                    model = self.with_network(open_models(checkpoint.path, checkpoint.name)[0])
                    _ = model.network
                    return model
        return None

    def read_probes(self, text: str | None, model: "Model | None", seed: int | None = None) -> "Probes":
        """Probe inputs as `--probes` names them.

        Args:
            text: A folder, a file, or synthetic inputs such as `noise:n=256,seed=0`.
            model: Its input space is the one that they are for; None where there is no model to look at.
            seed: Of synthetic inputs that name no seed of their own.

        Returns:
            The probes.

        Raises:
            MisuseError: If there are none.
            UnreadableModelError: If the probes depend on an input space that is not known.
        """
        from stemma.probes import read_probes

        if not text:
            raise MisuseError(
                "no probe inputs are given: add --probes with a folder of images or sounds, a .txt, an .npz, or "
                "noise:n=256,seed=0"
            )
        limit_threads()
        text = _seeded(text, seed)
        unknown = None
        try:
            spec = None if model is None else model.network.input_spec
        except UnreadableModelError as error:  # arrays need no input space; whatever does says so
            spec, unknown = None, error
        try:
            return read_probes(text, spec, tokenizer=None if model is None else _tokenizer(model))
        except MisuseError:
            if unknown is not None:
                raise unknown from None
            raise

    def function_options(
        self,
        probes: str | None,
        null: Sequence[str] | None,
        recipe: str | None,
        model: "Model",
        seed: int | None,
    ) -> dict[str, Any]:
        """What a verdict on the function axis takes: `probes` and `null`, as far as they are given.

        Args:
            probes: As given with `--probes`; without, only weights are compared.
            null: Paths of control models.
            recipe: How to train control models instead.
            model: A model whose input space the probes are for.
            seed: Of whatever is drawn at random.

        Returns:
            Keyword arguments of `Workspace.compare` and `Workspace.trace`.

        Raises:
            MisuseError: If these options do not go together.
        """
        if null and recipe:
            raise MisuseError("--null and --null-recipe both say which control models to use: give one of them")
        if probes is None:
            given = [name for name, value in (("--null", null), ("--null-recipe", recipe)) if value]
            if given:
                raise MisuseError(f"{given[0]} is about what the models compute on probe inputs: give --probes P too")
            return {}
        options: dict[str, Any] = {"probes": self.read_probes(probes, model, seed)}
        if null:
            return options | {"null": self._reference_models([Path(path) for path in null])}
        return options | ({"null": recipe} if recipe else {})

    def _reference_models(self, paths: Sequence[Path]) -> "Sequence[Path | Model]":
        for path in paths:
            if not path.exists():
                raise MisuseError(f"--null: {path} does not exist. Check the path")
        if self.network is None and self.device is None:
            return paths
        from stemma.checkpoints.load import discover
        from stemma.networks.load import open_models

        # Opened here, so that they are run like the models that are compared.
        found = (open_models(c.path, c.name)[0] for path in paths for c in discover(path))
        return [self.with_network(model) for model in found]

    def _built(self, model: "Model") -> "Network":
        try:
            return model.network
        except UnreadableModelError:
            if self.network is None:
                raise
        from stemma.networks.from_factory import network_from_factory

        return network_from_factory(model, self.network, self.allow_code).network

    def _placed(self, network: "Network") -> "Network":
        if self.device is None or network.module is None:
            return network
        try:
            network.module.to(self.device)
        except (RuntimeError, AssertionError):
            import torch

            here = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
            here += ["mps"] if torch.backends.mps.is_available() else []
            raise MisuseError(f"there is no device '{self.device}' here. There are: {', '.join(here)}") from None
        return network


def _seeded(text: str, seed: int | None) -> str:
    """Synthetic probes with the seed of the command line, unless they have one of their own."""
    made, sign, part = text.partition("#")
    if seed is None or made.partition(":")[0] not in ("noise", "cutmix", "unusual") or "seed=" in made:
        return text
    return f"{made}{',' if ':' in made else ':'}seed={seed}{sign}{part}"


def _tokenizer(model: "Model") -> Path | None:
    """The folder of the model, where a tokenizer would lie."""
    source = Path(model.source)
    return source if source.is_dir() else source.parent if source.is_file() else None


def limit_threads() -> None:
    """Let torch use as many threads as `--threads` says."""
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
