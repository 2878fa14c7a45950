"""The world: an endless set of pictures with captions and known truth.

In: a `WorldRecipe`. Out: by index pictures (b, 3, size, size) in [-1, 1], captions, scenes; each a pure function of the
recipe, the split and the index (captions of the step too), so nothing is stored and a resumed run sees what it would
have seen. The same vocabulary at every size of picture.
"""

import random
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from minisd.world.captions import caption
from minisd.world.colour import lab
from minisd.world.draw import Painter
from minisd.world.grounds import colours
from minisd.world.near import near_misses
from minisd.world.recipe import WorldRecipe
from minisd.world.scenes import SPLITS, Scene
from minisd.world.sprites import Sprites, emoji_pictures
from minisd.world.vocabulary import Vocabulary
from minisd.world.words import GROUNDS

BLEND = 28.0  # CIE76 difference below which a pixel is lost on a ground
COARSE = 9  # side of the sprites that are compared with the grounds
LOST = 0.3  # share of an object's pixels that may be


class World:
    """Pictures and captions by index."""

    def __init__(self, recipe: WorldRecipe, size: int = 64, device: torch.device | str = "cpu") -> None:
        """A world of pictures `size` pixels square, drawn on a device.

        Raises:
            ValueError: emoji are wanted and the font cannot be used.
        """
        self.recipe, self.size, self.device = recipe, size, torch.device(device)
        self.sprites = Sprites(emoji_pictures(recipe.emoji, recipe.font), recipe.patterns)
        self.grounds = tuple(ground for kind in recipe.grounds for ground in GROUNDS[kind])
        clear = standing_out(self.sprites, self.grounds)
        self.vocabulary = Vocabulary(
            self.sprites.nouns, self.sprites.own, clear, recipe.patterns, recipe.grounds, recipe.shapes
        )

    @cached_property
    def painter(self) -> Painter:
        """Draws the scenes; its atlas is made when first asked for."""
        return Painter(self.sprites, self.grounds, self.size, self.device)

    def scene(self, index: int, split: str = "train") -> Scene:
        """The truth of example `index`."""
        return self.vocabulary.sample(self.rng(0, SPLITS.index(split), index), split)

    def scenes(self, indices: Sequence[int], split: str = "train") -> list[Scene]:
        return [self.scene(int(i), split) for i in indices]

    def pictures(self, indices: Sequence[int], split: str = "train") -> Tensor:
        """Pictures (b, 3, size, size) in [-1, 1], float32."""
        return self.draw(self.scenes(indices, split))

    def draw(self, scenes: Sequence[Scene]) -> Tensor:
        """The pictures of some scenes, (b, 3, size, size)."""
        return self.painter(scenes)

    def captions(self, indices: Sequence[int], step: int, split: str = "train") -> list[str]:
        """One phrasing of each scene, another one at every step."""
        return [self.caption(self.scene(int(i), split), int(i), step) for i in indices]

    def caption(self, scene: Scene, index: int, step: int) -> str:
        """A phrasing of a scene, which need not be the one of that index (a near miss)."""
        return caption(scene, self.rng(1, step, index))

    def near_misses(self, scene: Scene, rng: random.Random) -> list[Scene]:
        """Scenes that differ from one in one thing, to be told beside it."""
        return near_misses(self.vocabulary, scene, rng)

    def rng(self, purpose: int, a: int, b: int) -> random.Random:
        """The draws of one example: seeded by whole numbers, which takes a tenth of the time of a string."""
        return random.Random((((self.recipe.seed << 2 | purpose) << 40 | a) << 48) | b)


def standing_out(sprites: Sprites, grounds: Sequence[str]) -> dict[str, set[tuple[str, str | None]]]:
    """For each ground all (noun, hue) of which few pixels have a colour like one of the ground's."""
    plain = [i for i, look in enumerate(sprites.looks) if look.pattern == "plain"]
    atlas = rearrange(sprites.atlas(COARSE)[plain], "s c h w -> s (h w) c").astype(np.float32)
    cover = atlas[..., 3] / 255
    seen = lab(atlas[..., :3] / np.maximum(cover, 1e-3)[..., None]).astype(np.float32)
    palette = {rgb: lab(np.array(rgb)).astype(np.float32) for ground in grounds for rgb in colours(ground)}
    lost = {  # colour -> share (s,) of each thing that is lost on it
        rgb: ((np.square(seen - point).sum(-1) < BLEND**2) * cover).sum(1) / cover.sum(1)
        for rgb, point in palette.items()
    }
    shares = {ground: np.max([lost[rgb] for rgb in colours(ground)], axis=0) for ground in grounds}
    things = [sprites.looks[i][:2] for i in plain]
    return {ground: {things[k] for k in np.flatnonzero(share <= LOST)} for ground, share in shares.items()}
