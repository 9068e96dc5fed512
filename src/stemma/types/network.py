"""A model that can be questioned: raw inputs in, outputs out, whatever it is made of."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stemma.errors import StemmaError, UnreadableModelError
from stemma.types import Digest, InputSpec, Spec

if TYPE_CHECKING:
    import torch

Answer = Callable[["torch.Tensor"], Any]


@dataclass(frozen=True, eq=False)
class Network:
    """What a method asks: inputs in the raw input space, with the model's own normalisation inside.

    Attributes:
        name: The model's name.
        digest: Identity of the weights, of the code or format that runs them, and of the input specification;
            `blackbox:NAME` where there is nothing to digest.
        input_spec: What one raw input is, None where nobody said.
        forward: Raw inputs `[n, …]` to outputs `[n, …]`; token ids `[n, length]` for token networks.
        module: The torch module inside, for hooks and parameters; None for a black box.
        differentiable: Whether gradients of the outputs reach the inputs.
        from_one_hot: For token networks: relaxed one-hot inputs `[n, length, vocabulary]` to outputs; None elsewhere.
        tokenizer: Identity of the tokenizer (its vocabulary's digest); token networks are compared only where it
            agrees. None where unknown.
        scores: Whether it answers with scores of classes or next tokens; False for hidden states and embeddings, whose
            largest entry is no class.
    """

    name: str
    digest: Digest
    input_spec: InputSpec | None
    forward: Answer
    module: "torch.nn.Module | None" = None
    differentiable: bool = True
    from_one_hot: Answer | None = None
    tokenizer: str | None = None
    scores: bool = True

    def __call__(self, inputs: "torch.Tensor") -> "torch.Tensor":
        """Outputs, with the graph back to the inputs where the network is differentiable.

        Args:
            inputs: Raw inputs `[n, …]`.

        Returns:
            The main output `[n, …]`: of a dict or object `logits`, else the first tensor.

        Raises:
            StemmaError: If the network refuses these inputs, or answers with something else than one row per input.
        """
        return _checked(self, self.forward, inputs)

    def relaxed(self, one_hot: "torch.Tensor") -> "torch.Tensor":
        """Outputs for relaxed one-hot inputs `[n, length, vocabulary]`.

        Args:
            one_hot: A probability vector per position.

        Returns:
            As `__call__`.

        Raises:
            UnreadableModelError: If this is no token network whose embedding is known.
        """
        if self.from_one_hot is None:
            raise UnreadableModelError(f"{self.name} takes no tokens, so it has no relaxed one-hot input space")
        return _checked(self, self.from_one_hot, one_hot)

    @cached_property
    def parameter(self) -> "torch.Tensor | None":
        """The first floating-point parameter: it tells dtype and device."""
        tensors = () if self.module is None else (*self.module.parameters(), *self.module.buffers())
        return next((t for t in tensors if t.is_floating_point()), None)


def network_digest(weights: Digest, code: str, config: Any, input_spec: InputSpec | None) -> Digest:
    """Identity of what answers: weights, the code or format that runs them, configuration, input specification.

    Returns:
        The digest under which functional records are kept.
    """
    return Spec("network", 1, {"weights": weights, "code": code, "config": config, "input": input_spec}).digest


def _checked(network: Network, answer: Answer, inputs: "torch.Tensor") -> "torch.Tensor":
    try:
        out = main_output(answer(inputs))
    except StemmaError:
        raise
    except Exception as e:  # any code may stand behind a network
        shape, why = list(inputs.shape[1:]), " ".join(str(e).split())[:300]
        what = "inputs" if inputs.is_floating_point() else "integer inputs (token ids)"
        hint = "Are these probes of its raw input space?"
        if "nference tensor" in why:
            hint = "Its weights were made under torch.inference_mode(): build and load the module outside of it"
        raise StemmaError(f"{network.name} does not answer {what} of shape {shape}: {why.rstrip('.')}. {hint}") from e
    if out is None or out.ndim < 2 or len(out) != len(inputs):
        given = "no tensor" if out is None else f"a tensor of shape {list(out.shape)}"
        raise StemmaError(
            f"{network.name} answers {len(inputs)} inputs with {given}: one row of numbers per input is needed. "
            "Wrap it so that it returns [n, …]."
        )
    return out


def main_output(answer: Any) -> "torch.Tensor | None":
    """The tensor that counts in an answer: itself, `logits`, else the first one that is more than a single number.

    A loss beside the scores is a single number. Tuples, mappings and dataclasses may hold one another.

    Returns:
        A tensor, or None where there is none.
    """
    import torch

    if isinstance(answer, torch.Tensor):
        return answer
    logits = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    if isinstance(logits, torch.Tensor):
        return logits
    found = [t for t in map(main_output, _parts(answer)) if t is not None]
    return next((t for t in found if t.ndim), found[0] if found else None)


def _parts(answer: Any) -> Iterable[Any]:
    if isinstance(answer, Mapping):
        return answer.values()
    if isinstance(answer, (tuple, list)):
        return answer
    if is_dataclass(answer) and not isinstance(answer, type):
        return [getattr(answer, f.name) for f in fields(answer)]
    return ()
