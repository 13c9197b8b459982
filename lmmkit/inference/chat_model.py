"""Text generation from samples with a trained objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image as Pil
from torch import Tensor

from lmmkit.api.layout import Layout, row_count
from lmmkit.api.sample import Image, Sample, Turn, View
from lmmkit.data.chat_templates import stop_ids
from lmmkit.data.image_files.image_file import save_pixels
from lmmkit.data.image_markers import read_prompt
from lmmkit.data.images import ImageReader
from lmmkit.data.micro_batch.laid_out import LaidOut, SizedSample
from lmmkit.data.micro_batch.packed_images import read_images
from lmmkit.data.packing import Packer
from lmmkit.data.pipeline import cut
from lmmkit.data.views import Views
from lmmkit.errors import UserError
from lmmkit.errors.commands import LEARNED_TOKENS, TOO_LONG
from lmmkit.errors.plan import TILES
from lmmkit.inference.generate import Chooser, Feed, generate, greedy
from lmmkit.inference.text_stream import TextStream
from lmmkit.inference.token_model import TokenModel
from lmmkit.memory_faults import naming_memory
from lmmkit.objective import Objective
from lmmkit.plan.prepare import Prepared
from lmmkit.progress import working
from lmmkit.weights.end_ids import image_id, pad_id

PROMPT_ROWS = 8192  # in one generation batch
ImageInput = str | PathLike[str] | Pil.Image  # the path of a file, or an image in memory


@dataclass(frozen=True, kw_only=True)
class ChatModel:
    """Holds a model that answers. `stage` is the stage that its weights come from. `poll` is called before
    each token and each micro-batch of an evaluation, and may raise to stop the work."""

    prepared: Prepared
    objective: Objective
    views: Views
    reader: ImageReader
    packer: Packer
    stage: str
    device: torch.device
    tokens: TokenModel
    poll: Callable[[], None] = lambda: None

    @classmethod
    def of(
        cls, prepared: Prepared, objective: Objective, stage: str, device: torch.device, *,
        image_token: int | None = None, poll: Callable[[], None] = lambda: None,
    ) -> ChatModel:  # fmt: skip
        """Returns the chat model for an objective with the weights of a stage.

        `image_token`: the id from the folder of the weights, if it differs from the tokenizer's.
        """
        plan = prepared.plans[stage]
        objective.terms, objective.weighers = plan.terms, plan.weighers
        objective.eval()
        return cls(
            prepared=prepared, objective=objective, views=prepared.views(stage),
            reader=prepared.reader(stage), packer=prepared.packer(stage), stage=stage, device=device,
            tokens=_tokens(prepared, objective, image_token), poll=poll,
        )  # fmt: skip

    def logits(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Returns the next-token logits of each position, like the models in transformers.

        Args:
            input_ids: [B, T] int64, one `tokens.image_token` for each row of an image.
            pixel_values: [I, 3, X, Y], preprocessed, in the order of their placeholders.
            attention_mask: [B, T], 0 where padded, on either side.

        Returns:
            [B, T, V] float32; zeros where padded.

        Raises:
            ValueError: shapes, ids or numbers of images that do not fit together.
            UserError: a sequence longer than the context; or the model needs learned tokens to answer,
                which ids cannot express.
        """
        self._require_plain()
        self._require_fit("logits", input_ids, attention_mask, 0)
        return self.tokens.logits(input_ids, pixel_values, attention_mask)

    def generate(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, *, max_new_tokens: int,
        attention_mask: Tensor | None = None, eos_token_id: int | Sequence[int] | None = None,
    ) -> Tensor:  # fmt: skip
        """Returns the greedy tokens after each prompt, [B, N] int64.

        N is `max_new_tokens`, or fewer if all sequences have ended. Ended sequences are padded.
        `eos_token_id` defaults to the model's. The other arguments and the errors are those of `logits`; prompt
        and new tokens together must fit into the context.
        """
        self._require_plain()
        self._require_fit("generate", input_ids, attention_mask, max_new_tokens)
        return self.tokens.generate(
            input_ids, pixel_values, max_new_tokens=max_new_tokens, attention_mask=attention_mask,
            eos_token_id=eos_token_id,
        )  # fmt: skip

    @torch.no_grad()
    def prompt_logits(self, views: Sequence[View]) -> list[Tensor]:
        """Returns the next-token logits at each row of the prompts of these views, [T, V] each. Images may have any
        shape, and the model may need learned tokens.

        Raises `UserError` for a prompt that is longer than the context, and for an image that cannot be read.
        """
        samples = [self.packer.sized([LaidOut(view, self.fitting(view, 0))]) for view in views]
        batch, paths = self.packer.without_terms().pack(samples, read_images(samples, self.reader))
        batch, lmm = replace(batch, last=batch.attention).to(self.device), self.objective.lmm
        out = lmm(batch, self.objective.tokens(batch))
        rows = [torch.from_numpy(np.ascontiguousarray(path)).to(self.device) for path in paths]
        return [lmm.logits(out.at(row_T)) for row_T in rows]

    def _require_plain(self) -> None:
        fit = self.prepared.recipe.model.chat.image_fit
        if not isinstance(fit, str):
            raise UserError(TILES.at("logits", got="pixels without the sizes of their images"))
        inference_plugins = [strategy.name for strategy, views in self.views.edits if views is None]
        if inference_plugins:
            got = f"learned tokens from {', '.join(inference_plugins)} in every sequence"
            raise UserError(LEARNED_TOKENS.at("logits", got=got))

    def _require_fit(
        self, call: str, input_ids: Tensor, attention_mask: Tensor | None, max_new_tokens: int
    ) -> None:
        """Raises `UserError` unless the longest sequence fits into the context with the new tokens."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        lengths = (mask != 0).sum(-1).flatten().tolist()
        _require_room(call, max(lengths, default=0), self.views.context, max_new_tokens)

    def answer(
        self, groups: Sequence[Sequence[View]], *, max_new_tokens: int, choose: Chooser = greedy,
        on_text: Callable[[str], None] | None = None,
    ) -> list[str]:  # fmt: skip
        """Returns the texts generated after the prompts of these views, in order.

        Views of one group share their common prefix (many questions on one image). All views must have
        one template; its `stop_ids` end a text. `on_text`, for a single view only, is called
        with each new part of the text; joined, the parts are the text.

        Raises `UserError` for a prompt that is too long, `MachineError` if there is not enough memory.
        """
        if not groups:
            return []
        templates = {view.sample.template for group in groups for view in group}
        assert len(templates) == 1, f"views of several templates: {templates}"
        ends = stop_ids(templates.pop(), self.views.tokenizer, self.prepared.end_ids.eos)
        samples = [
            self.packer.sized([LaidOut(v, self.fitting(v, max_new_tokens)) for v in group])
            for group in groups
        ]
        texts: list[str] = []
        with naming_memory("the answer"), working("answering", _views(samples), unit="answers") as move:
            for part in cut(samples, PROMPT_ROWS):
                done = [len(texts) + _views(part) * i / max_new_tokens for i in range(max_new_tokens)]
                before = self._before_each(choose, iter(done), move)
                texts += self._generate_texts(part, max_new_tokens, ends, before, on_text)
        return texts

    def _before_each(self, choose: Chooser, done: Iterator[float], move: Callable[[float], None]) -> Chooser:
        """Returns the chooser, which polls and reports the next of `done` before each token."""

        def chosen(logits_QV: Tensor) -> Tensor:
            self.poll()
            move(next(done))
            return choose(logits_QV)

        return chosen

    def _generate_texts(
        self, samples: Sequence[SizedSample], max_new_tokens: int, ends: tuple[int, ...], choose: Chooser,
        on_text: Callable[[str], None] | None,
    ) -> list[str]:  # fmt: skip
        batch, paths = self.packer.without_terms().pack(samples, read_images(samples, self.reader))
        batch = batch.to(self.device)
        tokens, tokenizer = self.objective.tokens(batch), self.views.tokenizer
        stream = TextStream(tokenizer, on_text or (lambda part: None))

        def on_token(id_Q: Tensor) -> None:
            if on_text is not None and int(id_Q[0]) not in ends:
                stream.add(int(id_Q[0]))

        ids = generate(
            self.objective.lmm, batch, [int(path[-1]) for path in paths], tokens=tokens, max_new_tokens=max_new_tokens,
            eos=ends, choose=choose, on_token=on_token, feeds=self.feeds(samples),
        )  # fmt: skip
        stream.close()
        return [tokenizer.decode(answer).strip() for answer in ids]

    def feeds(self, samples: Sequence[SizedSample]) -> Sequence[Feed]:
        """Returns for each view the learned rows that follow the tokens which the model writes; empty if none do."""
        feeds = [self._feed(member.view) for sample in samples for member in sample.members]
        return feeds if any(feeds) else ()

    def _feed(self, view: View) -> Feed:
        """Returns the learned rows that follow the tokens which the model writes after a view's prompt."""
        rows: dict[int, Tensor] = {}
        for owner, edit in self.views.inserts(view):
            if edit.at == "after_token":
                token, x_ND = self.views.token_id(edit.token or ""), self.objective.learned_tokens(owner)
                rows[token] = torch.cat([rows[token], x_ND]) if token in rows else x_ND
        return rows

    def reply(
        self, turns: str | Sequence[Turn], image: ImageInput | Sequence[ImageInput] | None = None, *,
        max_new_tokens: int = 128, choose: Chooser = greedy, on_text: Callable[[str], None] | None = None,
    ) -> str:  # fmt: skip
        """Returns the answer to a question, in the model's chat template.

        `turns`: the question as a text, or a conversation that ends with a user turn. `image`: one image, or
        several in the order in which the turns count them; each is the path of a file or a Pillow image. A
        question given as a text is about all of them. `<image>` markers in a question are read as in a record:
        the images take their places.

        Raises `UserError` for another number of images than the turns have, or a prompt that is too long;
        `MachineError` if there is not enough memory.
        """
        given = [image] if isinstance(image, str | PathLike | Pil.Image) else image or []
        if isinstance(turns, str):
            turns = [Turn("user", turns, images=len(given))]
        in_memory = any(isinstance(each, Pil.Image) for each in given)
        with TemporaryDirectory(prefix="lmmkit-") if in_memory else nullcontext("") as folder:
            images = [_image_file(each, Path(folder) / f"{i}.bmp") for i, each in enumerate(given)]
            view = View(sample=self.sample(turns, images))
            return self.answer(
                [[view]], max_new_tokens=max_new_tokens, choose=choose, on_text=on_text
            )[0]  # fmt: skip

    def sample(self, turns: Sequence[Turn], images: Sequence[Image]) -> Sample:
        """Returns a conversation in the model's chat template. Markers in its questions are read as in a record.

        Raises `UserError` for markers that do not match the images."""
        chat = self.prepared.recipe.model.chat
        return Sample(
            key="chat", turns=read_prompt(turns, len(images)), images=tuple(images), template=chat.template,
            image_fit=chat.image_fit, system=chat.system or "",
        )  # fmt: skip

    def fitting(self, view: View, max_new_tokens: int) -> Layout:
        """Returns the layout of a prompt. Raises `UserError` if it leaves too little of the context for the answer."""
        layout = self.views.prompt(view)
        _require_room(f"sample {view.sample.key}", row_count(layout), self.views.context, max_new_tokens)
        return layout


def _require_room(where: str, rows: int, context: int, max_new_tokens: int) -> None:
    """Raises `UserError` unless a prompt of that many rows fits into the context with the new tokens."""
    if rows + max_new_tokens > context:
        got = f"a prompt of {rows} rows"
        raise UserError(TOO_LONG.at(where, got=got, context=context, max_new_tokens=max_new_tokens))


def _views(samples: Sequence[SizedSample]) -> int:
    return sum(len(sample.members) for sample in samples)


def _image_file(image: ImageInput, path: Path) -> Image:
    """Returns the image as a file: a Pillow image is written to `path`."""
    if isinstance(image, Pil.Image):
        save_pixels(image, path)
        return Image(str(path))
    return Image(str(Path(image).resolve()))


def _tokens(prepared: Prepared, objective: Objective, image_token: int | None) -> TokenModel:
    """Returns the token model. `image_token`: the id that the model's folder names for a row of an image."""
    tokenizer, eos, pad = prepared.tokenizer, prepared.end_ids.eos, prepared.end_ids.pad
    if tokenizer.size:
        eos = stop_ids(prepared.recipe.model.chat.template, tokenizer, eos)
        image_token = image_id(tokenizer, image_token, prepared.end_ids)
        pad = pad_id(tokenizer, pad, image_token) if prepared.image_rows else pad
    return TokenModel(
        lmm=objective.lmm, image_token=image_token if prepared.image_rows else None,
        image_rows=prepared.image_rows, eos=eos, pad=pad if pad is not None else next(iter(eos), 0),
    )  # fmt: skip
