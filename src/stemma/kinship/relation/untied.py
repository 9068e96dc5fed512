"""Heads that were tied to an embedding: a model that keeps the two apart is put side by side with one that does not."""

from dataclasses import replace

from stemma.checkpoints.model import Model
from stemma.checkpoints.tensor import Tensor
from stemma.checkpoints.tensor_names import EMBEDDING, OUTPUT
from stemma.fingerprints.tensor_content import matrices


def untied(one: Model, other: Model) -> Model:
    """A model with its head told apart from the embedding that it is tied to, where the other model has one.

    Cost: nothing is read.

    Args:
        one: The model that may tie its head.
        other: The model that may keep its own.

    Returns:
        The model as it is where nothing is tied, else a view of it with the head under the other model's name.
    """
    heads = [n for n in matrices(other) if OUTPUT.search(n)]
    embeddings = [n for n in matrices(one) if EMBEDDING.search(n) and n in other.weights]
    if len(heads) != 1 or len(embeddings) != 1 or any(OUTPUT.search(n) for n in matrices(one)):
        return one
    (head,), shared = heads, one.weights[embeddings[0]]
    if other.weights[head].shape != shared.shape:
        return one
    tied = Tensor(head, shared.dtype, shared.shape, shared.storage)
    return replace(one, tensors={**one.tensors, head: tied})
