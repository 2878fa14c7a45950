"""The stages in order, each a function of (recipe, run folder): `minisd train STAGE`.

    tokenizer -> clip -> vae -> unet -> export

A run folder holds all of one model: config.json (the recipe's config, with what the stages found out), tokenizer/,
one checkpoint, log and set of grids a stage.
"""

import dataclasses
from functools import cached_property
from pathlib import Path

import torch

from ..config import Config
from ..files import atomic
from ..nn.clip import CLIPText
from ..nn.vae import VAE
from ..text.tokenizer import Tokenizer
from ..world.world import World
from .clip import ClipStage
from .data import Examples
from .export import export as write_model
from .loop import run, trained
from .recipe import Recipe
from .tokenizer import train_tokenizer
from .unet import UnetStage, cached_latents
from .vae import VaeStage


@dataclasses.dataclass(frozen=True)
class Run:
    """Where one training run lives and what it follows."""

    recipe: Recipe
    folder: Path
    base: Config
    device: torch.device
    resume: bool = False

    @property
    def config(self) -> Config:
        """The run's own config where a stage has written one, else the recipe's."""
        path = self.folder / "config.json"
        return Config.load(path) if path.exists() else self.base

    def write_config(self, config: Config) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic(self.folder / "config.json") as path:
            path.write_text(config.to_json(), encoding="utf-8")

    @cached_property
    def examples(self) -> Examples:
        """What is trained on."""
        return World(self.recipe.world, self.recipe.size, self.device)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder / "tokenizer", self.config.text[0])


def tokenizer(job: Run) -> None:
    """Learn the vocabulary and put its size and special ids into the run's config."""
    recipe = job.recipe.tokenizer
    captions = job.examples.captions(range(recipe.captions), 0)
    size = train_tokenizer(job.folder / "tokenizer", captions, recipe.merges)
    text = dataclasses.replace(job.config.text[0], vocab_size=size, bos_id=size - 2, eos_id=size - 1, pad_id=size - 1)
    job.write_config(dataclasses.replace(job.config, text=(text,)))
    print(f"tokenizer: {size} tokens in {job.folder / 'tokenizer'}")


def clip(job: Run) -> None:
    """Text tower and image tower."""
    stage = ClipStage(job.recipe.clip, job.config.text[0], job.tokenizer(), job.examples)
    stage.module.to(job.device)
    run(stage, job.folder, job.resume, job.device)


def vae(job: Run) -> None:
    """Autoencoder; then its scale factor, from the latents' own spread."""
    config = dataclasses.replace(job.config.vae, scale_factor=1.0)
    stage = VaeStage(job.recipe.vae, config, job.examples)
    stage.module.to(job.device)
    run(stage, job.folder, job.resume, job.device)
    stage.module.load_state_dict(dict(trained(job.folder / "vae.safetensors")))
    scale = round(stage.unit_scale(), 4)
    job.write_config(dataclasses.replace(job.config, vae=dataclasses.replace(config, scale_factor=scale)))
    print(f"vae: scale factor {scale}")


def unet(job: Run) -> None:
    """The UNet on latents of the trained VAE, with the trained text tower frozen or tuned on."""
    recipe, config = job.recipe.unet, job.config
    autoencoder = VAE(config.vae).eval().requires_grad_(False)
    autoencoder.load_state_dict(dict(trained(job.folder / "vae.safetensors")))
    autoencoder.to(job.device, memory_format=torch.channels_last)
    text = CLIPText(config.text[0])
    text.load_state_dict(dict(trained(job.folder / "clip.safetensors", "text.")))
    latents = cached_latents(job.folder / "latents.safetensors", autoencoder, recipe.latents, job.examples)
    stage = UnetStage(recipe, config, job.tokenizer(), text, autoencoder, latents, job.examples)
    stage.module.to(job.device)
    run(stage, job.folder, job.resume, job.device)


def export(job: Run) -> None:
    """The model folder that `minisd.load` reads, inside the run folder."""
    write_model(job.folder, job.config, job.folder / "model")


STAGES = {"tokenizer": tokenizer, "clip": clip, "vae": vae, "unet": unet, "export": export}
