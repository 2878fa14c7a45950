"""The CLIP text encoder: token ids in, one vector for every token out.

ids (b, l) -> context (b, l, e) and, where the config asks, a pooled vector (b, p).
Radford et al. 2021, https://arxiv.org/abs/2103.00020
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TextConfig
from .attention import Attention


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): what OpenAI's CLIP was trained with in place of GELU."""
    return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Self-attention and MLP, each pre-normed and added. A text reads forwards only: causal."""

    def __init__(self, config: TextConfig, causal: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads, bias=True)
        self.norm2 = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)
        self.activation = ACTIVATIONS[config.activation]
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), causal=self.causal)
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


class CLIPText(nn.Module):
    """One text tower. Skipped blocks are not computed, unless the pooled vector needs the full depth."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.max_length, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, config.projection, bias=False) if config.projection else nn.Identity()

    def forward(
        self, ids: Tensor, clip_skip: int | None = None, pooled: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Encode ids (b, l).

        Args:
            ids: token ids, l at most `max_length`.
            clip_skip: 1 keeps the last of the full depth's blocks, s the block N + 1 - s; None: the last stored.
            pooled: also compute the pooled vector; None: as the config says.

        Returns:
            context (b, l, e), with the final LayerNorm where the config has it, and pooled (b, p) or None.

        Raises:
            ValueError: clip_skip names a block that is not stored, or l is too long.
        """
        config = self.config
        if ids.shape[1] > config.max_length:
            raise ValueError(f"{ids.shape[1]} tokens do not fit the encoder's {config.max_length}")
        keep = config.layers if clip_skip is None else config.depth + 1 - clip_skip
        if not 1 <= keep <= config.layers:
            low = config.depth + 1 - config.layers
            raise ValueError(f"clip_skip {clip_skip} is out of range {low}..{config.depth}")
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(positions)
        for block in self.blocks[:keep]:
            x = block(x)
        context = self.final_norm(x) if config.final_norm else x
        if not (config.pooled if pooled is None else pooled):
            return context, None
        for block in self.blocks[keep:]:  # the pooled vector always comes from the full depth
            x = block(x)
        return context, self.pool(self.final_norm(x), ids)

    def pool(self, x: Tensor, ids: Tensor) -> Tensor:
        """The projected vector (b, p) at each row's first EOS; x (b, l, e) is final-normed."""
        end = (ids == self.config.eos_id).int().argmax(dim=-1)
        return self.projection(x[torch.arange(len(x), device=x.device), end])


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}
