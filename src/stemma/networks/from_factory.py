"""Networks of bare weights: a factory in the user's own code builds the module, Stemma fills it."""

import importlib
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.networks.from_module import of_module
from stemma.networks.loading import load_strictly
from stemma.types import InputSpec


def network_from_factory(model: Model, factory: str, allow_code: bool = False) -> Model:
    """The same model, run by the module that a factory builds.

    Args:
        model: The weights.
        factory: `MODULE:FACTORY`; the module is imported, from the current folder too. `FACTORY()` returns a module
            in raw input space, or `(module, InputSpec)`; the weights are then loaded into it, strictly.
        allow_code: That the user knows that this runs the module's code.

    Returns:
        The model with a network, in evaluation mode.

    Raises:
        MisuseError: If code is not allowed, or the factory cannot be found or returns something else.
        StemmaError: If the factory fails.
        UnreadableModelError: If the weights do not fit the module.
    """
    place, colon, called = factory.partition(":")
    if not colon or not place or not called:
        raise MisuseError(f"a factory is given as MODULE:FACTORY, for example mynet:build, not as {factory!r}")
    if not allow_code:
        raise MisuseError(
            f"--network {factory} runs the code of the module {place!r}: say --allow-code if you trust it"
        )
    with _current_folder() as here:
        module, spec = _made(factory, _found(place, called, here))
    load_strictly(module, model)
    return of_module(model, module.eval(), spec)


@contextmanager
def _current_folder() -> Generator[str]:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield here
    finally:
        if added:
            sys.path.remove(here)


def _found(place: str, called: str, here: str) -> Any:
    try:
        importlib.invalidate_caches()
        target: Any = importlib.import_module(place)
        for part in called.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise MisuseError(f"there is no factory {called!r} in a module {place!r}: {error}. Is it in {here}?") from error
    except (Exception, SystemExit) as error:  # any code may stand in the module
        raise StemmaError(f"importing {place!r} failed: {_line(error)}") from error
    if not callable(target):
        raise MisuseError(f"{place}:{called} is no factory: it cannot be called")
    return target


def _made(factory: str, call: Any) -> tuple[Any, InputSpec | None]:
    import torch

    try:
        made = call()
    except (Exception, SystemExit) as error:  # any code may stand in the factory
        raise StemmaError(f"{factory}() failed: {_line(error)}") from error
    module, spec = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module) or not (spec is None or isinstance(spec, InputSpec)):
        raise MisuseError(
            f"{factory}() returns a {type(made).__name__}, but a factory returns a torch module, or a module and its "
            "stemma.InputSpec"
        )
    return module, spec


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
