"""What a model is, as plain data: frozen dataclasses, JSON in and out.

In: numbers (widths, depths, names). Out: a `Config` that every other module reads and none changes.
One UNet, one CLIP and one VAE class serve every family; the differences stand here and nowhere else.
No torch in this file: the command line checks its flags before torch is imported.

The dimension key used everywhere: b batch, c channels, h w latent height and width, n = h*w tokens,
l text tokens, e text width, m heads, d head width.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

from .names import ACTIVATION_NAMES, NOISE_NAMES, PREDICTION_NAMES, SAMPLER_NAMES, SCHEDULE_NAMES, check, one_of, shown

VERSION = "0.1.0"
MAX_WIDTH = 8192  # no published model is wider; a config may not ask for terabytes
MAX_DEPTH = 64


@dataclass(frozen=True)
class TextConfig:
    """One CLIP text tower. `layers` are the blocks the file stores; `depth` the blocks it was trained with."""

    vocab_size: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    max_length: int = 77
    activation: str = "quick_gelu"
    projection: int = 0  # width of the pooled vector's projection; 0: none
    pooled: bool = False  # hand the pooled vector on to the UNet (SDXL's second tower)
    final_norm: bool = True  # final LayerNorm on the context: SD 1.x, 2.x, mini yes; SDXL no
    bos_id: int = 49406
    eos_id: int = 49407
    pad_id: int = 49407  # OpenAI CLIP pads with EOS, OpenCLIP with 0

    def __post_init__(self) -> None:
        one_of("activation", self.activation, ACTIVATION_NAMES)
        check(self.width % self.heads == 0, f"text width {self.width} is not a multiple of heads {self.heads}")
        for name in ("bos_id", "eos_id", "pad_id"):
            value = getattr(self, name)
            check(0 <= value < self.vocab_size, f"{name} {value} is outside the vocabulary of {self.vocab_size}")
        check(3 <= self.max_length <= 4096, f"max_length {self.max_length} must be in 3..4096")

    @property
    def depth(self) -> int:
        """Full depth N of the clip-skip contract: 23 stored blocks of width 1024 are SD 2.x's 24 less one."""
        return 24 if (self.layers, self.width) == (23, 1024) else self.layers


@dataclass(frozen=True)
class UNetConfig:
    """Nine numbers (and `groups`) that give SD 1.x, SD 2.x, SDXL and mini."""

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    blocks_per_level: int = 2
    depth: tuple[int, ...] = (1, 1, 1, 0)  # transformer blocks per level
    mid_depth: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)  # number of heads per level (not the head width)
    context_dim: int = 768
    vector_dim: int = 0  # pooled text and sizes (SDXL); 0: none
    groups: int = 32

    def __post_init__(self) -> None:
        levels = len(self.channels)
        check(levels >= 1, "a UNet needs at least one level of channels")
        for name in ("depth", "heads"):
            check(len(getattr(self, name)) == levels, f"{name} {getattr(self, name)} must have {levels} entries")
        for c, m in zip(self.channels, self.heads, strict=True):
            check(c % self.groups == 0, f"channels {c} are not a multiple of groups {self.groups}")
            check(c % m == 0, f"channels {c} are not a multiple of heads {m}")


@dataclass(frozen=True)
class VAEConfig:
    """The autoencoder. Pixels per latent: 2 ** (levels - 1)."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks_per_level: int = 2
    latent_channels: int = 4
    image_channels: int = 3
    groups: int = 32
    scale_factor: float = 0.18215
    force_upcast: bool = False  # fp32 where the rest is fp16, in which SDXL's gives NaN

    def __post_init__(self) -> None:
        check(len(self.channels) >= 1, "a VAE needs at least one level of channels")
        for c in self.channels:
            check(c % self.groups == 0, f"channels {c} are not a multiple of groups {self.groups}")
        check(0 < self.scale_factor < 1e4, f"scale_factor {self.scale_factor} must be in (0, 1e4)")

    @property
    def factor(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class NoiseConfig:
    """The noise table the UNet was trained on, and what its output means."""

    schedule: str = "scaled_linear"  # linear in sqrt(beta); CompVis calls this one "linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    zero_snr: bool = False  # betas rescaled so that the last step holds no signal (arXiv 2305.08891)
    prediction: str = "eps"

    def __post_init__(self) -> None:
        one_of("noise schedule", self.schedule, NOISE_NAMES)
        one_of("prediction", self.prediction, PREDICTION_NAMES)
        ok = 0 < self.beta_start <= self.beta_end < 1
        check(ok, f"betas {self.beta_start}..{self.beta_end} must satisfy 0 < start <= end < 1")
        check(2 <= self.steps <= 100_000, f"noise steps {self.steps} must be in 2..100000")


@dataclass(frozen=True)
class Defaults:
    """What `None` means in a call: the model's own way to be drawn with."""

    width: int = 512
    height: int = 512
    steps: int = 20
    cfg_scale: float = 7.5
    sampler: str = "dpmpp_2m"
    schedule: str | None = "leading"  # None: each sampler takes its own, see `settings.own_schedule`
    sigma_schedule: str | None = None  # stands before it for the samplers that take one (a folder's karras)
    steps_offset: int = 1  # added to the times of `leading` spacing (SD folders: 1)
    final_table_sigma: bool | None = True  # ddim, plms end on the table's first (not set_alpha_to_one); None: plms
    guidance_rescale: float = 0.0
    zero_negative: bool = False  # no negative prompt: zeros in place of the encoded "" (SDXL folders)

    def __post_init__(self) -> None:
        one_of("sampler", self.sampler, SAMPLER_NAMES)
        for schedule in (self.schedule, self.sigma_schedule):
            if schedule is not None:
                one_of("schedule", schedule, SCHEDULE_NAMES)
        check(self.steps >= 1, f"steps {self.steps} must be at least 1")


@dataclass(frozen=True)
class Config:
    """A whole model. `text` holds one tower, or two whose contexts are joined on the width (SDXL)."""

    name: str
    text: tuple[TextConfig, ...] = field(default_factory=lambda: (TextConfig(),))
    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    noise: NoiseConfig = NoiseConfig()
    defaults: Defaults = Defaults()

    def __post_init__(self) -> None:
        widths = sum(t.width for t in self.text)
        dim = self.unet.context_dim
        check(widths == dim, f"text width {widths} does not fit the UNet's context_dim {dim}")
        out, latent = self.unet.out_channels, self.vae.latent_channels
        check(out == latent, f"UNet out_channels {out} differ from the VAE's latent_channels {latent}")
        more, told = self.unet.in_channels, 2 * latent + 1  # a UNet made for inpainting is told mask and picture too
        check(more in (out, told), f"a UNet of {more} input channels is not known: {out}, or {told} for inpainting")
        check(len({t.max_length for t in self.text}) == 1, "the text towers differ in max_length")

    @property
    def default_clip_skip(self) -> int:
        """N + 1 - stored for one tower (SD 1.x 1, SD 2.x 2), 2 for a pair (SDXL)."""
        if len(self.text) > 1:
            return 2
        return self.text[0].depth + 1 - self.text[0].layers

    def check_clip_skip(self, clip_skip: int | None) -> int:
        """The number of the clip-skip contract, the default filled in.

        Raises:
            ValueError: a block that is not stored (or not there at all) is asked for.
        """
        if clip_skip is None:
            return self.default_clip_skip
        low = max(t.depth + 1 - t.layers for t in self.text)
        high = min(t.depth for t in self.text)
        whole = isinstance(clip_skip, int) and not isinstance(clip_skip, bool)
        ok = whole and low <= clip_skip <= high
        check(ok, f"clip_skip {clip_skip!r} is out of range: {self.name} takes {low} (its last block) to {high}")
        return clip_skip

    def to_dict(self) -> dict:
        """Plain dicts, lists and numbers, ready for JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def to_json(self) -> str:
        """Indented JSON that `from_json` reads back to an equal Config."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_dict(data: dict) -> "Config":
        """Build from plain data; unknown fields, wrong types and absurd sizes are refused by ValueError."""
        return build(Config, data, "config")

    @staticmethod
    def from_json(text: str) -> "Config":
        """Build from JSON text.

        Raises:
            ValueError: not JSON, an unknown field, a wrong type, or a number out of range.
        """
        check(len(text) <= 1_000_000, "a config of more than 1 MB is refused")
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"the config is not valid JSON: {error}") from error
        return Config.from_dict(data)

    @staticmethod
    def load(path: str | Path) -> "Config":
        """Read a config file."""
        check(Path(path).stat().st_size <= 1_000_000, f"{path} has more than 1000000 bytes")
        return Config.from_json(Path(path).read_text(encoding="utf-8"))


def build(kind: type, data: object, where: str) -> typing.Any:
    """Make the dataclass `kind` from a dict, checking names, types and ranges on the way."""
    check(isinstance(data, dict), f"{where} must be an object, not {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(data) - set(hints))
    check(not unknown, f"{where} has unknown fields {unknown}: known are {sorted(hints)}")
    values = {name: read(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    missing = [f.name for f in dataclasses.fields(kind) if f.name not in values and required(f)]
    check(not missing, f"{where} lacks the fields {missing}")
    return kind(**values)


def required(f: dataclasses.Field) -> bool:
    """True where the dataclass field has no default."""
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def read(hint: typing.Any, value: object, where: str) -> typing.Any:
    """One JSON value as the type that `hint` names."""
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if typing.get_origin(hint) is tuple:
        check(isinstance(value, list | tuple), f"{where} must be a list, not {shown(value)}")
        check(1 <= len(value) <= MAX_DEPTH, f"{where} must have 1 to {MAX_DEPTH} entries, not {len(value)}")
        return tuple(read(typing.get_args(hint)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(hint, types.UnionType):
        return None if value is None else read(typing.get_args(hint)[0], value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    ok = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    check(ok, f"{where} must be {hint.__name__}, not {shown(value)}")
    if hint is float:
        check(value == value and abs(value) < 1e9, f"{where} {shown(value)} is not a sensible number")
    if hint is int:
        check(0 <= value <= limit(where), f"{where} {shown(value)} must be in 0..{limit(where)}")
        check(value > 0 or where.rsplit(".")[-1].split("[")[0] in MAY_BE_ZERO, f"{where} must not be 0")
    return value


def limit(where: str) -> int:
    """The largest sensible integer for a field, by its name."""
    name = where.rsplit(".", 1)[-1].split("[")[0]
    return LIMITS.get(name, MAX_WIDTH)


MAY_BE_ZERO = (
    *("depth", "mid_depth", "vector_dim", "projection", "bos_id", "eos_id", "pad_id", "steps_offset"),
    *("seed", "warmup", "lies", "sketch_steps", "emoji"),
)
LIMITS = {
    "vocab_size": 1_000_000,
    "bos_id": 1_000_000,
    "eos_id": 1_000_000,
    "pad_id": 1_000_000,
    "hidden": 65_536,
    "layers": MAX_DEPTH,
    "depth": MAX_DEPTH,
    "mid_depth": MAX_DEPTH,
    "blocks_per_level": MAX_DEPTH,
    "steps": 100_000,
    "width": 16_384,
    "height": 16_384,
    "latents": 100_000_000,
    "captions": 1_000_000,
    "merges": 1_000_000,
    "batch": 100_000,
    "warmup": 1_000_000,
    "save_every": 1_000_000,
    "grid_every": 1_000_000,
    "seed": 2**63 - 1,
}
