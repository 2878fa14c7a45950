"""What a score needs and ships with the package, so that no font and no training code is asked for.

In: a folder, such as minisd/models/judge, with judge.safetensors, and perhaps clip.safetensors and
tokenizer/. Out: the judge, its words, features of real pictures; a CLIP to score by, or None.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import check
from ..world import judge as judges
from ..world.known import known, vocabulary
from ..world.recipe import WorldRecipe
from ..world.vocabulary import Vocabulary
from ..world.world import World
from .clip import Clip, load_clip


@dataclass(frozen=True)
class Kept:
    """A judge and all that it goes by."""

    judge: judges.Judge
    words: Vocabulary
    recipe: WorldRecipe  # of the world that it learned
    known: dict[str, Any]  # what that world knew
    accuracy: dict[str, Any]  # as it was measured when the judge was made, see `Accuracy`
    real: Tensor  # (n, f): features of real pictures of unseen scenes
    clip: Clip | None

    def world(self, font: str | None = None) -> World:
        """The judge's world, to draw real pictures.

        Raises:
            ValueError: its font is not there, or it is another one.
        """
        recipe = replace(self.recipe, font=font or self.recipe.font)
        world = World(recipe, self.judge.words.size, self.judge.answers.weight.device)
        same = known(world) == self.known
        check(same, "this font draws other emoji than the judge has learned: give the Noto Color Emoji it learned from")
        return world


def load_kept(folder: Path, device: torch.device | str = "cpu") -> Kept:
    """Read the folder.

    Raises:
        ValueError: what is there is no judge, or no CLIP.
        OSError: a file cannot be read.
    """
    judge, told, real = judges.load(folder / judges.JUDGE, device)
    recipe = {key: tuple(value) if isinstance(value, list) else value for key, value in told["recipe"].items()}
    known = (vocabulary(told["world"]), WorldRecipe(**recipe), told["world"], told["accuracy"])
    return Kept(judge, *known, real.to(device), load_clip(folder, device))
