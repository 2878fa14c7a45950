"""The stages in order, each a function of a run: `minisd train STAGE`.

    tokenizer -> clip -> vae -> unet -> export; lora -> export; and the judge, which marks models and is no part of one

Of many processes all go through every stage; what is made by one is made by the chief, and the others wait.
"""

import dataclasses
import json

import torch

from ..config import check
from ..nn.clip import CLIPText
from ..nn.unet import UNet
from ..nn.vae import VAE
from ..world.world import World
from . import processes
from .checkpoint import steps_done, trained
from .clip import ClipStage
from .export import export as write_model
from .export import keep_clip
from .job import Run, finished, say, write
from .judge import JudgeStage, write_judge
from .loop import Stage, run
from .lora import NOTES, LoraStage, base_of, remember, write_lora
from .start import FINISHED, initial, network, started_from
from .stop import Stopped, now
from .tokenizer import train_tokenizer
from .unet import UnetStage
from .vae import VaeStage


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
