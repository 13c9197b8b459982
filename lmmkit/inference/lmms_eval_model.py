"""A model of lmmkit for lmms-eval, which imports this file: `lmms-eval --model lmmkit --model_args pretrained=FOLDER`.

lmms-eval is not a dependency of lmmkit. `lmms_eval_manifest.py` names this class to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lmms_eval.api.model import lmms  # type: ignore[import-not-found]
from PIL import Image as Pil

from lmmkit.api.sample import Image, Sample, Turn, View
from lmmkit.data.image_files.image_file import save_pixels
from lmmkit.inference.load import load

MAX_NEW_TOKENS = 128


class LmmkitModel(lmms):
    """Answers requests greedily, in batches; images come before the text, as LLaVA-1.5 puts them.

    `until` is ignored: lmms-eval sets it to an empty line if a task does not, which would cut answers that LLaVA
    does not cut.
    """

    is_simple = True

    def __init__(
        self, pretrained: str, dtype: str = "float32", device: str | None = None, template: str | None = None,
        batch_size: int | str = 1, max_batch_size: int | None = None,
    ) -> None:  # fmt: skip
        """Loads a model folder or a run. The batch sizes are not used: batches are formed by their rows."""
        super().__init__()
        self.chat_model = load(pretrained, dtype=getattr(torch, dtype), device=device, template=template)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns the answers in the order of the requests. Raises `ValueError` for one that asks for sampling."""
        chat = self.chat_model.prepared.recipe.model.chat
        with TemporaryDirectory(prefix="lmmkit-") as folder:
            groups: dict[tuple, list[int]] = {}
            views = []
            for number, request in enumerate(requests):
                context, options, images_of, doc_id, task, split = request.args
                if options.get("do_sample") or (options.get("temperature") or 0) > 0:
                    raise ValueError(f"request {number}: expected greedy decoding, got {options}")
                images = images_of(self.task_dict[task][split][doc_id]) or []
                files = tuple(_file(image, Path(folder)) for image in images)
                text = context.replace("<image>", "").strip()
                sample = Sample(
                    key=f"{task}/{doc_id}", turns=(Turn("user", text, images=len(files)),), images=files,
                    template=chat.template, image_fit=chat.image_fit, system=chat.system or "",
                )  # fmt: skip
                views.append(View(sample=sample))
                most = int(options.get("max_new_tokens") or MAX_NEW_TOKENS)
                groups.setdefault((most, files), []).append(number)
            answers = [""] * len(views)
            for most in sorted({most for most, _ in groups}):
                members = [numbers for (n, _), numbers in groups.items() if n == most]
                texts = self.chat_model.answer(
                    [[views[i] for i in numbers] for numbers in members], max_new_tokens=most
                )
                for i, text in zip((i for numbers in members for i in numbers), texts, strict=True):
                    answers[i] = text
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuses: the likelihood of a text is not computed here."""
        raise NotImplementedError("lmmkit answers with `generate_until` only")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuses: a request has one question."""
        raise NotImplementedError("lmmkit answers with `generate_until` only")


def _file(image: Pil.Image, folder: Path) -> Image:
    """Returns an image in memory as a file; equal images are one file."""
    name = hashlib.sha256(repr((image.size, image.mode)).encode() + image.tobytes()).hexdigest()[:32]
    path = folder / f"{name}.bmp"
    if not path.exists():
        save_pixels(image, path)
    return Image(str(path))
