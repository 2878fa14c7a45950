"""Pictures of your own as examples to train on.

In: a `Listing`. Out: pictures (b, 3, size, size) in [-1, 1] and captions by an endless index: it runs through the
folder, shuffled anew each time, and what it shows is a function of (seed, index) alone.
"""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from ..picture import read_picture
from .listing import Entry, Listing

LONGEST = 10  # times its shorter side: what lies beyond, on both ends of a picture, is never shown
PLACES = 16  # in which a picture is cut where all squares are made beforehand


class Folder:
    """`Examples` from a folder: each picture is scaled until its shorter side is `size`, then cut to a square.

    Args:
        random_crop: cut elsewhere each time a picture is met in training; False: in the middle. Pictures of the split
            "test" are always cut in the middle.
        keep: so many bytes of scaled pictures are held in memory; the others are read each time.
    """

    def __init__(
        self,
        listing: Listing,
        size: int,
        seed: int = 0,
        random_crop: bool = False,
        device: str | torch.device = "cpu",
        keep: int = 1 << 30,
    ) -> None:
        self.size, self.seed, self.random_crop, self.device = size, seed, random_crop, torch.device(device)
        self.splits = {split: listing.split(split) for split in ("train", "test")}
        self.key = f"{listing.key}/{size}/{seed}/{random_crop}"
        self.room, self.kept = keep, {}
        self.orders: dict[int, np.ndarray] = {}

    def pictures(self, indices: Sequence[int], split: str = "train") -> Tensor:
        """(b, 3, size, size) in [-1, 1], float32.

        Raises:
            ValueError: a picture is damaged; it is named.
        """
        with ThreadPoolExecutor(8) as pool:  # Pillow decodes and scales without Python's lock
            cuts = list(pool.map(lambda i: self.cut(int(i), split), indices))
        x = torch.from_numpy(np.stack(cuts)).to(self.device)
        return rearrange(x, "b h w c -> b c h w").float() / 127.5 - 1

    def captions(self, indices: Sequence[int], step: int, split: str = "train") -> list[str]:
        """The caption of each, or one of its phrasings, another one at every step."""
        return [
            random.Random(f"{self.seed}/caption/{step}/{int(i)}").choice(self.entry(int(i), split).captions)
            for i in indices
        ]

    @property
    def distinct(self) -> int:
        """Squares to train on, where they are not cut anew each time: of each picture one, or `PLACES` cut anywhere."""
        return len(self.splits["train"]) * (PLACES if self.random_crop else 1)

    def entry(self, index: int, split: str) -> Entry:
        """The picture of an index."""
        entries = self.splits[split]
        epoch, position = divmod(index, len(entries))
        return entries[position if split == "test" else self.order(epoch)[position]]

    def order(self, epoch: int) -> np.ndarray:
        """In which order the pictures to train on come the n-th time."""
        if epoch not in self.orders:
            if len(self.orders) >= 64:
                self.orders.clear()
            rng = np.random.default_rng((self.seed, epoch))
            self.orders[epoch] = rng.permutation(len(self.splits["train"]))
        return self.orders[epoch]

    def cut(self, index: int, split: str) -> np.ndarray:
        """The square (size, size, 3) uint8 of an index."""
        scaled = self.scaled(self.entry(index, split))
        height, width = (side - self.size for side in scaled.shape[:2])
        if self.random_crop and split != "test":
            rng = random.Random(f"{self.seed}/crop/{index}")
            top, left = rng.randint(0, height), rng.randint(0, width)
        else:
            top, left = height // 2, width // 2
        return scaled[top : top + self.size, left : left + self.size]

    def scaled(self, entry: Entry) -> np.ndarray:
        """What is kept of a picture, (h, w, 3) uint8, its shorter side `size`: the square in the middle; where it is
        cut anywhere, all of it, but no more than `LONGEST` squares: enlarged, a line of pixels would fill the memory.
        """
        if entry.name in self.kept:
            return self.kept[entry.name]
        picture = read_picture(entry.path)
        short, longest = min(picture.size), LONGEST if self.random_crop else 1
        sides = [round(self.size * min(side / short, longest)) for side in picture.size]
        found = np.asarray(ImageOps.fit(picture, sides, Image.Resampling.LANCZOS))
        if self.room >= found.nbytes:
            self.room -= found.nbytes
            self.kept[entry.name] = found
        return found
