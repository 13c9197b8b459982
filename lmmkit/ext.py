"""All that a plugin may import. Light: no timm, no command line; one `api` number."""

from pluggy import HookimplMarker

from lmmkit.batch import Batch
from lmmkit.dims import Dims, ImageSpec
from lmmkit.needs import AttnMass, HiddenAt, HiddenMean, Sel
from lmmkit.parts import AuxTask, Ctx, LearnedTokens, Loss, Reading, TokenStrategy
from lmmkit.sample import Image, Sample, Turn, View
from lmmkit.spans import Insert

hookimpl = HookimplMarker("lmmkit")

__all__ = [
    "AttnMass", "AuxTask", "Batch", "Ctx", "Dims", "HiddenAt", "HiddenMean", "Image", "ImageSpec",
    "Insert", "LearnedTokens", "Loss", "Reading", "Sample", "Sel", "TokenStrategy", "Turn", "View",
    "hookimpl",
]  # fmt: skip
