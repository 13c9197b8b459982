"""What a recipe computes on this machine: the device, the dtype, the attention backend, and a compiler that works."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from lmmkit.api.sample import Native
from lmmkit.attention.backends import NoBackend, choice_text, choose
from lmmkit.attention.interface import Heads
from lmmkit.attention.trial import Backend, Conditions
from lmmkit.errors import MachineError
from lmmkit.errors.plan import ATTENTION, COMPILE
from lmmkit.model.transforms.compiled import why_not
from lmmkit.plan import shapes
from lmmkit.progress import working
from lmmkit.recipe import Recipe, TextScratch, VisionScratch, VisionTimm


def compute_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """Returns bfloat16 on CUDA if the recipe asks for it, else float32."""
    bf16 = recipe.numerics.compute == "bfloat16" and device.type == "cuda"
    return torch.bfloat16 if bf16 else torch.float32


def device_here() -> torch.device:
    """Returns the device of a run on this machine: CUDA if available, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def conditions(recipe: Recipe, device: torch.device) -> Conditions:
    """Returns where the recipe's attention is to run. Heads that a folder will tell have a usual size."""
    at = Conditions(device, compute_dtype(recipe, device), deterministic=recipe.speed.deterministic)
    text, vision = recipe.model.text, recipe.model.vision
    if isinstance(text, TextScratch):
        at = at._replace(decoder=Heads(text.heads, text.kv_heads, text.head_size))
    fits = (recipe.model.chat.image_fit, *(source.image_fit for source in recipe.data.values()))
    at = at._replace(packed_images=any(isinstance(fit, Native) for fit in fits))
    if isinstance(vision, VisionScratch):
        at = at._replace(encoder=Heads(vision.heads, vision.heads, vision.width // vision.heads))
    elif isinstance(vision, VisionTimm) and at.packed_images:  # all else it computes by itself
        at = at._replace(encoder=shapes.packed_heads(vision))
    return at


_asked: set[tuple[str, Conditions]] = set()


def backend(recipe: Recipe, device: torch.device) -> Backend:
    """Returns the attention backend of the recipe. Raises `MachineError` if it cannot run on `device`."""
    asked = recipe.speed.attention, conditions(recipe, device)
    try:
        with working("trying attention backends") if asked not in _asked else nullcontext():
            _asked.add(asked)  # backends remember what was tried
            return choose(*asked)
    except NoBackend as error:
        raise MachineError(ATTENTION.at(recipe.where("speed.attention"), got=str(error))) from error


def attention_text(recipe: Recipe, device: torch.device) -> str:
    """Returns the attention backend of the recipe, and why each better one was not chosen."""
    return choice_text(backend(recipe, device), conditions(recipe, device))


def check_compiler(recipe: Recipe, device: torch.device) -> None:
    """Raises `MachineError` if the recipe asks for compiled layers and this machine cannot compile."""
    if not recipe.speed.compile:
        return
    with working("compiling a test kernel"):
        reason = why_not(device)
    if reason:
        got = f"`true`, and `torch.compile` fails: {reason}"
        raise MachineError(COMPILE.at(recipe.where("speed.compile"), got=got))
