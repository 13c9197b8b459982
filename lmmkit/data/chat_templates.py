"""The chat templates: how a sample becomes token ids, and which of them are supervised.

`plain`: images, text and answer, with a newline after each text, and no system prompt. `vicuna_v1`: the
conversation of Vicuna v1.5, with an end token after each answer; ids and supervised positions equal
LLaVA-1.5's. `chatml` (Qwen) and `llama3` (LLaMA-3): turns between control tokens; ids equal those of the
public templates. Here the header of an answer and the answer are encoded separately, as in generation.
An image with a place in the text is written there, in every template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, get_args

from lmmkit.api.layout import Layout, SpanRole
from lmmkit.api.sample import AfterEos, Image, Sample, Turn
from lmmkit.data.fits.rows import RowsOf
from lmmkit.data.layout_writer import LayoutWriter, WeightsOf
from lmmkit.data.text_tokenizers.choose import TextTokenizer
from lmmkit.errors import Problem, UserError, did_you_mean, raise_all
from lmmkit.errors.data import (
    CHAT_AFTER_EOS,
    CHAT_CONTROL,
    CHAT_IMAGES,
    CHAT_NO_VISION,
    PROMPT,
    ROLES,
    TEMPLATE,
)
from lmmkit.progress import plural

AFTER_EOS: tuple[AfterEos, ...] = get_args(AfterEos)

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def lay_out(
    sample: Sample, tokenizer: TextTokenizer, *, rows_of: RowsOf, after_eos: AfterEos = "published",
    weights_of: WeightsOf | None = None,
) -> Layout:  # fmt: skip
    """Returns the spans of a sample. Its answers are supervised, the rest is not.

    `rows_of` gives the number of rows of an image. `after_eos`: how the first word after an end token
    is encoded; `published` as in LLaVA-1.5's weights (transformers 4.31), `hf437` as in 4.37 (no dummy
    prefix). A sample may end with the user's turn. `weights_of` gives the weights of its supervised answers.

    Raises `UserError` for an unknown template, for turns that do not alternate between user and
    assistant, or if the turns name another number of images than the sample has, or places that do not
    exist.
    """
    _check(sample, after_eos, rows_of)
    writer = LayoutWriter(tokenizer=tokenizer, rows_of=rows_of, after_eos=after_eos, weights_of=weights_of)
    TEMPLATES[sample.template].write(writer, sample)
    return writer.close()


def lay_out_prompt(
    sample: Sample, tokenizer: TextTokenizer, *, rows_of: RowsOf, after_eos: AfterEos = "published"
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
    return TEMPLATES[template].response_end(tokenizer)


def first_id(template: str, tokenizer: TextTokenizer) -> int | None:
    """Returns the id that begins every sequence of a template; None if there is none."""
    return TEMPLATES[template].first_id(tokenizer)


def vocabulary_in_use(tokenizer: TextTokenizer) -> int:
    """Returns the bound of the ids that records and templates can become. Added tokens may be above it."""
    words = {word for template in FRAMED for word in (template.start, *template.head, template.end)}
    ids = [tokenizer.bos, tokenizer.eos, *map(tokenizer.control, words)]
    return max([tokenizer.text_size, *(token + 1 for token in ids if token is not None)])


def stop_ids(template: str, tokenizer: TextTokenizer, of_folder: Iterable[int] = ()) -> tuple[int, ...]:
    """Returns the ids that end an answer, each once: those that the folder of the tokenizer names, the
    tokenizer's end token, and the end of a response in the template."""
    return tuple(dict.fromkeys((*of_folder, tokenizer.eos, response_end(template, tokenizer))))


def require_fitting(template: str, tokenizer: TextTokenizer, where: str) -> None:
    """Raises `UserError` for an unknown template, and for one that needs tokens which the tokenizer lacks."""
    if template not in TEMPLATES:
        raise UserError(_unknown(template, where))
    if missing := TEMPLATES[template].missing(tokenizer):
        got = f"template {template} and a tokenizer without {', '.join(missing)}"
        raise UserError(CHAT_CONTROL.at(where, got=got, usable=_usable(tokenizer)))


def _usable(tokenizer: TextTokenizer) -> str:
    return ", ".join(name for name, template in TEMPLATES.items() if not template.missing(tokenizer))


def default_template(tokenizer: TextTokenizer) -> str:
    """Returns the template whose control tokens the tokenizer has, else `vicuna_v1`, which needs none."""
    fitting = (t.name for t in FRAMED if not t.missing(tokenizer))
    return next(fitting, VicunaTemplate.name)


class Template(Protocol):
    """Defines the interface of a chat template."""

    @property
    def name(self) -> str:
        """Returns the name used in recipes."""
        ...

    def write(self, writer: LayoutWriter, sample: Sample) -> None:
        """Writes all turns of a sample that has passed the checks of `lay_out`."""
        ...

    def first_id(self, tokenizer: TextTokenizer) -> int | None:
        """Returns the id that begins a sequence; None if there is none."""
        ...

    def response_end(self, tokenizer: TextTokenizer) -> int:
        """Returns the id that ends a response."""
        ...

    def missing(self, tokenizer: TextTokenizer) -> list[str]:
        """Returns the control tokens that the template needs and the tokenizer lacks."""
        ...


class PlainTemplate:
    """Writes images, text and answer, each text followed by a newline.

    The newline of an answer is encoded separately: byte-level vocabularies have pieces such as ".\\n", and
    no single id would end an answer.
    """

    name = "plain"

    def write(self, writer: LayoutWriter, sample: Sample) -> None:
        images = _begin(writer, sample)
        for turn in sample.turns:
            if turn.role == "assistant":
                writer.answer(turn)
                writer.part()
                writer.write("\n", "response", supervised=turn.supervised)
            else:
                line = replace(turn, text=turn.text + "\n") if turn.text else turn
                _user(writer, "", line, images, between="")

    def first_id(self, tokenizer: TextTokenizer) -> int | None:
        return tokenizer.bos

    def response_end(self, tokenizer: TextTokenizer) -> int:
        return tokenizer.encode_continued("\n")[-1]

    def missing(self, tokenizer: TextTokenizer) -> list[str]:
        return [] if tokenizer.encode_continued("\n") else ["a newline"]


class VicunaTemplate:
    """Writes the conversation of Vicuna v1.5: "USER: ... ASSISTANT: ...", an end token after each answer."""

    name = "vicuna_v1"

    def write(self, writer: LayoutWriter, sample: Sample) -> None:
        images = _begin(writer, sample)
        writer.write(sample.system or VICUNA_SYSTEM, "system")
        for i, turn in enumerate(sample.turns):
            if turn.role == "assistant":
                writer.answer(turn, " ")
                writer.control(writer.tokenizer.eos, "response", supervised=turn.supervised)
            else:
                _user(writer, " USER: " if i == 0 else "USER: ", turn, images)
                writer.write(" ASSISTANT:", "header")

    def first_id(self, tokenizer: TextTokenizer) -> int | None:
        return tokenizer.bos

    def response_end(self, tokenizer: TextTokenizer) -> int:
        return tokenizer.eos

    def missing(self, tokenizer: TextTokenizer) -> list[str]:
        return []


@dataclass(frozen=True)
class FramedTemplate:
    """Writes each turn between control tokens.

    `head`: the control tokens before and after the name of a role. `open`: the text after a head.
    `end`: the control token after the text of a turn. `gap`: the text between turns. `start`: a
    control token at the beginning. `system`: the text of the system turn of a sample that has no system
    prompt of its own; empty for none.
    """

    name: str
    head: tuple[str, str]
    open: str
    end: str
    gap: str = ""
    start: str = ""
    system: str = ""

    def write(self, writer: LayoutWriter, sample: Sample) -> None:
        images = iter(sample.images)
        self._control(writer, self.start, "bos")
        if system := sample.system or self.system:
            writer.write(self._head(writer, "system", "system") + system, "system")
            self._control(writer, self.end, "system")
            writer.write(self.gap, "system")
        for turn in sample.turns:
            if turn.role == "assistant":
                writer.answer(turn)
                self._control(writer, self.end, "response", supervised=turn.supervised)
                writer.write(self.gap, "user")
                continue
            _user(writer, self._head(writer, "user", "user"), turn, images)
            self._control(writer, self.end, "user")
            writer.write(self.gap, "user")
            writer.write(self._head(writer, "assistant", "header"), "header")
            writer.part()

    def first_id(self, tokenizer: TextTokenizer) -> int | None:
        return self._id(tokenizer, self.start) if self.start else None

    def response_end(self, tokenizer: TextTokenizer) -> int:
        return self._id(tokenizer, self.end)

    def missing(self, tokenizer: TextTokenizer) -> list[str]:
        needed = (self.start, *self.head, self.end)
        return [spelling for spelling in needed if spelling and tokenizer.control(spelling) is None]

    def _head(self, writer: LayoutWriter, name: str, role: SpanRole) -> str:
        """Opens a turn. Returns the text to put before the text of the turn."""
        before, behind = self.head
        self._control(writer, before, role)
        if not behind:
            return name + self.open
        writer.write(name, role)
        self._control(writer, behind, role)
        return self.open

    def _control(
        self, writer: LayoutWriter, spelling: str, role: SpanRole, *, supervised: bool = False
    ) -> None:
        if spelling:
            writer.control(self._id(writer.tokenizer, spelling), role, supervised=supervised)

    def _id(self, tokenizer: TextTokenizer, spelling: str) -> int:
        found = tokenizer.control(spelling)
        if found is None:
            got = f"a tokenizer without {', '.join(self.missing(tokenizer))}"
            raise UserError(CHAT_CONTROL.at(f"template {self.name}", got=got, usable=_usable(tokenizer)))
        return found


CHATML = FramedTemplate(
    "chatml", ("<|im_start|>", ""), "\n", "<|im_end|>", gap="\n", system="You are a helpful assistant."
)
LLAMA3 = FramedTemplate(
    "llama3", ("<|start_header_id|>", "<|end_header_id|>"), "\n\n", "<|eot_id|>", start="<|begin_of_text|>"
)
FRAMED = (CHATML, LLAMA3)
TEMPLATES: dict[str, Template] = {t.name: t for t in (PlainTemplate(), VicunaTemplate(), *FRAMED)}


def _begin(writer: LayoutWriter, sample: Sample) -> Iterator[Image]:
    """Writes the token that begins a sequence, if there is one. Returns the images of the sample."""
    if writer.tokenizer.bos is not None:
        writer.control(writer.tokenizer.bos, "bos")
    return iter(sample.images)


def _user(
    writer: LayoutWriter, before: str, turn: Turn, images: Iterator[Image], between: str = "\n"
) -> None:
    """Writes `before` and a user's turn: each image at its place in the text, or all images before the text
    with `between` after each.

    LLaVA strips a question that contains only its image, including the newline.
    """
    begin = 0
    for i in range(turn.images):
        end = turn.places[i] if turn.places else 0
        writer.write(before + turn.text[begin:end], "user")
        writer.image(next(images))
        before = between if not turn.places and (turn.text or i + 1 < turn.images) else ""
        begin = end
    writer.write(before + turn.text[begin:], "user")


def _unknown(template: str, where: str) -> Problem:
    got, nearest = f"template `{template}`", did_you_mean(template, TEMPLATES)
    return TEMPLATE.at(where, got=got, known=", ".join(TEMPLATES), nearest=nearest)


def _check(sample: Sample, after_eos: str, rows_of: RowsOf) -> None:
    """Raises `UserError` with all problems that prevent the layout of `sample`."""
    problems, where = [], f"sample {sample.key}"
    if sample.template not in TEMPLATES:
        problems.append(_unknown(sample.template, where))
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
        got = f"{plural(len(sample.images), 'image')} for {[turn.images for turn in sample.turns]} places by turn"
        problems.append(CHAT_IMAGES.at(where, got=got))
    for i, turn in enumerate(sample.turns):
        inside = list(turn.places) == sorted(turn.places) and all(
            0 <= place <= len(turn.text) for place in turn.places
        )
        if turn.places and (len(turn.places) != turn.images or not inside):
            got = f"places {turn.places} of {turn.images} images in turn {i}, a text of {len(turn.text)}"
            problems.append(CHAT_IMAGES.at(where, got=f"{got} characters"))
    raise_all(problems)
