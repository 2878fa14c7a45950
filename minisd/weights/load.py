"""The one door for models: minisd's own folders, diffusers folders and original single files, told by content."""

from pathlib import Path

from ..pipeline import Model
from . import folder
from .diffusers import is_diffusers
from .single import load_foreign


def load(
    model: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    *,
    tokenizer: str | Path | None = None,
    prediction: str | None = None,
) -> Model:
    """Load a model.

    Args:
        model: a folder (minisd's own or diffusers'), a .safetensors or .ckpt file; None or "mini": the bundled one.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto", "fp32", "bf16" or "fp16".
        tokenizer: for a single file, which carries none: a tokenizer folder.
        prediction: "eps", "v" or "x0" where a foreign model does not say.

    Raises:
        ValueError: no model there, damaged or of a kind minisd does not have, or a device that is not there.
    """
    path = None if model is None else Path(model)
    if path is not None and (path.is_file() or is_diffusers(path)):
        return load_foreign(path, device, dtype, tokenizer=tokenizer, prediction=prediction)
    return folder.load(model, device, dtype)
