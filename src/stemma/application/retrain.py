"""Models retrained without the forget set, made by the user's own training function, and kept."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stemma.errors import MisuseError, StemmaError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from stemma.checkpoints.model import Model
    from stemma.probes import Probes
    from stemma.types import Digest

Progress = Callable[[str, int, int | None], None]

RECIPE_VERSION = 1
"""Raised whenever a recipe is called in another way than before; part of the identity of what it trained."""


@dataclass(frozen=True, eq=False)
class RetrainRecipe:
    """A training function of the user, called as `f(dataset, seed)` for every model.

    Attributes:
        function: `MODULE:FUNCTION`; the module is imported, from the current folder too.
        dataset: What is to be learnt, without the forget set: `inputs` and `labels` as arrays.
        original: The model before; the trained weights have to fit its network.
        allow_code: Must be true, since this runs the module's code.
    """

    function: str
    dataset: "Probes"
    original: "Model"
    allow_code: bool = False

    def __post_init__(self) -> None:
        if not all(self.function.partition(":")):
            raise MisuseError(f"--retrain-recipe takes MODULE:FUNCTION, for example mynet:train, not '{self.function}'")
        if not self.allow_code:
            raise MisuseError(
                f"--retrain-recipe {self.function} runs the code of that module: if you trust it, add --allow-code"
            )

    def train(self, seeds: range, progress: Progress) -> "list[Model]":
        """One model per seed: from the cache where it was trained before, else trained now.

        The cost is said before the first training, and again, measured, after it.

        Args:
            seeds: One per model; the function has to draw its start and order from it.
            progress: Told what is done.

        Returns:
            The models.
        """
        from stemma.networks.from_factory import current_folder, import_callable
        from stemma.zoo import cache

        module_name, _, attribute = self.function.partition(":")
        with current_folder() as folder:
            train = import_callable(module_name, attribute, folder)
            names = {seed: self._digest(train, seed) for seed in seeds}
            models: list[Model] = []
            missing = [seed for seed, digest in names.items() if not cache.has(digest)]
            if missing:
                what = f"{len(missing)} models from scratch with {self.function}, {len(self.dataset):,} inputs each"
                progress(f"training {what}", 0, len(seeds))
            for done, seed in enumerate(seeds):
                started = time.perf_counter()
                arrays, _ = cache.recall(names[seed], lambda seed=seed: (self._trained(train, seed), {}), keep=True)
                models.append(self._model(arrays, seed))
                missing = [s for s in missing if s != seed]
                left = (time.perf_counter() - started) * len(missing)
                progress(f"training with {self.function}: about {left:,.0f} s left", done + 1, len(seeds))
        return models

    def _digest(self, train: Callable[..., Any], seed: int) -> "Digest":
        """Identity of one training: the function with the code around it, the data, the seed, and the network."""
        import hashlib
        import inspect

        from stemma.types import Spec

        try:
            code = inspect.getsource(inspect.getmodule(train) or train)
        except (OSError, TypeError):
            code = repr(train)
        parts = {
            "function": self.function, "code": hashlib.sha256(code.encode()).hexdigest(),
            "data": self.dataset.digest, "seed": seed, "network": str(self.original.digest),
        }  # fmt: skip
        return Spec("retrain-recipe", RECIPE_VERSION, parts).digest

    def _trained(self, train: Callable[..., Any], seed: int) -> "Mapping[str, np.ndarray]":
        import torch

        from stemma.networks.from_factory import one_line

        try:
            module = train(self.dataset, seed)
        except (Exception, SystemExit) as error:  # any code may be in the function
            raise StemmaError(f"{self.function}(dataset, {seed}) failed: {one_line(error)}") from error
        if not isinstance(module, torch.nn.Module):
            kind = type(module).__name__
            raise MisuseError(f"{self.function} returns a {kind}. It must return the trained nn.Module")
        return {n: plain_array(t) for n, t in module.state_dict().items()}

    def _model(self, arrays: "Mapping[str, np.ndarray]", seed: int) -> "Model":
        """The network of the original with other weights."""
        import copy

        import torch

        from stemma.networks.from_factory import one_line
        from stemma.networks.from_module import from_module

        network = self.original.network
        if network.module is None:
            raise MisuseError(f"{self.original.name} is a black box: a recipe needs a network that weights fit")
        module = copy.deepcopy(network.module)
        weights = {n: torch.from_numpy(a.copy()) for n, a in arrays.items()}
        size = len(list(module.parameters()))  # a wrapper may hold the network, but no part of it stands for the whole
        inner = next((m for m in module.modules() if len(list(m.parameters())) == size
                      and set(m.state_dict()) == set(weights)), None)  # fmt: skip
        try:
            if inner is None:
                raise MisuseError(
                    f"what {self.function} trained has other tensors than the network of {self.original.name}: it has "
                    "to train a network of the same architecture"
                )
            inner.load_state_dict(weights)
        except RuntimeError as error:
            raise MisuseError(
                f"what {self.function} trained does not fit the network of {self.original.name}: {one_line(error)}"
            ) from error
        return from_module(module.eval(), f"retrained-{seed}", network.input_spec)


def plain_array(tensor: "torch.Tensor") -> "np.ndarray":
    """A tensor as an array; widths that NumPy lacks become float32."""
    import torch

    still = tensor.detach().cpu()
    return (still.float() if still.dtype == torch.bfloat16 else still).numpy()
