"""A registry of many models with family trees of realistic shape, written straight into its tables.

Families have heavy-tailed sizes; most children come from the root of their family or from a recent model of it, some
from two (merges). About a third of the models have no relative. No weights exist: pages need none.
"""

import hashlib
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from stemma.checkpoints.load import load
from stemma.registry import Registry, blobs, records, rows
from stemma.registry.ingest import fingerprinters
from stemma.registry.records import ModelRecord, TensorRecord, model_digests
from stemma.types import Digest, Edge, Fingerprint, Lineage, ModelRef

LICENCES = ("apache-2.0", "mit", "cc-by-nc-4.0", "llama3", "gemma", None, None)
RELATIONS = ("finetuned",) * 5 + ("lora", "quantized", "quantized", "pruned", "merged", "copy")
SHARE_WITH_RELATIVES = 0.68


def families_of(n: int, r: random.Random) -> list[list[int]]:
    """Positions of the models of each family with more than one."""
    families, i = [], 0
    while i < SHARE_WITH_RELATIVES * n:
        size = max(2, min(int(3 * r.paretovariate(0.8)), 3000, n - i))
        families.append(list(range(i, i + size)))
        i += size
    return families


def edges_of(family: list[int], names: list[str], r: random.Random) -> list[Edge]:
    """A tree, and second parents of merges."""
    edges = []
    for j in range(1, len(family)):
        parent = 0 if r.random() < 0.55 else min(int(r.expovariate(8 / j)), j - 1)
        relation = r.choice(RELATIONS)
        both = [parent, r.randrange(j)] if relation == "merged" else [parent]
        sure = r.choice((None, 0.9, 0.99))
        edges += [
            Edge(
                parent=names[family[p]], child=names[family[j]], relation=relation, p_value=0.0, log10_p=-400.0,
                confidence=sure, share=0.5 if len(set(both)) == 2 else None, reason="simulated",
            )
            for p in dict.fromkeys(both)
        ]  # fmt: skip
    return edges


def real_sketches(rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """The sketches of a few small models, without the bits that a search compares."""
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(16):
            file = Path(folder) / f"{i}.safetensors"
            save_file({f"layer{j}.weight": rng.normal(size=(32, 32)).astype(np.float32) for j in range(3)}, file)
            out.append(dict(fingerprinters()[0](load(file)).values))
    return out


def build(path: Path, n: int, seed: int = 0) -> int:
    """Write the registry.

    Returns:
        Number of edges.
    """
    r, rng = random.Random(seed), np.random.default_rng(seed)
    registry, spec = Registry(path), fingerprinters()[0].spec
    names = [f"org{r.randrange(n // 20 + 1):04d}/{r.choice(('base', 'chat', 'vision'))}-{k:05d}" for k in range(n)]
    digests = []
    sketches = real_sketches(rng)
    with registry._database.writing() as connection:
        for k, name in enumerate(names):
            parts = [hashlib.sha256(f"{seed}/{k}/{j}".encode()).hexdigest() for j in range(3)]
            tensors = [TensorRecord(f"layer{j}.weight", "F32", (4, 4), Digest(f"sha256:{p}"), True)
                       for j, p in enumerate(parts)]  # fmt: skip
            digest, names_free = model_digests(tensors)
            record = ModelRecord(
                name=name, digest=digest, names_free_digest=names_free, source=f"/models/{name}.safetensors",
                format="safetensors", tensors=3, parameters=r.randrange(10**6, 10**10), dtypes={"F32": 3},
                license=r.choice(LICENCES),
            )  # fmt: skip
            content = rows.put_content(connection, record, tensors, records.manifest(tensors), staged=False)
            day = f"2026-{1 + 11 * k // n:02d}-{1 + k % 28:02d}T00:00:00+00:00"
            rows.append_model(connection, replace(rows.with_timestamp(record, None), added_at=day), content)
            values = {**sketches[k % len(sketches)], "bits": rng.integers(0, 256, 256, dtype=np.uint8)}
            sketch = Fingerprint(digest, None, spec, values)
            rows.put_fingerprint(connection, content, sketch, blobs.pack(sketch.values), staged=False)
            digests.append(digest)
    related = families_of(n, r)
    edges = [edge for family in related for edge in edges_of(family, names, r)]
    inside = {k for family in related for k in family}
    families = [tuple(names[k] for k in family) for family in related]
    families += [(names[k],) for k in range(n) if k not in inside]
    lineage = Lineage(
        models=tuple(ModelRef(name, digest) for name, digest in sorted(zip(names, digests, strict=True))),
        edges=tuple(edges), roots=(), families=tuple(sorted(families, key=lambda f: (-len(f), f))),
    )  # fmt: skip
    registry.put_tree("lineage", lineage.to_dict(), {"alpha": 0.01})
    registry.close()
    return len(edges)
