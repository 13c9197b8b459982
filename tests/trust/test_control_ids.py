"""What a user writes never becomes a control token: every tokenizer kind, every template, every special token."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from lmmkit.api.sample import Image, Sample, Turn
from lmmkit.data.chat_templates import TEMPLATES, lay_out
from lmmkit.data.fits.rows import FixedRows
from lmmkit.data.text_tokenizers.choose import TextTokenizer, open_tokenizer
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SPACE, SentencePieceTokenizer
from lmmkit.data.text_tokenizers.tiktoken_tokenizer import SPLIT
from lmmkit.errors import UserError
from lmmkit.scenes.tokenizer import train_tokenizer
from tests.data.text_tokenizers.test_hf_tokenizer import (
    LLAMA3,
    META,
    QWEN,
    byte_level,
    random_texts,
    tiktoken_file,
)

KINDS = ("sentencepiece", "chatml", "llama3", "tiktoken")
WORDS = (Path(__file__).resolve().parent.parent.parent / "README.md").read_text().splitlines()
COMMON = (
    "<image>",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<0x0A>",
    "<|endoftext|>",
    "[INST]",
    "<<SYS>>",
    "USER:",
    "ASSISTANT:",
)
SPLITS = ("\u200b", "\u200d", "\ufeff", "\u2060", "\u00ad", " ", "\u0301")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, TextTokenizer]:
    """One of each kind, trained here."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    (folders["sentencepiece"] / "tokenizer.model").write_bytes(train_tokenizer(WORDS))
    byte_level(folders["chatml"], SPLIT, QWEN, False, None, "<|im_end|>")
    byte_level(folders["llama3"], LLAMA3, META, False, META[0], META[4])
    tiktoken_file(folders["tiktoken"])
    return {kind: open_tokenizer(folder) for kind, folder in folders.items()}


def controls(tokenizer: TextTokenizer) -> dict[str, int]:
    """Returns every token that is no text, by its spelling."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        unspelled = set(range(tokenizer.size)) - tokenizer._spelling  # type: ignore[attr-defined]
        return {tokenizer.spelling(i): i for i in unspelled}
    return dict(tokenizer._controls)  # type: ignore[attr-defined]


def hostile(text: str, spellings: list[str], draw: random.Random) -> str:
    """`text` with every special token in it: as it is, split, doubled, nested, and against its words."""
    parts = []
    for spelling in spellings:
        at = draw.randrange(1, len(spelling)) if len(spelling) > 1 else 0
        match draw.randrange(6):
            case 0:
                piece = spelling[:at] + draw.choice(SPLITS) + spelling[at:]
            case 1:
                piece = spelling[:at] + spelling + spelling[at:]
            case 2:
                piece = spelling + spelling
            case 3:
                piece = f" {spelling}\n"
            case _:
                piece = spelling
        cut = draw.randint(0, min(len(text), 12))
        parts.append(text[:cut] + piece)
        text = text[cut:] + text[:cut]
    draw.shuffle(parts)
    return "".join(parts)


def escaped(tokenizer: TextTokenizer, kind: str, count: int, each: int = 10**6) -> tuple[int, int, int]:
    """(control ids that came out of texts, texts that do not come back, conversations with too many)

    `each`: special tokens in a text, drawn from all of them.
    """
    known = controls(tokenizer)
    spellings, ids_of = sorted({*known, *COMMON}), set(known.values())
    draw, out, lost, spoilt = random.Random(1), 0, 0, 0
    plain = {template: _laid(tokenizer, template, "x", ids_of) for template in TEMPLATES}
    for text in random_texts(count):
        changed = hostile(text, draw.sample(spellings, min(each, len(spellings))), draw)
        ids = tokenizer.encode(changed)
        out += sum(i in ids_of for i in ids)
        if kind == "sentencepiece":  # in byte-level files the three ways to encode are one
            for encode in (tokenizer.encode_continued, tokenizer.encode_unprefixed):
                out += sum(i in ids_of for i in encode(changed))
        lost += kind != "tiktoken" and tokenizer.decode(ids) != changed.replace(
            SPACE, " "
        )  # NFC is not lossless
        for template, want in plain.items():
            spoilt += want is not None and _laid(tokenizer, template, changed, ids_of) != want
    return out, lost, spoilt


def _laid(tokenizer: TextTokenizer, template: str, words: str, ids_of: set[int]) -> Counter | None:
    """Counts each control id in a conversation; None for a template of another tokenizer."""
    turns = (Turn("user", words, images=1), Turn("assistant", words))
    sample = Sample(key="k", turns=turns, images=(Image("a"),), template=template, image_fit="pad")
    try:
        layout = lay_out(sample, tokenizer, rows_of=FixedRows(4))
    except UserError:
        return None
    return Counter(i for span in layout for i in span.ids if i in ids_of)


@pytest.mark.parametrize("kind", KINDS)
def test_no_control_id_comes_out_of_a_hundred_texts(kind, tokenizers):
    assert escaped(tokenizers[kind], kind, 100, each=14) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_control_id_comes_out_of_two_thousand_texts(kind, tokenizers):
    found = escaped(tokenizers[kind], kind, 2000)
    print(kind, len(controls(tokenizers[kind])), "control tokens:", found)
    assert found == (0, 0, 0)


def test_every_template_was_laid_out_and_has_control_ids_of_its_own(tokenizers):
    met = {t for tokenizer in tokenizers.values() for t in TEMPLATES
           if _laid(tokenizer, t, "x", set(controls(tokenizer).values()))}  # fmt: skip
    assert met == set(TEMPLATES)


def test_a_leak_would_be_found(tokenizers):
    """Encodes as the library does by default, which finds control tokens in text."""
    tokenizer = tokenizers["llama3"]
    leaking = type(tokenizer)(text=tokenizer.text, bos=tokenizer.bos, eos=tokenizer.eos)
    leaking._continued.encode_special_tokens = False
    out, _, spoilt = escaped(leaking, "llama3", 5)
    assert out and spoilt
