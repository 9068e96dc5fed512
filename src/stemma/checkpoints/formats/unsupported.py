"""Unsupported kinds of files, recognised by first bytes, extension or neighbouring files, with advice for each.

Nothing is parsed: the signatures are from the formats' documentation (git-lfs pointer specification, gzip and xz
headers, ggml and fastText magic numbers, and so on).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from stemma.errors import NotAModelError, UnreadableModelError

HEAD = 512
"""Bytes of a file that are examined."""

_DOWNLOAD = "download the file again"
_UNPACK = "unpack it and use the checkpoint inside"
_EXPORT = "export it to ONNX or safetensors with the program that made it"
_TORCH = "convert it with the program that made it, to a PyTorch state_dict, safetensors or ONNX"
_TENSORFLOW = "save it as .keras or .h5 (model.save), or convert it with tf2onnx"
_PADDLE = "save it as .pdparams (paddle.save of a state_dict), or convert it with paddle2onnx"
_TREES = "Stemma compares neural networks only"
_VECTORS = "load it with gensim or fasttext, and save its matrices as .npz"
_PICKLE = "load it where it was made, and save its arrays as safetensors or .npz"


@dataclass(frozen=True)
class FileKind:
    """A kind of file that is not supported.

    Attributes:
        what: Its name, with an article.
        advice: What to do instead.
        is_placeholder: Whether it stands in for weights (a pointer, an error page), so that the file
            is unreadable rather than another program's.

    """

    what: str
    advice: str
    is_placeholder: bool = False

    def error(self, path: Path) -> NotAModelError | UnreadableModelError:
        """The error to raise for a file of this kind."""
        made = UnreadableModelError if self.is_placeholder else NotAModelError
        return made(f"{path} is {self.what}, which is not supported: {self.advice}")


_LFS = FileKind("a git-lfs pointer, not the file itself", "run 'git lfs pull' where it was cloned", True)
_XET = FileKind("a git-xet pointer, not the file itself", "run 'git xet pull', or download it from the hub", True)
_ANNEX = FileKind("a git-annex pointer, not the file itself", "run 'git annex get' where it was cloned", True)
_PAGE = FileKind("a web page saved in place of a model file", f"sign in or accept the terms, and {_DOWNLOAD}", True)
_ANSWER = FileKind("a JSON or XML server response saved in place of a model file", f"read it, and {_DOWNLOAD}", True)
_TEXT = FileKind("a text file without weights", f"read it, and {_DOWNLOAD}", True)
_DOCUMENT = FileKind("a text file without weights", "use the checkpoint that it belongs to")
_BLANK = FileKind("a file of zero bytes", f"{_DOWNLOAD}: it is truncated", True)

_TRT = FileKind("a TensorRT engine", "use the ONNX file it was built from")
_COREML = FileKind("a Core ML model", "use the model it was converted from")
_OPENVINO = FileKind("an OpenVINO model", "use the model it was converted from, as ONNX or a state_dict")
_NCNN = FileKind("an ncnn model", "use the model it was converted from, as ONNX or a state_dict")
_TFCHECKPOINT = FileKind(
    "a part of a TensorFlow checkpoint", "use its .index file, with the .data files in the same folder"
)
_INDEX = FileKind(
    "an index file that belongs to no complete TensorFlow checkpoint", f"{_DOWNLOAD}, or use the model it belongs to"
)
_TF = FileKind("a TensorFlow graph or SavedModel", _TENSORFLOW)
_ARCHIVE = FileKind("an archive", _UNPACK)
_BARE = FileKind("a plain Python pickle", _PICKLE)
_JOBLIB = FileKind("a joblib pickle", _PICKLE)
_ORT = FileKind("an ONNX Runtime model", "use the ONNX file it was made from")
_PTE = FileKind("an ExecuTorch program", "use the model it was lowered from")
_GGML = FileKind("a GGML file older than GGUF", "convert it with llama.cpp's or whisper.cpp's scripts to GGUF")
_LLAMAFILE = FileKind("an executable program", "if it is a llamafile, unzip the .gguf inside and use that")
_PDPARAMS = FileKind("a PaddlePaddle model", _PADDLE)
_XGBOOST = FileKind("an XGBoost model", _TREES)
_SPACY = FileKind("a spaCy pipeline", "save a component's PyTorch weights (component.model.shims) as a state_dict")
_ORBAX = FileKind("an Orbax checkpoint", "restore it with orbax, and save it with flax.serialization or safetensors")
_DISTCP = FileKind("one part of a torch.distributed checkpoint", "use its folder, which must contain '.metadata'")
_OPTIMIZER = FileKind("one part of DeepSpeed's optimizer state", "run zero_to_fp32.py in its folder and use its output")
_UNKNOWN = FileKind("a file of unknown format", _TORCH)
ZERO3 = FileKind("a DeepSpeed ZeRO-3 checkpoint in parts", "run the zero_to_fp32.py in it and use its output")
_ONNX_DATA = FileKind("the external data of an ONNX model", "use the .onnx file in the same folder")
_TFJS_SHARD = FileKind("one shard of a TensorFlow.js model", "use the model.json in the same folder")

REFUSED = MappingProxyType(
    {
        ".pkl": _BARE, ".pickle": _BARE, ".joblib": _JOBLIB, ".pb": _TF, ".pbtxt": _TF, ".index": _INDEX,
        ".meta": FileKind("a TensorFlow meta graph", _TENSORFLOW), ".mlmodel": _COREML, ".mlpackage": _COREML,
        ".mlmodelc": _COREML, ".gz": _ARCHIVE, ".tgz": _ARCHIVE, ".zip": _ARCHIVE, ".7z": _ARCHIVE, ".xz": _ARCHIVE,
        ".bz2": _ARCHIVE, ".zst": _ARCHIVE, ".rar": _ARCHIVE, ".tar": _ARCHIVE, ".engine": _TRT, ".plan": _TRT,
        ".trt": _TRT, ".pdmodel": _PDPARAMS, ".pdiparams": _PDPARAMS, ".pdopt": _PDPARAMS,
        ".caffemodel": FileKind("a Caffe model", _EXPORT), ".params": FileKind("an MXNet parameter file", _EXPORT),
        ".nemo": FileKind("a NeMo archive", "unpack it with tar and use the model_weights.ckpt inside"),
        ".mar": FileKind("a TorchServe archive", "unzip it and use the weights inside"), ".llamafile": _LLAMAFILE,
        ".xml": _OPENVINO, ".param": _NCNN, ".t7": FileKind("a Lua Torch file", _TORCH), ".orbax": _ORBAX,
        ".mnn": FileKind("an MNN model", _EXPORT), ".ort": _ORT, ".pte": _PTE,
        ".rknn": FileKind("an RKNN model", _EXPORT),
        ".weights": FileKind("a Darknet weight file", _TORCH), ".ggml": _GGML,
        ".mat": FileKind("a MATLAB file", _EXPORT),
        ".distcp": _DISTCP, ".spacy": FileKind("a spaCy corpus", "use the weights of the pipeline"),
        ".xgb": _XGBOOST, ".ubj": _XGBOOST, ".lgb": FileKind("a LightGBM model", _TREES),
        ".cbm": FileKind("a CatBoost model", _TREES),
    }
)  # fmt: skip
"""Unsupported kinds of model files, by file extension."""

AMBIGUOUS = (_ARCHIVE, _BARE, _JOBLIB, _UNKNOWN, REFUSED[".mat"], REFUSED[".index"])
"""Kinds that are often not models at all."""

POINTERS: tuple[tuple[re.Pattern[bytes], FileKind], ...] = (
    (re.compile(rb"version https://(git-lfs|hawser)\.github\.com"), _LFS),
    (re.compile(rb"#? ?xet version"), _XET),
    (re.compile(rb"[./\\]*(\.git[/\\])?annex[/\\]objects[/\\]"), _ANNEX),
    (re.compile(rb"\s*<(!doctype|html|head|body)", re.I), _PAGE),
)
"""Placeholders for a missing file, recognised whatever the extension."""

SIGNATURES: tuple[tuple[re.Pattern[bytes], FileKind], ...] = (
    *POINTERS,
    (re.compile(rb"\x1f\x8b"), FileKind("a gzip-compressed file", _UNPACK)),
    (re.compile(rb"\xfd7zXZ\x00"), FileKind("an xz-compressed file", _UNPACK)),
    (re.compile(rb"BZh[1-9]"), FileKind("a bzip2-compressed file", _UNPACK)),
    (re.compile(rb"\x28\xb5\x2f\xfd"), FileKind("a zstd-compressed file", _UNPACK)),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), FileKind("a 7z archive", _UNPACK)),
    (re.compile(rb"Rar!\x1a\x07"), FileKind("a RAR archive", _UNPACK)),
    (re.compile(rb".{257}ustar", re.S), FileKind("a tar archive", _UNPACK)),
    (re.compile(rb"(lm|fm|tj|al)gg"), _GGML),
    (re.compile(rb"\xba\x16\x4f\x2f"), FileKind("a fastText model", _VECTORS)),
    (re.compile(rb"\d{1,9} \d{1,5}\n"), FileKind("a table of word2vec vectors", _VECTORS)),
    (re.compile(rb"[\x01-\x20]\0\0\0.\0[A-Za-z0-9]+Spec\0", re.S), FileKind("a CTranslate2 model", _EXPORT)),
    (re.compile(rb"\x47\x6b\x30\x01|\x38\x4b\x0d\x00|\x56\xc0\x02\x00"), _NCNN),
    (re.compile(rb".{4}ORTM", re.S), _ORT),
    (re.compile(rb".{4}ET\d\d", re.S), _PTE),
    (re.compile(rb"(ftrt|ptrt)"), _TRT),
    (re.compile(rb"RKNN"), FileKind("an RKNN model", _EXPORT)),
    (re.compile(rb"MATLAB 5\.0"), FileKind("a MATLAB file", _EXPORT)),
    (re.compile(rb"\x7fELF|MZ.{58}|\xcf\xfa\xed\xfe", re.S), _LLAMAFILE),
    (re.compile(rb"(binf|bs64)"), _XGBOOST),
    (re.compile(rb"\{(L.{8}|[iUIl].{1,4})(learner|Config|config)", re.S), _XGBOOST),
    (re.compile(rb"\s*\{\s*\"(learner|Config|version\"\s*:\s*\[)"), _XGBOOST),
    (re.compile(rb"tree\r?\nversion="), FileKind("a LightGBM model", _TREES)),
    (re.compile(rb"CBM1"), FileKind("a CatBoost model", _TREES)),
    (re.compile(rb"[\x80-\x8f\xde].{0,4}?\xa5nodes", re.S), _SPACY),
    (re.compile(rb"SQLite format 3\0"), FileKind("an SQLite database", "use a checkpoint file")),
    (re.compile(rb"%PDF-"), FileKind("a PDF document", "use a checkpoint file")),
    (re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8"), FileKind("a picture", "use a checkpoint file")),
    (re.compile(rb"\s*<\?xml.*<net\s", re.S), _OPENVINO),
    (re.compile(rb"7767517\s"), _NCNN),
)  # fmt: skip
"""Unambiguous first bytes of unsupported kinds; supported formats are tried before."""

_PICKLED = re.compile(rb"\(?[ci][\w.]+\n[\w.]+\n|[(\[\]})]|[IL]-?\d+L?\n")
_PRINTED = bytes(range(32, 127)) + b"\t\r\n"
_TEXTS = frozenset(
    {".json", ".txt", ".md", ".rst", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".py", ".csv", ".log", ".html"}
)
_ZIPPED = frozenset({".pt", ".pth", ".bin", ".ckpt", ".tar", ".th", ".pyth", ".model", ".npz", ".keras", ".pt2"})
_DATA = re.compile(r"\.data-\d{5}-of-\d{5}$")
_SHARD = re.compile(r"^group\d+-shard\d+of\d+(\.bin)?$")
_STATES = re.compile(r"(^|_)optim_states\.pt$")


def is_pointer(head: bytes) -> bool:
    """Whether the first bytes are those of a version-control pointer or a web page."""
    return any(p.match(head) for p, _ in POINTERS)


def by_name(path: Path) -> FileKind | None:
    """The kind of a file whose name says that it is one part of something else."""
    if _STATES.search(path.name):
        return _OPTIMIZER
    return _DISTCP if path.suffix.lower() == ".distcp" else None


def by_content(path: Path, head: bytes) -> FileKind | None:
    """The kind given by the first `HEAD` bytes of a file or by the files beside it; None if they may be anything."""
    for pattern, kind in SIGNATURES:
        if pattern.match(head):
            return kind
    return _by_neighbours(path)


def by_suffix(path: Path) -> FileKind | None:
    """The kind given by the file extension; None if the extension is ambiguous."""
    if _DATA.search(path.name):
        return _TFCHECKPOINT
    return REFUSED.get(path.suffix.lower())


def by_plain_bytes(path: Path, head: bytes) -> FileKind | None:
    """The kind of a file without signature or known extension: text, zeros or a zip archive; None if unknown."""
    if not head.strip(b"\0"):
        return _BLANK
    if head[:4] == b"PK\x03\x04" and path.suffix.lower() not in _ZIPPED:
        return FileKind("a zip archive", _UNPACK)
    if head.translate(None, _PRINTED) or _PICKLED.match(head):
        return None
    if path.suffix.lower() in _TEXTS:
        return _DOCUMENT
    return _ANSWER if head.lstrip()[:1] in (b"{", b"[", b"<") else _TEXT


def _by_neighbours(path: Path) -> FileKind | None:
    # raw numbers have no magic number: the graph in the same folder identifies them
    if _SHARD.match(path.name):
        return _TFJS_SHARD
    if any(p.endswith((".mlpackage", ".mlmodelc")) for p in path.parts[:-1]):
        return _COREML
    if path.suffix.lower() not in (".bin", ".data", ".dat", ".weight", ""):
        return None
    for ending, kind in ((".xml", _OPENVINO), (".param", _NCNN), (".pdmodel", _PDPARAMS)):
        if path.with_suffix(ending).is_file():
            return kind
    return None


def external_onnx_data(path: Path, head: bytes) -> FileKind | None:
    """External ONNX data: whether an ONNX graph in the same folder mentions this file."""
    raw = path.suffix and path.suffix.lower() != ".onnx" and head[:1] != b"\x80"
    return _ONNX_DATA if raw and any(_mentions(p, path.name) for p in path.parent.glob("*.onnx")) else None


def _mentions(graph: Path, name: str) -> bool:
    try:
        with graph.open("rb") as f:
            return name.encode() in f.read(1 << 22)
    except OSError:
        return False


def by_folder(folder: Path) -> tuple[Path, FileKind] | None:
    """The path that identifies an unsupported folder, and its kind; None if it is not a known kind."""
    for name, kind in (
        ("saved_model.pb", _TF), ("saved_model.pbtxt", _TF), ("manifest.ocdbt", _ORBAX),
        ("_CHECKPOINT_METADATA", _ORBAX), ("_METADATA", _ORBAX),
    ):  # fmt: skip
        if (folder / name).is_file():
            return folder / name, kind
    latest = folder / "latest"
    step = latest.read_text(errors="replace").strip()[:99] if latest.is_file() and latest.stat().st_size < 99 else ""
    for inside in (folder, folder / step) if "/" not in step and "\0" not in step else (folder,):
        if next(inside.glob("zero_pp_rank_*_model_states.pt"), None) is not None:
            return inside, ZERO3
    if folder.suffix.lower() in (".mlpackage", ".mlmodelc"):
        return folder, _COREML
    if (folder / "meta.json").is_file() and (folder / "config.cfg").is_file():
        return folder / "config.cfg", _SPACY
    return None


def unsupported_files(files: list[Path]) -> Iterator[tuple[Path, FileKind]]:
    """Files of one folder that seem to hold models of unsupported kinds; a graph and its data count once."""
    names = {p.name for p in files}
    for path in files:
        kind = by_suffix(path)
        stem = path.name.removesuffix(path.suffix)
        companion = {".xml": f"{stem}.bin", ".param": f"{stem}.bin"}.get(path.suffix.lower())
        if companion is not None and companion not in names:
            continue  # other XML and parameter files are not models
        if path.suffix == ".index" and not any(n.startswith(f"{stem}.data-") for n in names):
            continue
        if _DATA.search(path.name) or (kind in (_BARE, _ARCHIVE) and path.stat().st_size < 1 << 16):
            continue
        if kind is None and path.suffix.lower() in (".bin", ".ckpt", ".pt", ".pth", ".model"):
            kind = _by_header(path, any(n.endswith(".onnx") for n in names))
        if kind is not None:
            yield path, kind


def _by_header(path: Path, graphs: bool) -> FileKind | None:
    try:
        with path.open("rb") as f:
            head, size = f.read(HEAD), path.stat().st_size
    except OSError:
        return None
    kind = by_content(path, head) or by_plain_bytes(path, head)
    if kind in (_OPENVINO, _NCNN, _TFJS_SHARD, _TEXT, _ANSWER):
        return None  # reported with the graph, or not weights
    if (
        kind is None and size > 1 << 16 and not graphs and path.suffix.lower() != ".model"
    ):  # tokenizers have that extension too
        return _UNKNOWN
    return kind
