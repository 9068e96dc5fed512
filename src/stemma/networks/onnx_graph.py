"""Networks of ONNX files: black boxes that ONNX Runtime answers for."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from stemma.checkpoints.model import Model
from stemma.errors import MissingExtraError, StemmaError, UnreadableModelError
from stemma.networks import preprocessing, tokenizer
from stemma.networks.fixed_batch import in_batches
from stemma.networks.preprocessing import Preprocessing
from stemma.types import InputSpec
from stemma.types.network import Network, network_digest

if TYPE_CHECKING:
    import torch

DTYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8,
}  # fmt: skip
BESIDE = ("attention_mask", "token_type_ids", "position_ids")
"""Inputs beside token ids that follow from them when nothing is padded."""


def open_onnx(model: Model, path: Path) -> Network:
    """The network of an `.onnx` file.

    External data are read by Stemma's reader first, which refuses places outside the folder.

    Args:
        model: As loaded.
        path: The file.

    Returns:
        A network without gradients; it runs on the processor. The raw inputs are those of the graph: axes of any length
        are 0, and the range is taken to be [0, 1] (0 to 255 for bytes). In a checkpoint folder, the normalisation of
        its preprocessor is inside, and the vocabulary is that of its files.

    Raises:
        MissingExtraError: If ONNX Runtime is not installed.
        UnreadableModelError: If the runtime does not take the file, or it wants inputs that cannot be made up.
    """
    session = _session(path)
    first, *others = session.get_inputs()
    beside = [i for i in others if i.name in BESIDE]
    if len(beside) != len(others) or (beside and "int" not in first.type):
        extra = ", ".join(i.name for i in others if i not in beside) or beside[0].name
        raise UnreadableModelError(
            f"{model.name} also wants {extra} beside {first.name}: export it with one input, the others fixed inside"
        )
    if first.type not in DTYPES or not first.shape:
        raise UnreadableModelError(f"{model.name} takes {first.type} {first.shape}, which no probes are")
    shape = [n if isinstance(n, int) and n > 0 else 0 for n in first.shape]
    reads = _reads(model, path.parent, _spec(model, first.type, shape[1:]))
    spec = reads.spec
    answer: Callable[[torch.Tensor], Any] = _runs(session, first, beside)
    with path.open("rb") as file:
        graph = hashlib.file_digest(file, "sha256").hexdigest()
    digest = network_digest(model.digest, f"onnx:{graph}", None, spec)
    if shape[0]:
        answer = in_batches(model.name, answer, shape[0])
    if reads.flip or (spec.mean, spec.std) != ((0.0,), (1.0,)):
        from stemma.networks.normalization import Normalised

        answer = Normalised(answer, spec, flip=reads.flip)
    words = tokenizer.identity(path.parent) if spec.kind == "tokens" and model.config else None
    return Network(model.name, digest, spec, answer, differentiable=False, tokenizer=words)


def _session(path: Path) -> Any:
    try:
        import onnxruntime
        import torch
    except ImportError as error:
        package = "torch" if error.name == "torch" else "onnxruntime"
        raise MissingExtraError(
            "asking an ONNX model", package, "networks" if package == "torch" else "onnx"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises its own kinds
        raise UnreadableModelError(f"ONNX Runtime does not take {path}: {_line(error)}") from error


def _spec(model: Model, kind: str, shape: list[int]) -> InputSpec:
    if kind in ("tensor(int64)", "tensor(int32)"):
        if len(shape) != 1:
            raise UnreadableModelError(
                f"{model.name} takes integers with {len(shape) + 1} axes, but tokens are [n, length]"
            )
        return InputSpec("tokens", (shape[0] or 1 << 20,), 0, 2**31 - 1)
    high = 255.0 if kind == "tensor(uint8)" else 1.0
    return InputSpec("image" if len(shape) == 3 and shape[0] <= 4 else "tensor", tuple(shape), 0.0, high)


def _reads(model: Model, folder: Path, spec: InputSpec) -> Preprocessing:
    # with the normalisation and the vocabulary of a checkpoint folder that the file is the weights of
    if model.config is None:
        return Preprocessing(spec)
    if spec.kind == "tokens":
        last = tokenizer.last_id(folder, model.config.get("vocab_size"))
        return Preprocessing(spec if last is None else replace(spec, high=last))
    says = preprocessing.claimed(folder)
    if spec.kind != "image" or not says:
        return Preprocessing(spec)
    found = preprocessing.image({}, SimpleNamespace(num_channels=spec.shape[0]), says)
    return Preprocessing(replace(spec, mean=found.spec.mean, std=found.spec.std), flip=found.flip)


def _runs(session: Any, first: Any, beside: list[Any]) -> "Callable[[torch.Tensor], torch.Tensor]":
    output = next((o.name for o in session.get_outputs() if o.name == "logits"), session.get_outputs()[0].name)

    def answer(x: "torch.Tensor") -> "torch.Tensor":
        import torch

        values = x.detach().cpu().numpy().astype(DTYPES[first.type])
        given = {first.name: values}
        for part in beside:
            rows = {"attention_mask": np.ones_like(values), "token_type_ids": np.zeros_like(values)}
            places = np.broadcast_to(np.arange(values.shape[-1]), values.shape)
            given[part.name] = rows.get(part.name, places).astype(DTYPES.get(part.type, np.int64))
        found = session.run([output], given)[0]
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
            raise StemmaError(f"the output {output} is no tensor of numbers")
        wide = np.float64 if found.dtype == np.float64 else np.float32
        return torch.from_numpy(np.ascontiguousarray(found.astype(wide)))

    return answer


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
