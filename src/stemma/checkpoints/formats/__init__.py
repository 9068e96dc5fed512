"""Checkpoint formats, one file each."""

from stemma.checkpoints.formats.base import AbstractFormat
from stemma.checkpoints.formats.flax import Flax
from stemma.checkpoints.formats.gguf import Gguf
from stemma.checkpoints.formats.keras import Hdf5, Keras
from stemma.checkpoints.formats.numpy_files import Npy, Npz
from stemma.checkpoints.formats.onnx import Onnx
from stemma.checkpoints.formats.paddle import Paddle
from stemma.checkpoints.formats.pytorch import PyTorch
from stemma.checkpoints.formats.safetensors import Safetensors
from stemma.checkpoints.formats.tensorflow import TensorFlow
from stemma.checkpoints.formats.tfjs import TensorFlowJs
from stemma.checkpoints.formats.tflite import Tflite
from stemma.checkpoints.formats.torch_export import Exported

ALL: tuple[AbstractFormat, ...] = (
    Gguf(), Npy(), Keras(), Npz(), PyTorch(), Hdf5(), Tflite(), Safetensors(), Onnx(), Exported(), Flax(), Paddle(),
    TensorFlow(), TensorFlowJs(),
)  # fmt: skip
"""Supported formats, in the order in which first bytes are tried."""

GENERIC = frozenset({".bin", ".model", ".dat", ".data", ".ckpt", ".tar", ".index", ""})
"""Ambiguous extensions: in a folder such a file counts only if its first bytes are those of a checkpoint."""

ON_REQUEST = frozenset({".npz", ".npy", ".onnx"})
"""Extensions that are more often data than models; read from folders only with `all_formats`."""
