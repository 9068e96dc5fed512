"""Which exported programs may be loaded: those that are nothing but known tensor operations.

`torch.export.load` runs what a file says: pickles (weights, constants and example inputs), compiled libraries, any
function that is found below `torch`, `operator` or `math` as a node of the graph, symbolic sizes as Python expressions,
and names of the graph as Python source. So a program is taken apart first, and only what is listed here is put
together again for loading: raw tensors, and a graph whose nodes are operations on tensors and whose names are names.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stemma.checkpoints.formats import archives
from stemma.checkpoints.formats.exported import WEIGHTS, json_record, root_of
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
"""Operations that change nothing but tensors and numbers; of `aten` all but the two that touch files."""
WORD = re.compile(r"[A-Za-z_]\w*")
TEXT = re.compile(r"[\w.,:+\-> /\[\]=*$]*")
"""Any other text: nothing that could end a name or a quoted text in Python source."""
EXPRESSION = re.compile(r"[\w\s(),'+*/%<>=&|~-]*")
SYMBOLS = frozenset(
    {"Symbol", "positive", "integer", "negative", "nonnegative", "nonzero", "real", "True", "False", "Integer", "Float",
     "Rational", "Max", "Min", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Add", "Mul", "Pow", "Mod", "FloorDiv", "Where",
     "ModularIndexing", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift",
     "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "ToFloat"}
)  # fmt: skip
"""Words of a symbolic size, beside the symbols themselves."""
SYMBOL = re.compile(r"[suz]f?\d+|\d+")
TREE_TYPES = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
MAX_RECORD = 1 << 40


def vetted(path: Path) -> tuple[io.BytesIO, dict[str, Any]]:
    """A program put together again from its harmless parts.

    Cost: memory for the whole file.

    Args:
        path: A `.pt2` file.

    Returns:
        An archive for `torch.export.load`, and the graph's description without its remarks.

    Raises:
        UnsafeFileError: If the program holds anything but tensors and known operations.
        UnreadableModelError: If it is damaged.
    """
    records = archives.records(path)
    root = root_of(path, records)
    inside = {name.removeprefix(root): record for name, record in records.items() if name.startswith(root)}
    graphs = [name for name in inside if name.startswith("models/")]
    if graphs != [GRAPH]:
        raise UnsafeFileError(f"{path} holds {len(graphs)} graphs, one 'model' is expected; it was not loaded")
    program = json_record(path, inside[GRAPH])
    program["guards_code"] = []  # Python source, and only a check of the inputs
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
    # the tensors that a list names, and the list
    listed = json_record(path, inside[name]) if name in inside else {"config": {}}
    folder = name.rpartition("/")[0]
    kept = {name: json.dumps(listed).encode()}
    config = listed.get("config")
    if not isinstance(config, Mapping):
        raise UnreadableModelError(f"{path}: the record '{name}' lists no tensors")
    for label, said in config.items():
        place = said.get("path_name") if isinstance(said, Mapping) else None
        record = inside.get(f"{folder}/{place}")
        if (
            record is None
            or said.get("use_pickle") is not False
            or not re.fullmatch(r"(weight|tensor)_\d+", place or "")
        ):
            raise UnsafeFileError(
                f"{path}: '{label}' is a Python object, not a plain tensor; the program was not loaded"
            )
        if not TEXT.fullmatch(label):
            raise UnsafeFileError(f"{path}: a tensor is called {label!r}; the program was not loaded")
        kept[f"{folder}/{place}"] = record.read(MAX_RECORD)
    return kept


def _no_examples() -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(((), {}), out)
    return out.getvalue()


def _check(path: Path, program: dict[str, Any]) -> None:
    for key, text in _texts("", program):
        if key == "target":
            fine = _is_operation(text)
        elif key == "expr_str":
            words = re.findall(r"\w+", text)
            fine = EXPRESSION.fullmatch(text) is not None and all(w in SYMBOLS or SYMBOL.fullmatch(w) for w in words)
        elif key in ("in_spec", "out_spec"):
            fine = _plain_tree(text)
        elif key in ("name", "forward_arg_names"):
            fine = text == "" or WORD.fullmatch(text) is not None
        else:
            fine = key != "as_operator" and TEXT.fullmatch(text) is not None
        if not fine:
            raise UnsafeFileError(
                f"{path}: the program says {text[:80]!r} where only {_PLACES.get(key, 'a plain name')} may stand; it "
                "was not loaded"
            )


def _is_operation(text: str) -> bool:
    import torch

    found = OPERATION.fullmatch(text)
    if found is None or not found["set"]:
        return found is not None
    name = getattr(getattr(torch.ops, found["set"]), found["name"], None)
    return isinstance(getattr(name, found["overload"], None), torch._ops.OpOverload)


_PLACES = {"target": "a known tensor operation", "expr_str": "a size", "in_spec": "tuples, lists and dicts",
           "out_spec": "tuples, lists and dicts"}  # fmt: skip


def _texts(key: str, node: Any) -> Iterator[tuple[str, str]]:
    """Every text of the description with the key that it stands under; remarks on nodes are removed on the way.

    Yields:
        Keys of dicts are texts under the key `key`.
    """
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict):
        if isinstance(node.get("metadata"), dict):
            node["metadata"] = {}
        for k, value in node.items():
            yield "key", k
            yield from _texts(k, value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(key, value)


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
        isinstance(context, list) and all(isinstance(w, str) and WORD.fullmatch(w) for w in words)
    )
    return named and all(_plain_branch(child) for child in node.get("children_spec", []))
