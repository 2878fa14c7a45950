"""What a stage is trained on: pictures and captions by index, from the procedural world or from a folder.

Every example is a function of (seed, index): nothing is stored, and a resumed run sees what it would have seen.
"""

import random
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..world.captions import caption, sample
from ..world.captions import captions as phrasings
from ..world.scenes import Scene


class Examples(Protocol):
    """Pictures and captions by index, endless; every answer is a pure function of its arguments and the seed."""

    size: int

    def pictures(self, indices: Sequence[int], split: str = "train") -> Tensor:
        """(b, 3, size, size) in [-1, 1], float32."""

    def captions(self, indices: Sequence[int], step: int, split: str = "train") -> list[str]:
        """One caption of each; where there are several phrasings, another one at every step."""

    def distinct(self, split: str = "train") -> int | None:
        """How many pictures there are before they begin to repeat; None: they never do."""


class World:
    """The procedural world as examples."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed

    def scenes(self, indices: Sequence[int], split: str = "train") -> list[Scene]:
        """The scenes alone, without drawing them."""
        return [sample(self.seed, int(i), split, size=8).scene for i in indices]

    def pictures(self, indices: Sequence[int], split: str = "train") -> Tensor:
        arrays = np.stack([np.asarray(sample(self.seed, int(i), split, self.size).image) for i in indices])
        return rearrange(torch.from_numpy(arrays), "b h w c -> b c h w").float() / 127.5 - 1

    def captions(self, indices: Sequence[int], step: int, split: str = "train") -> list[str]:
        """Of unseen scenes the canonical phrasing."""
        found = self.scenes(indices, split)
        return [phrasings(s)[0] for s in found] if split == "test" else captions(found, self.seed, step)

    def distinct(self, split: str = "train") -> int | None:
        return None


def captions(of: Sequence[Scene], seed: int, step: int) -> list[str]:
    """One phrasing of each scene, another one at every step."""
    return [caption(scene, random.Random(f"{seed}/{step}/{i}")) for i, scene in enumerate(of)]


def batch_indices(step: int, batch: int) -> range:
    """The examples of a step where data never repeats: the world is endless."""
    return range(step * batch, (step + 1) * batch)
