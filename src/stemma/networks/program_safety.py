"""Safety check of exported programs: only those made of known tensor operations are loaded.

`torch.export.load` runs code from the file: pickles (weights, constants, example inputs), compiled libraries, any
function below `torch`, `operator` or `math` as a graph node, symbolic sizes as Python expressions, and graph names as
Python source. So a program is parsed first, and only listed parts are rebuilt for loading: raw tensors, and a graph of
tensor operations with plain names.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stemma.checkpoints.formats import archives
from stemma.checkpoints.formats.torch_export import WEIGHTS, json_record, root_of
from stemma.errors import UnreadableModelError, UnsafeFileError

CONSTANTS = "data/constants/model_constants_config.json"
GRAPH = "models/model.json"
OPERATION = re.compile(
    r"torch\.ops\.(?P<set>aten|prims)\.(?P<name>(?!from_file\b|save\b)\w+)\.(?P<overload>[A-Za-z]\w*)|"
    r"torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond)|"
    r"torch\.(_sym_\w+|sym_\w+)|"
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|pos|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)|"
    r"math\.(ceil|floor|trunc|sqrt)"
)
"""Operations on tensors and numbers only; of `aten` all but the two that access files."""
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
SAFE_TEXT = re.compile(r"[\w.,:+\-> /\[\]=*$]*")
"""Any other text: nothing that could end a name or a quoted string in Python source."""
EXPRESSION = re.compile(r"[\w\s(),'+*/%<>=&|~-]*")
SYMBOLS = frozenset(
    {"Symbol", "positive", "integer", "negative", "nonnegative", "nonzero", "real", "True", "False", "Integer", "Float",
     "Rational", "Max", "Min", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Add", "Mul", "Pow", "Mod", "FloorDiv", "Where",
     "ModularIndexing", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift",
     "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "ToFloat"}
)  # fmt: skip
"""Words of a symbolic size, besides the symbols."""
SYMBOL = re.compile(r"[suz]f?\d+|\d+")
TREE_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
MAX_RECORD = 1 << 40


def rebuild_safe_program(path: Path) -> tuple[io.BytesIO, dict[str, Any]]:
    """Rebuild a `.pt2` program from its safe parts only.

    Cost: memory for the whole file.

    Args:
        path: The file.

    Raises:
        UnsafeFileError: If the program contains anything but tensors and known operations.

    Returns:
        An archive for `torch.export.load`, and the graph description without its metadata.

    """
    records = archives.records(path)
    root = root_of(path, records)
    inside = {name.removeprefix(root): record for name, record in records.items() if name.startswith(root)}
    graphs = [name for name in inside if name.startswith("models/")]
    if graphs != [GRAPH]:
        raise UnsafeFileError(f"{path} holds {len(graphs)} graphs instead of one named 'model'; it was not loaded")
    program = json_record(path, inside[GRAPH])
    program["guards_code"] = []  # Python source that only checks inputs
    _check(path, program)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in {"archive_format": "pt2", "archive_version": "0", "byteorder": "little",
                              ".data/version": "6\n", GRAPH: json.dumps(program)}.items():  # fmt: skip
            archive.writestr(f"model/{name}", content)
        archive.writestr("model/data/sample_inputs/model.pt", _no_examples())
        for name in (WEIGHTS, CONSTANTS):
            for kept, content in _payload(path, inside, name).items():
                archive.writestr(f"model/{kept}", content)
    out.seek(0)
    return out, program


def _payload(path: Path, inside: Mapping[str, archives.Record], name: str) -> dict[str, bytes]:
    # the tensors of a list, and the list
    listed = json_record(path, inside[name]) if name in inside else {"config": {}}
    folder = name.rpartition("/")[0]
    kept = {name: json.dumps(listed).encode()}
    config = listed.get("config")
    if not isinstance(config, Mapping):
        raise UnreadableModelError(f"{path}: the record '{name}' does not list tensors")
    for label, entry in config.items():
        place = entry.get("path_name") if isinstance(entry, Mapping) else None
        record = inside.get(f"{folder}/{place}")
        if (
            record is None
            or entry.get("use_pickle") is not False
            or not re.fullmatch(r"(weight|tensor)_\d+", place or "")
        ):
            raise UnsafeFileError(
                f"{path}: '{label}' is a Python object, not a plain tensor; the program was not loaded"
            )
        if not SAFE_TEXT.fullmatch(label):
            raise UnsafeFileError(f"{path}: the tensor name {label!r} is not safe; the program was not loaded")
        kept[f"{folder}/{place}"] = record.read(MAX_RECORD)
    return kept


def _no_examples() -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(((), {}), out)
    return out.getvalue()


def _check(path: Path, program: dict[str, Any]) -> None:
    for key, text in _strings("", program):
        if key == "target":
            allowed = _is_operation(text)
        elif key == "expr_str":
            words = re.findall(r"\w+", text)
            allowed = EXPRESSION.fullmatch(text) is not None and all(w in SYMBOLS or SYMBOL.fullmatch(w) for w in words)
        elif key in ("in_spec", "out_spec"):
            allowed = _plain_tree(text)
        elif key in ("name", "forward_arg_names"):
            allowed = text == "" or IDENTIFIER.fullmatch(text) is not None
        else:
            allowed = key != "as_operator" and SAFE_TEXT.fullmatch(text) is not None
        if not allowed:
            raise UnsafeFileError(
                f"{path}: the program has {text[:80]!r} where only {_EXPECTED.get(key, 'a plain name')} is allowed; it "
                "was not loaded"
            )


def _is_operation(text: str) -> bool:
    import torch

    found = OPERATION.fullmatch(text)
    if found is None or not found["set"]:
        return found is not None
    name = getattr(getattr(torch.ops, found["set"]), found["name"], None)
    return isinstance(getattr(name, found["overload"], None), torch._ops.OpOverload)


_EXPECTED = {"target": "a known tensor operation", "expr_str": "a size", "in_spec": "tuples, lists and dicts",
           "out_spec": "tuples, lists and dicts"}  # fmt: skip


def _strings(key: str, node: Any) -> Iterator[tuple[str, str]]:
    """Every string in the description with its key (dict keys under `key`); node metadata are removed."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict):
        if isinstance(node.get("metadata"), dict):
            node["metadata"] = {}
        for k, value in node.items():
            yield "key", k
            yield from _strings(k, value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(key, value)


def _plain_tree(text: str) -> bool:
    try:
        version, tree = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    return type(version) is int and _plain_branch(tree)


def _plain_branch(node: Any) -> bool:
    if not isinstance(node, dict) or node.get("type") not in TREE_TYPES:
        return False
    try:
        context = json.loads(node.get("context") or "null")
    except (ValueError, TypeError, RecursionError):
        return False
    words = context if isinstance(context, list) else []
    named = context is None or (
        isinstance(context, list) and all(isinstance(w, str) and IDENTIFIER.fullmatch(w) for w in words)
    )
    return named and all(_plain_branch(child) for child in node.get("children_spec", []))
