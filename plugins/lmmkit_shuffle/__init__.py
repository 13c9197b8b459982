"""The two order-reconstruction tasks of Direct-LLaVA (arXiv 2508.14264): image order and text order."""

from lmmkit.api import hookimpl

from .image_order import ImageOrder
from .text_order import TextOrder


@hookimpl
def lmmkit_components():
    return {"image_order": ImageOrder, "text_order": TextOrder}
