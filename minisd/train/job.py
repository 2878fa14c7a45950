"""One training run: its recipe, its folder and what lies there.

A run folder holds all of one model: config.json (the recipe's config, with what the stages found out), tokenizer/,
one checkpoint, log and set of grids a stage, and stages.json, which names the finished ones with what they followed;
init/, where it started from a model, which the stages then go on from.
"""

import dataclasses
import json
import logging
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config, check
from ..files import atomic
from ..nn.vae import VAE
from ..text.tokenizer import Tokenizer
from ..world.world import World
from . import processes
from .data import Examples
from .folder import Folder
from .latents import cached_latents
from .listing import Listing
from .recipe import Recipe, UnetRecipe
from .start import FINISHED

log = logging.getLogger("minisd")


@dataclasses.dataclass(frozen=True)
class Run:
    """Where one training run lives and what it follows."""

    recipe: Recipe
    folder: Path
    base: Config | None  # None: that of a model, which stands in the run folder or comes with a LoRA
    device: torch.device
    resume: bool = False
    until: float = math.inf  # stop in good order when `stop.now()` is later
    quiet: bool = False
    tensorboard: bool = False
    data: Listing | None = None  # a folder of pictures; None: the procedural world
    model: dict[str, Any] = dataclasses.field(default_factory=dict)  # what a LoRA is trained for, as `load` takes it

    @property
    def config(self) -> Config:
        """The run's own config where a stage has written one, else the recipe's."""
        path = self.folder / "config.json"
        return Config.load(path) if path.exists() else self.base

    def write_config(self, config: Config) -> None:
        write(self.folder / "config.json", config.to_json())

    @cached_property
    def examples(self) -> Examples:
        """What is trained on, in the size of the recipe or of the model."""
        size, factor = self.recipe.size or self.config.defaults.width, self.config.vae.factor
        check(size % factor == 0, f"size {size} is not a multiple of {factor}, the pixels of one latent")
        if self.data is None:
            return World(self.recipe.world, size, self.device)
        small, count = self.data.smaller_than(size), len(self.data.entries)
        if small:
            log.info("%d of %d pictures are smaller than %d pixels and are enlarged", small, count, size)
        return Folder(self.data, size, self.recipe.data.seed, self.recipe.data.random_crop, self.device)

    def latents(self, vae: VAE, recipe: UnetRecipe) -> Tensor:
        """Those of the first pictures that are trained on, from the run's cache or made now."""
        examples, there = self.examples, recipe.latents
        if isinstance(examples, Folder):
            source, there = examples.key, examples.distinct
            if there > recipe.latents:
                log.warning("only %d of %d cut pictures are trained on: the recipe's `latents`", recipe.latents, there)
            for i in range(recipe.unseen):
                examples.cut(i, "test")  # one that is damaged is named now, not at the first grid
        else:
            world = dataclasses.replace(self.recipe.world, font=None)  # where it lies makes no difference
            source = f"{world} {examples.size}"
        count = min(recipe.latents, there)
        return cached_latents(self.folder / "latents", vae, count, examples, source, self.until, self.quiet)

    def followed(self, name: str) -> dict:
        """What a stage depends on: a part of the recipe, and the pictures."""
        of_folder = self.data is not None and name != "export"
        pictures = {"pictures": self.data.key, **dataclasses.asdict(self.recipe.data)} if of_folder else {}
        return followed(self.recipe, name) | pictures

    def note_long(self, *tokenizers: Tokenizer) -> None:
        """Say how many captions of the folder lose their ends."""
        texts = list(self.data.captions()) if self.data else []
        long = sum(any(len(t.content(text)) > t.room for t in tokenizers) for text in texts)
        if long:
            room = tokenizers[0].room
            log.warning("%d of %d captions are longer than %d tokens and lose their ends", long, len(texts), room)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder / "tokenizer", self.config.text[0])


def write(path: Path, text: str) -> None:
    """A small file, written by the chief; it is there for all processes after."""
    if processes.chief():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    processes.wait()


def say(text: str) -> None:
    """What a stage found out, once."""
    if processes.chief():
        print(text, flush=True)


def finished(folder: Path) -> dict[str, dict | None]:
    """The finished stages of a run folder and what each followed; None: it came with the model that was begun from."""
    path = folder / FINISHED
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and `all` goes through each stage again") from error


def followed(recipe: Recipe, name: str) -> dict:
    """What of a recipe a stage depends on, as plain data. Where the font lies makes no difference."""
    if name == "export":
        return {}
    shown = {k: v for k, v in dataclasses.asdict(recipe).items() if k in ("size", "world", name)}
    return json.loads(json.dumps(shown | {"world": shown["world"] | {"font": None}}))  # tuples as lists, as in the file
