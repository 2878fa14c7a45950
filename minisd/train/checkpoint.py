"""A checkpoint: all that a stage needs to go on as if it had never stopped, in one file that is whole or not there.

In: weights, their average, the optimizer's memory, how many steps are done. Out: `<stage>.safetensors`.
There is never a moment without a whole checkpoint: the new one is written beside the old one and then takes its place.
What a step draws is a function of (seed, step), so nothing of that has to be kept.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..weights.write import write_tensors
from .optimizer import Optimizer
from .recipe import StageRecipe

log = logging.getLogger("minisd")


@dataclass
class State:
    """Where a run stands."""

    named: dict[str, nn.Parameter]
    ema: dict[str, Tensor]
    optimizer: Optimizer
    step: int = 0  # so many are done
    skipped: int = 0  # of them without a change, because the loss or its gradient was not finite
    bad: int = 0  # of them in a row, up to now


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A .safetensors file to read from.

    Raises:
        ValueError: it is damaged; it is named.
    """
    try:
        file = safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): put a copy in its place, or remove it") from error
    with file:
        yield file


def save(path: Path, state: State, recipe: StageRecipe) -> None:
    """Write a checkpoint in the place of the one before.

    Raises:
        OSError: it cannot be written; the one before is as it was.
    """
    tensors = {f"model.{name}": p.detach() for name, p in state.named.items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in state.ema.items()}
    tensors |= {f"optim.{key}": tensor for key, tensor in state.optimizer.state()}
    counts = {name: str(getattr(state, name)) for name in ("step", "skipped", "bad")}
    try:
        cpu = {name: tensor.cpu() for name, tensor in tensors.items()}
        write_tensors(path, cpu, counts | {"recipe": json.dumps(asdict(recipe))})
    except OSError as error:
        old = f"{path} holds step {steps_done(path)} as before" if path.exists() else "there is none yet"
        raise OSError(
            f"the checkpoint of step {state.step} cannot be written ({error.strerror or error}); {old}"
        ) from error


def restore(path: Path, state: State, recipe: StageRecipe) -> None:
    """Fill a state from a checkpoint.

    Raises:
        ValueError: it is damaged, or one of another network.
    """
    with opened(path) as file, torch.no_grad():
        keys, told = set(file.keys()), file.metadata()
        missing = [name for name in state.named if f"model.{name}" not in keys]
        if missing:
            raise ValueError(f"{path} cannot be trained on: it lacks {len(missing)} tensors ({missing[0]}, ...)")
        frozen = sorted(k.removeprefix("model.") for k in keys if k.startswith("model.") and k[6:] not in state.named)
        if frozen:  # what was learned of them would be lost
            said = f"{len(frozen)} tensors were trained before ({frozen[0]}, ...) that are now to stay as they are"
            raise ValueError(f"{path} cannot be trained on: {said}; keep the recipe, or choose another --out")
        for name, p in state.named.items():
            for key, tensor in ((f"model.{name}", p), (f"ema.{name}", state.ema[name])):
                stored = file.get_tensor(key)
                if stored.shape != tensor.shape:
                    shapes = f"{tuple(stored.shape)}, not {tuple(tensor.shape)}"
                    raise ValueError(f"{path} cannot be trained on: {key} is {shapes}, as the config has it")
                tensor.copy_(stored)
        before = json.loads(told.get("recipe", "{}"))
        if before.get("optimizer") == recipe.optimizer:
            for key in sorted(keys):
                head, _, rest = key.partition(".")
                kind, _, name = rest.partition(".")
                if head == "optim" and name in state.named:
                    state.optimizer.load(kind, name, file.get_tensor(key))
    state.step, state.skipped, state.bad = (int(told.get(name, 0)) for name in ("step", "skipped", "bad"))
    changed = [f"{k} {before[k]} -> {v}" for k, v in asdict(recipe).items() if k in before and before[k] != v]
    if changed:
        log.info(f"the recipe has changed since {path} was written: {', '.join(changed)}")


def steps_done(path: Path) -> int:
    """The step a checkpoint stands at."""
    with opened(path) as file:
        return int(file.metadata()["step"])


def trained(path: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The EMA weights of a checkpoint whose names begin with `prefix`, without it."""
    with opened(path) as file:
        for key in file.keys():
            if key.startswith(f"ema.{prefix}"):
                yield key.removeprefix(f"ema.{prefix}"), file.get_tensor(key)
