"""Attention: the only softmax of the package.

In: queries from x (b, n, c), keys and values from x itself or from a context (b, l, e). Out: (b, n, c).
The core is an attribute of each module, so that teaching code can swap the fused one for the readable one.
Vaswani et al. 2017, https://arxiv.org/abs/1706.03762
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]  # keys and values, each (b, m, l, d)
Core = Callable[..., Tensor]  # core(q, k, v, causal) -> (b, m, n, d)


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Fused softmax(q k^T / sqrt(d)) v. q (b, m, n, d), k and v (b, m, l, d) -> (b, m, n, d)."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def explicit(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """The same sum written out, in three lines one can put a print between."""
    return einsum(weights(q, k, causal), v, "b m n l, b m l d -> b m n d")


def weights(q: Tensor, k: Tensor, causal: bool = False) -> Tensor:
    """How much each query attends to each key: (b, m, n, l), rows sum to 1."""
    score = einsum(q * q.shape[-1] ** -0.5, k, "b m n d, b m l d -> b m n l")
    if causal:
        future = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).triu(1)
        score = score.masked_fill(future, float("-inf"))
    return score.softmax(dim=-1)


class Attention(nn.Module):
    """Multi-head attention; self-attention where no context is given."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None, bias: bool = False) -> None:
        super().__init__()
        context_dim = context_dim or dim
        self.heads = heads
        self.core = sdpa
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(context_dim, dim, bias=bias)
        self.to_v = nn.Linear(context_dim, dim, bias=bias)
        self.to_out = nn.Linear(dim, dim)  # always with a bias, even where q, k and v have none

    def key_value(self, context: Tensor) -> KeyValue:
        """Keys and values of a context (b, l, e), split into heads. They do not depend on x."""
        return self.split(self.to_k(context)), self.split(self.to_v(context))

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (m d) -> b m n d", m=self.heads)

    def forward(self, x: Tensor, kv: KeyValue | None = None, causal: bool = False) -> Tensor:
        k, v = self.key_value(x) if kv is None else kv
        out = self.core(self.split(self.to_q(x)), k, v, causal)
        return self.to_out(rearrange(out, "b m n d -> b n (m d)"))
