"""Feed damaged and hostile exports of registries to the importer: one clear error each, within 5 s and 500 MB.

Each input is a small valid export with bytes changed, cut, doubled or overwritten; or with its statements changed and
then sealed again with right digests, so that only the checks of every value stand between it and the registry. After
each, the registry must hold exactly what it held before, or what the file says. One seed.
Run: `python benchmarks/fuzz_exchange.py [INPUTS]`; 5,000 take about ten minutes.
"""

import collections
import json
import os
import platform
import resource
import sys
import tempfile
import time
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from stemma import __version__
from stemma.errors import ExchangeError, UnknownNameError
from stemma.registry import Registry
from stemma.registry.exchange import sections
from stemma.registry.exchange.merging import Acceptance
from testbeds.measured import write_result

INPUTS = 5_000
LIMIT = 5.0
"""Seconds that one input may take."""
EVERY = 20
"""Inputs after which everything in the registry is compared."""
MEMORY = 500 << 20
"""Bytes that the process may grow by."""
RESULTS = Path(__file__).parent / "results" / "fuzz_exchange.json"

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 31, 1 << 63, 1 << 70, 1e308, "", "x", "x" * 10_000, "\x1b[2J", "../../etc/passwd", [], {},
    [[]], {"a": {"b": {}}}, "sha256:" + "0" * 64, ["\u202e"], [1 << 62] * 3,
)  # fmt: skip


def lines_of(whole: bytes) -> list[bytes]:
    """The lines of the first member of an export."""
    inflate = zlib.decompressobj(-15)
    return inflate.decompress(whole[len(sections.HEAD) :]).splitlines()


def sealed_again(lines: list[bytes], rng: np.random.Generator) -> bytes:
    """An export of these lines with right digests of everything."""
    text = b"\n".join(lines) + b"\n"
    packer = zlib.compressobj(int(rng.integers(0, 10)), zlib.DEFLATED, -15)
    member = sections.HEAD + packer.compress(text) + packer.flush()
    member += zlib.crc32(text).to_bytes(4, "little") + (len(text) & 0xFFFFFFFF).to_bytes(4, "little")
    seal = {"left_out": {}, "sha256": sha256(member).hexdigest(), "signature": None, "statements": len(lines) - 1}
    return member + sections._stored(json.dumps(seal, separators=(",", ":")).encode() + b"\n")


def changed_value(value: Any, rng: np.random.Generator) -> Any:
    """The same JSON value with one place in it changed."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        copy = dict(value) if isinstance(value, dict) else list(value)
        keys = list(copy) if isinstance(copy, dict) else list(range(len(copy)))
        key = keys[int(rng.integers(len(keys)))]
        if rng.random() < 0.08:
            del copy[key]
        elif isinstance(copy, dict) and rng.random() < 0.05:
            copy[f"more{rng.integers(9)}"] = 1
        else:
            copy[key] = changed_value(copy[key], rng)
        return copy
    return VALUES[int(rng.integers(len(VALUES)))]


def with_changed_text(line: bytes, rng: np.random.Generator) -> bytes:
    """A statement with a value changed, or its text damaged, under the right digest."""
    text = line[68:-1]
    kind = rng.random()
    if kind < 0.7:
        value = changed_value(json.loads(text), rng)
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    elif kind < 0.9:
        damaged = bytearray(text)
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] = int(rng.integers(256))
        text = bytes(damaged).replace(b"\n", b" ")
    else:
        odd = (b"[" * 200_000, b'{"a":' * 100_000, b"9" * 10_000, b"NaN", b"1e999", b'"\\ud800"', b"0" * (1 << 21))
        text = odd[int(rng.integers(len(odd)))]
    return b'["%b",%b]' % (sha256(text).hexdigest().encode(), text)


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """A damaged or hostile copy of an export.

    Args:
        whole: A valid export.
        rng: Decides what is done to it.

    Returns:
        Bytes.
    """
    kind = rng.random()
    if kind < 0.5:  # hostile: right digests around wrong values
        lines = lines_of(whole)
        at = int(rng.integers(len(lines)))
        if at == 0:
            header = changed_value(json.loads(lines[0]), rng)
            lines[0] = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        else:
            lines[at] = with_changed_text(lines[at], rng)
        return sealed_again([line.replace(b"\n", b" ") for line in lines], rng)
    content = bytearray(whole)
    if kind < 0.7:
        for at in rng.integers(0, len(content), int(rng.choice([1, 3, 30]))):
            content[at] ^= 1 << int(rng.integers(8))
    elif kind < 0.8:
        del content[int(rng.integers(len(content))) :]
    elif kind < 0.85:
        start = int(rng.integers(len(content)))
        content[start : start + int(rng.integers(1, 200))] = rng.bytes(int(rng.integers(0, 200)))
    elif kind < 0.9:
        content += content[: int(rng.integers(len(content)))]
    elif kind < 0.92:  # a bomb
        lines = lines_of(whole)
        return sealed_again([*lines, *[b"0" * 100_000] * 200], rng)
    else:
        at = int(rng.integers(len(content)))
        content[at : at + 8] = int(rng.choice([0, 1, 2**31, 2**32 - 1, 2**62])).to_bytes(8, "little")
    return bytes(content)


def state(registry: Registry) -> str:
    """Everything in a registry."""
    with registry._database.reading() as connection:
        lines = connection.connection.driver_connection.iterdump()  # ty: ignore
        return "\n".join(line for line in lines if "sqlite_sequence" not in line)


def main(inputs: int) -> None:
    """Run, and write what happened."""
    from tests.test_registry_exchange import arrays, enrol

    rng, outcomes, slowest, errors = np.random.default_rng(20), collections.Counter[str](), 0.0, set[str]()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Registry(Path(folder) / "a.db"), Registry(Path(folder) / "b.db")
        for i in range(3):
            enrol(source, f"m{i}", arrays(i), "mit")
        source.remove("m2")
        path = Path(folder) / "x.reg"
        source.exchange.export(path, name="acme")
        whole = path.read_bytes()
        target.make_writable()
        before, grown = state(target), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for i in range(inputs):
            path.write_bytes(mutated(whole, rng))
            began = time.perf_counter()
            try:
                for found in target.exchange.import_from(str(path), Acceptance()):
                    outcomes["imported"] += 1
                    target.exchange.forget(found.name)
            except ExchangeError as e:
                outcomes["refused"] += 1
                errors.add(str(e)[:60])
                if i % EVERY == 0 and state(target) != before:  # a change would stay, and be seen later
                    outcomes["changed the registry"] += 1
            except UnknownNameError:
                outcomes["imported twice"] += 1
            except Exception as e:  # a crash is what this looks for
                outcomes[f"crashed: {type(e).__name__}"] += 1
                sys.stderr.write(f"input {i}: {type(e).__name__}: {e}\n")
            lasted = time.perf_counter() - began
            slowest = max(slowest, lasted)
            outcomes["too slow"] += lasted > LIMIT
        outcomes["changed the registry"] += state(target) != before
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown) * 1024
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    result = {"inputs": inputs, "outcomes": dict(sorted(outcomes.items())), "slowest_s": round(slowest, 3),
              "memory_mb": round(used / 1e6, 1), "within_memory": used <= MEMORY, "different_errors": len(errors),
              "version": __version__, "machine": machine}  # fmt: skip
    write_result(RESULTS, result, indent=2)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main(int(sys.argv[1]) if len(sys.argv) > 1 else INPUTS)
