"""One file per checkpoint format."""

from stemma.models.formats.base import AbstractFormat
from stemma.models.formats.exported import Exported
from stemma.models.formats.flax import Flax
from stemma.models.formats.gguf import Gguf
from stemma.models.formats.keras import Hdf5, Keras
from stemma.models.formats.numpy_files import Npy, Npz
from stemma.models.formats.onnx import Onnx
from stemma.models.formats.paddle import Paddle
from stemma.models.formats.pytorch import PyTorch
from stemma.models.formats.safetensors import Safetensors
from stemma.models.formats.tensorflow import TensorFlow
from stemma.models.formats.tfjs import TensorFlowJs
from stemma.models.formats.tflite import Tflite

ALL: tuple[AbstractFormat, ...] = (
    Gguf(), Npy(), Keras(), Npz(), PyTorch(), Hdf5(), Tflite(), Safetensors(), Onnx(), Exported(), Flax(), Paddle(),
    TensorFlow(), TensorFlowJs(),
)  # fmt: skip
"""The formats that are read, in the order in which a file's first bytes are tried."""

GENERIC = frozenset({".bin", ".model", ".dat", ".data", ".ckpt", ".tar", ".index", ""})
"""Endings that many programs use: in a folder such a file counts only if its first bytes are those of a checkpoint."""

ON_REQUEST = frozenset({".npz", ".npy", ".onnx"})
"""Endings that are more often data than models; found in folders only with `all_formats`."""
