"""Inert records for the names in a pickle: tensor descriptions, containers and placeholders."""

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from stemma.checkpoints import budget

STORAGES = MappingProxyType(
    {
        "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
        "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
        "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "ComplexDoubleStorage": "C128", "QInt8Storage": "I8",
        "QUInt8Storage": "U8", "QInt32Storage": "I32", "UntypedStorage": "U8",
    }
)  # fmt: skip
DTYPES = MappingProxyType(
    {
        "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
        "int16": "I16", "int8": "I8", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL",
        "complex64": "C64", "complex128": "C128", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
        "qint8": "I8", "quint8": "U8", "qint32": "I32",
    }
)  # fmt: skip


LARGEST = 2**61 - 1
"""CPython's hash of whole numbers is the remainder by this: beyond it anyone can find many with one hash."""

MOST_SHOWN = 8
"""Entries of a list that an error message shows."""


def check_keys(keys: Iterable[Any]) -> None:
    """Raise where a mapping or set has keys whose hashes a stranger can choose, which takes quadratic time."""
    for key in keys:
        kind = type(key)
        if kind is str or kind is bytes:
            continue
        if kind is int and not -LARGEST < key < LARGEST:
            budget.current().refuse("a mapping in its pickle has a key of more than 61 bits", "Save its state_dict")
        if kind is tuple:
            if len(key) > MOST_SHOWN or any(isinstance(part, (tuple, frozenset)) for part in key):
                budget.current().refuse("a mapping in its pickle has nested keys", "Save its state_dict")
            check_keys(key)
        if kind in (tuple, frozenset):
            budget.current().odd_key()


def shown(value: Any) -> str:
    """A short description of what a pickle holds; printing the thing itself could take for ever."""
    if isinstance(value, (list, tuple)):
        return (
            "[" + ", ".join(map(shown, _plain(value[:MOST_SHOWN]))) + (", …" if len(value) > MOST_SHOWN else "") + "]"
        )
    if isinstance(value, int):
        return str(value) if abs(value) < 2**64 else f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        return repr(value[:80])
    return repr(value) if isinstance(value, float) else f"a {type(value).__name__}"


def _plain(values: Any) -> list[Any]:
    return ["a list" if isinstance(v, (list, tuple)) else v for v in values]


class Opaque:
    """Something other than weights (a path, a device, a date): ignored."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass

    def append(self, _item: Any) -> None:
        """Ignore an item."""

    def extend(self, _items: Any) -> None:
        """Ignore items."""


class UnknownObject:
    """An inert record of an object whose class or function is unknown.

    Attributes:
        label: The name in the pickle; one subclass per name.
        arguments: Constructor arguments.
        state: The state that the pickle sets, if any.
        items: Items that the pickle adds, if it is a container.

    """

    label: ClassVar[str] = ""

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.arguments = arguments
        self.state: Any = None
        self.items: dict[Any, Any] = {}

    def __new__(cls, *_: Any, **__: Any) -> "UnknownObject":
        """A new record; pickles call this without `__init__`."""
        made = object.__new__(cls)
        UnknownObject.__init__(made, *_)
        return made

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, item: Any) -> None:
        """Keep an item."""
        self.items[len(self.items)] = item

    def extend(self, items: Any) -> None:
        """Keep items."""
        for item in items:
            self.append(item)

    add = append


class MappingRecord(dict):
    """Any mapping; attributes that a pickle sets on it are ignored."""

    __slots__ = ()


@dataclass(frozen=True)
class DtypeRecord:
    """A storage class or dtype by its code."""

    code: str


@dataclass(frozen=True)
class StorageRef:
    """A storage as the pickle refers to it: key of the record, dtype code, number of elements."""

    key: str
    code: str
    count: int


@dataclass(frozen=True)
class TensorView:
    """A tensor as the pickle describes it, not yet checked against anything."""

    stored: StorageRef
    code: str
    offset: Any
    shape: Any
    strides: Any
    flags: Any = None


@dataclass(frozen=True)
class QuantizedTensor:
    """A torch tensor of integer codes with its scale and zero point (numbers, or `TensorView`s per channel)."""

    codes: TensorView
    scale: Any
    zero_point: Any


class NumpyArray:
    """A NumPy array as pickled: filled in by its state."""

    def __init__(self) -> None:
        self.state: Any = None


class NumpyDtype:
    """A NumPy dtype as pickled: its text and, from its state, its byte order."""

    def __init__(self, text: Any, *_: Any) -> None:
        self.text = text if isinstance(text, str) else ""
        self.order = "<"


def _view(stored: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> TensorView:
    if not isinstance(stored, StorageRef):
        raise TypeError("a tensor without a storage")
    return TensorView(stored, stored.code, offset, shape, strides, rest[2] if len(rest) > 2 else None)


def _view3(
    stored: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *rest: Any
) -> TensorView:
    if not isinstance(stored, StorageRef) or not isinstance(dtype, DtypeRecord):
        raise TypeError("a tensor without a storage or dtype")
    return TensorView(stored, dtype.code, offset, shape, strides, rest[0] if rest else None)


def _quantized(stored: Any, offset: Any, shape: Any, strides: Any, scheme: Any, *_: Any) -> QuantizedTensor:
    if not isinstance(scheme, tuple) or len(scheme) < 3:
        raise TypeError("a quantised tensor without its scheme")
    return QuantizedTensor(_view(stored, offset, shape, strides), scheme[1], scheme[2])


def _rebuild_from_type(make: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    if make not in (_view, _view3, _parameter, _quantized):
        raise TypeError("a tensor made by something unknown")
    return make(*arguments)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _reconstructed(kind: Any, *_: Any) -> Any:
    return kind() if isinstance(kind, type) and issubclass(kind, UnknownObject) else Opaque()


def _text_to_bytes(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise TypeError("an unknown encoding")
    return text.encode("latin1")


def _bytes(*arguments: Any) -> Any:
    return Opaque() if arguments else b""  # protocol 2 writes empty bytes as a call


def _array(*_: Any) -> NumpyArray:
    return NumpyArray()


def _scalar(*_: Any) -> Opaque:
    return Opaque()


def _mapping(*arguments: Any) -> MappingRecord:
    pairs = arguments[-1] if arguments and isinstance(arguments[-1], (dict, list)) else ()
    if isinstance(pairs, list):
        check_keys(pair[0] for pair in pairs)
    return MappingRecord(pairs)


def _sequence(items: Any = ()) -> list[Any]:
    return list(items) if isinstance(items, (list, tuple)) else []


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _mapping,
    ("collections", "Counter"): _mapping,
    ("builtins", "dict"): _mapping,
    ("builtins", "set"): _sequence,
    ("builtins", "frozenset"): _sequence,
    ("builtins", "list"): _sequence,
    ("builtins", "tuple"): _sequence,
    ("_codecs", "encode"): _text_to_bytes,
    ("builtins", "bytes"): _bytes,
    ("torch", "Size"): _sequence,
    ("torch._utils", "_rebuild_tensor"): _view,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_tensor_v3"): _view3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._utils", "_rebuild_qtensor"): _quantized,
    ("torch._utils", "_rebuild_sparse_tensor"): Opaque,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): Opaque,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _parameter,
    ("pytorch_lightning.utilities.parsing", "AttributeDict"): MappingRecord,
    ("lightning_fabric.utilities.data", "AttributeDict"): MappingRecord,
    ("yacs.config", "CfgNode"): MappingRecord,
    ("easydict", "EasyDict"): MappingRecord,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("numpy", "dtype"): NumpyDtype,
    ("numpy", "ndarray"): NumpyArray,
}
for _module in _NUMPY:
    ALLOWED |= {(_module, "_reconstruct"): _array, (_module, "scalar"): _scalar, (_module, "_frombuffer"): Opaque}
for _module, _names in (
    (
        "builtins",
        ("int", "float", "str", "bool", "complex", "slice", "range", "bytearray", "object", "getattr"),
    ),
    ("torch", ("device", "Generator", "Tensor", "per_tensor_affine", "per_channel_affine", "strided", "sparse_coo")),
    ("torch", ("contiguous_format", "channels_last", "preserve_format")),
    ("torch.nn.parameter", ("Parameter", "Buffer")),
    ("torch.serialization", ("_get_layout",)),
    ("argparse", ("Namespace",)),
    ("types", ("SimpleNamespace",)),
    ("typing", ("Any", "Dict", "List", "Optional", "Union")),
    ("collections", ("deque",)),
    ("decimal", ("Decimal",)),
    ("fractions", ("Fraction",)),
    ("uuid", ("UUID",)),
    ("numpy.random._pickle", ("__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor")),
    ("numpy.random._mt19937", ("MT19937",)),
    ("numpy.random._pcg64", ("PCG64",)),
    ("omegaconf.dictconfig", ("DictConfig",)),
    ("omegaconf.listconfig", ("ListConfig",)),
    ("omegaconf.base", ("ContainerMetadata", "Metadata")),
    ("omegaconf.nodes", ("AnyNode", "IntegerNode", "FloatNode", "StringNode", "BooleanNode")),
    ("pytorch_lightning.callbacks.model_checkpoint", ("ModelCheckpoint",)),
    ("pytorch_lightning.callbacks.early_stopping", ("EarlyStopping",)),
    ("lightning.pytorch.callbacks.model_checkpoint", ("ModelCheckpoint",)),
    ("datetime", ("datetime", "timedelta", "date", "time", "timezone")),
    ("pathlib", ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")),
):
    for _name in _names:
        ALLOWED[_module, _name] = Opaque
# protocols before 3 use the old name of builtins
ALLOWED |= {("__builtin__", name): made for (module, name), made in ALLOWED.items() if module == "builtins"}
ALLOWED |= {(module, "_reconstructor"): _reconstructed for module in ("copyreg", "copy_reg")}
ALLOWED |= {("torch.jit._pickle", f"build_{kind}list"): _sequence for kind in ("int", "tensor", "double", "bool")}
ALLOWED |= {("torch.jit._pickle", "restore_type_tag"): _parameter}
SETTABLE = (Opaque, MappingRecord, NumpyArray, NumpyDtype, UnknownObject)
"""Records whose state a pickle may set."""
