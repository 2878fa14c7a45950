"""A model in memory: its networks, its tokenizers, and where they run. `load` makes one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from .config import Config, check
from .diffusion.schedule import NoiseTable, noise_table
from .nn.conditioning import Conditioning
from .nn.unet import UNet
from .nn.vae import VAE
from .runtime import Runtime
from .settings import resolve, texts
from .text.encode import encode
from .text.tokenizer import Tokenizer


@dataclass
class Model:
    """The parts of a model, ready to draw. `text` holds one CLIP tower, or two (SDXL)."""

    config: Config
    text: nn.ModuleList
    unet: UNet
    vae: VAE
    tokenizers: list[Tokenizer]
    runtime: Runtime
    origin: dict[str, str] = field(default_factory=dict)  # name and hash, for a picture's recipe
    originals: dict[str, Tensor] = field(default_factory=dict)  # weights as they were before a LoRA was merged

    @cached_property
    def table(self) -> NoiseTable:
        """The noise table the UNet was trained on."""
        return noise_table(self.config.noise)

    def batch_size(self, asked: int | None) -> int:
        """Images at a time. On a CPU one: the picture of seed + i is then the same in every call, bit for bit."""
        return asked or (1 if self.runtime.device.type == "cpu" else 8)

    @torch.no_grad()
    def encode(
        self,
        prompts: Sequence[str],
        clip_skip: int | None = None,
        emphasis: str | None = None,
        long_prompt: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> Conditioning:
        """Prompts to `Conditioning`: context (b, l, e), and a vector (b, v) where the UNet takes one.

        Each is one text: what changes over the steps, and AND, is for `generate` to read.

        Args:
            clip_skip: 1 is the last block, 2 the one before; None: the model's own.
            emphasis: how brackets are read and applied: "a1111", "no-norm", "comfy", or "off": they are plain text.
            long_prompt: of a prompt that is too long: "chunk", "window", "truncate", "summarize" or "error".
            size: (height, width) in pixels, for models that are told.

        Raises:
            ValueError: a number or name that does not fit the model.
        """
        check(not isinstance(prompts, str), "encode takes a list of prompts")
        prompts = texts("prompts", prompts)
        s = resolve(self.config, clip_skip=clip_skip, emphasis=emphasis, long_prompt=long_prompt)
        size = size or (s.height, s.width)
        return encode(self.text, self.tokenizers, prompts, self.config, s.clip_skip, s.long_prompt, size, s.emphasis)
