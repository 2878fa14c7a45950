"""Two processes that train as one: the same losses, the same weights, one log; and a run that goes from one to two."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_loop import CPU, Toy
from test_train import tiny_config, tiny_recipe

from minisd.cli import main
from minisd.train import loop, processes, stages
from minisd.train.job import Run
from minisd.train.log import read
from minisd.train.stages import one
from minisd.train.stop import Stopped

STEPS = 50
NETWORKS = ("clip", "vae", "unet")


def job(folder: Path) -> Run:
    """Fifty steps of each network in fp32, near misses and prompt dropout included."""
    recipe, config = tiny_recipe(), tiny_config().to_dict()
    config["defaults"] |= {"width": 32, "height": 32}
    often = {"steps": STEPS, "save_every": 100, "grid_every": 100}
    told = {name: dataclasses.replace(getattr(recipe, name), **often) for name in NETWORKS}
    told["clip"] = dataclasses.replace(told["clip"], sketch_steps=10, lies=2)
    told["unet"] = dataclasses.replace(told["unet"], latents=16, optimizer="muon")
    return Run(dataclasses.replace(recipe, size=32, **told), folder, type(tiny_config()).from_dict(config), CPU, True)


def spoilt(step: int, loss: torch.Tensor) -> torch.Tensor:
    """Not finite in one step of the second process alone."""
    return loss * float("nan") if step == 3 and processes.rank() == 1 else loss


@contextmanager
def hurried() -> Iterator[pytest.MonkeyPatch]:
    """Without grids and the latents' spread: they take longer than the steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_grid", lambda *_: None)
        patch.setattr(stages.VaeStage, "unit_scale", lambda self: 2.0)
        yield patch


def as_one(home: Path) -> None:
    """What both processes run."""
    torch.set_num_threads(1)
    with hurried(), processes.joined(CPU):
        for name in (*NETWORKS, "half"):
            one(job(home / name), "unet" if name == "half" else name)
        loop.run(Toy(spoilt), home / "toy", CPU)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All stages by one process."""
    alone = job(tmp_path_factory.mktemp("whole"))
    with hurried():
        for name in ("tokenizer", *NETWORKS):
            one(alone, name)
    return alone


@pytest.fixture(scope="module")
def shared(whole: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each network by two processes, with what the one process made of those before; and half a unet by one."""
    home = tmp_path_factory.mktemp("shared")
    for name in (*NETWORKS, "half"):
        shutil.copytree(whole.folder, home / name)
        for path in {*(home / name).glob(f"{name}.*"), *(home / name).glob("unet.*")}:
            path.unlink()

    class Cut(stages.UnetStage):
        def loss(self, *prepared):
            if (home / "half/unet.jsonl").read_text().count("\n") == 24:
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(*prepared)

    with hurried() as patch:
        patch.setattr(stages, "UnetStage", Cut)
        with pytest.raises(Stopped, match=r"step 2[56] of 50"):
            one(job(home / "half"), "unet")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path\n"
    (home / "job.py").write_text(f"{code}from test_processes import as_one; as_one(Path({str(home)!r}))\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "job.py"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return home


@pytest.mark.parametrize("name", [*NETWORKS, "half"])
def test_two_processes_train_as_one(whole: Run, shared: Path, name: str) -> None:
    stage = "unet" if name == "half" else name
    alone, together = (read(folder / f"{stage}.jsonl") for folder in (whole.folder, shared / name))
    assert [row["step"] for row in together] == list(range(STEPS))
    assert [row["loss"] for row in together] == pytest.approx([row["loss"] for row in alone], rel=1e-5)
    for figure in {"norm", "sketch", "accuracy", "psnr", "kl"} & alone[-1].keys():
        rows = [i for i, row in enumerate(alone) if figure in row]
        # The gradient of L1 is a sign: where rounding lets one pixel's error cross 0, the norm jumps, not the loss.
        wanted = pytest.approx([alone[i][figure] for i in rows], rel=1e-3)
        assert [together[i][figure] for i in rows] == wanted, figure
    one_, two = (load_file(folder / f"{stage}.safetensors") for folder in (whole.folder, shared / name))
    assert one_.keys() == two.keys()
    far = {k: ((one_[k] - two[k]).abs().max() / one_[k].abs().max()).item() for k in one_ if k.startswith("ema.")}
    assert max(far.values()) < 1e-2, max(far, key=far.get)  # Adam blows up the rounding of gradients that are near 0


def test_a_step_that_is_not_finite_in_one_process_is_skipped_by_both(shared: Path) -> None:
    rows = read(shared / "toy/toy.jsonl")
    assert [row["step"] for row in rows if "loss" not in row] == [3]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(torch.isfinite(t).all() for t in load_file(shared / "toy/toy.safetensors").values())


def test_latents_do_not_depend_on_who_made_them(whole: Run, shared: Path) -> None:
    alone, together = (folder / "latents/00000000.safetensors" for folder in (whole.folder, shared / "unet"))
    assert alone.read_bytes() == together.read_bytes()


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(["train", "all", "--recipe", "shapes", "--out", str(tmp_path / "run")]) == 2
    said = "the batch of 128 of the clip stage cannot be shared by 3 processes: choose a multiple of 3 in the recipe"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(processes, "count", lambda: 3)
    with pytest.raises(ValueError, match="a batch of 4 cannot be shared by 3 processes: choose a multiple of 3"):
        loop.run(Toy(), tmp_path / "toy", CPU)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_cover_everything_once_in_order(count: int, monkeypatch) -> None:
    items = list(range(7))
    monkeypatch.setattr(processes, "count", lambda: count)
    parts = []
    for rank in range(count):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        parts.append(processes.share(items))
    together = list(chain(*parts))
    assert len({len(part) for part in parts}) == 1
    assert together[:7] == items
    assert set(together[7:]) <= {6}
    assert processes.share([]) == []
