"""Prompts to conditioning: what the UNet is told.

In: prompts, the text towers and their tokenizers. Out: `Conditioning` with context (b, l, e), the towers' contexts
side by side on e, and for models that take one a vector (b, v): the pooled text and the picture's sizes.
A prompt that fits has l = max_length; a longer one a multiple of it, and in one batch all have their common multiple.
"""

import logging
import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..nn.blocks import sinusoids
from ..nn.clip import CLIPText
from ..nn.conditioning import Conditioning, join
from .chunks import Layout, lay_out, shares, short
from .emphasis import EMPHASIS
from .rows import Block, Row
from .rows import size as tokens
from .tokenizer import Tokenizer

log = logging.getLogger("minisd")

ROWS = 64  # that a tower reads at a time


def encode(
    towers: Sequence[CLIPText],
    tokenizers: Sequence[Tokenizer],
    prompts: Sequence[str],
    config: Config,
    clip_skip: int,
    long_prompt: str,
    size: tuple[int, int],
    emphasis: str = "a1111",
) -> Conditioning:
    """Encode a batch of prompts; what is dropped, moved or split of one is logged.

    Args:
        clip_skip: by the contract: 1 is the last block, the same for every prompt.
        long_prompt: a key of `minisd.text.chunks.LONG_PROMPT`.
        size: (height, width) of the picture in pixels; SDXL is told.
        emphasis: a key of `minisd.text.emphasis.EMPHASIS`.

    Raises:
        ValueError: a prompt is too long and `long_prompt` is "error".
    """
    ask = partial(pooled_vectors, towers[-1], tokenizers[-1], len(towers) - 1)
    layouts = [lay_out(tokenizers, prompt, emphasis, long_prompt, ask) for prompt in prompts]
    for prompt, layout in zip(prompts, layouts, strict=True):
        tell(prompt, layout)
    contexts, pooled = [], None  # of each tower, of each prompt
    for i, (tower, tokenizer) in enumerate(zip(towers, tokenizers, strict=True)):
        told, pooled = read(tower, tokenizer, i, layouts, clip_skip, emphasis)
        contexts.append(told)
    # Of the pooled vectors the first row's; the last tower's are the ones that SDXL takes.
    vector = size_vector(pooled, config.unet.vector_dim, size) if config.unet.vector_dim else None
    parts = [torch.cat(of_one, dim=-1) for of_one in zip(*contexts, strict=True)]
    vectors = [None if vector is None else vector[i : i + 1] for i in range(len(parts))]
    return join([Conditioning(part[None], v) for part, v in zip(parts, vectors, strict=True)])


def tell(prompt: str, layout: Layout) -> None:
    """Log what does not fit, and what was done about it."""
    if layout.report.losses:
        log.warning("%s: %s", short(prompt), layout.report.losses)
    if layout.report.changes:
        log.info("%s: %s", short(prompt), layout.report.changes)


def read(
    tower: CLIPText, tokenizer: Tokenizer, i: int, layouts: Sequence[Layout], clip_skip: int, emphasis: str
) -> tuple[list[Tensor], Tensor | None]:
    """One tower's contexts (l, e) of each prompt, and the pooled vectors (b, p) of each prompt's first row."""
    rows = [block.units[start:end] for layout in layouts for block in layout.blocks for start, end in block.rows]
    contexts, pooled = run(tower, [tokenizer.frame(content(row, i)) for row in rows], clip_skip)
    contexts = emphasised(contexts, rows, i, tower, tokenizer, clip_skip, emphasis)
    told, firsts, done = [], [], 0
    for layout in layouts:
        firsts.append(done)
        stretches = []
        for block in layout.blocks:
            stretches.append(stretch(contexts[done : done + len(block.rows)], block, i))
            done += len(block.rows)
        told.append(torch.cat(stretches))
    return told, None if pooled is None else pooled[firsts]


def run(
    tower: CLIPText, ids: list[list[int]], clip_skip: int | None, pooled: bool | None = None
) -> tuple[Tensor, Tensor | None]:
    """Rows of ids through a tower, some at a time: contexts (rows, l, e) and pooled vectors (rows, p)."""
    device = tower.token_embedding.weight.device
    parts = [tower(part, clip_skip, pooled) for part in torch.tensor(ids, device=device).split(ROWS)]
    contexts, vectors = zip(*parts, strict=True)
    return torch.cat(contexts), None if vectors[0] is None else torch.cat(vectors)


def content(row: Row, i: int) -> list[int]:
    """The ids of a row in tower i."""
    return [id for unit in row for id in unit.ids[i]]


def emphasised(
    contexts: Tensor,
    rows: Sequence[Row],
    i: int,
    tower: CLIPText,
    tokenizer: Tokenizer,
    clip_skip: int,
    emphasis: str,
) -> Tensor:
    """Apply the weights, row by row; BOS, EOS and padding have weight 1. A row without weights stays as it is."""
    weights = [[unit.weight for unit in row for _ in unit.ids[i]] for row in rows]
    loud = [number for number, row in enumerate(weights) if any(w != 1 for w in row)]
    if not loud:
        return contexts
    length, device = contexts.shape[1], contexts.device
    padded = [[1.0, *weights[number], *[1.0] * (length - 1 - len(weights[number]))] for number in loud]
    w = torch.tensor(padded, device=device)[:, :, None]
    empty, _ = run(tower, [tokenizer.frame([])], clip_skip, pooled=False)
    index = torch.tensor(loud, device=device)
    z = EMPHASIS[emphasis](contexts[index].float(), w, empty.float())  # means of bf16 are too rough
    return contexts.index_copy(0, index, z.to(contexts.dtype))


def stretch(contexts: Tensor, block: Block, i: int) -> Tensor:
    """The context (l, e) of a block from those of its rows (rows, max_length, e); see `minisd.text.chunks.window`."""
    if len(block.rows) == 1:
        return contexts[0]
    before = [0, *accumulate(len(unit.ids[i]) for unit in block.units)]  # tokens before each unit
    row = contexts.shape[1]
    length = math.ceil((tokens(block.units) + 2) / row) * row  # by the tower with more tokens, the same for all
    mixed = contexts.new_zeros(length, contexts.shape[2])
    mixed[0] = contexts[0, 0]
    for z, (start, end), part in zip(contexts, block.rows, shares(block.rows), strict=True):
        first, last = before[start], before[end]
        share = [s for unit, s in zip(block.units[start:end], part, strict=True) for _ in unit.ids[i]]
        mixed[1 + first : 1 + last] += z[1 : 1 + last - first] * z.new_tensor(share)[:, None]
    mixed[1 + last :] = z[1 + last - first]  # EOS
    return mixed


def pooled_vectors(tower: CLIPText, tokenizer: Tokenizer, i: int, rows: Sequence[Row]) -> list[list[float]]:
    """What tower i makes of each row as a whole, at full depth: vectors of length 1."""
    _, vectors = run(tower, [tokenizer.frame(content(row, i)) for row in rows], None, pooled=True)
    return F.normalize(vectors.float(), dim=-1).tolist()


def size_vector(pooled: Tensor, vector_dim: int, size: tuple[int, int]) -> Tensor:
    """Pooled text (b, p) and six numbers: original size, crop corner, target size (SDXL, arXiv 2307.01952 §2.2)."""
    numbers = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=pooled.device)
    width = (vector_dim - pooled.shape[1]) // len(numbers)
    embedded = sinusoids(numbers, width).flatten().to(pooled.dtype)
    return torch.cat([pooled, embedded.expand(len(pooled), -1)], dim=1)
