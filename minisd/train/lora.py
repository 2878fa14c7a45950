"""The LoRA stage: a frozen model, and beside some of its linear layers a change of low rank, which alone is trained.

In: a model, pictures and captions. Out: a .safetensors file in kohya's naming, which minisd, diffusers and others read.
Hu et al. 2021, https://arxiv.org/abs/2106.09685; https://github.com/kohya-ss/sd-scripts
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config, check
from ..nn.conditioning import Conditioning
from ..pipeline import Model
from ..text.encode import size_vector
from ..weights.ldm import family_of
from ..weights.load import load
from ..weights.lora_names import kohya_names
from ..weights.to_diffusers import projection
from ..weights.write import write_tensors
from .checkpoint import trained
from .data import Examples
from .recipe import LoraRecipe
from .start import check_drawing
from .unet import UnetStage


class LowRank(nn.Module):
    """A linear layer W that stays as it is, and its change: y = W x + alpha / rank * up (down x).

    down (r, i) starts random and up (o, r) at zero, so that at first nothing is changed.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        bound = base.in_features**-0.5
        self.down = nn.Parameter(torch.empty(rank, base.in_features).uniform_(-bound, bound))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        change = F.linear(F.linear(x.to(self.down.dtype), self.down), self.up)
        return y + (self.scale * change).to(y.dtype)


class LoraStage(UnetStage):
    """The UNet's training with all of the model frozen but the factors."""

    name = "lora"

    def __init__(self, recipe: LoraRecipe, model: Model, latents: Tensor, examples: Examples) -> None:
        super().__init__(recipe, model.config, None, model.text, model.vae, latents, examples, model.unet)
        self.tokenizers = model.tokenizers
        self.module.requires_grad_(False)
        parts = ("unet", "text") if recipe.text_lr > 0 else ("unet",)
        for part in parts:
            found = [name for name, layer in self.module[part].named_modules() if wanted(name, layer, recipe.layers)]
            for name in found:
                layer = self.module[part].get_submodule(name)
                changed = LowRank(layer, recipe.rank, recipe.strength)
                self.module[part].set_submodule(name, changed.to(layer.weight.device))
            check(bool(found), f"lora.layers {list(recipe.layers)}: no linear layer of the {part} has such a name")

    def groups(self) -> list[dict]:
        found = [{"params": factors(self.module["unet"]), "scale": 1.0}]
        if self.recipe.text_lr > 0:
            found.append({"params": factors(self.module["text"]), "scale": self.recipe.text_lr})
        return found

    def ids(self, texts: list[str]) -> Tensor:
        """(b, towers, l)."""
        return torch.stack([tokenizer(texts) for tokenizer in self.tokenizers], dim=1)

    def told(self, ids: Tensor, skip: int | None = None) -> Conditioning:
        """As it is told in drawing; brackets are text, and captions that are too long lose their ends."""
        config, size, contexts, pooled = self.config, self.examples.size, [], None
        for i, tower in enumerate(self.module["text"]):
            context, pooled = tower(ids[:, i], config.default_clip_skip if skip is None else skip)
            contexts.append(context)
        vector = size_vector(pooled, config.unet.vector_dim, (size, size)) if config.unet.vector_dim else None
        return Conditioning(torch.cat(contexts, dim=-1), vector)


def wanted(name: str, layer: nn.Module, ends: tuple[str, ...]) -> bool:
    """Whether a layer is to be changed: "to_q" means every linear layer whose name is or ends with .to_q."""
    return isinstance(layer, nn.Linear) and any(f".{name}".endswith(f".{end}") for end in ends)


def factors(module: nn.Module) -> list[nn.Parameter]:
    """All that is trained of a network."""
    return [p for p in module.parameters() if p.requires_grad]


def base_of(source: dict[str, Any], recipe: LoraRecipe, device: torch.device) -> Model:
    """The model to train for, loaded to stay as it is; its VAE, which is asked once for each picture, in fp32.

    Raises:
        ValueError: there is no such model, or its UNet is for inpainting.
    """
    model = load(**source, device=str(device), dtype=recipe.base)
    model.vae.float()
    if model.runtime.dtype == torch.float16:  # gradients fall below its range
        model.unet.float()
        model.text.float()
        model.runtime = replace(model.runtime, dtype=torch.float32)
    check_drawing(model.config, model.config.name)
    return model


def remember(run: Path, config: Config, recipe: LoraRecipe) -> str:
    """What the factors are for, as the JSON text of lora.json; a run goes on with the same only.

    Raises:
        ValueError: the run folder holds trained factors for another model, or of another rank or scale.
    """
    now = {"model": config.name, "rank": recipe.rank, "alpha": recipe.strength, "layers": list(recipe.layers)}
    now["text"] = recipe.text_lr > 0
    if (run / "lora.safetensors").exists():
        before = json.loads((run / NOTES).read_text(encoding="utf-8"))
        other = [f"{key} {before.get(key)}, not {value}" for key, value in now.items() if before.get(key) != value]
        check(not other, f"{run} is a LoRA of {'; '.join(other)}: resume it as it began, or choose another --out")
    return json.dumps(now, indent=2) + "\n"


def write_lora(run: Path, dtype: torch.dtype = torch.float16) -> Path:
    """The EMA factors of a run as model/NAME.safetensors, NAME being the run folder's own; returns the path."""
    notes = json.loads((run / NOTES).read_text(encoding="utf-8"))
    config = Config.load(run / "config.json")
    tensors = dict(named_factors(run, config))
    stems = {name.split(".")[0] for name in tensors}
    tensors |= {f"{stem}.alpha": torch.tensor(notes["alpha"]) for stem in stems}
    path = run / "model" / f"{run.resolve().name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    told = {"ss_network_module": "networks.lora", "ss_network_dim": notes["rank"], "ss_network_alpha": notes["alpha"]}
    told |= {"ss_output_name": path.stem, "ss_sd_model_name": notes["model"], **VERSIONS[family_of(config)]}
    write_tensors(path, tensors, {key: str(value) for key, value in told.items()}, dtype)
    print(f"lora: rank {notes['rank']}, {len(stems)} layers, {path.stat().st_size / 1e6:.1f} MB in {path}")
    return path


def named_factors(run: Path, config: Config) -> Iterator[tuple[str, Tensor]]:
    """(kohya's name, factor); a 1x1 convolution's, as SD 1.x has them around its transformers, as one."""
    names, conv = kohya_names(config), family_of(config) == "sd1"
    for name, tensor in trained(run / "lora.safetensors"):
        layer, _, role = name.rpartition(".")
        tensor = tensor[..., None, None] if conv and projection(f"{layer}.weight") else tensor
        yield f"{names[f'{layer}.weight']}.lora_{role}.weight", tensor


NOTES = "lora.json"
VERSIONS = {  # by which other programs tell what a LoRA is for
    "sd1": {"ss_base_model_version": "sd_v1", "ss_v2": False},
    "sd2": {"ss_base_model_version": "sd_v2", "ss_v2": True},
    "sdxl": {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": False},
}
