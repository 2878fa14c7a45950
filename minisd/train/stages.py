"""The stages in order, each a function of (recipe, run folder): `minisd train STAGE`.

    tokenizer -> clip -> vae -> unet -> export;  lora -> export

A run folder holds all of one model: config.json (the recipe's config, with what the stages found out), tokenizer/,
one checkpoint, log and set of grids a stage; init/, the model it started from, where it started from one.
"""

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config, check
from ..files import atomic
from ..nn.clip import CLIPText
from ..nn.unet import UNet
from ..nn.vae import VAE
from ..text.tokenizer import Tokenizer
from .clip import ClipStage
from .data import Examples, World
from .export import export as write_model
from .folder import Folder
from .listing import Listing
from .loop import run
from .lora import LoraStage, base_of, remember, write_lora
from .recipe import Recipe, StageRecipe
from .start import initial, network
from .tokenizer import train_tokenizer
from .unet import UnetStage, cached_latents
from .vae import VaeStage

log = logging.getLogger("minisd")


@dataclasses.dataclass(frozen=True)
class Run:
    """Where one training run lives and what it follows."""

    recipe: Recipe
    folder: Path
    base: Config | None  # None: a LoRA's, which is its model's
    device: torch.device
    resume: bool = False
    data: Listing | None = None  # a folder of pictures; None: the procedural world
    model: dict[str, Any] = dataclasses.field(default_factory=dict)  # what a LoRA is trained for, as `load` takes it

    @property
    def config(self) -> Config:
        """The run's own config where a stage has written one, else the recipe's."""
        path = self.folder / "config.json"
        return Config.load(path) if path.exists() else self.base

    def write_config(self, config: Config) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic(self.folder / "config.json") as path:
            path.write_text(config.to_json(), encoding="utf-8")

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder / "tokenizer", self.config.text[0])

    def examples(self, recipe: StageRecipe) -> Examples:
        """What a stage is trained on, in the size of the recipe or of the model."""
        size, factor = self.recipe.size or self.config.defaults.width, self.config.vae.factor
        check(size % factor == 0, f"size {size} is not a multiple of {factor}, the pixels of one latent")
        if self.data is None:
            return World(size, recipe.seed)
        small, count = self.data.smaller_than(size), len(self.data.entries)
        if small:
            log.info("%d of %d pictures are smaller than %d pixels and are enlarged", small, count, size)
        return Folder(self.data, size, recipe.seed, self.recipe.data.random_crop)

    def latents(self, examples: Examples, vae: VAE, most: int) -> Tensor:
        """Those of the pictures that are trained on, at most so many, from the run's cache or made now."""
        name = "latents"
        if isinstance(examples, Folder):  # pictures, cut or encoder may be others the next time
            encoder = vae.quant.weight.detach().float().cpu().numpy().tobytes()
            name += "-" + hashlib.sha256(examples.key.encode() + encoder).hexdigest()[:12]
        count = min(most, examples.distinct() or most)
        return cached_latents(self.folder / f"{name}.safetensors", vae, count, examples)

    def note_long(self, *tokenizers: Tokenizer) -> None:
        """Say how many captions of the folder lose their ends."""
        texts = list(self.data.captions()) if self.data else []
        long = sum(any(len(t.content(text)) > t.room for t in tokenizers) for text in texts)
        if long:
            room = tokenizers[0].room
            log.warning("%d of %d captions are longer than %d tokens and lose their ends", long, len(texts), room)


def tokenizer(job: Run) -> None:
    """Learn the vocabulary and put its size and special ids into the run's config."""
    recipe, texts = job.recipe.tokenizer, job.data.captions() if job.data else None
    size = train_tokenizer(job.folder / "tokenizer", recipe.captions, recipe.merges, texts)
    text = dataclasses.replace(job.config.text[0], vocab_size=size, bos_id=size - 2, eos_id=size - 1, pad_id=size - 1)
    job.write_config(dataclasses.replace(job.config, text=(text,)))
    print(f"tokenizer: {size} tokens in {job.folder / 'tokenizer'}")


def clip(job: Run) -> None:
    """Text tower and image tower."""
    recipe, words = job.recipe.clip, job.tokenizer()
    job.note_long(words)
    stage = ClipStage(recipe, job.config.text[0], words, job.examples(recipe))
    stage.module.to(job.device)
    run(stage, job.folder, job.resume, job.device)


def vae(job: Run) -> None:
    """Autoencoder; then its scale factor, from the latents' own spread, unless a UNet knows the one it has."""
    recipe, start, config = job.recipe.vae, initial(job.folder, "vae."), job.config.vae
    if not start:
        config = dataclasses.replace(config, scale_factor=1.0)
    stage = VaeStage(recipe, config, job.examples(recipe), start)
    stage.module.to(job.device)
    run(stage, job.folder, job.resume, job.device)
    if start:
        return
    stage.module.load_state_dict(network(job.folder, "vae"))
    scale = round(stage.unit_scale(), 4)
    job.write_config(dataclasses.replace(job.config, vae=dataclasses.replace(config, scale_factor=scale)))
    print(f"vae: scale factor {scale}")


def unet(job: Run) -> None:
    """The UNet on latents of the trained VAE, with the trained text tower frozen or tuned on."""
    recipe, config, words = job.recipe.unet, job.config, job.tokenizer()
    job.note_long(words)
    autoencoder = VAE(config.vae).eval().requires_grad_(False)
    autoencoder.load_state_dict(network(job.folder, "vae"))
    autoencoder.to(job.device, memory_format=torch.channels_last)
    text, start, begun = CLIPText(config.text[0]), initial(job.folder, "unet."), None
    text.load_state_dict(network(job.folder, "text", before_unet=True))
    if start:
        with torch.device("meta"):
            begun = UNet(config.unet)
        begun.load_state_dict(start, assign=True)
    examples = job.examples(recipe)
    latents = job.latents(examples, autoencoder, recipe.latents)
    stage = UnetStage(recipe, config, words, text, autoencoder, latents, examples, begun)
    stage.module.to(job.device)
    run(stage, job.folder, job.resume, job.device)


def lora(job: Run) -> None:
    """Low-rank factors beside the frozen networks of a model, and their file."""
    recipe = job.recipe.lora
    model = base_of(job.model, recipe, job.device)
    remember(job.folder, model.config, recipe)
    job.write_config(model.config)
    job.note_long(*model.tokenizers)
    examples = job.examples(recipe)
    latents = job.latents(examples, model.vae, recipe.latents)
    stage = LoraStage(recipe, model, latents, examples)
    run(stage, job.folder, job.resume, job.device)
    write_lora(job.folder)


def export(job: Run) -> None:
    """The model folder that `minisd.load` reads, inside the run folder; of a LoRA run, the LoRA's file."""
    if (job.folder / "lora.safetensors").exists():
        write_lora(job.folder)
    else:
        write_model(job.folder, job.config, job.folder / "model")


STAGES = {"tokenizer": tokenizer, "clip": clip, "vae": vae, "unet": unet, "lora": lora, "export": export}
