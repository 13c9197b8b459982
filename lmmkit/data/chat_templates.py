"""The layout of a sample: template, token ids, and which of them are supervised.

`plain`: images, text and answer, with a newline after each text. `vicuna_v1`: the conversation of
Vicuna v1.5, with an end token after each answer; ids and supervised positions equal LLaVA-1.5's.
`chatml` (Qwen) and `llama3` (LLaMA-3): turns between control tokens; ids equal those of the public
templates. Here the header of an answer and the answer are encoded separately, as in generation.

LLaVA joins a conversation into one string and tokenizes that string. Here each span is encoded
separately. The ids are equal because no piece extends from a non-space into a following space, and
spans are split only there: spaces at the end of a text are encoded with the text that follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from lmmkit.api.layout import Layout, Span, SpanRole, text
from lmmkit.api.sample import Image, Sample, Turn
from lmmkit.data.images import RowsOf
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SPACE
from lmmkit.errors import UserError, did_you_mean, raise_all
from lmmkit.errors.data import (
    CHAT_AFTER_EOS,
    CHAT_CONTROL,
    CHAT_IMAGES,
    CHAT_NO_VISION,
    PROMPT,
    ROLES,
    TEMPLATE,
)

AfterEos = Literal["published", "hf437"]
TEMPLATES = ("plain", "vicuna_v1", "chatml", "llama3")
AFTER_EOS = ("published", "hf437")

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def lay_out(
    sample: Sample,
    tokenizer: TextTokenizer,
    *,
    rows_of: RowsOf,
    after_eos: AfterEos = "published",
) -> Layout:
    """Returns the spans of a sample. Its answers are supervised, the rest is not.

    `rows_of` gives the number of rows of an image. `after_eos`: how the first word after an end token
    is encoded; `published` as in LLaVA-1.5's weights (transformers 4.31), `hf437` as in 4.37 (no dummy
    prefix). A sample may end with the user's turn.

    Raises `UserError` for an unknown template, for turns that do not alternate between user and
    assistant, or if the turns name another number of images than the sample has.
    """
    _check(sample, after_eos, rows_of)
    writer = _Writer(tokenizer=tokenizer, rows_of=rows_of, after_eos=after_eos)
    images = iter(sample.images)
    if sample.template in FRAMES:
        _framed(writer, sample, images, FRAMES[sample.template])
        return writer.close()
    if tokenizer.bos is not None:
        writer.control(tokenizer.bos, "bos")
    if sample.template == "plain":
        for turn in sample.turns:
            _plain(writer, turn, images)
    else:
        writer.write(VICUNA_SYSTEM, "system")
        for i, turn in enumerate(sample.turns):
            _vicuna(writer, turn, images, first=i == 0)
    return writer.close()


def lay_out_prompt(
    sample: Sample,
    tokenizer: TextTokenizer,
    *,
    rows_of: RowsOf,
    after_eos: AfterEos = "published",
) -> Layout:
    """Returns the spans that generation starts from, for a sample whose last turn is the user's.

    They are the spans that `lay_out` puts before the answer, so the model continues the same ids as
    in training. For `vicuna_v1` the prompt ends in "ASSISTANT:", and the space after it belongs to
    the answer. Arguments and errors are those of `lay_out`. Raises `UserError` also if the last turn
    is the assistant's.
    """
    if sample.turns and sample.turns[-1].role != "user":
        raise UserError(PROMPT.at(f"sample {sample.key}", got="the assistant's turn last"))
    return lay_out(sample, tokenizer, rows_of=rows_of, after_eos=after_eos)


def response_end(template: str, tokenizer: TextTokenizer) -> int:
    """Returns the id that ends a response: a newline for `plain`, a control token for the others."""
    if template in FRAMES:
        return _control(tokenizer, template, FRAMES[template].close)
    return tokenizer.encode_continued("\n")[-1] if template == "plain" else tokenizer.eos


def default_template(tokenizer: TextTokenizer) -> str:
    """Returns the template whose control tokens the tokenizer has, else `vicuna_v1`, which needs none."""
    return next((name for name in FRAMES if not _missing(tokenizer, name)), "vicuna_v1")


@dataclass(frozen=True)
class Frame:
    """Describes a template that puts each turn between control tokens.

    `head`: the control tokens before and after the name of a role. `open`: the text after a head.
    `close`: the control token after the text of a turn. `gap`: the text between turns. `start`: a
    control token at the beginning. `system`: the text of the system turn; empty for none.
    """

    head: tuple[str, str]
    open: str
    close: str
    gap: str = ""
    start: str = ""
    system: str = ""


FRAMES = {
    "chatml": Frame(
        ("<|im_start|>", ""), "\n", "<|im_end|>", gap="\n", system="You are a helpful assistant."
    ),
    "llama3": Frame(
        ("<|start_header_id|>", "<|end_header_id|>"), "\n\n", "<|eot_id|>", start="<|begin_of_text|>"
    ),
}


def _framed(writer: _Writer, sample: Sample, images: Iterator[Image], frame: Frame) -> None:
    def control(spelling: str, role: SpanRole, *, supervised: bool = False) -> None:
        if spelling:
            writer.control(_control(writer.tokenizer, sample.template, spelling), role, supervised=supervised)

    def head(name: str, role: SpanRole) -> str:
        """Opens a turn. Returns the text to put before the text of the turn."""
        before, behind = frame.head
        control(before, role)
        if not behind:
            return name + frame.open
        writer.write(name, role)
        control(behind, role)
        return frame.open

    control(frame.start, "bos")
    if frame.system:
        writer.write(head("system", "system") + frame.system, "system")
        control(frame.close, "system")
        writer.write(frame.gap, "system")
    for turn in sample.turns:
        if turn.role == "assistant":
            writer.write(turn.text, "response", supervised=True)
            control(frame.close, "response", supervised=True)
            writer.write(frame.gap, "user")
            continue
        words = head("user", "user")
        for i in range(turn.images):
            writer.write(words, "user")
            writer.image(next(images))
            words = "\n" if turn.text or i + 1 < turn.images else ""
        writer.write(words + turn.text, "user")
        control(frame.close, "user")
        writer.write(frame.gap, "user")
        writer.write(head("assistant", "header"), "header")
        writer.part()


def _missing(tokenizer: TextTokenizer, template: str) -> list[str]:
    frame = FRAMES[template]
    needed = (frame.start, *frame.head, frame.close)
    return [spelling for spelling in needed if spelling and tokenizer.control(spelling) is None]


def _control(tokenizer: TextTokenizer, template: str, spelling: str) -> int:
    found = tokenizer.control(spelling)
    if found is None:
        got = f"a tokenizer without {', '.join(_missing(tokenizer, template))}"
        usable = [name for name in TEMPLATES if name not in FRAMES or not _missing(tokenizer, name)]
        raise UserError(CHAT_CONTROL.at(f"template {template}", got=got, usable=", ".join(usable)))
    return found


def _plain(writer: _Writer, turn: Turn, images: Iterator[Image]) -> None:
    for _ in range(turn.images):
        writer.image(next(images))
    if turn.role == "assistant":
        writer.write(turn.text + "\n", "response", supervised=True)
    elif turn.text:
        writer.write(turn.text + "\n", "user")


def _vicuna(writer: _Writer, turn: Turn, images: Iterator[Image], *, first: bool) -> None:
    if turn.role == "assistant":
        writer.write(" " + turn.text, "response", supervised=True)
        writer.control(writer.tokenizer.eos, "response", supervised=True)
        return
    words = " USER: " if first else "USER: "
    for i in range(turn.images):
        writer.write(words, "user")
        writer.image(next(images))
        # LLaVA strips a question that contains only its image, including the newline.
        words = "\n" if turn.text or i + 1 < turn.images else ""
    writer.write(words + turn.text, "user")
    writer.write(" ASSISTANT:", "header")


@dataclass(kw_only=True)
class _Writer:
    """Collects spans and remembers what the next text follows.

    `after`: what the next text follows: nothing (the start, an image), text, or an end token.
    `spaces`: trailing spaces of the last text, which are encoded with the next text. `last`: the role
    of the last text, and whether it is supervised.
    """

    tokenizer: TextTokenizer
    rows_of: RowsOf
    after_eos: str
    spans: list[Span] = field(default_factory=list)
    after: Literal["nothing", "text", "eos"] = "nothing"
    spaces: str = ""
    last: tuple[SpanRole, bool] = ("none", False)

    def write(self, words: str, role: SpanRole, *, supervised: bool = False) -> None:
        """Adds text of one role. Its trailing spaces are kept for the next text."""
        words = self.spaces + words.replace(SPACE, " ")  # sentencepiece treats both alike
        kept = words.rstrip(" ")
        self.spaces = words[len(kept) :]
        self._encode(kept, role, supervised)
        self.last = (role, supervised)

    def image(self, image: Image) -> None:
        """Adds an image. The text after it is encoded like a text at the start."""
        self._flush()
        self.spans.append(Span(kind="image", n=self.rows_of(image), image=image))
        self.after = "nothing"

    def part(self) -> None:
        """Makes the next text be encoded separately, as if it followed a control token."""
        self._flush()
        self.after = "eos"

    def control(self, token: int, role: SpanRole, *, supervised: bool = False) -> None:
        """Adds a control token, in one span with the preceding text of the same role."""
        self._flush()
        last = self.spans[-1] if self.spans else None
        if last is not None and (last.kind, last.role, last.supervised) == ("text", role, supervised):
            self.spans[-1] = text([*last.ids, token], role, supervised=supervised)
        else:
            self.spans.append(text([token], role, supervised=supervised))
        self.after = "nothing" if role == "bos" else "eos"

    def close(self) -> Layout:
        """Returns all spans."""
        self._flush()
        return tuple(self.spans)

    def _flush(self) -> None:
        spaces, self.spaces = self.spaces, ""
        if spaces:
            self._encode(spaces, *self.last)

    def _encode(self, words: str, role: SpanRole, supervised: bool) -> None:
        if not words:
            return
        if self.after == "text" or (self.after == "eos" and self.after_eos == "hf437"):
            ids = self.tokenizer.encode_continued(words)
        elif self.after == "eos":
            ids = self.tokenizer.encode_unprefixed(words)
        else:
            ids = self.tokenizer.encode(words)
        self.after = "text"
        last = self.spans[-1] if self.spans else None
        if last is not None and (last.kind, last.role, last.supervised) == ("text", role, supervised):
            self.spans[-1] = text([*last.ids, *ids], role, supervised=supervised)
        else:
            self.spans.append(text(ids, role, supervised=supervised))


def _check(sample: Sample, after_eos: str, rows_of: RowsOf) -> None:
    """Raises `UserError` with all problems that prevent the layout of `sample`."""
    problems, where = [], f"sample {sample.key}"
    if sample.template not in TEMPLATES:
        got, nearest = f"template `{sample.template}`", did_you_mean(sample.template, TEMPLATES)
        problems.append(TEMPLATE.at(where, got=got, known=", ".join(TEMPLATES), nearest=nearest))
    if after_eos not in AFTER_EOS:
        got = f"after_eos `{after_eos}`"
        problems.append(CHAT_AFTER_EOS.at(where, got=got, known=", ".join(AFTER_EOS)))
    if any(not rows_of(image) for image in sample.images):
        problems.append(CHAT_NO_VISION.at(where, got="an image for a text-only model"))
    roles = [turn.role for turn in sample.turns]
    if not roles or roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
        problems.append(ROLES.at(where, got=f"turns {roles}"))
    counts = [turn.images if turn.role == "user" else -turn.images for turn in sample.turns]
    if sum(counts) != len(sample.images) or any(n < 0 for n in counts):
        got = f"{len(sample.images)} images for {[turn.images for turn in sample.turns]} places by turn"
        problems.append(CHAT_IMAGES.at(where, got=got))
    raise_all(problems)
