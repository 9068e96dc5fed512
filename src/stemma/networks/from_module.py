"""Models given in Python: any torch module, any callable."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.checkpoints.arrays import from_arrays
from stemma.checkpoints.model import Model
from stemma.errors import MissingExtraError, MisuseError
from stemma.types import Digest, InputSpec
from stemma.types.network import Network, main_output, network_digest

if TYPE_CHECKING:
    import torch


def from_module(module: Any, name: str = "module", input_spec: InputSpec | None = None) -> Model:
    """A model from a torch module or any callable.

    The module is not copied: do not train it afterwards, and put it in evaluation mode before using it.

    Args:
        module: An `nn.Module` in raw input space, or a callable from a batch `[n, …]` to outputs `[n, …]`. A callable
            gets float32 tensors and may return tensors or NumPy arrays; without gradients it is a black box.
        name: Name of the model.
        input_spec: Description of one raw input. Its normalisation is for display: the module gets raw inputs.

    Returns:
        A model with this network. A model from a callable has no weights; its identity is `blackbox:NAME`, and it is
        never cached.

    Raises:
        MissingExtraError: If torch is not installed.
        MisuseError: If it cannot be called.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("running a network", "torch", "networks") from error
    if isinstance(module, torch.nn.Module):
        module = getattr(module, "_orig_mod", module)  # a compiled module computes what it was compiled from
        tensors = {n: t for n, t in module.state_dict().items() if isinstance(t, torch.Tensor)}
        return with_module(from_arrays(tensors, name), module, input_spec)
    if not callable(module):
        raise MisuseError(f"{name!r} is a {type(module).__name__}, not a torch module or a callable")

    def network_builder(model: Model) -> Network:
        answer = _callable_forward(module)
        smooth = input_spec is None or differentiable(answer, input_spec)
        return Network(model.name, Digest(f"blackbox:{model.name}"), input_spec, answer, differentiable=smooth)

    return Model(name, f"python:{name}", {}, network_builder=network_builder, black_box=True)


def with_module(model: Model, module: "torch.nn.Module", input_spec: InputSpec | None) -> Model:
    """The model with this module as its network; its digest covers weights, structure, code and settings."""

    def network_builder(model: Model) -> Network:
        from stemma.networks.hugging_face import has_head, is_token_module, token_network

        code = f"python:{_code_digest(module)}"
        if input_spec is None and is_token_module(module):
            return token_network(model, module, code)
        digest = network_digest(model.digest, code, None, input_spec)
        return Network(model.name, digest, input_spec, module, module, scores=has_head(module))

    return replace(model, network_builder=network_builder)


def differentiable(answer: Callable[["torch.Tensor"], Any], spec: InputSpec) -> bool:
    """Whether a gradient reaches the input, tried on one input in mid-range; False for tokens."""
    import torch

    if spec.kind == "tokens":
        return False
    shape = [n or 64 for n in spec.shape]
    x = torch.full((1, *shape), (spec.low + spec.high) / 2).requires_grad_()
    try:
        return has_gradient(main_output(answer(x)), x)
    except Exception:  # any code may run here; errors appear when the network is used
        return False


def has_gradient(out: "torch.Tensor | None", x: "torch.Tensor") -> bool:
    """Whether a gradient of the outputs reaches `x`."""
    import torch

    if out is None or not out.requires_grad or not out.is_floating_point():
        return False
    return torch.autograd.grad(out.sum(), x, allow_unused=True)[0] is not None


def _callable_forward(call: Callable[["torch.Tensor"], Any]) -> Callable[["torch.Tensor"], "torch.Tensor | None"]:
    def answer(x: "torch.Tensor") -> "torch.Tensor | None":
        import torch

        out = call(x.float() if x.is_floating_point() else x)
        found = torch.from_numpy(np.array(out)) if isinstance(out, (np.ndarray, list, tuple)) else main_output(out)
        return found.float() if found is not None and not found.is_floating_point() else found

    return answer


def _code_digest(module: "torch.nn.Module") -> str:
    """Digest of what the state dict does not hold: structure, code, plain settings, non-persistent buffers."""
    found = hashlib.sha256(repr(module).encode())
    stored = module.state_dict(keep_vars=True)
    classes: set[type] = set()
    for name, part in module.named_modules():
        settings = {k: v for k, v in vars(part).items() if k[0] != "_" and k != "training" and _is_plain_value(v)}
        found.update(f"{name} {type(part).__module__}.{type(part).__qualname__} {sorted(settings.items())}\n".encode())
        if type(part) not in classes and not type(part).__module__.startswith("torch."):
            classes.add(type(part))
            try:
                found.update(inspect.getsource(type(part)).encode())
            except (OSError, TypeError):  # defined in an interactive session
                found.update(getattr(getattr(type(part).forward, "__code__", None), "co_code", b""))
    for name, buffer in module.named_buffers():
        if name not in stored:
            found.update(name.encode() + buffer.detach().cpu().contiguous().float().numpy().tobytes())
    return f"sha256:{found.hexdigest()}"


def _is_plain_value(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain_value(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))
