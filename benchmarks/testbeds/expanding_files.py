"""Files that are small on disk and would cost minutes or gigabytes to read, one function per trick and format.

Every function writes one checkpoint below a folder and returns its path; nothing here is valid as a model.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Maker = Callable[[Path], Path]
MILLION = 1_000_000
PRIME = 2**61 - 1
"""Whole numbers that differ by this have one hash in CPython."""


# pickles


def torch_zip(path: Path, code: bytes, *, packed: bool = False, records: dict[str, bytes] | None = None) -> Path:
    """A zip file as `torch.save` writes it, around any pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as z:
        z.writestr("archive/data.pkl", code)
        for name, data in (records or {"0": bytes(16)}).items():
            z.writestr(f"archive/data/{name}", data)
    return path


def text(value: str) -> bytes:
    """One string as a pickle instruction."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """One whole number as a pickle instruction."""
    raw = pickle.encode_long(value)
    return b"\x8a" + bytes([len(raw)]) + raw


def view(shape: bytes, strides: bytes, key: str = "0", count: int = 4) -> bytes:
    """One tensor of the storage `key` as pickle instructions."""
    stored = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(count) + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + b"K\x00" + shape + strides + b"\x89)tR"


def repeated(count: int, shape: int, stride: int = 0) -> bytes:
    """A pickle of `count` names for views of one element."""
    one = view(number(shape) + b"\x85", number(stride) + b"\x85")
    names = b"".join(text(f"l{i}.weight") + one for i in range(count))
    return b"\x80\x02}(" + names + b"u."


def torch_repeating_views(folder: Path) -> Path:
    """Three hundred views of 64 MB over four bytes."""
    return torch_zip(folder / "x.pt", repeated(300, 16 << 20))


def torch_legacy_repeating_views(folder: Path) -> Path:
    """The same in the older format."""
    import torch

    one = torch.zeros(1)
    torch.save(
        {f"l{i}": one.expand(15 << 20) for i in range(300)}, folder / "x.pt", _use_new_zipfile_serialization=False
    )
    return folder / "x.pt"


def torch_million_empty(folder: Path) -> Path:
    """A million names of one empty tensor."""
    one = view(number(0) + b"\x85", number(1) + b"\x85") + b"q\x01"
    names = b"".join(text(f"l{i}") + (b"h\x01" if i else one) for i in range(MILLION))
    return torch_zip(folder / "x.pt", b"\x80\x02}(" + names + b"u.")


def torch_colliding_numbers(folder: Path) -> Path:
    """A mapping of whole numbers with one hash."""
    return torch_zip(folder / "x.pt", b"\x80\x02}(" + b"".join(number(i * PRIME) + b"N" for i in range(60_000)) + b"u.")


def torch_colliding_set(folder: Path) -> Path:
    """A set of such numbers."""
    return torch_zip(folder / "x.pt", b"\x80\x04\x8f(" + b"".join(number(i * PRIME) for i in range(60_000)) + b"\x90.")


def torch_colliding_pairs(folder: Path) -> Path:
    """A mapping of pairs with one hash: the second number undoes the first in CPython's hash of tuples."""
    return torch_zip(folder / "x.pt", b"\x80\x02}(" + b"".join(_colliding_pairs(40_000)) + b"u.")


def _colliding_pairs(count: int) -> list[bytes]:
    one, two, five, mask = 11400714785074694791, 14029467366897019727, 2870177450012600261, 2**64 - 1
    back, wanted = pow(two, -1, 2**64), 12345
    out, i = [], 0
    while len(out) < count:
        i += 1
        acc = (five + i * two) & mask
        acc = ((acc << 31) | (acc >> 33)) & mask
        acc = acc * one & mask
        other = (wanted - acc) * back & mask
        if other < PRIME:
            out.append(number(i) + number(other) + b"\x86N")
    return out


def torch_colliding_memo(folder: Path) -> Path:
    """Numbers with one hash as places of the memo, in the text form of the instruction."""
    code = b"\x80\x02N" + b"".join(b"p%d\n" % (i * PRIME) for i in range(60_000)) + b"."
    return torch_zip(folder / "x.pt", code)


def torch_many_lists(folder: Path) -> Path:
    """Two hundred million empty lists, which deflate takes for nothing."""
    return torch_zip(folder / "x.pt", b"\x80\x02](" + b"]" * 200_000_000 + b"e.", packed=True)


def torch_many_objects(folder: Path) -> Path:
    """Ten million objects of a class that is not known."""
    code = b"\x80\x02cmine\nThing\nq\x01](" + b"h\x01)\x81" * 10_000_000 + b"e."
    return torch_zip(folder / "x.pt", code, packed=True)


def torch_large_number_in_a_shape(folder: Path) -> Path:
    """A number of two million digits where an axis should be: it must not be printed."""
    raw = b"\xff" * 1_000_000 + b"\x00"
    big = b"\x8b" + struct.pack("<I", len(raw)) + raw
    return torch_zip(folder / "x.pt", b"\x80\x02}" + text("w") + view(big + b"\x85", b"K\x01\x85") + b"s.")


def paddle_repeated_array(folder: Path) -> Path:
    """Twenty thousand arrays that share four megabytes of their pickle."""
    raw = bytes(4 << 20)
    kind = (
        b"cnumpy\ndtype\n"
        + text("f4")
        + b"\x85R(K\x03"
        + text("<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbq\x02"
    )
    blob = b"B" + struct.pack("<I", len(raw)) + raw + b"q\x03"
    make = b"cnumpy.core.multiarray\n_reconstruct\n)R"
    first = kind + b"0" + blob + b"0"
    one = make + b"(K\x01" + number(1 << 20) + b"\x85h\x02\x89h\x03tb"
    code = b"\x80\x03" + first + b"}(" + b"".join(text(f"l{i}.w") + one for i in range(20_000)) + b"u."
    (folder / "x.pdparams").write_bytes(code)
    return folder / "x.pdparams"


def distributed_one_slice(folder: Path) -> Path:
    """A hundred thousand names of one slice of a distributed checkpoint."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as z:
        z.writestr("archive/data.pkl", b"\x80\x02" + view(b"K\x04\x85", b"K\x01\x85") + b".")
        z.writestr("archive/data/0", bytes(16))
    (folder / "m").mkdir()
    (folder / "m" / "__0_0.distcp").write_bytes(inner.getvalue())
    chunk = _state("Chunk", {"offsets": b"K\x00\x85", "sizes": b"K\x04\x85"}) + b"q\x05"
    tensor = _state("Tensor", {"size": b"K\x04\x85", "chunks": b"](" + chunk + b"e"}) + b"q\x06"
    place = _state("Place", {"relative_path": text("__0_0.distcp"), "offset": b"K\x00",
                             "length": number(len(inner.getvalue()))}) + b"q\x07"  # fmt: skip
    names = range(100_000)
    described = b"}(" + b"".join(text(f"l{i}") + (b"h\x06" if i else tensor) for i in names) + b"u"
    index = [_state("Index", {"fqn": text(f"l{i}"), "offset": b"K\x00\x85"}) for i in names]
    places = b"}(" + b"".join(key + (b"h\x07" if i else place) for i, key in enumerate(index)) + b"u"
    code = _state("Metadata", {"state_dict_metadata": described, "storage_data": places})
    (folder / "m" / ".metadata").write_bytes(b"\x80\x02" + code + b".")
    return folder / "m"


def _state(kind: str, fields: dict[str, bytes]) -> bytes:
    body = b"".join(text(k) + v for k, v in fields.items())
    return b"ctorch.distributed.checkpoint.metadata\n" + kind.encode() + b"\n)\x81}(" + body + b"ub"


# headers in JSON


def raw_safetensors(path: Path, header: bytes, payload: bytes = b"") -> Path:
    """A safetensors file around any header."""
    path.write_bytes(struct.pack("<Q", len(header)) + header + payload)
    return path


def safetensors_million_empty(folder: Path) -> Path:
    """A million empty tensors."""
    one = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return raw_safetensors(
        folder / "x.safetensors", ("{" + ",".join(f'"{i}":{one}' for i in range(MILLION)) + "}").encode()
    )


def safetensors_lists(folder: Path) -> Path:
    """A header of thirty million empty lists."""
    return raw_safetensors(folder / "x.safetensors", b'{"a":[' + b"[]," * 30_000_000 + b"0]}")


def safetensors_long_metadata(folder: Path) -> Path:
    """Ninety megabytes of metadata beside one tensor: read, and neither kept nor shown whole."""
    entry = '"w":{"dtype":"F32","shape":[64,64],"data_offsets":[0,16384]}'
    header = f'{{"__metadata__":{{"license":"{"mit " * 22_500_000}"}},{entry}}}'.encode()
    return raw_safetensors(
        folder / "x.safetensors", header, np.random.default_rng(0).standard_normal(4096).astype("f4").tobytes()
    )


def exported_repeating_views(folder: Path) -> Path:
    """A torch.export program whose weights are views of four bytes."""
    meta = {"dtype": 7, "sizes": [{"as_int": 1 << 28}], "strides": [{"as_int": 0}], "storage_offset": {"as_int": 0}}
    entry = {"path_name": "weight_0", "use_pickle": False, "tensor_meta": meta}
    config = {"config": {f"l{i}": entry for i in range(300)}}
    with zipfile.ZipFile(folder / "x.pt2", "w") as z:
        z.writestr("x/data/weights/model_weights_config.json", json.dumps(config))
        z.writestr("x/data/weights/weight_0", bytes(4))
    return folder / "x.pt2"


def exported_lists(folder: Path) -> Path:
    """A list of weights of fifty million empty lists, which deflate takes for nothing."""
    with zipfile.ZipFile(folder / "x.pt2", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("x/data/weights/model_weights_config.json", b'{"config":[' + b"[]," * 50_000_000 + b"0]}")
    return folder / "x.pt2"


def tfjs_one_shard_often(folder: Path) -> Path:
    """A manifest that names one shard half a million times."""
    (folder / "group1-shard1of1.bin").write_bytes(bytes(1 << 16))
    weights = [{"name": "w", "shape": [500_000 << 14], "dtype": "float32"}]
    manifest = [{"paths": ["group1-shard1of1.bin"] * 500_000, "weights": weights}]
    (folder / "model.json").write_text(json.dumps({"weightsManifest": manifest}))
    return folder / "model.json"


def index_of_many_shards(folder: Path) -> Path:
    """An index of a hundred thousand shards, which are all there."""
    (folder / "m").mkdir()
    raw_safetensors(folder / "m" / "s0.safetensors", b"{}")
    for i in range(1, 100_000):  # few file systems allow so many links to one file
        if i % 30_000:
            os.link(folder / "m" / f"s{i - 1 - (i - 1) % 30_000}.safetensors", folder / "m" / f"s{i}.safetensors")
        else:
            raw_safetensors(folder / "m" / f"s{i}.safetensors", b"{}")
    listed = {"weight_map": {f"w{i}": f"s{i}.safetensors" for i in range(100_000)}}
    (folder / "m" / "model.safetensors.index.json").write_text(json.dumps(listed))
    return folder / "m"


# archives and arrays


def npy(shape: tuple[int, ...], more: bytes = b"") -> bytes:
    """The beginning of an array file."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': %s, %s}\n" % (str(shape).encode(), more)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def npz_many_records_of_zeros(folder: Path) -> Path:
    """Forty arrays of 250 MB that deflate takes for nothing, each below the size of a bomb."""
    import zlib

    head = npy((62_000_000,))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = packer.compress(head) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(236))
    raw += packer.compress(bytes(248_000_000 - (236 << 20))) + packer.flush()
    size = len(head) + 248_000_000
    crc = zlib.crc32(head)
    for _ in range(236):
        crc = zlib.crc32(bytes(1 << 20), crc)
    crc = zlib.crc32(bytes(248_000_000 - (236 << 20)), crc)
    _raw_zip(folder / "x.npz", [(f"l{i}.npy", raw, size) for i in range(40)], crc)
    return folder / "x.npz"


def _raw_zip(path: Path, records: list[tuple[str, bytes, int]], crc: int) -> None:
    """A zip file of records that are deflated already and have one checksum."""
    listing = io.BytesIO()
    with path.open("wb") as f:
        for name, raw, size in records:
            fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, crc, len(raw), size, len(name), 0)
            more = struct.pack("<HHHII", 0, 0, 0, 0, f.tell())
            listing.write(b"PK\x01\x02\x14\x00" + fields + more + name.encode())
            f.write(b"PK\x03\x04" + fields + name.encode() + raw)
        at, whole = f.tell(), listing.getvalue()
        f.write(
            whole
            + b"PK\x05\x06"
            + struct.pack("<HHHHIIH", 0, 0, min(65535, len(records)), min(65535, len(records)), len(whole), at, 0)
        )


def npz_million_records(folder: Path) -> Path:
    """A million empty arrays in an archive."""
    from zlib import compressobj, crc32

    packer = compressobj(9, 8, -15)
    raw = packer.compress(npy((0,))) + packer.flush()
    _raw_zip(folder / "x.npz", [(f"{i}.npy", raw, len(npy((0,)))) for i in range(MILLION)], crc32(npy((0,))))
    return folder / "x.npz"


def npz_long_headers(folder: Path) -> Path:
    """Thirty thousand empty arrays with headers of 60 kB that say nothing."""
    from zlib import compressobj, crc32

    packer = compressobj(9, 8, -15)
    head = npy((0,), b"'x': [" + b"0," * 30_000 + b"]")
    raw = packer.compress(head) + packer.flush()
    _raw_zip(folder / "x.npz", [(f"{i}.npy", raw, len(head)) for i in range(30_000)], crc32(head))
    return folder / "x.npz"


def h5_unwritten(folder: Path) -> Path:
    """Fifty data sets of 200 MB that were never written."""
    import h5py

    with h5py.File(folder / "x.h5", "w") as f:
        for i in range(50):
            f.create_dataset(f"l{i}", (50_000_000,), "f4", chunks=(1 << 20,))
    return folder / "x.h5"


def h5_unwritten_in_place(folder: Path) -> Path:
    """The same without chunks."""
    import h5py

    with h5py.File(folder / "x.h5", "w") as f:
        for i in range(50):
            f.create_dataset(f"l{i}", (50_000_000,), "f4")
    return folder / "x.h5"


def h5_tiny_chunks(folder: Path) -> Path:
    """Fifty million chunks of one number, never written."""
    import h5py

    with h5py.File(folder / "x.h5", "w") as f:
        f.create_dataset("a", (50_000_000,), "f4", chunks=(1,))
    return folder / "x.h5"


def h5_large_chunk(folder: Path) -> Path:
    """One number in a compressed chunk of three gigabytes."""
    import h5py

    with h5py.File(folder / "x.h5", "w") as f:
        made = f.create_dataset("a", (1,), "f4", chunks=(800_000_000,), maxshape=(None,), compression="gzip")
        import zlib

        packer = zlib.compressobj(9)
        raw = b"".join(packer.compress(bytes(1 << 20)) for _ in range(3_200_000_000 >> 20))
        raw += packer.compress(bytes(3_200_000_000 % (1 << 20))) + packer.flush()
        made.id.write_direct_chunk((0,), raw)
    return folder / "x.h5"


def h5_one_data_set_often(folder: Path) -> Path:
    """Twenty thousand names of one data set of a megabyte."""
    import h5py

    with h5py.File(folder / "x.h5", "w") as f:
        f["a"] = np.zeros(1 << 18, "f4")
        for i in range(20_000):
            f[f"l{i}"] = f["a"]
    return folder / "x.h5"


def h5_nested_groups(folder: Path) -> Path:
    """Eight thousand groups, each in the other, with a data set in each: names of sixty million letters together."""
    import h5py

    with h5py.File(folder / "x.h5", "w") as f:
        group = f
        for _ in range(8_000):
            group = group.create_group("g" * 20)
            group["a"] = np.zeros(4, "f4")
    return folder / "x.h5"


def keras_unwritten(folder: Path) -> Path:
    """A Keras archive around data sets that were never written."""
    h5_unwritten(folder)
    with zipfile.ZipFile(folder / "x.keras", "w") as z:
        z.write(folder / "x.h5", "model.weights.h5")
    (folder / "x.h5").unlink()
    return folder / "x.keras"


# binary tables


def msgpack_million_empty(folder: Path) -> Path:
    """A million empty arrays."""
    inner = b"\x93\x91\x00\xa7float32\xc4\x00"
    one = b"\xc7" + bytes([len(inner), 1]) + inner
    names = b"".join(b"\xaa" + b"%010d" % i + one for i in range(MILLION))
    (folder / "x.msgpack").write_bytes(b"\xdf" + struct.pack(">I", MILLION) + names)
    return folder / "x.msgpack"


def msgpack_many_maps(folder: Path) -> Path:
    """Thirty million maps of nothing."""
    count = 30_000_000
    (folder / "x.msgpack").write_bytes(b"\x81\xa1a\xdd" + struct.pack(">I", count) + b"\x80" * count)
    return folder / "x.msgpack"


def _gguf_text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf_million_empty(folder: Path) -> Path:
    """A million empty tensors."""
    rows = b"".join(_gguf_text(b"%d" % i) + struct.pack("<IQIQ", 1, 0, 0, 0) for i in range(MILLION))
    head = b"GGUF" + struct.pack("<IQQ", 3, MILLION, 0) + rows
    (folder / "x.gguf").write_bytes(head + bytes(-len(head) % 32))
    return folder / "x.gguf"


def gguf_many_lists(folder: Path) -> Path:
    """A field of eight million lists of nothing."""
    count = 8_000_000
    field = _gguf_text(b"k") + struct.pack("<IIQ", 9, 9, count) + struct.pack("<IQ", 4, 0) * count
    (folder / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field + bytes(64))
    return folder / "x.gguf"


def gguf_long_fields(folder: Path) -> Path:
    """Twenty texts of fifteen megabytes each in the header."""
    fields = b"".join(
        _gguf_text(b"general.base_model.%d.name" % i) + struct.pack("<I", 8) + _gguf_text(b"x" * 15_000_000)
        for i in range(20)
    )
    rows = _gguf_text(b"w") + struct.pack("<IQIQ", 1, 8, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 20) + fields + rows
    (folder / "x.gguf").write_bytes(head + bytes(-len(head) % 32) + bytes(32))
    return folder / "x.gguf"


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _field(key: int, content: bytes) -> bytes:
    return _varint(key << 3 | 2) + _varint(len(content)) + content


def onnx_million_empty(folder: Path) -> Path:
    """A million empty tensors."""
    graph = b"".join(_field(5, b"\x08\x00\x10\x01" + _field(8, b"%d" % i) + _field(9, b"")) for i in range(MILLION))
    (folder / "x.onnx").write_bytes(_field(7, graph))
    return folder / "x.onnx"


def onnx_many_nodes(folder: Path) -> Path:
    """Twenty million nodes of two bytes."""
    (folder / "x.onnx").write_bytes(_field(7, _field(1, b"") * 20_000_000))
    return folder / "x.onnx"


def onnx_long_prefixes(folder: Path) -> Path:
    """A graph below a name of 60 kB, whose nodes have a million unnamed inputs."""
    inner = _field(1, _field(1, b"") * MILLION)
    node = _field(2, b"n" * 60_000) + _field(5, _field(6, inner))
    (folder / "x.onnx").write_bytes(_field(7, _field(1, node)))
    return folder / "x.onnx"


def onnx_shared_external_data(folder: Path) -> Path:
    """Ten thousand tensors in the same sixteen megabytes of another file."""
    (folder / "data.bin").write_bytes(bytes(16 << 20))
    pair = _field(13, _field(1, b"location") + _field(2, b"data.bin"))
    head = b"\x08" + _varint(4 << 20) + b"\x10\x01"
    graph = b"".join(_field(5, head + _field(8, b"w%d" % i) + pair + b"\x70\x01") for i in range(10_000))
    (folder / "x.onnx").write_bytes(_field(7, graph))
    return folder / "x.onnx"


def onnx_numbers_of_one_byte(folder: Path) -> Path:
    """Sixty million small numbers written one by one, which take a byte each in the tensor."""
    count = 60_000_000
    tensor = b"\x08" + _varint(count) + b"\x10\x03" + _field(8, b"w") + _field(5, b"\x01" * count)
    (folder / "x.onnx").write_bytes(_field(7, _field(5, tensor)))
    return folder / "x.onnx"


def tflite_one_table_often(folder: Path) -> Path:
    """A thousand subgraphs that are one, of a million tensors that are one."""
    return _tflite(folder / "x.tflite", 1000, MILLION, 16)


def tflite_long_tables(folder: Path) -> Path:
    """Three hundred thousand tensors that are one, whose table has thirty thousand fields."""
    return _tflite(folder / "x.tflite", 1, 300_000, 60_000)


def _tflite(path: Path, graphs: int, tensors: int, slots: int) -> Path:
    out = bytearray(struct.pack("<I", 0) + b"TFL3" + bytes(8))

    def table(fields: dict[int, int], width: int = 16) -> int:
        # every field is an offset, filled in later
        vtable = len(out)
        out.extend(struct.pack("<HH", width, 4 + 4 * 8) + bytes(width - 4))
        at = len(out)
        out.extend(struct.pack("<i", at - vtable) + bytes(4 * 8))
        for slot in fields:
            struct.pack_into("<H", out, vtable + 4 + 2 * slot, 4 + 4 * slot)
        return at

    def point(at: int, slot: int, to: int) -> None:
        struct.pack_into("<I", out, at + 4 + 4 * slot, to - (at + 4 + 4 * slot))

    def vector(count: int, targets: list[int]) -> int:
        at = len(out)
        out.extend(struct.pack("<I", count))
        first = np.arange(count, dtype=np.int64) * 4 + at + 4
        fill = (first[-1] + 4 + targets_at - first).astype("<u4") if targets else None
        out.extend(fill.tobytes() if fill is not None else b"")
        return at

    targets_at = 0
    model = table({2: 0, 4: 0})
    struct.pack_into("<I", out, 0, model)
    point(model, 4, vector(1, [0]))
    buffer = table({0: 0})
    point(model, 2, vector(graphs, [0]))
    graph = table({0: 0})
    # the vectors point right behind themselves: the vtable comes first there
    tensors_at = vector(tensors, [0])
    point(graph, 0, tensors_at)
    tensor = table({0: 0, 3: 0}, slots)
    data = len(out)
    out.extend(struct.pack("<I", 4) + bytes(4))
    point(buffer, 0, data)
    shape = len(out)
    out.extend(struct.pack("<Ii", 1, 1))
    point(tensor, 0, shape)
    name = len(out)
    out.extend(struct.pack("<I", 60_000) + b"n" * 60_000)
    point(tensor, 3, name)
    # correct the offsets: from the start of the vtable to the table
    for first, count, target in (
        (model + 4 + 4 * 4, 1, buffer),
        (model + 4 + 4 * 2, graphs, graph),
        (graph + 4, tensors, tensor),
    ):
        at = first + struct.unpack_from("<I", out, first)[0] + 4
        places = np.arange(count, dtype=np.int64) * 4 + at
        out[at : at + 4 * count] = (target - places).astype("<u4").tobytes()
    path.write_bytes(bytes(out))
    return path


def tensorflow_long_keys(folder: Path) -> Path:
    """A table whose keys repeat the megabyte before them at the cost of a few bytes."""
    rows = [_row(0, b"", _header_of_bundle()), _row(0, b"k" * MILLION, b"\x08\x01")]
    rows += [_row(MILLION, b"%06d" % i, b"\x08\x01") for i in range(50_000)]
    return _bundle(folder, b"".join(rows), 1)


def tensorflow_one_block_often(folder: Path) -> Path:
    """An index that leads a hundred thousand times to one block of ten thousand entries."""
    rows = [_row(0, b"", _header_of_bundle())] + [_row(0, b"w%06d" % i, b"\x08\x01\x12\x00") for i in range(10_000)]
    return _bundle(folder, b"".join(rows), 100_000)


def _header_of_bundle() -> bytes:
    return b"\x08\x01"


def _row(shared: int, fresh: bytes, value: bytes) -> bytes:
    return _varint(shared) + _varint(len(fresh)) + _varint(len(value)) + fresh + value


def _bundle(folder: Path, block: bytes, often: int) -> Path:
    end = struct.pack("<II", 0, 1)
    data = block + end
    place = _varint(0) + _varint(len(data))
    listing = b"".join(_row(0, b"%07d" % i, place) for i in range(often)) + end
    footer = _varint(0) + _varint(0) + _varint(len(data) + 5) + _varint(len(listing))
    raw = data + bytes(5) + listing + bytes(5) + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")
    (folder / "x.index").write_bytes(raw)
    (folder / "x.data-00000-of-00001").write_bytes(bytes(64))
    return folder / "x.index"


# folders


def _small(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    entry = b'{"w":{"dtype":"F32","shape":[64,64],"data_offsets":[0,16384]}}'
    return raw_safetensors(
        folder / "model.safetensors", entry, np.random.default_rng(0).standard_normal(4096).astype("f4").tobytes()
    )


def _sparse(path: Path, head: bytes, size: int = 1 << 30) -> None:
    with path.open("wb") as f:
        f.write(head)
        f.truncate(size)


def folder_of_huge_texts(folder: Path) -> Path:
    """A model beside a config, a card, tokenizers and adapters' configs of a gigabyte each: its weights are read."""
    _small(folder / "m")
    for name in ("config.json", "README.md", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
                 "receipt.json", "vocab.json", "latest", "special_tokens_map.json"):  # fmt: skip
        _sparse(folder / "m" / name, b'{"a":"')
    return folder / "m"


def folder_with_a_long_card(folder: Path) -> Path:
    """A model beside a card of four megabytes of what its patterns might try again and again."""
    _small(folder / "m")
    (folder / "m" / "README.md").write_text("```\n" * 400_000 + "This model was trained " * 90_000)
    return folder / "m"


def folder_of_deep_folders(folder: Path) -> Path:
    """A model below three hundred folders."""
    at = folder / "m"
    at.mkdir()
    os.chdir(at)
    for _ in range(300):
        Path("d").mkdir()
        os.chdir("d")
    _small(Path("x"))
    os.chdir(folder)
    return folder / "m"


def adapter_of_huge_rank(folder: Path) -> Path:
    """A low-rank adapter of rank 60,000 for a layer of 4096 by 4096, in views that repeat."""
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}")
    entry = b'{"fc.weight":{"dtype":"F32","shape":[4096,4096],"data_offsets":[0,67108864]}}'
    raw_safetensors(folder / "base" / "model.safetensors", entry)
    with (folder / "base" / "model.safetensors").open("r+b") as f:
        f.truncate(8 + len(entry) + (64 << 20))
    (folder / "a").mkdir()
    a = text("base_model.model.fc.lora_A.weight") + view(number(60_000) + number(4096) + b"\x86", b"K\x00K\x00\x86")
    b = text("base_model.model.fc.lora_B.weight") + view(number(4096) + number(60_000) + b"\x86", b"K\x00K\x00\x86")
    torch_zip(folder / "a" / "adapter_model.bin", b"\x80\x02}(" + a + b + b"u.")
    config = {"peft_type": "LORA", "r": 60_000, "lora_alpha": 4, "base_model_name_or_path": "../base"}
    (folder / "a" / "adapter_config.json").write_text(json.dumps(config))
    return folder / "a"


def packed_codes_that_repeat(folder: Path) -> Path:
    """Two hundred layers of 4-bit codes that are views of four bytes."""
    import torch

    one = torch.zeros(1, dtype=torch.int32)
    tensors = {}
    for i in range(200):
        tensors[f"l{i}.qweight"] = one.expand(512, 8192)
        tensors[f"l{i}.qzeros"] = one.expand(32, 1024)
        tensors[f"l{i}.scales"] = torch.zeros(1, dtype=torch.float16).expand(32, 8192)
    torch.save(tensors, folder / "x.pt")
    return folder / "x.pt"


ALL: dict[str, Maker] = {
    make.__name__: make
    for make in (
        torch_repeating_views,
        torch_legacy_repeating_views,
        torch_million_empty,
        torch_colliding_numbers,
        torch_colliding_set,
        torch_colliding_pairs,
        torch_colliding_memo,
        torch_many_lists,
        torch_many_objects,
        torch_large_number_in_a_shape,
        paddle_repeated_array,
        distributed_one_slice,
        safetensors_million_empty,
        safetensors_lists,
        safetensors_long_metadata,
        exported_repeating_views,
        exported_lists,
        tfjs_one_shard_often,
        index_of_many_shards,
        npz_many_records_of_zeros,
        npz_million_records,
        npz_long_headers,
        h5_unwritten,
        h5_unwritten_in_place,
        h5_tiny_chunks,
        h5_large_chunk,
        h5_one_data_set_often,
        h5_nested_groups,
        keras_unwritten,
        msgpack_million_empty,
        msgpack_many_maps,
        gguf_million_empty,
        gguf_many_lists,
        gguf_long_fields,
        onnx_million_empty,
        onnx_many_nodes,
        onnx_long_prefixes,
        onnx_shared_external_data,
        onnx_numbers_of_one_byte,
        tflite_one_table_often,
        tflite_long_tables,
        tensorflow_long_keys,
        tensorflow_one_block_often,
        folder_of_huge_texts,
        folder_with_a_long_card,
        folder_of_deep_folders,
        adapter_of_huge_rank,
        packed_codes_that_repeat,
    )
}
"""Makers by name."""
