"""Networks of ONNX files: black boxes run by ONNX Runtime."""

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
from stemma.networks.fixed_batch import in_fixed_batches
from stemma.networks.preprocessing import Preprocessing
from stemma.types import InputSpec
from stemma.types.network import Network, network_digest

if TYPE_CHECKING:
    import torch

DTYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8,
}  # fmt: skip
DERIVED_INPUTS = ("attention_mask", "token_type_ids", "position_ids")
"""Inputs that follow from token ids without padding."""

HIDDEN_OUTPUTS = frozenset({"last_hidden_state", "token_embeddings", "sentence_embedding", "pooler_output"})
"""Outputs that are hidden states, by the names that exporters of transformers give them."""


def open_onnx(model: Model, path: Path) -> Network:
    """The network of an `.onnx` file, run by ONNX Runtime on the processor, without gradients.

    External data are read by Stemma's reader first, which refuses paths outside the folder. The raw inputs are those of
    the graph: dynamic axes are 0, and the range is assumed to be [0, 1] (0 to 255 for bytes). In a checkpoint folder
    the normalisation of its preprocessor is applied.

    Raises:
        UnreadableModelError: If ONNX Runtime rejects the file, or it needs inputs that cannot be derived.

    Returns:
        The network.

    """
    session = _session(path)
    main_input, *others = session.get_inputs()
    derived = [i for i in others if i.name in DERIVED_INPUTS]
    if len(derived) != len(others) or (derived and "int" not in main_input.type):
        extra = ", ".join(i.name for i in others if i not in derived) or derived[0].name
        raise UnreadableModelError(
            f"{model.name} needs the input {extra} in addition to {main_input.name}. Export it with one input and the "
            "others fixed"
        )
    if main_input.type not in DTYPES or not main_input.shape:
        raise UnreadableModelError(
            f"{model.name} takes {main_input.type} of shape {main_input.shape}, which probes cannot provide. Export "
            "it with a "
            "batch axis"
        )
    shape = [n if isinstance(n, int) and n > 0 else 0 for n in main_input.shape]
    inputs = _preprocessing(model, path.parent, _spec(model, main_input.type, shape[1:]))
    spec = inputs.spec
    answer: Callable[[torch.Tensor], Any] = _forward(session, main_input, derived)
    with path.open("rb") as file:
        graph = hashlib.file_digest(file, "sha256").hexdigest()
    digest = network_digest(model.digest, f"onnx:{graph}", None, spec)
    if shape[0]:
        answer = in_fixed_batches(model.name, answer, shape[0])
    if inputs.flip_channels or (spec.mean, spec.std) != ((0.0,), (1.0,)):
        from stemma.networks.normalization import Normalised

        answer = Normalised(answer, spec, flip_channels=inputs.flip_channels)
    tokenizer_digest = tokenizer.vocabulary_digest(path.parent) if spec.kind == "tokens" and model.config else None
    scores = _output_name(session) not in HIDDEN_OUTPUTS
    return Network(model.name, digest, spec, answer, differentiable=False, tokenizer=tokenizer_digest, scores=scores)


def _session(path: Path) -> Any:
    try:
        import onnxruntime
        import torch
    except ImportError as error:
        package = "torch" if error.name == "torch" else "onnxruntime"
        raise MissingExtraError(
            "running an ONNX model", package, "networks" if package == "torch" else "onnx"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own errors
        raise UnreadableModelError(f"ONNX Runtime rejects {path}: {_one_line(error)}") from error


def _spec(model: Model, kind: str, shape: list[int]) -> InputSpec:
    if kind in ("tensor(int64)", "tensor(int32)"):
        if len(shape) != 1:
            raise UnreadableModelError(
                f"{model.name} takes integers with {len(shape) + 1} axes; only token ids of shape [n, length] are "
                "supported"
            )
        return InputSpec("tokens", (shape[0] or 1 << 20,), 0, 2**31 - 1)
    high = 255.0 if kind == "tensor(uint8)" else 1.0
    return InputSpec("image" if len(shape) == 3 and shape[0] <= 4 else "tensor", tuple(shape), 0.0, high)


def _preprocessing(model: Model, folder: Path, spec: InputSpec) -> Preprocessing:
    # uses normalisation and vocabulary of the checkpoint folder
    if model.config is None:
        return Preprocessing(spec)
    if spec.kind == "tokens":
        last = tokenizer.largest_token_id(folder, model.config.get("vocab_size"))
        return Preprocessing(spec if last is None else replace(spec, high=last))
    preprocessor = preprocessing.read_preprocessor(folder)
    if spec.kind != "image" or not preprocessor:
        return Preprocessing(spec)
    found = preprocessing.image_preprocessing({}, SimpleNamespace(num_channels=spec.shape[0]), preprocessor)
    return Preprocessing(replace(spec, mean=found.spec.mean, std=found.spec.std), flip_channels=found.flip_channels)


def _output_name(session: Any) -> str:
    names = [o.name for o in session.get_outputs()]
    return "logits" if "logits" in names else names[0]


def _forward(session: Any, main_input: Any, derived: list[Any]) -> "Callable[[torch.Tensor], torch.Tensor]":
    output = _output_name(session)

    def answer(x: "torch.Tensor") -> "torch.Tensor":
        import torch

        values = x.detach().cpu().numpy().astype(DTYPES[main_input.type])
        given = {main_input.name: values}
        for part in derived:
            rows = {"attention_mask": np.ones_like(values), "token_type_ids": np.zeros_like(values)}
            places = np.broadcast_to(np.arange(values.shape[-1]), values.shape)
            given[part.name] = rows.get(part.name, places).astype(DTYPES.get(part.type, np.int64))
        found = session.run([output], given)[0]
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
            raise StemmaError(f"the output {output} is not a numeric tensor")
        float_type = np.float64 if found.dtype == np.float64 else np.float32
        return torch.from_numpy(np.ascontiguousarray(found.astype(float_type)))

    return answer


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
