"""Models that can be asked and what they are asked, from the options that say how."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemma.errors import MisuseError, StemmaError, UnreadableModelError

if TYPE_CHECKING:
    from stemma.checkpoints.model import Model
    from stemma.probes import Probes
    from stemma.types.network import Network
    from stemma.workspace import Workspace


@dataclass(frozen=True)
class Asking:
    """How networks are built, where they run, and where data lie.

    Attributes:
        factory: `MODULE:FACTORY` that builds the networks of bare weights.
        allow_code: Whether that code may run.
        device: Where networks run; None leaves them where they are built, on the processor.
        data: Where data sets lie.
    """

    factory: str | None = None
    allow_code: bool = False
    device: str | None = None
    data: Path | None = None

    def __post_init__(self) -> None:
        if self.factory is not None and not self.allow_code:
            raise MisuseError(
                f"--network {self.factory} runs the code of that module: say --allow-code too, if you trust it"
            )
        if self.factory is not None and not all(self.factory.partition(":")):
            raise MisuseError(f"--network takes MODULE:FACTORY, for example mynets:resnet, not '{self.factory}'")
        if self.allow_code and self.factory is None:
            raise MisuseError("--allow-code allows the code that --network MODULE:FACTORY names, but none was named")
        if self.data is not None:
            if not self.data.is_dir():
                raise MisuseError(f"--data {self.data} is no folder")
            os.environ["STEMMA_DATA"] = str(self.data)

    def model(self, workspace: "Workspace", text: str) -> "Model":
        """The model that a person means, able to answer if anything says how.

        Args:
            workspace: Looks names up.
            text: A path, a registry name or a digest prefix.

        Returns:
            The model; its network is built when it is first asked.
        """
        return self.able(workspace.resolve(text))

    def able(self, model: "Model") -> "Model":
        """The same model with the network that the options give it.

        Args:
            model: As it was read.

        Returns:
            The model.
        """
        from stemma.checkpoints.model import Model

        if model.black_box or (self.factory is None and self.device is None):
            return model

        def runs(asked: Model) -> "Network":
            return self._placed(self._built(replace(model)))  # a network of its own, each time

        able = replace(model, network_builder=runs)
        able.__dict__.update({k: v for k, v in model.__dict__.items() if k not in able.__dict__ and k != "network"})
        return able

    def first(self, paths: Sequence[Path]) -> "Model | None":
        """A model among checkpoints that can be asked: probes are made for its input space.

        Args:
            paths: Checkpoints, or folders of them.

        Returns:
            The first whose network can be built; None where there is none.
        """
        from stemma.checkpoints.load import discover
        from stemma.networks.load import open_models

        for path in paths:
            for checkpoint in discover(path):
                with contextlib.suppress(StemmaError, OSError):
                    model = self.able(open_models(checkpoint.path, checkpoint.name)[0])
                    _ = model.network
                    return model
        return None

    def probes(self, text: str | None, like: "Model | None", seed: int | None = None) -> "Probes":
        """What the models are asked.

        Args:
            text: As given with `--probes`.
            like: A model whose input space they are for, None where there is none to look at.
            seed: Of synthetic probes that name none.

        Returns:
            The probes.

        Raises:
            MisuseError: If there are none.
            UnreadableModelError: If the probes depend on an input space that nobody knows.
        """
        from stemma.probes import read_probes

        if not text:
            raise MisuseError(
                "nothing says what the models are asked: give --probes with a folder of images or sounds, a .txt, an "
                ".npz, or noise:n=256,seed=0"
            )
        threads_as_told()
        text = _seeded(text, seed)
        unknown = None
        try:
            spec = None if like is None else like.network.input_spec
        except UnreadableModelError as error:  # arrays need no input space; whatever does says so
            spec, unknown = None, error
        try:
            return read_probes(text, spec, tokenizer=None if like is None else _tokenizer(like))
        except MisuseError:
            if unknown is not None:
                raise unknown from None
            raise

    def function(
        self,
        probes: str | None,
        null: Sequence[Path] | None,
        recipe: str | None,
        like: "Model",
        seed: int | None,
        *,
        html: bool = False,
    ) -> dict[str, Any]:
        """What a verdict on the function axis takes.

        Args:
            probes: As given with `--probes`; without, only weights are compared.
            null: Paths of independent models.
            recipe: How to train independent models instead.
            like: A model whose input space the probes are for.
            seed: Of whatever is drawn at random.
            html: Whether a page is asked for.

        Returns:
            `probes` and `null`, as far as they were given.

        Raises:
            MisuseError: If these options do not go together.
        """
        if null and recipe:
            raise MisuseError("--null and --null-recipe say twice where independent models come from: give one")
        if probes is None:
            asked = [name for name, given in (("--null", null), ("--null-recipe", recipe), ("--html", html)) if given]
            if asked:
                raise MisuseError(f"{asked[0]} is about what the models do: give --probes P too")
            return {}
        out: dict[str, Any] = {"probes": self.probes(probes, like, seed)}
        if null:
            return out | {"null": self._independent(null)}
        return out | ({"null": recipe} if recipe else {})

    def _independent(self, paths: Sequence[Path]) -> "Sequence[Path | Model]":
        """Null models; with a factory or a device, opened here so that they are run like the others."""
        for path in paths:
            if not path.exists():
                raise MisuseError(f"there is nothing at {path}, which --null names. Is the path right?")
        if self.factory is None and self.device is None:
            return paths
        from stemma.checkpoints.load import discover
        from stemma.networks.load import open_models

        found = (open_models(c.path, c.name)[0] for path in paths for c in discover(path))
        return [self.able(model) for model in found]

    def _built(self, model: "Model") -> "Network":
        try:
            return model.network
        except UnreadableModelError:
            if self.factory is None:
                raise
        from stemma.networks.from_factory import network_from_factory

        return network_from_factory(model, self.factory, self.allow_code).network

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


def threads_as_told() -> None:
    """Let torch use as many threads as `--threads` says."""
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
