"""One file per checkpoint format."""

from stemma.checkpoints.formats.base import AbstractFormat
from stemma.checkpoints.formats.exported import Exported
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

ALL: tuple[AbstractFormat, ...] = (
    Gguf(), Npy(), Keras(), Npz(), PyTorch(), Hdf5(), Tflite(), Safetensors(), Onnx(), Exported(), Flax(), Paddle(),
    TensorFlow(), TensorFlowJs(),
)  # fmt: skip
"""The formats that are read, in the order in which a file's first bytes are tried."""

GENERIC = frozenset({".bin", ".model", ".dat", ".data", ".ckpt", ".tar", ".index", ""})
"""Endings that many programs use: in a folder such a file counts only if its first bytes are those of a checkpoint."""

ON_REQUEST = frozenset({".npz", ".npy", ".onnx"})
"""Endings that are more often data than models; found in folders only with `all_formats`."""
