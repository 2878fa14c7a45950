"""One training loop for every stage, in one process or many, that can be stopped at any moment and goes on.

In: a `Stage` (the parameters, a loss for step i, a picture to look at). Out: `<stage>.safetensors` with weights, EMA
and optimizer, `<stage>.jsonl` with the log, `<stage>-<step>.png` grids.
Whatever a step draws is a function of (seed, global sample index): a resumed run sees what it would have seen, and many
processes share what one would have seen.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn
from tqdm import tqdm

from ..files import atomic
from ..nn.attention import Core, explicit, sdpa
from . import processes
from .board import Board
from .checkpoint import State, restore, save
from .log import Log
from .optimizer import Optimizer, exponent, flat_gradients, schedule, update_ema
from .recipe import StageRecipe
from .stop import Stopped, stopping

PATIENCE = 10  # steps in a row whose loss is not finite


class Stage(Protocol):
    """What the loop needs to know of a stage."""

    name: str
    recipe: StageRecipe
    module: nn.Module  # all that is trained

    def groups(self) -> list[dict]:
        """Parameter groups, each with `params` and a `scale` of the learning rate."""

    def prepare(self, step: int, part: slice) -> tuple:
        """What the loss of a step needs: all that is drawn or read for this process's part of its batch.

        It is asked for while the device still works on the step before, so it must not look at the weights."""

    def loss(self, *prepared: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on this process's part of a step's batch, and what else to log; over all processes the mean counts.

        It should not wait for the device: figures stay tensors."""

    def grid(self) -> Image:
        """Pictures that show how far the module (now holding EMA weights) is; figures to print go by `tqdm.write`, past
        the progress bar."""


def run(
    stage: Stage,
    out: Path,
    device: torch.device,
    resume: bool = False,
    until: float = math.inf,
    quiet: bool = False,
    tensorboard: bool = False,
) -> None:
    """Train a stage to its last step, from the first or from where its checkpoint stands.

    Args:
        until: stop in good order when `stop.now()` is later than this.

    Raises:
        FileExistsError: there is a checkpoint and `resume` is False.
        ValueError: the checkpoint is of another network, or the processes cannot share the batch.
        Stopped: a signal came, or the time is over; the checkpoint holds every step done.
        FloatingPointError: the loss or its gradient was not finite ten times in a row.
        OSError: the log, a grid or a checkpoint cannot be written; the checkpoint before is whole.
    """
    recipe, path, chief = stage.recipe, out / f"{stage.name}.safetensors", processes.chief()
    part = processes.part(recipe.batch)
    out.mkdir(parents=True, exist_ok=True)
    state, gradients = begin(stage)
    if path.exists():
        if not resume:
            raise FileExistsError(f"{path} exists: add --resume to go on from it, or choose another --out")
        restore(path, state, recipe)
    processes.wait()  # nobody writes before all have read
    steps, look = range(state.step, recipe.steps), {"desc": stage.name, "unit": "step", "disable": quiet or not chief}
    bar = tqdm(steps, initial=state.step, total=recipe.steps, **look)
    with sinks(stage.name, out, state.step, tensorboard) as (log, board), stopping(until) as asked, bar:
        prepared = stage.prepare(state.step, part) if steps else ()
        for step in bar:
            started = perf_counter()
            names, figures = attempt(stage, prepared, gradients, asked(), device)
            if step + 1 < recipe.steps:  # while the device still works on this one
                prepared = stage.prepare(step + 1, part)
            told = dict(zip(names, figures.tolist(), strict=True))  # the one wait for the device
            row = advance(state, recipe, gradients, told)
            if chief:
                row |= {"images_per_second": recipe.batch / (perf_counter() - started)}
                log.write(row)
                if board:
                    board.write(row)
                bar.set_postfix(loss=f"{told['loss']:.4f}", img_s=f"{row['images_per_second']:.0f}")
                keep(stage, state, out, log, board, bool(told["stop"]))
            check_patience(stage.name, state)
            if told["stop"]:
                processes.wait()
                said = f"{stage.name}: stopped at step {state.step} of {recipe.steps}"
                raise Stopped(f"{said}; --resume goes on from there", max(asked(), 0))
        # Nobody reads the checkpoint before it is written. A signal may have come while the last one was.
        if processes.together(asked() > 0):
            raise Stopped(f"{stage.name}: stopped at its end; --resume goes on from there", max(asked(), 0))


@contextmanager
def sinks(name: str, out: Path, step: int, tensorboard: bool) -> Iterator[tuple[Log | None, Board | None]]:
    """Where the rows go: the log and, if asked for, TensorBoard; nowhere in a process that is not the chief."""
    if not processes.chief():
        yield None, None
        return
    with closing(Log(out / f"{name}.jsonl", step)) as log, ExitStack() as stack:
        yield log, stack.enter_context(closing(Board(out / "tensorboard" / name, step))) if tensorboard else None


def begin(stage: Stage) -> tuple[State, Tensor]:
    """The state of a run at its first step, and all gradients as one tensor (all,)."""
    if stage.recipe.compile:
        for child in stage.module.children():
            child.compile()
    named = {name: p for name, p in stage.module.named_parameters() if p.requires_grad}
    gradients = flat_gradients(named.values())
    ema = {name: p.detach().clone() for name, p in named.items()}
    return State(named, ema, Optimizer(stage.groups(), named, stage.module, stage.recipe)), gradients


def attempt(
    stage: Stage, prepared: tuple, gradients: Tensor, stop: int, device: torch.device
) -> tuple[list[str], Tensor]:
    """Gradients and figures of one step, the mean over all processes, still on the device: names and values (k,)."""
    stage.module.train()
    with torch.autocast(device.type, torch.bfloat16) if stage.recipe.autocast else nullcontext():
        loss, metrics = stage.loss(*prepared)
    gradients.zero_()
    loss.backward()
    processes.average(gradients)
    # `full` fills on the device; a number copied there would wait for all that it has yet to do.
    values = [loss, torch.full((), float(stop), device=device), *metrics.values()]
    figures = torch.stack([value.detach().float() for value in values])
    processes.average(figures)
    return ["loss", "stop", *metrics, "norm"], torch.cat([figures, gradients.norm().view(1)])


def advance(state: State, recipe: StageRecipe, gradients: Tensor, told: dict[str, float]) -> dict[str, float]:
    """Move the weights along the gradients, or leave them where these are not finite; returns the row to log."""
    step, rate = state.step, recipe.lr * schedule(state.step, recipe)
    state.step += 1
    if not (math.isfinite(told["loss"]) and math.isfinite(told["norm"])):
        state.skipped, state.bad = state.skipped + 1, state.bad + 1
        return {"step": step, "skipped": state.skipped, "images": recipe.batch}
    state.bad = 0
    if told["norm"] > recipe.clip:
        gradients *= recipe.clip / told["norm"]
    state.optimizer.step(rate)
    update_ema(state.ema, state.named, step, exponent(recipe.ema))
    figures = {name: value for name, value in told.items() if name != "stop" and math.isfinite(value)}
    return {"step": step, "lr": rate, **figures, "images": recipe.batch}


def keep(stage: Stage, state: State, out: Path, log: Log, board: Board | None, stop: bool) -> None:
    """A grid and a checkpoint where they are due; the grid first, so that no run goes on behind one never drawn."""
    recipe, last = stage.recipe, state.step == stage.recipe.steps
    if last or state.step % recipe.grid_every == 0:
        image = draw_grid(stage, state.ema, out / f"{stage.name}-{state.step:06d}.png")
        if board:
            board.show(image, state.step)
    if last or stop or state.step % recipe.save_every == 0:
        log.sync()
        save(out / f"{stage.name}.safetensors", state, recipe)


def check_patience(name: str, state: State) -> None:
    """Stop a run that gets nowhere; one step among many that is not finite does no harm."""
    if state.bad >= PATIENCE:
        said = f"{name}: the loss or its gradient was not finite {state.bad} times in a row, up to step {state.step}"
        raise FloatingPointError(f"{said}: try a lower lr in the recipe, or autocast = false")


def draw_grid(stage: Stage, ema: dict[str, Tensor], path: Path) -> Image:
    """The stage's own picture, drawn with the EMA weights; the weights in training are put back after."""
    named = dict(stage.module.named_parameters())
    kept = {name: named[name].detach().clone() for name in ema}
    eager = torch.compiler.set_stance("force_eager") if stage.recipe.compile else nullcontext()
    with torch.no_grad(), eager:  # compiled once more for the grid's own shapes it would take longer than to draw it
        for name in ema:
            named[name].copy_(ema[name])
        stage.module.eval()
        image = stage.grid()
        for name in ema:
            named[name].copy_(kept[name])
    with atomic(path) as temporary:
        image.save(temporary, "PNG")
    return image


def fast_core() -> Core:
    """The attention core to train with: on a CPU the fused one's backward pass takes 3 to 15 times as long in bf16."""
    return sdpa if torch.cuda.is_available() else explicit


def generator(seed: int, step: int) -> torch.Generator:
    """The CPU generator of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
