"""A training run that is killed: where, and whether what comes out in the end is what an unbroken run leaves.

A child is forked for each run, so that Python and torch are loaded once; it runs the command line, and `kill -9` is
what ends it: at a moment by the clock, or by a trap inside a save. Used by scripts/kill.py; as a program of its own
(tests/test_kills.py) it kills one run three times.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from minisd.config import Config
from minisd.train.log import TIMING, read

ROOT = Path(__file__).parent.parent
STEPS, SAVE = 10, 3  # of each network; and a save after so many

TINY = """
config = "tiny.json"
size = 32
[world]
emoji = 0
[tokenizer]
captions = 60
merges = 32
[clip]
steps = {steps}
sketch_steps = 4
lies = 1
batch = 4
lr = 1e-3
width = 32
layers = 1
warmup = 2
autocast = false
save_every = {save}
[vae]
steps = {steps}
batch = 4
lr = 1e-3
warmup = 2
autocast = false
save_every = {save}
[unet]
steps = {steps}
batch = 4
lr = 1e-3
latents = 16
text_lr = 0.1
warmup = 2
autocast = false
save_every = {save}
optimizer = "muon"
unseen = 8
shown = 4
"""

# Inside a save, in the order in which it comes by them.
TRAPS = ("before it", "file begun", "half the tensors", "last tensor", "synced", "in its place")


def write_recipe(folder: Path) -> Path:
    """A recipe of a model so small that all its stages take a few seconds."""
    data = Config.load(ROOT / "configs/shapes.json").to_dict()
    data["text"][0] |= {"width": 32, "layers": 1, "hidden": 64, "projection": 16}
    data["unet"] |= {"channels": [16, 32], "depth": [0, 1], "heads": [1, 2], "context_dim": 32, "groups": 8}
    data["vae"] |= {"channels": [8, 8, 16], "groups": 4}
    data["defaults"] |= {"steps": 2, "width": 32, "height": 32}
    (folder / "tiny.json").write_text(json.dumps(data))
    (folder / "tiny.toml").write_text(TINY.format(steps=STEPS, save=SAVE))
    return folder / "tiny.toml"


def preload() -> None:
    """What every child would have to import first; the optimizers load the compiler."""
    import torch._dynamo
    from transformers import CLIPTokenizer  # noqa: F401

    import minisd.train.stages  # noqa: F401

    torch.set_num_threads(1)


def start(recipe: Path, out: Path, prepare: Callable[[], Any] = lambda: None) -> int:
    """Fork a child that trains all stages of a run folder on; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        from minisd.cli import main

        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, sys.__stdout__.fileno())
        prepare()
        words = ["all", "--recipe", str(recipe), "--out", str(out), "--resume", "auto", "--device", "cpu"]
        code = main(["train", *words, "--threads", "1", "--quiet"])
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """How it ended: its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(recipe: Path, out: Path, prepare: Callable[[], Any] = lambda: None) -> int:
    """Train to the end, or into a trap that `prepare` sets."""
    return wait(start(recipe, out, prepare))


def run_for(recipe: Path, out: Path, seconds: float) -> int:
    """Train for so long, then kill -9."""
    child = start(recipe, out)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return wait(child)


def die() -> None:
    """What a power cut would do, but for the disk."""
    os.kill(os.getpid(), signal.SIGKILL)


def trap(where: str, stage: str, nth: int) -> None:
    """Let this process die inside the nth save of a stage, at one of TRAPS."""
    from minisd.train import checkpoint, loop

    save, write_tensors, saves = loop.save, checkpoint.write_tensors, []

    def counted(path: Path, state: Any, recipe: Any) -> None:
        saves.append(path.stem)
        if where == TRAPS[0] and (path.stem, saves.count(stage)) == (stage, nth):
            die()  # the log is on the disk, the checkpoint not begun
        save(path, state, recipe)

    def trapped(path: Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        if (path.stem, saves.count(stage)) == (stage, nth):
            arm(where, path, len(tensors))
        write_tensors(path, tensors, metadata)

    loop.save, checkpoint.write_tensors = counted, trapped


def arm(where: str, path: Path, count: int) -> None:
    """Die at a moment of writing a file of `count` tensors."""
    from minisd import files
    from minisd.weights import write

    numbers, replace, sync, written = write.numbers, os.replace, os.fsync, []
    last = {"file begun": 0, "half the tensors": count // 2, "last tensor": count - 1}.get(where)

    def counted(*args: Any) -> Any:
        if len(written) == last:
            die()
        written.append(args)
        return numbers(*args)

    def synced(number: int) -> None:
        sync(number)
        if where == "synced":
            die()

    def replaced(old: Path, new: Path) -> None:
        replace(old, new)
        if where == "in its place":
            die()

    write.numbers, files.os.fsync, files.os.replace = counted, synced, replaced


def differences(one: Path, other: Path) -> list[str]:
    """The files of two run folders that differ, byte for byte; of logs and of index.json what tells the time is left
    out. A file that only one of them has differs too."""
    names = {p.relative_to(folder) for folder in (one, other) for p in folder.rglob("*") if p.is_file()}
    names -= {Path(".lock")}  # holds the id of the last process
    return sorted(str(name) for name in names if content(one / name) != content(other / name))


def content(path: Path) -> Any:
    """What is compared of a file."""
    if not path.exists():
        return None
    if path.suffix == ".jsonl":
        return [{k: v for k, v in row.items() if k not in TIMING} for row in read(path)]
    if path.name == "index.json":
        return json.loads(path.read_text())["sha256"]
    return path.read_bytes()


def main() -> None:
    """In an empty folder: an unbroken run, and one that dies inside a save of each network; prints what differs."""
    preload()
    home = Path(sys.argv[1])
    recipe = write_recipe(home)
    codes = [run(recipe, home / "whole")]
    for stage, where in (("clip", "half the tensors"), ("vae", "in its place"), ("unet", "synced")):
        codes.append(run(recipe, home / "cut", partial(trap, where, stage, 2)))
    codes.append(run(recipe, home / "cut"))
    print(codes, differences(home / "whole", home / "cut"))


if __name__ == "__main__":
    main()
