"""A run that starts from a model, and where a run's networks are found.

In: what `minisd.load` reads: a folder of minisd's or diffusers', a single file, a model on the hub. Out: a run folder
with the model in minisd's own layout in it (init/), its config and its tokenizer. A stage goes on from there; what it
does not train stays as it is there.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import Config, check
from ..files import atomic
from ..weights.convert import convert
from ..weights.find import WEIGHTS, locate
from ..weights.find import read_config as own_config
from ..weights.load import read_config
from .checkpoint import opened, trained

START = "init"
FINISHED = "stages.json"


def start_from(model: str, run: Path, **source: Any) -> None:
    """Put a model into a new run folder.

    Args:
        source: tokenizer, prediction, variant, vae, ema, revision and offline, as in `minisd.load`.

    Raises:
        FileExistsError: the run folder holds a run already.
        ValueError: there is no such model, or one that cannot be trained on whole.
    """
    taken = f"{run} holds a run already: resume it without --init, or choose another --out"
    if (run / "config.json").exists():
        raise FileExistsError(taken)
    told = {key: source[key] for key in ("revision", "variant", "offline") if key in source}
    kind, path = locate(model, **told, weights=False)
    config = own_config(path) if kind == "minisd" else read_config(kind, path, source.get("prediction"))
    one = len(config.text) == 1 and not config.unet.vector_dim
    check(one, f"{model} has two text encoders, or is told sizes (SDXL): train a LoRA of it, minisd train lora")
    check_drawing(config, model)
    run.mkdir(parents=True, exist_ok=True)
    convert(model, run / START, to="minisd", overwrite=True, **source)
    shutil.copytree(run / START / "tokenizer", run / "tokenizer", dirs_exist_ok=True)
    with atomic(run / FINISHED) as written:  # a model holds no image tower; its words and latents are what they are
        written.write_text(json.dumps(dict.fromkeys(("tokenizer", "clip", "vae"))) + "\n", encoding="utf-8")
    with atomic(run / "config.json") as written:  # last: a run folder with a config is whole
        shutil.copyfile(run / START / "config.json", written)


def check_drawing(config: Config, model: str | Path) -> None:
    """Refuse a UNet that wants a mask and a picture beside the noise."""
    fits = config.unet.in_channels == config.unet.out_channels
    check(fits, f"{model} is made for inpainting, which cannot be trained here: choose the model it was made from")


def started_from(run: Path) -> str:
    """The name of the model a run started from; "" where it started from nothing."""
    index = run / START / "index.json"
    return json.loads(index.read_text(encoding="utf-8"))["made"]["converted_from"] if index.exists() else ""


def network(run: Path, name: str, before_unet: bool = False) -> dict[str, Tensor]:
    """A network's weights as far as the run has come, fp32: "vae", "unet" or "text".

    Args:
        before_unet: the text tower as the UNet's stage finds it, not as that stage has tuned it on.

    Raises:
        FileNotFoundError: it is not trained yet, and the run did not start from a model.
    """
    places = {
        "vae": ((run / "vae.safetensors", ""),),
        "unet": ((run / "unet.safetensors", "unet."),),
        "text": ((run / "clip.safetensors", "text."), (run / "unet.safetensors", "text."))[: 1 if before_unet else 2],
    }
    found = initial(run, f"{name}.0." if name == "text" else f"{name}.")
    for path, prefix in places[name]:  # a frozen text tower is not in the UNet's checkpoint
        if path.exists():
            found |= dict(trained(path, prefix))
    if not found:
        raise FileNotFoundError(f"{places[name][0][0]} is not there: the stage has not been trained yet")
    return found


def initial(run: Path, prefix: str) -> dict[str, Tensor]:
    """Of the model a run started from: the tensors whose names begin with `prefix`, without it; {} where none is."""
    if not (run / START / WEIGHTS).exists():
        return {}
    with opened(run / START / WEIGHTS) as file:
        return {k.removeprefix(prefix): file.get_tensor(k).float() for k in file.keys() if k.startswith(prefix)}
