"""Fixtures: a tiny random model folder that draws in a blink."""

from pathlib import Path

import pytest
import torch

from minisd.config import Config, Defaults, NoiseConfig, TextConfig, UNetConfig, VAEConfig
from minisd.train.tokenizer import train_tokenizer
from minisd.weights.folder import modules, save


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: 64 x 64 pictures, 4 steps, 2 text blocks; every parameter random, norms and biases too."""
    folder = tmp_path_factory.mktemp("tiny")
    size = train_tokenizer(folder / "tokenizer", captions=50, merges=32)
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
