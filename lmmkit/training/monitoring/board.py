"""The figures, images and texts of a run for TensorBoard."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

BoardImage = Tensor | np.ndarray  # [C, X, Y], values 0 to 1


class Board:
    """Writes scalars, images and texts for TensorBoard.

    With `purge_step` (on resume: the restored step + 1), TensorBoard hides what an earlier process logged
    from that step on. `terms`: each gets charts in the tab "Custom Scalars" in which its curve, and each of its
    metrics, is next to its chance level. Importing tensorboard is slow, so it is imported when a board is created.
    """

    def __init__(self, tb_dir: Path, purge_step: int | None, terms: Iterable[str] = ()):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(tb_dir), purge_step=purge_step, flush_secs=30)
        charts = {term: re.escape(term) for term in terms}  # a tag of a chart is a regular expression
        if charts:
            self._writer.add_custom_scalars({
                "terms and chance": {t: ["Multiline", [f"^(terms|chance)/{e}$"]] for t, e in charts.items()},
                "metrics and chance": {t: ["Multiline", [f"^(terms|chance)/{e}/"]] for t, e in charts.items()},
            })  # fmt: skip

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Writes one point for each value; omits None (a term without items), NaN and infinities."""
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def images(self, step: int, images: Mapping[str, BoardImage]) -> None:
        """Writes one image for each name: [C, X, Y], values clipped to 0..1."""
        for name, image in images.items():
            if isinstance(image, Tensor):
                image = image.detach().float().cpu().numpy()
            clipped = np.clip(np.asarray(image, dtype=np.float32), 0.0, 1.0)
            self._writer.add_image(name, clipped, step)

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes one text for each name, character by character as it is: TensorBoard would read Markdown in it."""
        for name, text in texts.items():
            self._writer.add_text(name, textwrap.indent(text, "    "), step)

    def close(self) -> None:
        """Writes buffered points and closes the writer."""
        self._writer.close()

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
