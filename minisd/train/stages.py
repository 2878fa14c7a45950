"""The stages in order, each a function of (recipe, run folder): `minisd train STAGE`.

    tokenizer -> clip -> vae -> unet -> export; lora -> export; and the judge, which marks models and is no part of one

A run folder holds all of one model: config.json (the recipe's config, with what the stages found out), tokenizer/,
one checkpoint, log and set of grids a stage, and stages.json, which names the finished ones with what they followed;
init/, where it started from a model, which the stages then go on from.
Of many processes all go through every stage; what is made by one is made by the chief, and the others wait.
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
from ..nn.clip import CLIPText
from ..nn.unet import UNet
from ..nn.vae import VAE
from ..text.tokenizer import Tokenizer
from ..world.world import World
from . import processes
from .checkpoint import steps_done, trained
from .clip import ClipStage
from .data import Examples
from .export import export as write_model
from .export import keep_clip
from .folder import Folder
from .judge import JudgeStage, write_judge
from .latents import cached_latents
from .listing import Listing
from .loop import Stage, run
from .lora import NOTES, LoraStage, base_of, remember, write_lora
from .recipe import Recipe, UnetRecipe
from .start import FINISHED, initial, network, started_from
from .stop import Stopped, now
from .tokenizer import train_tokenizer
from .unet import UnetStage
from .vae import VaeStage

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


def train(job: Run, stage: Stage) -> None:
    """A network's stage, to its end.

    Raises:
        ValueError: the UNet has been trained on what this stage made; it does not know what would come of more steps.
    """
    path, unet = job.folder / f"{stage.name}.safetensors", job.folder / "unet.safetensors"
    known = stage.name == "clip" or (stage.name == "vae" and not stage.recipe.decoder_only)
    if known and unet.exists() and not (path.exists() and steps_done(path) >= stage.recipe.steps):
        said = f"{unet} was trained on the {stage.name} that is there: before you train that one on"
        raise ValueError(f"{said}, remove it, or choose another --out")
    stage.module.to(job.device)
    run(stage, job.folder, job.device, job.resume, job.until, job.quiet, job.tensorboard)


def tokenizer(job: Run) -> None:
    """Learn the vocabulary and put its size and special ids into the run's config.

    Raises:
        ValueError: a network has learned the one that is there.
    """
    before, now = finished(job.folder).get("tokenizer"), job.followed("tokenizer")
    if before not in (None, now) and (job.folder / "clip.safetensors").exists():
        said = f"the networks in {job.folder} know the words they have, and this recipe may have others"
        raise ValueError(f"{said}: choose another --out, or go on with one stage, such as minisd train unet --resume")
    if processes.chief():
        recipe = job.recipe.tokenizer
        captions = job.data.captions() if job.data else job.examples.captions(range(recipe.captions), 0)
        train_tokenizer(job.folder / "tokenizer", captions, recipe.merges)
    processes.wait()
    size = len(json.loads((job.folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8")))
    text = dataclasses.replace(job.config.text[0], vocab_size=size, bos_id=size - 2, eos_id=size - 1, pad_id=size - 1)
    job.write_config(dataclasses.replace(job.config, text=(text,)))
    say(f"tokenizer: {size} tokens in {job.folder / 'tokenizer'}")


def clip(job: Run) -> None:
    """Text tower and image tower."""
    words = job.tokenizer()
    job.note_long(words)
    train(job, ClipStage(job.recipe.clip, job.config.text[0], words, job.examples))


def vae(job: Run) -> None:
    """Autoencoder; then its scale factor, from the latents' own spread, unless a UNet knows the one it has."""
    start, config = initial(job.folder, "vae."), job.config.vae
    if not start:
        config = dataclasses.replace(config, scale_factor=1.0)
    stage = VaeStage(job.recipe.vae, config, job.examples, start)
    train(job, stage)
    if start:
        return
    stage.module.load_state_dict(network(job.folder, "vae"))
    scale = round(stage.unit_scale(), 4)
    job.write_config(dataclasses.replace(job.config, vae=dataclasses.replace(config, scale_factor=scale)))
    say(f"vae: scale factor {scale}")


def unet(job: Run) -> None:
    """The UNet on latents of the trained VAE, with the trained text tower frozen or tuned on."""
    size, defaults = job.examples.size, job.config.defaults
    if job.base is not None and (defaults.width, defaults.height) != (size, size):  # it draws what it was trained on
        job.write_config(
            dataclasses.replace(job.config, defaults=dataclasses.replace(defaults, width=size, height=size))
        )
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
    latents = job.latents(autoencoder, recipe)
    train(job, UnetStage(recipe, config, words, text, autoencoder, latents, job.examples, begun))


def lora(job: Run) -> None:
    """Low-rank factors beside the frozen networks of a model, and their file."""
    recipe, model = job.recipe.lora, base_of(job.model, job.recipe.lora, job.device)
    notes = remember(job.folder, model.config, recipe)
    write(job.folder / "config.json", model.config.to_json())
    write(job.folder / NOTES, notes)
    job.note_long(*model.tokenizers)
    train(job, LoraStage(recipe, model, job.latents(model.vae, recipe), job.examples))
    export(job)


def export(job: Run) -> None:
    """The model folder that `minisd.load` reads, inside the run folder; of a LoRA run, the LoRA's file."""
    if processes.chief():
        if (job.folder / "lora.safetensors").exists():
            write_lora(job.folder)
        else:
            write_model(job.folder, job.config, job.folder / "model")
            keep_clip(job.folder, job.config.text[0], job.folder / "judge")
    processes.wait()


def judge(job: Run) -> None:
    """The network that finds and names what the world draws; a VAE of this folder shows it what decoders do."""
    world, path = job.examples, job.folder / "vae.safetensors"
    check(isinstance(world, World), "a judge learns what the world draws: it cannot be trained on a folder of pictures")
    known = path.exists() or started_from(job.folder)
    vae = VAE(job.config.vae).eval().requires_grad_(False).to(job.device) if known else None
    if vae:
        vae.load_state_dict(network(job.folder, "vae"))
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
    write(job.folder / FINISHED, json.dumps(finished(job.folder) | {name: job.followed(name)}, indent=1) + "\n")


def every(job: Run) -> None:
    """All stages that are not finished, in order, each from where it stands; the first of them in any case, so that
    slices that are over as they begin come to the end all the same."""
    job, begun = dataclasses.replace(job, resume=True), False
    for name in (name for name in STAGES if name not in APART):
        done = finished(job.folder)
        if name != "export" and name in done and done[name] in (None, job.followed(name)):
            say(f"{name}: {'came with the model' if done[name] is None else 'finished before'}")
            continue
        if processes.together(begun and now() > job.until):
            raise Stopped(f"the time was over before {name}; the same command goes on with it")
        begun = True
        one(job, name)


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


APART = ("lora", "judge")  # they change and mark models, and are no part of one
STAGES = {
    "tokenizer": tokenizer,
    "clip": clip,
    "vae": vae,
    "unet": unet,
    "lora": lora,
    "export": export,
    "judge": judge,
}
