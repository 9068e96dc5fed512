"""Operation: the same numbers up to rounding, stored in another form."""

from dataclasses import dataclass
from typing import ClassVar

from stemma.checkpoints.model import Model
from stemma.fingerprints.tensor_content import matrices
from stemma.kinship.relation.base import AbstractOperation, FittedOperation
from stemma.kinship.relation.explanation import Step
from stemma.kinship.relation.pair import Pair
from stemma.kinship.weights.correspondence import by_name
from stemma.kinship.weights.residual import ROUNDING, recast_equal, rounding
from stemma.types import RelationKind


@dataclass(frozen=True)
class Reformatted(AbstractOperation):
    """Every matrix agrees up to the rounding of its number format; names, layout and float width may differ."""

    name: ClassVar[str] = "reformatted"

    def fit(self, pair: Pair) -> FittedOperation | None:
        """See `AbstractOperation.fit`: applies only where nothing else was done."""
        covered = {layer.a for layer in pair.layers} >= set(matrices(pair.parent))
        covered &= {layer.b for layer in pair.layers} >= set(matrices(pair.child))
        if (
            pair.operations
            or not pair.matrices
            or not covered
            or pair.kept
            or any(not m.is_explained for m in pair.matrices)
        ):
            return None
        if any(not layer.is_explained for layer in pair.unexplained) and not _folded(pair):
            return None
        narrow = [_rounded_to(model) for model in (pair.parent, pair.child)]
        if (
            any(narrow)
            and _one_layout(pair)
            and not recast_equal(pair.parent, pair.child, by_name(pair.parent, pair.child))
        ):
            return None  # almost equal, but not by rounding
        formats = [_formats(model) for model in (pair.parent, pair.child)]
        renamed = set(pair.parent.tensors) != set(pair.child.tensors)
        grown = {layer.b: layer.added_tokens for layer in pair.layers if layer.added_tokens}
        what = [
            *([f"{'/'.join(formats[0])} stored as {'/'.join(formats[1])}"] if formats[0] != formats[1] else []),
            *[
                f"the {who} was rounded to {to} and stored in a wider format"
                for who, to in zip(("parent", "child"), narrow, strict=True)
                if to and narrow[0] != narrow[1]
            ],
            *(["different names"] if renamed else []),
            *([_tokens(max(grown.values(), key=abs))] if grown else []),
        ]
        step = Step(
            self.name,
            RelationKind.REFORMATTED,
            "all weights agree up to the rounding of their number formats" + (f" ({', '.join(what)})" if what else ""),
            {
                "dtypes": formats,
                "rounded_to": narrow,
                "names_changed": renamed,
                **({"vocabulary_grown": grown} if grown else {}),
            },
        )
        explained = {layer.b: layer.explained("") for layer in pair.unexplained}
        return FittedOperation(step, pair.with_layers(explained, self.name))


def _tokens(more: int) -> str:
    return f"{more} more tokens" if more > 0 else f"{-more} fewer tokens"


def _one_layout(pair: Pair) -> bool:
    """Whether names and sizes of all matrices are equal, so that entries can be compared one by one."""
    own, other = matrices(pair.parent), matrices(pair.child)
    return own.keys() == other.keys() and all(t.shape == other[n].shape for n, t in own.items())


def _rounded_to(model: Model) -> str:
    """The half precision that all matrices fit although they are stored in wider floats; else empty."""
    found = matrices(model)
    wide = [n for n in found if n in model.tensors and model.tensors[n].dtype in ("F32", "F64")]
    widest = min((rounding(model, n) for n in wide), default=0.0) if len(wide) == len(found) else 0.0
    return {ROUNDING["F16"]: "float16", ROUNDING["BF16"]: "bfloat16"}.get(widest, "")


def _folded(pair: Pair) -> bool:
    """Whether only vectors differ because the tensors of a normalisation were removed."""
    return len(pair.child.tensors) < len(pair.parent.tensors)


def _formats(model: Model) -> list[str]:
    return sorted({t.dtype for t in model.tensors.values() if t.is_float})
