"""`minisd train` as a command: exit codes, one line on stderr, what `all` runs, slices of time, one run a folder."""

import dataclasses
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kills import write_recipe
from safetensors.torch import load_file
from test_loop import CPU, Toy

import minisd
from minisd.cli import main
from minisd.cli.train import default_recipe
from minisd.config import Config
from minisd.train import loop
from minisd.train.checkpoint import steps_done
from minisd.train.job import Run, finished
from minisd.train.lock import locked
from minisd.train.log import read
from minisd.train.recipe import Recipe, VaeRecipe
from minisd.train.stages import STAGES, every, one, tokenizer, train
from minisd.train.start import network
from minisd.train.stop import Stopped, now
from minisd.train.unet import UnetStage
from minisd.world.world import World

ROOT = Path(__file__).parent.parent


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that ran; none of them trains."""
    ran: list[str] = []
    for name in STAGES:
        monkeypatch.setitem(STAGES, name, lambda job, name=name: ran.append(name))
    return ran


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """`minisd train vae …` trains the toy stage; the words of that command."""

    def train(job: Run) -> None:
        loop.run(Toy(steps=20), job.folder, job.device, job.resume, job.until, job.quiet, job.tensorboard)

    monkeypatch.setitem(STAGES, "vae", train)
    return ["train", "vae", "--recipe", "shapes", "--out", str(tmp_path / "run"), "--device", "cpu"]


def job(folder: Path) -> Run:
    return Run(Recipe.load(default_recipe("shapes")), folder, Config.load(ROOT / "configs/shapes.json"), CPU)


def named(name: str, **recipe: Any) -> Toy:
    """The toy stage under the name of another."""
    stage = Toy(**recipe)
    stage.name, stage.recipe = name, VaeRecipe(**dataclasses.asdict(stage.recipe))
    return stage


def line(capsys: pytest.CaptureFixture) -> str:
    """The one line on stderr that says how it ended."""
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("minisd: ")]
    assert len(said) == 1, said
    return said[0]


def test_all_runs_what_is_not_finished_in_order(tmp_path: Path, did: list[str], capsys) -> None:
    whole = job(tmp_path)
    one(whole, "vae")
    every(whole)
    assert did == ["vae", "tokenizer", "clip", "unet", "export"]
    assert "vae: finished before" in capsys.readouterr().out
    assert list(finished(tmp_path)) == ["vae", "tokenizer", "clip", "unet", "export"]
    every(whole)
    assert did[5:] == ["export"]  # in seconds, from what is there
    longer = dataclasses.replace(whole.recipe, unet=dataclasses.replace(whole.recipe.unet, steps=10**4 + 1))
    every(dataclasses.replace(whole, recipe=longer))
    assert did[6:] == ["unet", "export"]


def test_all_leaves_alone_what_came_with_a_model(tmp_path: Path, did: list[str], capsys) -> None:
    argv = ["train", "all", "--recipe", "shapes", "--init", "mini", "--out", str(tmp_path / "run"), "-q"]
    assert main(argv) == 0
    assert did == ["unet", "export"]
    assert [f"{name}: came with the model" for name in ("tokenizer", "clip", "vae")] == capsys.readouterr().out.split(
        "\n"
    )[:3]
    started = network(tmp_path / "run", "unet")
    assert main(argv) == 0  # the same command once more, as for the next slice: the model is not unpacked again
    assert did[2:] == ["export"]
    again = network(tmp_path / "run", "unet")
    assert started.keys() == again.keys() and all(torch.equal(started[k], again[k]) for k in started)


def test_a_stage_that_stops_is_not_finished_and_none_follows(tmp_path: Path, did: list[str], monkeypatch) -> None:
    def stop(job: Run) -> None:
        raise Stopped("clip: stopped")

    monkeypatch.setitem(STAGES, "clip", stop)
    with pytest.raises(Stopped):
        every(job(tmp_path))
    assert list(finished(tmp_path)) == did == ["tokenizer"]


def test_a_slice_that_is_over_as_it_begins_does_a_stage_all_the_same(tmp_path: Path, did: list[str]) -> None:
    """Or a command whose start takes longer than its slice would never come to an end."""
    over = dataclasses.replace(job(tmp_path), until=now() - 1)
    for i, after in enumerate(("clip", "vae", "unet", "export")):
        with pytest.raises(Stopped, match=f"the time was over before {after}; the same command goes on with it"):
            every(over)
        assert len(did) == i + 1
    every(over)
    assert did == ["tokenizer", "clip", "vae", "unet", "export"]


def test_a_stage_is_not_trained_away_from_under_the_unet(tmp_path: Path, monkeypatch) -> None:
    """More steps of a VAE or a text tower, or other words, and the UNet's latents or prompts are no longer its own."""
    whole = job(tmp_path)
    monkeypatch.setattr("minisd.train.stages.run", lambda *_: pytest.fail("trained"))
    for name in ("clip", "vae", "unet"):
        loop.run(named(name), tmp_path, CPU)
    for name in ("clip", "vae"):
        said = (
            rf"unet\.safetensors was trained on the {name} that is there: before you train that one on, remove it, or"
        )
        with pytest.raises(ValueError, match=said):
            train(whole, named(name, steps=13))
    monkeypatch.setattr("minisd.train.stages.run", lambda *_: None)
    train(whole, named("vae"))  # at its end already
    train(whole, named("unet", steps=13))
    (tmp_path / "unet.safetensors").unlink()
    train(whole, named("vae", steps=13))


def test_words_that_networks_know_are_kept(tmp_path: Path, did: list[str], monkeypatch) -> None:
    whole = job(tmp_path)
    one(whole, "tokenizer")
    (tmp_path / "clip.safetensors").write_bytes(b"")
    other = dataclasses.replace(whole.recipe, tokenizer=dataclasses.replace(whole.recipe.tokenizer, merges=9))
    monkeypatch.setattr("minisd.train.stages.train_tokenizer", lambda *_: pytest.fail("learned"))
    with pytest.raises(ValueError, match="know the words they have, and this recipe may have others: choose another"):
        tokenizer(dataclasses.replace(whole, recipe=other))


def test_slices_of_time_come_to_the_whole(tmp_path: Path, toy: list[str], capsys) -> None:
    """A slice that is over at once does one step; the log and the checkpoint end as those of an unbroken run."""
    for i in range(3):
        assert main([*toy, "--minutes", "1e-9", "--resume", "auto"]) == 0
        said = capsys.readouterr()
        assert said.out.endswith(f"minisd: toy: stopped at step {i + 1} of 20; --resume goes on from there\n")
    assert main([*toy, "--resume"]) == 0
    whole = tmp_path / "whole"
    loop.run(Toy(steps=20), whole, CPU)
    assert (whole / "toy.safetensors").read_bytes() == (tmp_path / "run/toy.safetensors").read_bytes()
    assert [row["loss"] for row in read(whole / "toy.jsonl")] == [
        row["loss"] for row in read(tmp_path / "run/toy.jsonl")
    ]


def test_of_many_processes_one_speaks(tmp_path: Path, toy: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main([*toy, "--minutes", "1e-9"]) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert main([*toy, "--minutes", "1e-9", "--resume"]) == 0
    said = capsys.readouterr()
    assert "stopped at step 2 of 20" in said.out and "device as asked" in said.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_a_checkpoint_and_its_own_code(
    tmp_path: Path, toy: list[str], number: int, code: int, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(Toy, "grid", lambda self: os.kill(os.getpid(), number))
    monkeypatch.setattr(loop, "draw_grid", lambda stage, *_: stage.grid())
    before = signal.getsignal(number)
    assert main(toy) == code
    assert line(capsys) == "minisd: toy: stopped at step 7 of 20; --resume goes on from there"
    assert steps_done(tmp_path / "run/toy.safetensors") == 7
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_outside_the_loop_ends_at_once(tmp_path: Path, number: int, code: int, monkeypatch, request) -> None:
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, kept))

    def begin(job: Run) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)  # the signal may come a moment later
        pytest.fail("went on")

    monkeypatch.setitem(STAGES, "vae", begin)
    assert main(["train", "vae", "--recipe", "shapes", "--out", str(tmp_path), "--device", "cpu"]) == code


@pytest.fixture
def files_of() -> Iterator[Callable[[int], None]]:
    """A function that sets how large a file may become, in bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_that_cannot_be_written_is_one_line(tmp_path: Path, toy: list[str], files_of, capsys) -> None:
    files_of(6000)  # of about 10,000
    assert main(toy) == 1
    assert line(capsys) == "minisd: the checkpoint of step 4 cannot be written (File too large); there is none yet"
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock", "toy.jsonl"]


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path, toy: list[str], files_of, capsys) -> None:
    """The row that no longer fits is taken back when the run goes on."""
    files_of(400)
    assert main(toy) == 1
    assert line(capsys) == f"minisd: {tmp_path}/run/toy.jsonl cannot be written: the disk is full"
    files_of(resource.RLIM_INFINITY)
    assert main([*toy, "--resume"]) == 0
    assert [row["step"] for row in read(tmp_path / "run/toy.jsonl")] == list(range(20))


def test_a_config_that_cannot_be_written_is_named(tmp_path: Path, files_of) -> None:
    files_of(1000)
    with pytest.raises(OSError, match=r"File too large: '.*/config\.json'"):
        job(tmp_path).write_config(job(tmp_path).config)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_stays_bad_is_one_line(tmp_path: Path, toy: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setitem(STAGES, "vae", lambda job: loop.run(Toy(lambda i, loss: loss * torch.nan), job.folder, CPU))
    assert main(toy) == 1
    assert line(capsys).startswith("minisd: toy: the loss or its gradient was not finite 10 times in a row, up to step")


def test_two_runs_in_one_folder_refuse(tmp_path: Path, toy: list[str], capsys) -> None:
    with locked(tmp_path / "run"):
        assert main(toy) == 2
    assert f"run is in use: process {os.getpid()} trains in it" in line(capsys)
    assert main(toy) == 0


class Writer:
    """A stand-in for TensorBoard's SummaryWriter."""

    made: list["Writer"] = []  # noqa: RUF012

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.begun, self.scalars, self.images, self.closed = folder, purge_step, [], [], False
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def add_image(self, name: str, picture, step: int, dataformats: str) -> None:
        self.images.append((name, picture.shape, step, dataformats))

    def close(self) -> None:
        self.closed = True


def test_tensorboard_is_told_what_the_log_is_told(tmp_path: Path, toy: list[str], monkeypatch) -> None:
    monkeypatch.setattr("minisd.cli.train.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr(Writer, "made", [])
    assert main([*toy, "--minutes", "1e-9", "--tensorboard"]) == 0
    assert main([*toy, "--resume", "--tensorboard"]) == 0
    first, second = Writer.made
    assert (first.begun, second.begun) == (0, 1)
    assert first.closed and second.closed and second.folder == str(tmp_path / "run/tensorboard/toy")
    rows = {(name, row["step"]): value for row in read(tmp_path / "run/toy.jsonl") for name, value in row.items()}
    told = {(name, step): value for name, value, step in first.scalars + second.scalars}
    assert told.keys() == {key for key in rows if key[0] != "step"}
    assert all(told[key] == pytest.approx(rows[key], rel=1e-6) for key in told)
    assert second.images == [("grid", (4, 4, 3), step, "HWC") for step in (6, 12, 18, 20)]


def test_without_tensorboard_the_extra_is_named(tmp_path: Path, toy: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setattr("minisd.cli.train.find_spec", lambda name: None)
    assert main([*toy, "--tensorboard"]) == 2
    assert line(capsys) == "minisd: --tensorboard: the package is not here: pip install 'minisd[train]'"
    assert not (tmp_path / "run").exists()


def test_a_models_folder_alone_is_enough_to_go_on(tmp_path: Path, tiny_model: Path, capsys) -> None:
    """`train all --init FOLDER` with the world: words, VAE and text tower are the folder's own, and the UNet goes on
    from its weights; nothing else is trained. It draws by itself what it was trained on last."""
    recipe, out = write_recipe(tmp_path), tmp_path / "run"
    argv = ["train", "all", "--recipe", str(recipe), "--init", str(tiny_model), "--out", str(out), "--device", "cpu"]
    assert main([*argv, "--set", "unet.steps=2", "--set", "unet.lr=1e-12"]) == 0
    assert f"the networks are those of {tiny_model}, not those of {recipe}" in capsys.readouterr().err
    assert sorted(p.name for p in out.glob("*.safetensors")) == ["unet.safetensors"]

    told, model = Recipe.load(recipe), minisd.load(tiny_model, device="cpu")
    world = World(told.world, 32)
    with torch.no_grad():
        latents = model.vae.encode(world.pictures(range(16)))[0].half()
    assert torch.equal(load_file(out / "latents/00000000.safetensors")["latents"], latents)
    stage = UnetStage(
        told.unet, model.config, model.tokenizers[0], model.text[0], model.vae, latents, world, model.unet
    )
    loss = stage.loss(*stage.prepare(0, slice(None)))[0].item()
    assert read(out / "unet.jsonl")[0]["loss"] == pytest.approx(loss, rel=1e-5)

    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, out / "model"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k].half(), after[k]) for k in before if k.startswith("vae."))
    assert all(
        torch.allclose(before[k], after[k].float(), rtol=5e-4, atol=1e-7) for k in before
    )  # fp16 rounds by 2^-11
    defaults = dataclasses.replace(model.config.defaults, width=32, height=32)
    assert Config.load(out / "model/config.json") == dataclasses.replace(model.config, defaults=defaults)
