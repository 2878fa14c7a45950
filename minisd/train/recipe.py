"""A training recipe: one TOML file, one frozen dataclass a stage. Unknown fields are refused.

In: configs/train/*.toml. Out: a `Recipe` that names the model config and says how each stage is trained.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import build, check, one_of
from ..world.recipe import WorldRecipe

OPTIMIZERS = ("adamw", "muon")
WIDEST = 0.28  # of the power-function EMA: at 0.289 every step so far has the same weight


@dataclass(frozen=True)
class TokenizerRecipe:
    """BPE on captions."""

    captions: int = 4000
    merges: int = 256


@dataclass(frozen=True)
class StageRecipe:
    """What every network's stage needs: how long, how large, how fast."""

    steps: int
    batch: int
    lr: float
    warmup: int = 100
    decay: float = 0.4  # the last part of the steps, in which the learning rate falls to 0
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.083  # width of the power-function EMA (sigma_rel), as a part of the training so far
    seed: int = 0
    optimizer: str = "adamw"  # or "muon": for the matrices, with AdamW for the rest
    autocast: bool = True  # bf16 over fp32 weights
    compile: bool = False  # torch.compile: minutes at the start, faster steps on a GPU
    save_every: int = 200
    grid_every: int = 200

    def __post_init__(self) -> None:
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        check(0 < self.ema <= WIDEST, f"ema {self.ema} must be above 0 and at most {WIDEST}")
        check(0 <= self.decay <= 1, f"decay {self.decay} must be in 0..1")
        self.above_zero("lr", "clip")
        self.not_below_zero("weight_decay")

    def above_zero(self, *names: str) -> None:
        for name in names:
            check(getattr(self, name) > 0, f"{name} {getattr(self, name)} must be above 0")

    def not_below_zero(self, *names: str) -> None:
        for name in names:
            check(getattr(self, name) >= 0, f"{name} {getattr(self, name)} must not be below 0")


@dataclass(frozen=True)
class ClipRecipe(StageRecipe):
    """Contrastive training of a text tower and an image tower."""

    lies: int = 3  # near misses told beside each true caption; 0: plain CLIP
    sketch_steps: int = 0  # at first so many steps of the sketcher alone
    sketch: float = 10.0  # weight of the sketcher's squared error beside the contrastive loss
    width: int = 128  # of the image tower
    layers: int = 3
    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.not_below_zero("sketch")


@dataclass(frozen=True)
class VaeRecipe(StageRecipe):
    """L1 and gradient loss on pixels, a light KL term."""

    kl: float = 1e-4
    gradient: float = 1.0
    decoder_only: bool = False  # leave the encoder as it is: a UNet was trained on its latents

    def __post_init__(self) -> None:
        super().__post_init__()
        self.not_below_zero("kl", "gradient")


@dataclass(frozen=True)
class UnetRecipe(StageRecipe):
    """The diffusion loss on cached latents."""

    latents: int = 48_000  # of so many pictures at most
    drop_prompt: float = 0.1
    text_lr: float = 0.0  # learning rate of the text tower as a part of `lr`; 0: frozen
    clip_skips: tuple[int, ...] = ()  # each step draws one of them, so that all work; (): the model's own
    snr_gamma: float = 5.0
    time_power: float = 1.0  # training times are u ** time_power of the table, u even in 0..1
    time_balance: float = 0.0  # the loss at time t (0..1) is divided by t ** time_balance
    checkpointing: bool = False  # compute activations twice: less memory, a third more time
    unseen: int = 256  # examples that the loss is measured on at each grid
    shown: int = 16  # pictures of a grid

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.drop_prompt <= 1, f"drop_prompt {self.drop_prompt} must be in 0..1")
        self.above_zero("snr_gamma", "time_power")
        self.not_below_zero("text_lr")


@dataclass(frozen=True)
class LoraRecipe(UnetRecipe):
    """Low-rank factors beside a frozen model. `text_lr` above 0 puts factors into the text encoders as well."""

    steps: int = 1000
    batch: int = 4
    lr: float = 1e-4
    unseen: int = 16
    shown: int = 4
    rank: int = 8
    alpha: float | None = None  # the change is scaled by alpha / rank; None: alpha = rank
    layers: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out")  # linear layers, by the end of their names
    base: str = "auto"  # precision of the frozen weights: auto, fp32 or bf16

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("base", self.base, ("auto", "fp32", "bf16"))
        check(self.strength > 0, f"alpha {self.alpha} must be above 0")

    @property
    def strength(self) -> float:
        """alpha, or what stands for it."""
        return float(self.rank if self.alpha is None else self.alpha)


@dataclass(frozen=True)
class DataRecipe:
    """How the pictures of a folder are shown."""

    random_crop: bool = False  # cut to squares anywhere; False: in the middle
    seed: int = 0


@dataclass(frozen=True)
class JudgeRecipe(StageRecipe):
    """Finding and naming what the world draws, to mark a model's pictures by."""

    steps: int = 6000
    batch: int = 64
    lr: float = 4e-3
    decay: float = 0.5
    optimizer: str = "muon"  # it needs less than half of AdamW's steps here
    save_every: int = 250
    grid_every: int = 500
    widths: tuple[int, ...] = (32, 64, 144)  # channels at 1/2, 1/4, 1/8 ... of the size; the last but one is read
    feature: int = 128  # channels that the answers are read from


@dataclass(frozen=True)
class Recipe:
    """All stages of one model.

    config: the model config's path, relative to the recipe; None: that of the model it starts from.
    size: of the pictures, in pixels; None: the model's own width.
    """

    config: str | None = None
    size: int | None = None
    data: DataRecipe = DataRecipe()
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    clip: ClipRecipe | None = None
    vae: VaeRecipe | None = None
    unet: UnetRecipe | None = None
    lora: LoraRecipe = LoraRecipe()
    world: WorldRecipe = field(default_factory=WorldRecipe)
    judge: JudgeRecipe = field(default_factory=JudgeRecipe)

    @staticmethod
    def load(path: str | Path, changes: Sequence[str] = ()) -> "Recipe":
        """Read a TOML recipe.

        Args:
            changes: such as "unet.steps=500": what stands otherwise than in the file, in TOML's own spelling.

        Raises:
            ValueError: a field is unknown, missing or of the wrong type.
        """
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        for change in changes:
            put(data, change)
        return build(Recipe, data, "recipe")


def put(data: dict[str, Any], change: str) -> None:
    """Set one field of a recipe, given as section.field=value.

    Raises:
        ValueError: it is not of that form.
    """
    name, equals, value = change.partition("=")
    *sections, last = name.strip().split(".")
    check(bool(equals and last), f"{change!r} does not set a field of the recipe: write it like unet.steps=500")
    for section in sections:
        data = data.setdefault(section, {})
        check(isinstance(data, dict), f"{change!r}: {section} is no section of the recipe")
    try:
        data[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        data[last] = value.strip()  # a word without its quotes
