"""Tied heads: a model that ties its head to the embedding is given a separate head where the other model has one."""

from dataclasses import replace

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.checkpoints.tensor_names import EMBEDDING, OUTPUT
from stemma.fingerprints.tensor_content import matrices


def untie_head(one: Model, other: Model) -> Model:
    """The model with its tied head as a separate tensor, under the other model's name, where only the other has one."""
    heads = [n for n in matrices(other) if OUTPUT.search(n)]
    embeddings = [n for n in matrices(one) if EMBEDDING.search(n) and n in other.weights]
    if len(heads) != 1 or len(embeddings) != 1 or any(OUTPUT.search(n) for n in matrices(one)):
        return one
    (head,), shared = heads, one.weights[embeddings[0]]
    if other.weights[head].shape != shared.shape:
        return one
    tied = Tensor(head, shared.dtype, shared.shape, shared.storage)
    return replace(one, tensors={**one.tensors, head: tied})
