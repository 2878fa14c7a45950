"""Fixtures: a tiny random model folder that draws in a blink, and the command line on it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_world import shape_captions
from toy_font import TOYS, write_font

from minisd.cli import main
from minisd.config import Config, Defaults, NoiseConfig, TextConfig, UNetConfig, VAEConfig
from minisd.train.stages import STAGES
from minisd.train.tokenizer import train_tokenizer
from minisd.weights.folder import modules, save
from minisd.world.emoji import EMOJI
from minisd.world.recipe import WorldRecipe
from minisd.world.world import World


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: 64 x 64 pictures, 4 steps, 2 text blocks; every parameter random, norms and biases too."""
    folder = tmp_path_factory.mktemp("tiny")
    size = train_tokenizer(folder / "tokenizer", shape_captions(50), merges=32)
    text = TextConfig(size, 32, 2, 2, 64, max_length=16, bos_id=size - 2, eos_id=size - 1, pad_id=size - 1)
    config = Config(
        "tiny",
        (text,),
        UNetConfig(channels=(16, 32), blocks_per_level=1, depth=(0, 1), heads=(2, 2), context_dim=32, groups=8),
        VAEConfig(channels=(8, 8, 16), blocks_per_level=1, groups=8),
        NoiseConfig(prediction="v"),
        Defaults(width=64, height=64, steps=4, cfg_scale=3.0, schedule="trailing"),
    )
    torch.manual_seed(0)
    parts = modules(config)
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save(folder, config, parts.state_dict(), {})
    return folder


@pytest.fixture(scope="session")
def toy_font(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colour font of seven toys."""
    return write_font(tmp_path_factory.mktemp("font") / "toys.ttf", {EMOJI[noun]: toy for noun, toy in TOYS.items()})


@pytest.fixture(scope="session")
def toy_world(toy_font: Path) -> World:
    """Shapes and toys on all grounds, 64 pixels."""
    return World(WorldRecipe(emoji=len(TOYS), shapes=0.5, font=str(toy_font)))


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model must not be loaded, nor a stage begun; there is no CUDA device."""

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("reached the model")

    monkeypatch.setattr("minisd.weights.folder.load", refuse)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for stage in STAGES:
        monkeypatch.setitem(STAGES, stage, refuse)


@pytest.fixture
def at_once() -> Iterator[None]:
    """Bad input is refused within a second of processor time: others may be at work on this machine."""
    started = time.process_time()
    yield
    assert time.process_time() - started < 1


@pytest.fixture
def draw(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """`minisd generate` with the tiny model, in an empty folder; returns the printed paths, all of them there."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, code: int = 0) -> list[Path]:
        assert main(["generate", *argv, "--model", str(tiny_model), "--device", "cpu"]) == code
        paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
        assert all(path.is_file() for path in paths)
        return paths

    return run
