"""Networks for weights without architecture: a factory in the user's code builds the module."""

import importlib
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stemma.checkpoints.model import Model
from stemma.errors import MisuseError, StemmaError
from stemma.networks.from_module import with_module
from stemma.networks.loading import load_strictly
from stemma.types import InputSpec


def network_from_factory(model: Model, factory: str, allow_code: bool = False) -> Model:
    """The same model, run by the module that a factory builds.

    Args:
        model: The weights.
        factory: `MODULE:FACTORY`; the module is imported, from the current folder too. `FACTORY()` returns a module
            in raw input space, or `(module, InputSpec)`; the weights are then loaded into it, strictly.
        allow_code: Must be true, since this runs the module's code.

    Returns:
        The model with a network, in evaluation mode.

    Raises:
        MisuseError: If code is not allowed, or the factory cannot be found or returns something else.
        StemmaError: If the factory fails.
        UnreadableModelError: If the weights do not fit the module.
    """
    module_name, colon, attribute = factory.partition(":")
    if not colon or not module_name or not attribute:
        raise MisuseError(f"{factory!r} is not a factory. Use MODULE:FACTORY, for example mynet:build")
    if not allow_code:
        raise MisuseError(
            f"--network {factory} runs code of the Python module {module_name!r}. Add --allow-code if you trust it"
        )
    with current_folder() as folder:
        module, spec = _call_factory(factory, import_callable(module_name, attribute, folder))
    load_strictly(module, model)
    return with_module(model, module.eval(), spec)


@contextmanager
def current_folder() -> Generator[str]:
    """Modules of the current folder can be imported inside; yields the folder."""
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        yield folder
    finally:
        if added:
            sys.path.remove(folder)


def import_callable(module_name: str, attribute: str, folder: str) -> Any:
    """What a module of the user calls by this name.

    Args:
        module_name: The module, which is imported.
        attribute: Name inside it, with dots.
        folder: Where it was looked for, for the error.

    Returns:
        The callable.

    Raises:
        MisuseError: If it is not there, or cannot be called.
        StemmaError: If the module fails when it is imported.
    """
    try:
        importlib.invalidate_caches()
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise MisuseError(
            f"cannot find {attribute!r} in the Python module {module_name!r}: {error}. Check that it is in {folder}"
        ) from error
    except (Exception, SystemExit) as error:  # any code may be in the module
        raise StemmaError(f"importing {module_name!r} failed: {one_line(error)}") from error
    if not callable(target):
        raise MisuseError(f"{module_name}:{attribute} is not callable. Use a function or class that builds the network")
    return target


def _call_factory(factory: str, call: Any) -> tuple[Any, InputSpec | None]:
    import torch

    try:
        result = call()
    except (Exception, SystemExit) as error:  # any code may be in the factory
        raise StemmaError(f"{factory}() failed: {one_line(error)}") from error
    module, spec = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(module, torch.nn.Module) or not (spec is None or isinstance(spec, InputSpec)):
        raise MisuseError(
            f"{factory}() returns a {type(result).__name__}. It must return a torch module, or a module and a "
            "stemma.InputSpec"
        )
    return module, spec


def one_line(error: BaseException) -> str:
    """An error of foreign code in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
