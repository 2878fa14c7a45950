"""minisd: a text-to-image system one can read in an afternoon.

    model = minisd.load()
    images = minisd.generate(model, "a red circle")

The dimension key used everywhere: b batch, c channels, h w latent height and width, n = h*w tokens, l text tokens,
e text width, m heads, d head width.
"""

from importlib import import_module
from typing import Any

from .config import VERSION as __version__
from .config import Config

# Where each public name lives: read on first use, so that `import minisd` does not load torch.
_HOMES = {"load": ".weights.load", "generate": ".pipeline", "sample": ".pipeline", "Model": ".model"}

__all__ = ["Config", "Model", "__version__", "generate", "load", "sample"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
