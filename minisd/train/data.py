"""What the stages train on: pictures and captions by index.

Two things are such examples: the world (`minisd.world.world`), endless, and a folder of pictures. Every answer is a
pure function of its arguments and the examples' own seed, so nothing is stored and a resumed run sees what it would
have seen.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Examples(Protocol):
    """Pictures and captions by index; the splits are "train" and "test"."""

    size: int

    def pictures(self, indices: Sequence[int], split: str = "train") -> Tensor:
        """Pictures (b, 3, size, size) in [-1, 1], float32, on the examples' own device."""

    def captions(self, indices: Sequence[int], step: int, split: str = "train") -> list[str]:
        """A caption of each; another phrasing at another step, where there are several."""


def batch_indices(step: int, batch: int) -> range:
    """The examples of a step where data never repeats: the world is endless."""
    return range(step * batch, (step + 1) * batch)
