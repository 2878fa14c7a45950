"""The world as tensors.

Pictures (b, 3, H, W) in [-1, 1] and captions by index: every example is a function of (seed, index), so nothing is
stored and a resumed run sees what it would have seen.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..world.captions import caption, sample
from ..world.scenes import Scene


def scenes(seed: int, indices: Sequence[int], split: str = "train") -> list[Scene]:
    """The scenes alone, without drawing them."""
    return [sample(seed, int(i), split, size=8).scene for i in indices]


def pictures(seed: int, indices: Sequence[int], size: int, split: str = "train") -> Tensor:
    """Pictures (b, 3, size, size) in [-1, 1], float32."""
    arrays = np.stack([np.asarray(sample(seed, int(i), split, size).image) for i in indices])
    return rearrange(torch.from_numpy(arrays), "b h w c -> b c h w").float() / 127.5 - 1


def captions(of: Sequence[Scene], seed: int, step: int) -> list[str]:
    """One phrasing of each scene, another one at every step."""
    return [caption(scene, random.Random(f"{seed}/{step}/{i}")) for i, scene in enumerate(of)]


def batch_indices(step: int, batch: int) -> range:
    """The examples of a step where data never repeats: the world is endless."""
    return range(step * batch, (step + 1) * batch)
