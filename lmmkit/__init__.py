"""lmmkit: train LLaVA-class multimodal models from recipes and plugins.

    import lmmkit
    finished = lmmkit.train(lmmkit.read_recipe("recipe.yaml"), out="runs/mine")
    model = lmmkit.load("runs/mine")

Names are imported on first use, so that `import lmmkit` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmmkit.inference.load import load
    from lmmkit.recipe import Recipe, read_recipe
    from lmmkit.training.run import train

_HOMES = {
    "Recipe": "lmmkit.recipe",
    "read_recipe": "lmmkit.recipe",
    "load": "lmmkit.inference.load",
    "train": "lmmkit.training.run",
}

__all__ = ["Recipe", "load", "read_recipe", "train"]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str):
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'lmmkit' has no attribute {name!r}")
