"""Files that hold no weights that Stemma reads, told by their first bytes, their ending or what lies beside them.

Every kind has a name and a way out. Nothing is parsed here: the signatures are those that the formats' own documents
give (git-lfs's pointer specification, gzip and xz headers, ggml's and fastText's magic numbers, and so on).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from stemma.errors import NotAModelError, UnreadableModelError

HEAD = 512
"""Bytes of a file that are looked at."""

_AGAIN = "download the file again"
_UNPACK = "unpack it and give what is inside"
_EXPORT = "export it to ONNX or safetensors with the program that made it"
_TORCH = "convert it with the program that made it, to a PyTorch state_dict, safetensors or ONNX"
_TENSORFLOW = "save it as .keras or .h5 (model.save), or convert it with tf2onnx"
_PADDLE = "save it as .pdparams (paddle.save of a state_dict), or convert it with paddle2onnx"
_TREES = "Stemma compares neural networks, and trees have no layers"
_VECTORS = "load it with gensim or fasttext, and save its matrices as .npz"
_PICKLE = "load it where it was made, and save its arrays as safetensors or .npz"


@dataclass(frozen=True)
class Kind:
    """A kind of file that is not read.

    Attributes:
        what: Its name, with an article.
        todo: What to do instead.
        instead: Whether it stands where weights should be (a pointer, an error page): the file is unreadable, not
            another program's.
    """

    what: str
    todo: str
    instead: bool = False

    def error(self, path: Path) -> NotAModelError | UnreadableModelError:
        """The sentence for a file of this kind.

        Args:
            path: The file or folder.

        Returns:
            An error to raise.
        """
        made = UnreadableModelError if self.instead else NotAModelError
        return made(f"{path} is {self.what}, which Stemma does not read: {self.todo}")


_LFS = Kind("a git-lfs pointer, not the file itself", "run 'git lfs pull' where it was cloned", True)
_XET = Kind("a git-xet pointer, not the file itself", "run 'git xet pull', or download it from the hub", True)
_ANNEX = Kind("a git-annex pointer, not the file itself", "run 'git annex get' where it was cloned", True)
_PAGE = Kind("a web page saved under a model's name", f"sign in or accept its terms, and {_AGAIN}", True)
_ANSWER = Kind("a server's answer in JSON or XML saved under a model's name", f"read it, and {_AGAIN}", True)
_TEXT = Kind("a text, no weights", f"read it, and {_AGAIN}", True)
_DOCUMENT = Kind("a text, no weights", "give the checkpoint that it belongs to")
_BLANK = Kind("nothing but zero bytes where weights should begin", f"{_AGAIN}: it was cut off", True)

_TRT = Kind("a TensorRT engine", "give the ONNX file it was built from")
_COREML = Kind("a Core ML model", "give the model it was converted from; coremltools writes no other format")
_OPENVINO = Kind("an OpenVINO model", "give the model it was converted from, as ONNX or a state_dict")
_NCNN = Kind("an ncnn model", "give the model it was converted from, as ONNX or a state_dict")
_TFCHECKPOINT = Kind("a part of a TensorFlow checkpoint", "give its .index file, with the .data files beside it")
_INDEX = Kind("an index, and not that of a whole TensorFlow checkpoint", f"{_AGAIN}, or give the model it belongs to")
_TF = Kind("a TensorFlow graph or SavedModel", _TENSORFLOW)
_ARCHIVE = Kind("an archive", _UNPACK)
_BARE = Kind("a bare Python pickle", _PICKLE)
_JOBLIB = Kind("a joblib pickle", _PICKLE)
_ORT = Kind("an ONNX Runtime model", "give the ONNX file it was made from")
_PTE = Kind("an ExecuTorch program", "give the model it was lowered from")
_GGML = Kind("a GGML file older than GGUF", "convert it with llama.cpp's or whisper.cpp's scripts to GGUF")
_LLAMAFILE = Kind("a program (a llamafile carries its model inside)", "unzip the .gguf out of it, and give that")
_PDPARAMS = Kind("a PaddlePaddle model", _PADDLE)
_XGBOOST = Kind("an XGBoost model", _TREES)
_SPACY = Kind("a spaCy pipeline", "save a component's PyTorch weights (component.model.shims) as a state_dict")
_ORBAX = Kind("an Orbax checkpoint", "restore it with orbax, and save it with flax.serialization or safetensors")
_DISTCP = Kind("one part of a torch.distributed checkpoint", "give its folder, with the '.metadata' file in it")
_OPTIMIZER = Kind(
    "DeepSpeed's optimizer state, one part of it", "run zero_to_fp32.py in its folder, and give what that writes"
)
_UNKNOWN = Kind("no checkpoint that is known", _TORCH)
ZERO3 = Kind("a DeepSpeed checkpoint in ZeRO-3's parts", "run the zero_to_fp32.py in it, and give what that writes")
_ONNX_DATA = Kind("the data of an ONNX model that lies beside it", "give the .onnx file")
_TFJS_SHARD = Kind("one shard of a TensorFlow.js model", "give the model.json beside it")

REFUSED = MappingProxyType(
    {
        ".pkl": _BARE, ".pickle": _BARE, ".joblib": _JOBLIB, ".pb": _TF, ".pbtxt": _TF, ".index": _INDEX,
        ".meta": Kind("a TensorFlow meta graph", _TENSORFLOW), ".mlmodel": _COREML, ".mlpackage": _COREML,
        ".mlmodelc": _COREML, ".gz": _ARCHIVE, ".tgz": _ARCHIVE, ".zip": _ARCHIVE, ".7z": _ARCHIVE, ".xz": _ARCHIVE,
        ".bz2": _ARCHIVE, ".zst": _ARCHIVE, ".rar": _ARCHIVE, ".tar": _ARCHIVE, ".engine": _TRT, ".plan": _TRT,
        ".trt": _TRT, ".pdmodel": _PDPARAMS, ".pdiparams": _PDPARAMS, ".pdopt": _PDPARAMS,
        ".caffemodel": Kind("a Caffe model", _EXPORT), ".params": Kind("an MXNet parameter file", _EXPORT),
        ".nemo": Kind("a NeMo archive", "unpack it with tar, and give the model_weights.ckpt inside"),
        ".mar": Kind("a TorchServe archive", "unzip it, and give the weights inside"), ".llamafile": _LLAMAFILE,
        ".xml": _OPENVINO, ".param": _NCNN, ".t7": Kind("a Lua Torch file", _TORCH), ".orbax": _ORBAX,
        ".mnn": Kind("an MNN model", _EXPORT), ".ort": _ORT, ".pte": _PTE, ".rknn": Kind("an RKNN model", _EXPORT),
        ".weights": Kind("a Darknet weight file", _TORCH), ".ggml": _GGML, ".mat": Kind("a MATLAB file", _EXPORT),
        ".distcp": _DISTCP, ".spacy": Kind("a spaCy corpus", "give the pipeline's weights"),
        ".xgb": _XGBOOST, ".ubj": _XGBOOST, ".lgb": Kind("a LightGBM model", _TREES),
        ".cbm": Kind("a CatBoost model", _TREES),
    }
)  # fmt: skip
"""Kinds of files that hold models and are refused, by ending."""

UNSURE = (_ARCHIVE, _BARE, _JOBLIB, _UNKNOWN, REFUSED[".mat"], REFUSED[".index"])
"""Kinds that hold other things than models as often."""

POINTERS: tuple[tuple[re.Pattern[bytes], Kind], ...] = (
    (re.compile(rb"version https://(git-lfs|hawser)\.github\.com"), _LFS),
    (re.compile(rb"#? ?xet version"), _XET),
    (re.compile(rb"[./\\]*(\.git[/\\])?annex[/\\]objects[/\\]"), _ANNEX),
    (re.compile(rb"\s*<(!doctype|html|head|body)", re.I), _PAGE),
)
"""What stands in a file's place without being it: recognised whatever the ending."""

SIGNATURES: tuple[tuple[re.Pattern[bytes], Kind], ...] = (
    *POINTERS,
    (re.compile(rb"\x1f\x8b"), Kind("a gzip-compressed file", _UNPACK)),
    (re.compile(rb"\xfd7zXZ\x00"), Kind("an xz-compressed file", _UNPACK)),
    (re.compile(rb"BZh[1-9]"), Kind("a bzip2-compressed file", _UNPACK)),
    (re.compile(rb"\x28\xb5\x2f\xfd"), Kind("a zstd-compressed file", _UNPACK)),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), Kind("a 7z archive", _UNPACK)),
    (re.compile(rb"Rar!\x1a\x07"), Kind("a RAR archive", _UNPACK)),
    (re.compile(rb".{257}ustar", re.S), Kind("a tar archive", _UNPACK)),
    (re.compile(rb"(lm|fm|tj|al)gg"), _GGML),
    (re.compile(rb"\xba\x16\x4f\x2f"), Kind("a fastText model", _VECTORS)),
    (re.compile(rb"\d{1,9} \d{1,5}\n"), Kind("a table of word2vec vectors", _VECTORS)),
    (re.compile(rb"[\x01-\x20]\0\0\0.\0[A-Za-z0-9]+Spec\0", re.S), Kind("a CTranslate2 model", _EXPORT)),
    (re.compile(rb"\x47\x6b\x30\x01|\x38\x4b\x0d\x00|\x56\xc0\x02\x00"), _NCNN),
    (re.compile(rb".{4}ORTM", re.S), _ORT),
    (re.compile(rb".{4}ET\d\d", re.S), _PTE),
    (re.compile(rb"(ftrt|ptrt)"), _TRT),
    (re.compile(rb"RKNN"), Kind("an RKNN model", _EXPORT)),
    (re.compile(rb"MATLAB 5\.0"), Kind("a MATLAB file", _EXPORT)),
    (re.compile(rb"\x7fELF|MZ.{58}|\xcf\xfa\xed\xfe", re.S), _LLAMAFILE),
    (re.compile(rb"(binf|bs64)"), _XGBOOST),
    (re.compile(rb"\{(L.{8}|[iUIl].{1,4})(learner|Config|config)", re.S), _XGBOOST),
    (re.compile(rb"\s*\{\s*\"(learner|Config|version\"\s*:\s*\[)"), _XGBOOST),
    (re.compile(rb"tree\r?\nversion="), Kind("a LightGBM model", _TREES)),
    (re.compile(rb"CBM1"), Kind("a CatBoost model", _TREES)),
    (re.compile(rb"[\x80-\x8f\xde].{0,4}?\xa5nodes", re.S), _SPACY),
    (re.compile(rb"SQLite format 3\0"), Kind("an SQLite database", "give a checkpoint")),
    (re.compile(rb"%PDF-"), Kind("a PDF document", "give a checkpoint")),
    (re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8"), Kind("a picture", "give a checkpoint")),
    (re.compile(rb"\s*<\?xml.*<net\s", re.S), _OPENVINO),
    (re.compile(rb"7767517\s"), _NCNN),
)  # fmt: skip
"""First bytes of foreign kinds, the sure ones; those of the formats that are read were tried before."""

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
    """Whether a file stands for another one: a pointer of a version control system, or a web page.

    Args:
        head: First bytes.

    Returns:
        True if so.
    """
    return any(p.match(head) for p, _ in POINTERS)


def by_name(path: Path) -> Kind | None:
    """The kind of a file that looks like a checkpoint and is one part of something else, as its name says.

    Args:
        path: The file.

    Returns:
        The kind, None for any other name.
    """
    if _STATES.search(path.name):
        return _OPTIMIZER
    return _DISTCP if path.suffix.lower() == ".distcp" else None


def by_content(path: Path, head: bytes) -> Kind | None:
    """The foreign kind that a file's first bytes, or the files beside it, tell of.

    Args:
        path: The file.
        head: Its first `HEAD` bytes.

    Returns:
        The kind; None where the bytes may be anything.
    """
    for pattern, kind in SIGNATURES:
        if pattern.match(head):
            return kind
    return _beside(path)


def by_ending(path: Path) -> Kind | None:
    """The kind that a file's ending names.

    Args:
        path: The file.

    Returns:
        The kind, None for endings that say nothing.
    """
    if _DATA.search(path.name):
        return _TFCHECKPOINT
    return REFUSED.get(path.suffix.lower())


def by_look(path: Path, head: bytes) -> Kind | None:
    """What a file is that no signature and no ending names: text, nothing but zeros, an archive.

    Args:
        path: The file.
        head: Its first `HEAD` bytes.

    Returns:
        The kind; None where the bytes may be anything.
    """
    if not head.strip(b"\0"):
        return _BLANK
    if head[:4] == b"PK\x03\x04" and path.suffix.lower() not in _ZIPPED:
        return Kind("a zip archive", _UNPACK)
    if head.translate(None, _PRINTED) or _PICKLED.match(head):
        return None
    if path.suffix.lower() in _TEXTS:
        return _DOCUMENT
    return _ANSWER if head.lstrip()[:1] in (b"{", b"[", b"<") else _TEXT


def _beside(path: Path) -> Kind | None:
    # raw numbers have no magic: what they are is said by the graph that lies beside them
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


def data_of_onnx(path: Path, head: bytes) -> Kind | None:
    """Whether a file of raw numbers is named by an ONNX model that lies beside it.

    Cost: the first megabytes of each ONNX file of the folder.

    Args:
        path: The file.
        head: Its first bytes.

    Returns:
        The kind, None where no graph names the file.
    """
    raw = path.suffix and path.suffix.lower() != ".onnx" and head[:1] != b"\x80"
    return _ONNX_DATA if raw and any(_names(p, path.name) for p in path.parent.glob("*.onnx")) else None


def _names(graph: Path, name: str) -> bool:
    try:
        with graph.open("rb") as f:
            return name.encode() in f.read(1 << 22)
    except OSError:
        return False


def of_folder(folder: Path) -> tuple[Path, Kind] | None:
    """The foreign kind that a folder as a whole is.

    Args:
        folder: The folder.

    Returns:
        What tells it, and the kind; None where it is none that is known.
    """
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


def foreign_files(files: list[Path]) -> Iterator[tuple[Path, Kind]]:
    """Which files of one folder hold, or seem to hold, models of kinds that are not read.

    Args:
        files: Files of the folder that are not taken for checkpoints.

    Yields:
        A file and its kind; graphs and their data count once.
    """
    names = {p.name for p in files}
    for path in files:
        kind = by_ending(path)
        stem = path.name.removesuffix(path.suffix)
        companion = {".xml": f"{stem}.bin", ".param": f"{stem}.bin"}.get(path.suffix.lower())
        if companion is not None and companion not in names:
            continue  # XML and parameter files are many things
        if path.suffix == ".index" and not any(n.startswith(f"{stem}.data-") for n in names):
            continue
        if _DATA.search(path.name) or (kind in (_BARE, _ARCHIVE) and path.stat().st_size < 1 << 16):
            continue
        if kind is None and path.suffix.lower() in (".bin", ".ckpt", ".pt", ".pth", ".model"):
            kind = _sniffed(path, any(n.endswith(".onnx") for n in names))
        if kind is not None:
            yield path, kind


def _sniffed(path: Path, graphs: bool) -> Kind | None:
    try:
        with path.open("rb") as f:
            head, size = f.read(HEAD), path.stat().st_size
    except OSError:
        return None
    kind = by_content(path, head) or by_look(path, head)
    if kind in (_OPENVINO, _NCNN, _TFJS_SHARD, _TEXT, _ANSWER):
        return None  # said of the graph beside it, or no weights at all
    if (
        kind is None and size > 1 << 16 and not graphs and path.suffix.lower() != ".model"
    ):  # tokenizers have that ending too
        return _UNKNOWN
    return kind
