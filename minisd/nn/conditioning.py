"""What a UNet is told besides x and t.

`Conditioning` is the text side's answer, the same for every step. `Prepared` is what one UNet makes of it once:
everything that does not change over the steps. Both are plain values that can be sliced and joined by batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor

from .attention import KeyValue


@dataclass(frozen=True)
class Conditioning:
    """context (b, l, e) for cross-attention; vector (b, v) pooled text, sizes; concat (b, c, h, w) extra channels."""

    context: Tensor
    vector: Tensor | None = None
    concat: Tensor | None = None

    def __len__(self) -> int:
        return self.context.shape[0]

    def __getitem__(self, index: slice) -> "Conditioning":
        """The same for some items of the batch; `index` is a slice, so that the batch axis stays."""
        return Conditioning(*(None if part is None else part[index] for part in self.parts))

    @property
    def parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """context, vector, concat."""
        return self.context, self.vector, self.concat

    def to(self, *args: object, **kwargs: object) -> "Conditioning":
        """Tensor.to on every part."""
        return Conditioning(*(None if part is None else part.to(*args, **kwargs) for part in self.parts))


@dataclass(frozen=True)
class Prepared:
    """What `UNet.prepare` returns: keys and values in running order, the vector's embedding, the extra channels."""

    kv: tuple[KeyValue, ...]
    vector: Tensor | None  # (b, time_dim), added to the time embedding
    concat: Tensor | None
    items: int  # b, which a UNet that takes no text could not tell by its keys

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: slice) -> "Prepared":
        kv = tuple((k[index], v[index]) for k, v in self.kv)
        vector, concat = (None if part is None else part[index] for part in (self.vector, self.concat))
        return Prepared(kv, vector, concat, len(range(self.items)[index]))


def without_text(cond: Conditioning, pooled: int) -> Conditioning:
    """Zeros in place of the context and of the vector's first `pooled` numbers; the sizes behind them stay."""
    vector = None if cond.vector is None else cond.vector.clone()
    if vector is not None:
        vector[:, :pooled] = 0
    return Conditioning(torch.zeros_like(cond.context), vector, cond.concat)


def join(parts: Sequence[Conditioning]) -> Conditioning:
    """One batch from several. Contexts of different length are repeated to their common multiple.

    Repeating is exact: softmax over k copies of the same keys gives each copy 1/k of the weight. Padding is not.

    Raises:
        ValueError: some parts have a vector or extra channels and some do not.
    """
    length = math.lcm(*(part.context.shape[1] for part in parts))
    contexts = [repeat(p.context, "b l e -> b (k l) e", k=length // p.context.shape[1]) for p in parts]
    return Conditioning(
        torch.cat(contexts),
        join_optional("vector", [p.vector for p in parts]),
        join_optional("concat", [p.concat for p in parts]),
    )


def join_prepared(parts: Sequence[Prepared]) -> Prepared:
    """The same for what one UNet prepared."""
    layers = zip(*(part.kv for part in parts), strict=True)
    return Prepared(
        tuple(tuple(join_heads(side) for side in zip(*layer, strict=True)) for layer in layers),
        join_optional("vector", [p.vector for p in parts]),
        join_optional("concat", [p.concat for p in parts]),
        sum(map(len, parts)),
    )


def join_heads(parts: Sequence[Tensor]) -> Tensor:
    """Keys, or values, (b, m, l, d) of one layer."""
    length = math.lcm(*(part.shape[2] for part in parts))
    return torch.cat([repeat(part, "b m l d -> b m (k l) d", k=length // part.shape[2]) for part in parts])


def join_optional(name: str, parts: list[Tensor | None]) -> Tensor | None:
    """Concatenate on the batch, or None where none is given."""
    if all(part is None for part in parts):
        return None
    if any(part is None for part in parts):
        raise ValueError(f"conditionings with and without {name} cannot share one batch")
    return torch.cat(parts)
