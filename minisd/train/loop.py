"""One training loop for every stage: AdamW, warm-up and decay, EMA, checkpoints that resume, a log.

In: a `Stage` (the parameters, a loss for step i, a picture to look at). Out: `<stage>.safetensors` with weights,
EMA and optimizer in one file, `<stage>.jsonl` with the log, `<stage>-<step>.png` grids.
Whatever a step draws is a function of (seed, step), so a resumed run goes on as if it had never stopped.
AdamW: Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101; power-function EMA: Karras et al. 2024,
https://arxiv.org/abs/2312.02696
"""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from PIL.Image import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ..files import atomic
from ..nn.attention import Core, explicit, sdpa
from .recipe import StageRecipe


class Stage(Protocol):
    """What the loop needs to know of a stage."""

    name: str
    recipe: StageRecipe
    module: nn.Module  # all that is trained

    def groups(self) -> list[dict]:
        """Parameter groups, each with `params` and a `scale` of the learning rate."""

    def loss(self, step: int, part: slice) -> tuple[Tensor, dict[str, float]]:
        """The loss on this process's part of a step's batch, and what else to log."""

    def grid(self) -> Image:
        """Pictures that show how far the module (now holding EMA weights) is."""


def run(stage: Stage, out: Path, resume: bool, device: torch.device) -> None:
    """Train a stage to its last step, or from where its checkpoint stands.

    Raises:
        FileExistsError: there is a checkpoint and `resume` is False.
        RuntimeError: the loss was not finite ten times.
    """
    rank, world = processes()
    out.mkdir(parents=True, exist_ok=True)
    recipe, path = stage.recipe, out / f"{stage.name}.safetensors"
    groups, decay = stage.groups(), recipe.weight_decay
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=decay, fused=True)
    named = {name: p for name, p in stage.module.named_parameters() if p.requires_grad}
    ema = {name: p.detach().clone() for name, p in named.items()}
    first = 0
    if path.exists():
        if not resume:
            raise FileExistsError(f"{path} exists: add --resume to go on from it, or choose another --out")
        first = restore(path, named, ema, optimizer)
    gradients = flat_gradients(named.values())
    autocast = torch.autocast(device.type, torch.bfloat16) if recipe.autocast else nullcontext()
    bad, chief = 0, rank == 0
    share = recipe.batch // world
    part = slice(rank * share, (rank + 1) * share)
    steps = range(first, recipe.steps)
    bar = tqdm(steps, initial=first, total=recipe.steps, desc=stage.name, unit="step", disable=not chief)
    with open(out / f"{stage.name}.jsonl" if chief else os.devnull, "a", encoding="utf-8") as log:
        for step in bar:
            started = time.perf_counter()
            rate = recipe.lr * schedule(step, recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            stage.module.train()
            with autocast:
                loss, metrics = stage.loss(step, part)
            gradients.zero_()
            loss.backward()
            gradients[0] = loss.detach()
            if world > 1:
                dist.all_reduce(gradients)
                gradients /= world
            value = gradients[0].item()
            if not math.isfinite(value):
                bad += 1
                if bad >= 10:
                    raise RuntimeError(f"{stage.name}: the loss was not finite {bad} times, last at step {step}")
                continue
            norm = gradients[1:].norm()
            if norm > recipe.clip:
                gradients *= recipe.clip / norm
            optimizer.step()
            update_ema(ema, named, step, recipe.ema)
            row = {"step": step, "loss": value, "lr": rate, "norm": norm.item(), **metrics}
            row |= {"images": recipe.batch, "images_per_second": recipe.batch / (time.perf_counter() - started)}
            log.write(json.dumps({k: float(f"{v:.5g}") for k, v in row.items()}) + "\n")
            log.flush()
            bar.set_postfix(loss=f"{row['loss']:.4f}", img_s=f"{row['images_per_second']:.0f}")
            done = step + 1
            if chief and (done % recipe.save_every == 0 or done == recipe.steps):
                save(path, named, ema, optimizer, done)
            if chief and (done % recipe.grid_every == 0 or done == recipe.steps):
                draw_grid(stage, ema, out / f"{stage.name}-{done:06d}.png")
    if world > 1:
        dist.barrier()  # nobody reads the checkpoint before it is written


def processes() -> tuple[int, int]:
    """Rank and number of processes; under torchrun they are joined here. On a CPU, one a core beats one with all."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return (dist.get_rank(), world) if world > 1 else (0, 1)


def flat_gradients(parameters: Iterable[nn.Parameter]) -> Tensor:
    """One tensor (1 + all,) for the loss and every gradient: the `grad` of each parameter is made a view of it, in the
    parameter's own layout. What many processes have to agree on is then one message, and no gradient is copied."""
    parameters = list(parameters)
    flat = torch.zeros(1 + sum(p.numel() for p in parameters), device=parameters[0].device)
    start = 1
    for p in parameters:
        p.grad = flat[start : start + p.numel()].as_strided(p.shape, p.stride())
        start += p.numel()
    return flat


def schedule(step: int, recipe: StageRecipe) -> float:
    """Learning rate at a step, as a part of the full one: linear warm-up, flat, linear decay to 0."""
    tail = recipe.decay * recipe.steps
    return min((step + 1) / recipe.warmup, 1.0, (recipe.steps - step) / tail if tail else 1.0)


def update_ema(ema: dict[str, Tensor], named: dict[str, nn.Parameter], step: int, width: float) -> None:
    """Power-function average: its reach is always about `width` times the training so far."""
    power = 1 / width  # near enough to the paper's gamma + 1 for widths of a few hundredths to a tenth
    keep = (1 - 1 / (step + 1)) ** power
    with torch.no_grad():
        torch._foreach_lerp_(list(ema.values()), [p.detach() for p in named.values()], 1 - keep)


def save(path: Path, named: dict, ema: dict, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Everything a run needs to go on, in one file that is whole or not there."""
    state = {f"model.{k}": v.detach().contiguous() for k, v in named.items()}
    state |= {f"ema.{k}": v.contiguous() for k, v in ema.items()}
    for name, p in named.items():
        moments = optimizer.state.get(p, {})
        state |= {f"adam.{key}.{name}": moments[key].contiguous() for key in moments}
    with atomic(path) as temporary:
        save_file(state, temporary, metadata={"step": str(step)})


def restore(path: Path, named: dict, ema: dict, optimizer: torch.optim.Optimizer) -> int:
    """Fill weights, EMA and optimizer from a checkpoint; returns the step to go on with."""
    with safe_open(path, "pt") as file, torch.no_grad():
        keys = set(file.keys())
        missing = [name for name in named if f"model.{name}" not in keys]
        if missing:
            raise ValueError(f"{path} cannot be trained on: it lacks {len(missing)} tensors ({missing[0]}, ...)")
        for name, p in named.items():
            p.copy_(file.get_tensor(f"model.{name}"))
            ema[name].copy_(file.get_tensor(f"ema.{name}"))
            if f"adam.step.{name}" in keys:
                stored = {
                    k: file.get_tensor(f"adam.{k}.{name}").to(p.device) for k in ("step", "exp_avg", "exp_avg_sq")
                }
                # The fused optimizer walks through memory: the moments must lie as the parameter does.
                moments = {k: torch.empty_like(p).copy_(stored[k]) for k in ("exp_avg", "exp_avg_sq")}
                optimizer.state[p] = {"step": stored["step"], **moments}
        return int(file.metadata()["step"])


def trained(path: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The EMA weights of a checkpoint whose names begin with `prefix`, without it."""
    with safe_open(path, "pt") as file:
        for key in file.keys():
            if key.startswith(f"ema.{prefix}"):
                yield key.removeprefix(f"ema.{prefix}"), file.get_tensor(key)


def draw_grid(stage: Stage, ema: dict[str, Tensor], path: Path) -> None:
    """The stage's own picture, drawn with the EMA weights; the weights in training are put back after."""
    named = dict(stage.module.named_parameters())
    kept = {name: named[name].detach().clone() for name in ema}
    with torch.no_grad():
        for name in ema:
            named[name].copy_(ema[name])
        stage.module.eval()
        image = stage.grid()
        for name in ema:
            named[name].copy_(kept[name])
    with atomic(path) as temporary:
        image.save(temporary, "PNG")


def fast_core() -> Core:
    """The attention core to train with: on a CPU the fused one's backward pass takes 3 to 15 times as long in bf16."""
    return sdpa if torch.cuda.is_available() else explicit


def generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
