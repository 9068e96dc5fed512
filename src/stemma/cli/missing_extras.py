"""Which extra of Stemma holds a package that is not installed."""

import re

EXTRAS = {
    "torch": ("torch", "networks"),
    "sklearn": ("scikit-learn", "networks"),
    "transformers": ("transformers", "hf"),
    "peft": ("peft", "hf"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "PIL": ("pillow", "images"),
    "gguf": ("gguf", "formats"),
    "onnx": ("onnx", "formats"),
    "h5py": ("h5py", "formats"),
    "msgpack": ("msgpack", "formats"),
    "tflite": ("tflite", "formats"),
    "ml_dtypes": ("ml-dtypes", "formats"),
    "matplotlib": ("matplotlib", "plots"),
    "fastapi": ("fastapi", "web"),
    "uvicorn": ("uvicorn", "web"),
    "python_multipart": ("python-multipart", "web"),
    "huggingface_hub": ("huggingface-hub", "hf"),
    "psycopg": ("psycopg", "postgres"),
    "cyclonedx": ("cyclonedx-python-lib", "standards"),
    "spdx_python_model": ("spdx-python-model", "standards"),
    "in_toto_attestation": ("in-toto-attestation", "standards"),
    "model_signing": ("model-signing", "standards"),
    "OpenSSL": ("pyopenssl", "standards"),
    "cryptography": ("cryptography", "standards"),
    "httpx": ("httpx", "hub"),
    "distributed": ("distributed", "cluster"),
    "dask": ("distributed", "cluster"),
    "ray": ("ray", "ray"),
}
"""By module: its package, and the extra that installs it."""


def missing_extra(error: BaseException | None) -> tuple[str, str] | None:
    """The package and the extra that an import error is about; None for any other error."""
    if not isinstance(error, ImportError):
        return None
    named = error.name or next(iter(re.findall(r"[Nn]o module named '?([\w.]+)", str(error))), "")
    return EXTRAS.get(named.partition(".")[0])
