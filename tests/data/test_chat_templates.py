"""Layouts against LLaVA-1.5's ids and masks: the known lists, and a slow twin on strings.

Set LMMKIT_LLAMA_TOKENIZER to LLaMA's own model file to have all of it on the real one as well.
"""

import os
from functools import cache
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmkit.api.layout import row_count, truncate
from lmmkit.api.needs import Select
from lmmkit.api.sample import Image, Sample, TemplateName, Turn
from lmmkit.data.chat_templates import AFTER_EOS, TEMPLATES, VICUNA_SYSTEM, lay_out, lay_out_prompt
from lmmkit.data.fits.rows import FixedRows
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lmmkit.errors import UserError
from tests.support.fake_llama_tokenizer import SPACE, llama_like, processor

REAL = os.environ.get("LMMKIT_LLAMA_TOKENIZER")
needs_real = pytest.mark.skipif(not REAL, reason="LMMKIT_LLAMA_TOKENIZER names no file")
MODELS = ["stand-in", pytest.param("real", marks=needs_real)]
IMAGE = -200  # what LLaVA puts for an image


def test_every_template_of_a_recipe_can_be_written():
    assert set(get_args(TemplateName)) == set(TEMPLATES)


@cache
def tokenizer(name: str) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.open(REAL) if name == "real" else SentencePieceTokenizer(model=llama_like())


def sample(*turns: Turn, template: str = "vicuna_v1") -> Sample:
    images = tuple(Image(f"/{i}.png") for i in range(sum(turn.images for turn in turns)))
    return Sample(key="s", turns=turns, images=images, template=template)


def talk(*texts: str, images: int = 1) -> Sample:
    turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    return sample(Turn("user", turns[0].text, images), *turns[1:])


def ids_and_mask(layout) -> tuple[list[int], list[bool]]:
    ids, mask = [], []
    for span in layout:
        found = [IMAGE] if span.kind == "image" else list(span.ids)
        ids += found
        mask += [span.supervised] * len(found)
    return ids, mask


def learned(layout) -> list[int]:
    return [i for span in layout if span.supervised for i in span.ids]


@pytest.mark.parametrize("model", MODELS)
def test_plain(model):
    turns = (Turn("user", "", 1), Turn("assistant", "a cat on a mat"))
    layout = lay_out(sample(*turns, template="plain"), tokenizer(model), rows_of=FixedRows(576))
    ids, mask = ids_and_mask(layout)
    assert ids == [1, IMAGE, 263, 6635, 373, 263, 1775, 13]
    assert mask == [False] * 2 + [True] * 6
    assert row_count(layout) == 7 + 576
    assert [span.role for span in layout] == ["bos", "none", "response"]
    assert layout[1].image == Image("/0.png")


@pytest.mark.parametrize("model", MODELS)
def test_plain_with_an_instruction(model):
    turns = (Turn("user", "it is: mat on a a cat", 1), Turn("assistant", "a cat on a mat"))
    talked = sample(*turns, template="plain")
    layout = lay_out(talked, tokenizer(model), rows_of=FixedRows(2))
    encode, go_on = tokenizer(model).encode, tokenizer(model).encode_continued
    ids, _ = ids_and_mask(layout)
    assert ids == [1, IMAGE, *encode("it is: mat on a a cat\na cat on a mat\n")]
    assert learned(layout) == go_on("a cat on a mat\n")
    asked = sample(turns[0], template="plain")
    (start,) = (i for i, span in enumerate(layout) if span.role == "response")
    assert lay_out_prompt(asked, tokenizer(model), rows_of=FixedRows(2)) == layout[:start]


@pytest.mark.parametrize("model", MODELS)
def test_first_turn_of_vicuna(model):
    layout = lay_out(talk("is it", "a cat"), tokenizer(model), rows_of=FixedRows(3))
    ids, _ = ids_and_mask(layout)
    at = ids.index(IMAGE)
    assert ids[at - 4 : at + 3] == [3148, 1001, 29901, 29871, IMAGE, 29871, 13]
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert tokenizer(model).decode(ids[:at]) == VICUNA_SYSTEM + " USER: "
    assert learned(layout) == [263, 6635, 2]
    roles = [span.role for span in layout]
    assert roles == ["bos", "system", "user", "none", "user", "header", "response"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("after_eos", "begin"),
    [("published", [3308, 1001]), ("hf437", [11889])],
)
def test_later_turns(model, after_eos, begin):
    talked = talk("is it", "a cat", "is it", "on a mat")
    layout = lay_out(talked, tokenizer(model), rows_of=FixedRows(3), after_eos=after_eos)
    ids, _ = ids_and_mask(layout)
    at = ids.index(2) + 1
    assert ids[at : at + len(begin) + 1] == [*begin, 29901]
    assert learned(layout) == [263, 6635, 2, 373, 263, 1775, 2]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("answer", ["5", "\na", "\u732b", " a"])
def test_the_space_mark_that_is_learned(model, answer):
    layout = lay_out(talk("is it", answer), tokenizer(model), rows_of=FixedRows(3))
    ids = learned(layout)
    assert ids == [*tokenizer(model).encode(answer), 2]
    space = tokenizer(model).encode(answer)[0]
    assert space == (29871 if answer != " a" else tokenizer(model).encode(" a")[0])


def test_five_is_three_learned_tokens():
    layout = lay_out(talk("is it", "5"), tokenizer("stand-in"), rows_of=FixedRows(3))
    assert learned(layout) == [29871, 29945, 2]


def hf_tokens(model: bytes, text: str, way: str) -> list[int]:
    """Tokenizes a text with end tokens in it as the stack of `way` does."""
    plain, bare = processor(model), processor(model, dummy_prefix=False)
    out = []
    for i, part in enumerate(text.replace(SPACE, " ").split("</s>")):
        pieces = plain.encode_as_pieces(part)
        if i and way == "published" and part and not part.startswith(" "):
            pieces = ([pieces[0][1:]] if len(pieces[0]) > 1 else []) + pieces[1:]
        if i and way == "hf437":
            pieces = bare.encode_as_pieces(part)
        out += ([2] if i else []) + [plain.piece_to_id(piece) for piece in pieces]
    return out


def llava(model: bytes, texts: list[str], images: list[int], way: str):
    """Returns ids and mask as LLaVA makes them: one string, split at the markers, masked by counting."""

    def tokens(text: str) -> list[int]:
        chunks = [hf_tokens(model, chunk, way) for chunk in text.split("<image>")]
        ids = [1, *chunks[0]]
        for chunk in chunks[1:]:
            ids += [IMAGE, *chunk]
        return ids

    parts = [VICUNA_SYSTEM + " "]
    for i in range(0, len(texts), 2):
        question = ("<image>\n" * images[i] + texts[i]).strip() if images[i] else texts[i]
        parts.append(f"USER: {question} ASSISTANT: {texts[i + 1]}</s>")
    conversation = "".join(parts)
    ids = tokens(conversation)
    mask, at = [False] * len(ids), 1
    for i, turn in enumerate(conversation.split("</s>")[:-1]):
        less = 1 if i and way == "hf437" else 0
        length = len(tokens(turn)) - less
        read = len(tokens(turn.split(" ASSISTANT: ")[0] + " ASSISTANT: ")) - 2 - less
        for j in range(at + read, at + length):
            mask[j] = True
        at += length
    assert at == len(ids)  # or LLaVA would learn nothing of it
    return ids, mask


WORDS = st.text("aAct 5:U\n" + SPACE + "\u732b", max_size=12)
ANSWERS = WORDS.filter(lambda text: text.strip(" " + SPACE))


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(WORDS, ANSWERS), min_size=1, max_size=3),
    st.integers(0, 2),
    st.sampled_from(AFTER_EOS),
)
def test_equals_llava(model, pairs, images, way):
    texts = [text for pair in pairs for text in pair]
    if images:
        texts[0] = texts[0].strip()
    talked = talk(*texts, images=images)
    layout = lay_out(talked, tokenizer(model), rows_of=FixedRows(4), after_eos=way)
    slots = [images] + [0] * (len(texts) - 1)
    assert ids_and_mask(layout) == llava(tokenizer(model).model, texts, slots, way)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, ANSWERS), min_size=1, max_size=3), st.sampled_from(AFTER_EOS))
def test_prompt_and_response_are_the_training_ids(pairs, way):
    texts = [text for pair in pairs for text in pair]
    layout = lay_out(talk(*texts), tokenizer("stand-in"), rows_of=FixedRows(4), after_eos=way)
    asked = talk(*texts[:-1])
    start = lay_out_prompt(asked, tokenizer("stand-in"), rows_of=FixedRows(4), after_eos=way)
    assert layout[:-1] == start
    answer = tokenizer("stand-in").encode_continued(" " + texts[-1])
    assert layout[-1].ids == (*answer, 2)
    assert start[-1].role == "header"
    assert tokenizer("stand-in").decode(start[-1].ids).endswith("ASSISTANT:")
    decoded = tokenizer("stand-in").decode(layout[-1].ids)
    assert decoded == texts[-1].replace(SPACE, " ")


@settings(max_examples=60, deadline=None)
@given(WORDS, st.sampled_from(["</s>", "<s>", "<unk>", "<image>"]))
def test_only_the_template_puts_control_ids(words, control):
    talked = talk(words + control, control + words, control, "a")
    ids, _ = ids_and_mask(lay_out(talked, tokenizer("stand-in"), rows_of=FixedRows(4)))
    assert [i for i in ids if i in (0, 1, 2, IMAGE)] == [1, IMAGE, 2, 2]


def test_two_images_in_one_turn():
    layout = lay_out(talk("is it", "a cat", images=2), tokenizer("stand-in"), rows_of=FixedRows(4))
    ids, _ = ids_and_mask(layout)
    at = ids.index(IMAGE)
    assert ids[at - 1 : at + 6] == [29871, IMAGE, 29871, 13, IMAGE, 29871, 13]
    assert [span.image for span in layout if span.kind == "image"] == [
        Image("/0.png"),
        Image("/1.png"),
    ]


BETWEEN = Turn("user", "a cat  on a mat  is it", 2, (6, 16))


def pieces_of(turn: Turn) -> list[str]:
    cuts = [0, *turn.places, len(turn.text)]
    return [turn.text[a:b] for a, b in pairwise(cuts)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", AFTER_EOS)
def test_images_between_words_are_tokenized_as_llava_splits_a_text(model, way):
    """LLaVA itself moves images; this is its way to tokenize a text with markers, without the move."""
    data, words = tokenizer(model).model, "<image>".join(pieces_of(BETWEEN))
    talked = sample(Turn("user", "is it"), Turn("assistant", "a"), BETWEEN, Turn("assistant", "5"))
    layout = lay_out(talked, tokenizer(model), rows_of=FixedRows(4), after_eos=way)
    texts = ["is it", "a", words, "5"]
    assert ids_and_mask(layout) == llava(data, texts, [0] * 4, way)
    assert [span.image for span in layout if span.kind == "image"] == list(talked.images)
    asked = sample(Turn("user", "is it"), Turn("assistant", "a"), BETWEEN)
    start = lay_out_prompt(asked, tokenizer(model), rows_of=FixedRows(4), after_eos=way)
    assert layout[: len(start)] == start and layout[-1].supervised


@pytest.mark.parametrize("places", [(0, 0), (0, 22), (6, 6), (22, 22)])
def test_an_image_stays_between_the_words_around_it(places):
    turn = Turn("user", BETWEEN.text, 2, places)
    for template in ("plain", "vicuna_v1"):
        talked = sample(turn, Turn("assistant", "a"), template=template)
        layout = lay_out(talked, tokenizer("stand-in"), rows_of=FixedRows(4))
        start = next(i for i, span in enumerate(layout) if span.role == "response")
        found = "".join(
            "|" if s.kind == "image" else tokenizer("stand-in").decode(s.ids) for s in layout[:start]
        )
        pieces = [piece.strip() for piece in pieces_of(turn)]
        at = found.index("USER: ") + len("USER: ") if template == "vicuna_v1" else 0
        shown = [piece.strip() for piece in found[at:].removesuffix("ASSISTANT:").split("|")]
        assert shown == pieces, template
        assert [span.image for span in layout if span.image] == [Image("/0.png"), Image("/1.png")]


def test_a_system_prompt_replaces_the_template_s():
    layout = lay_out(talk("is it", "a"), tokenizer("stand-in"), rows_of=FixedRows(4))
    own = Sample(**vars(talk("is it", "a")) | {"system": "on a mat "})
    with_own = lay_out(own, tokenizer("stand-in"), rows_of=FixedRows(4))
    assert [s for s in with_own if s.role not in ("system", "user")] == [
        s for s in layout if s.role not in ("system", "user")
    ]
    decode = tokenizer("stand-in").decode
    assert [decode(s.ids) for s in with_own if s.role == "system"] == ["on a mat"]
    ids, _ = ids_and_mask(with_own)
    assert decode(ids[: ids.index(IMAGE)]) == "on a mat  USER: "


@pytest.mark.parametrize("template", ["plain", "vicuna_v1"])
def test_answers_are_counted_from_the_end(template):
    asked = talk("is it", "a cat ", "", "on a mat", "is it", "5").turns
    layout = lay_out(sample(*asked, template=template), tokenizer("stand-in"), rows_of=FixedRows(4))
    decode = tokenizer("stand-in").decode
    answers = {n: decode([i for s in layout if s.turn == n for i in s.ids]).split() for n in (-3, -2, -1)}
    assert answers == {-3: ["a", "cat"], -2: ["on", "a", "mat"], -1: ["5"]}
    assert {s.turn for s in layout if s.role != "response"} == {0}
    last = Select(role="response", turn=-1).positions(layout)
    assert list(last) == list(range(row_count(layout) - len(last), row_count(layout))) and len(last) < 5
    cut = truncate(layout, row_count(layout) - len(last))
    assert not len(Select(turn=-1).positions(cut)), "an answer that was cut off is not replaced by another"


def test_a_turn_without_loss_is_there_and_not_supervised():
    turns = talk("is it", "a cat", "is it", "on a mat").turns
    whole = lay_out(sample(*turns), tokenizer("stand-in"), rows_of=FixedRows(4))
    without = (turns[0], Turn("assistant", "a cat", supervised=False), *turns[2:])
    for template in ("plain", "vicuna_v1"):
        whole = lay_out(sample(*turns, template=template), tokenizer("stand-in"), rows_of=FixedRows(4))
        layout = lay_out(sample(*without, template=template), tokenizer("stand-in"), rows_of=FixedRows(4))
        (ids, mask), (want, before) = ids_and_mask(layout), ids_and_mask(whole)
        assert ids == want and sum(mask) < sum(before)
        first = tokenizer("stand-in").encode_continued("a cat")
        assert mask[before.index(True) :][: len(first) + 1] == [False] * (len(first) + 1)
        assert [m for m in mask if m] and learned(layout) == learned(whole)[-sum(mask) :]


def test_what_cannot_be_laid_out():
    user, assistant = Turn("user", "is it"), Turn("assistant", "a")
    one = (Image("/0.png"),)
    cases = {
        "chat/unknown-template": Sample(key="s", turns=(user, assistant), template="vicuna"),
        "chat/roles": Sample(key="s", turns=(user, user)),
        "chat/images": Sample(key="s", turns=(user, assistant), images=one),
    }
    for code, talked in cases.items():
        with pytest.raises(UserError) as error:
            lay_out(talked, tokenizer("stand-in"), rows_of=FixedRows(4))
        assert [p.code for p in error.value.problems] == [code]
    for places in ((0,), (0, 3), (3, 0), (-1, 0), (0, 99)):
        turns = (Turn("user", "is", 2, places), assistant)
        with pytest.raises(UserError) as error:
            lay_out(sample(*turns), tokenizer("stand-in"), rows_of=FixedRows(4))
        assert [p.code for p in error.value.problems] == ["chat/images"] and "places" in str(error.value)
    for turns in ((), (assistant,), (user, Turn("assistant", "a", 1))):
        with pytest.raises(UserError):
            lay_out(Sample(key="s", turns=turns), tokenizer("stand-in"), rows_of=FixedRows(4))
    with pytest.raises(UserError) as error:
        lay_out_prompt(talk("is it", "a"), tokenizer("stand-in"), rows_of=FixedRows(4))
    assert error.value.problems[0].code == "chat/prompt"
    with pytest.raises(UserError):
        lay_out(talk("a", "a"), tokenizer("stand-in"), rows_of=FixedRows(4), after_eos="later")
