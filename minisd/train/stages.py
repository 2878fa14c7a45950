"""The stages in order, each a function of (recipe, run folder): `minisd train STAGE`.

    tokenizer -> clip -> vae -> unet -> export, and the judge, which marks models and is no part of one

A run folder holds all of one model: config.json (the recipe's config, with what the stages found out), tokenizer/,
one checkpoint, log and set of grids a stage, and stages.json, which names the finished ones with what they followed.
Of many processes all go through every stage; what is made by one is made by the chief, and the others wait.
"""

import dataclasses
import json
import math
from functools import cached_property
from pathlib import Path

import torch

from ..config import Config, check
from ..files import atomic
from ..nn.clip import CLIPText
from ..nn.vae import VAE
from ..text.tokenizer import Tokenizer
from ..world.world import World
from . import processes
from .checkpoint import trained
from .clip import ClipStage
from .data import Examples
from .export import FINISHED, keep_clip
from .export import export as write_model
from .judge import JudgeStage, write_judge
from .latents import cached_latents
from .loop import Stage, run
from .recipe import Recipe
from .stop import Stopped, now
from .tokenizer import train_tokenizer
from .unet import UnetStage
from .vae import VaeStage


@dataclasses.dataclass(frozen=True)
class Run:
    """Where one training run lives and what it follows."""

    recipe: Recipe
    folder: Path
    base: Config
    device: torch.device
    resume: bool = False
    until: float = math.inf  # stop in good order when `stop.now()` is later
    quiet: bool = False
    tensorboard: bool = False

    @property
    def config(self) -> Config:
        """The run's own config where a stage has written one, else the recipe's."""
        path = self.folder / "config.json"
        return Config.load(path) if path.exists() else self.base

    def write_config(self, config: Config) -> None:
        write(self.folder / "config.json", config.to_json())

    @cached_property
    def examples(self) -> Examples:
        """What is trained on."""
        return World(self.recipe.world, self.recipe.size, self.device)

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


def train(job: Run, stage: Stage) -> None:
    """A network's stage, to its end."""
    stage.module.to(job.device)
    run(stage, job.folder, job.device, job.resume, job.until, job.quiet, job.tensorboard)


def tokenizer(job: Run) -> None:
    """Learn the vocabulary and put its size and special ids into the run's config."""
    if processes.chief():
        recipe = job.recipe.tokenizer
        captions = job.examples.captions(range(recipe.captions), 0)
        train_tokenizer(job.folder / "tokenizer", captions, recipe.merges)
    processes.wait()
    size = len(json.loads((job.folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8")))
    text = dataclasses.replace(job.config.text[0], vocab_size=size, bos_id=size - 2, eos_id=size - 1, pad_id=size - 1)
    job.write_config(dataclasses.replace(job.config, text=(text,)))
    say(f"tokenizer: {size} tokens in {job.folder / 'tokenizer'}")


def clip(job: Run) -> None:
    """Text tower and image tower."""
    train(job, ClipStage(job.recipe.clip, job.config.text[0], job.tokenizer(), job.examples))


def vae(job: Run) -> None:
    """Autoencoder; then its scale factor, from the latents' own spread."""
    config = dataclasses.replace(job.config.vae, scale_factor=1.0)
    stage = VaeStage(job.recipe.vae, config, job.examples)
    train(job, stage)
    stage.module.load_state_dict(dict(trained(job.folder / "vae.safetensors")))
    scale = round(stage.unit_scale(), 4)
    job.write_config(dataclasses.replace(job.config, vae=dataclasses.replace(config, scale_factor=scale)))
    say(f"vae: scale factor {scale}")


def unet(job: Run) -> None:
    """The UNet on latents of the trained VAE, with the trained text tower frozen or tuned on."""
    recipe, config = job.recipe.unet, job.config
    autoencoder = VAE(config.vae).eval().requires_grad_(False)
    autoencoder.load_state_dict(dict(trained(job.folder / "vae.safetensors")))
    autoencoder.to(job.device, memory_format=torch.channels_last)
    text = CLIPText(config.text[0])
    text.load_state_dict(dict(trained(job.folder / "clip.safetensors", "text.")))
    source = f"{job.recipe.world} {job.recipe.size}"
    shown = job.examples.pictures
    latents = cached_latents(job.folder / "latents", autoencoder, recipe.latents, shown, source, job.until)
    train(job, UnetStage(recipe, config, job.tokenizer(), text, autoencoder, latents, job.examples))


def export(job: Run) -> None:
    """The model folder that `minisd.load` reads, inside the run folder."""
    if processes.chief():
        write_model(job.folder, job.config, job.folder / "model")
        keep_clip(job.folder, job.config.text[0], job.folder / "judge")
    processes.wait()


def judge(job: Run) -> None:
    """The network that finds and names what the world draws; a VAE of this folder shows it what decoders do."""
    world, path = job.examples, job.folder / "vae.safetensors"
    check(isinstance(world, World), "a judge learns what the world draws: it cannot be trained on a folder of pictures")
    vae = VAE(job.config.vae).eval().requires_grad_(False).to(job.device) if path.exists() else None
    if vae:
        vae.load_state_dict(dict(trained(path)))
    stage = JudgeStage(job.recipe.judge, world, vae)
    train(job, stage)
    if processes.chief():
        write_judge(stage, dict(trained(job.folder / "judge.safetensors")), job.folder / "judge")
    processes.wait()


def one(job: Run, name: str) -> None:
    """One stage; then it stands in stages.json with the part of the recipe it followed.

    Raises:
        Stopped: as `loop.run` does.
    """
    STAGES[name](job)
    write(job.folder / FINISHED, json.dumps(finished(job.folder) | {name: followed(job.recipe, name)}, indent=1) + "\n")


def every(job: Run) -> None:
    """All stages that are not finished, in order, each from where it stands."""
    job = dataclasses.replace(job, resume=True)
    for name in (name for name in STAGES if name != "judge"):  # it marks models and is no part of one
        done = finished(job.folder)
        if name != "export" and name in done and done[name] in (None, followed(job.recipe, name)):
            say(f"{name}: finished before")
            continue
        if processes.together(now() > job.until):
            raise Stopped(f"the time was over before {name}; the same command goes on with it")
        one(job, name)


def finished(folder: Path) -> dict[str, dict | None]:
    """The finished stages of a run folder and what each followed; None: it came with the model that was begun from."""
    path = folder / FINISHED
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def followed(recipe: Recipe, name: str) -> dict:
    """What of a recipe a stage depends on, as plain data. Where the font lies makes no difference."""
    if name == "export":
        return {}
    shown = {k: v for k, v in dataclasses.asdict(recipe).items() if k in ("size", "world", name)}
    return json.loads(json.dumps(shown | {"world": shown["world"] | {"font": None}}))  # tuples as lists, as in the file


STAGES = {"tokenizer": tokenizer, "clip": clip, "vae": vae, "unet": unet, "export": export, "judge": judge}
