"""Prompts to conditioning: what the UNet is told.

In: prompts, the text towers and their tokenizers. Out: `Conditioning` with context (b, l, e), the towers' contexts
side by side on e, and for models that take one a vector (b, v): the pooled text and the picture's sizes.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import Config
from ..nn.blocks import sinusoids
from ..nn.clip import CLIPText
from ..nn.conditioning import Conditioning
from .tokenizer import Tokenizer

log = logging.getLogger("minisd")


def encode(
    towers: Sequence[CLIPText],
    tokenizers: Sequence[Tokenizer],
    prompts: Sequence[str],
    config: Config,
    clip_skip: int,
    long_prompt: str,
    size: tuple[int, int],
) -> Conditioning:
    """Encode a batch of prompts.

    Args:
        clip_skip: by the contract: 1 is the last block, the same for every prompt.
        long_prompt: "truncate" cuts what does not fit and logs the words; "error" refuses.
        size: (height, width) of the picture in pixels; SDXL is told.

    Raises:
        ValueError: a prompt is too long and `long_prompt` is "error".
    """
    contexts, pooled = [], None
    for tower, tokenizer in zip(towers, tokenizers, strict=True):
        rows = [fit(tokenizer, prompt, long_prompt) for prompt in prompts]
        ids = torch.tensor(rows, device=tower.token_embedding.weight.device)
        context, pooled = tower(ids, clip_skip)
        contexts.append(context)
    vector = size_vector(pooled, config.unet.vector_dim, size) if config.unet.vector_dim else None
    return Conditioning(torch.cat(contexts, dim=-1), vector)


def fit(tokenizer: Tokenizer, prompt: str, long_prompt: str) -> list[int]:
    """The ids of one prompt at the model's fixed length; says what does not fit."""
    content = tokenizer.content(prompt)
    dropped = content[tokenizer.room :]
    if dropped:
        lost = "".join(tokenizer.pieces(dropped)).replace("</w>", " ").strip()
        message = f"the prompt has {len(content)} tokens, {tokenizer.room} fit; beyond them: {lost!r}"
        if long_prompt == "error":
            raise ValueError(message)
        log.warning("%s is dropped", message)
    return tokenizer.frame(content)


def size_vector(pooled: Tensor, vector_dim: int, size: tuple[int, int]) -> Tensor:
    """Pooled text (b, p) and six numbers: original size, crop corner, target size (SDXL, arXiv 2307.01952 §2.2)."""
    numbers = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=pooled.device)
    width = (vector_dim - pooled.shape[1]) // len(numbers)
    embedded = sinusoids(numbers, width).flatten().to(pooled.dtype)
    return torch.cat([pooled, embedded.expand(len(pooled), -1)], dim=1)
