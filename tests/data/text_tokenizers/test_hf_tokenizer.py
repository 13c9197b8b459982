"""tokenizer.json and qwen.tiktoken: ids as in transformers and sentencepiece, text never control."""

from __future__ import annotations

import base64
import io
import itertools
import json
import pickle
import random
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmkit.api.sample import Image, Sample, Turn
from lmmkit.data.chat_templates import (
    default_template,
    lay_out,
    lay_out_prompt,
    require_fitting,
    response_end,
    stop_ids,
)
from lmmkit.data.fits.rows import FixedRows
from lmmkit.data.text_tokenizers.choose import open_tokenizer
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lmmkit.data.text_tokenizers.tiktoken_tokenizer import CONTROLS, SPLIT, open_tiktoken
from lmmkit.errors import UserError

WORDS = (Path(__file__).parents[3] / "README.md").read_text().split("\n")
LLAMA3 = SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
META = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
N = 10_000


def random_texts(n: int) -> list[str]:
    """Words, all planes of unicode, digits, runs of space, in one text."""
    draw = random.Random(0)
    planes = [(32, 127), (0xA0, 0x24F), (0x370, 0x52F), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF), (0x300, 0x36F)]
    words = " ".join(WORDS).split()

    def piece() -> str:
        kind = draw.randrange(4)
        if kind == 0:
            return "".join(chr(draw.randint(*draw.choice(planes))) for _ in range(draw.randint(1, 5)))
        if kind == 1:
            return draw.choice([" ", "  ", "\n", "\n\n", "\t", " \n ", "'s", "12345", "."])
        return draw.choice(words) + draw.choice(["", " "])

    return ["".join(piece() for _ in range(draw.randint(1, 8))) for _ in range(n)]


def byte_level(
    folder: Path, pattern: str, controls: tuple[str, ...], nfc: bool, bos: str | None, eos: str
) -> Path:
    """Returns a folder with a byte-level tokenizer.json trained here."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    if nfc:
        inner.normalizer = tokenizers.normalizers.NFC()
    pre = tokenizers.pre_tokenizers
    inner.pre_tokenizer = pre.Sequence([
        pre.Split(tokenizers.Regex(pattern), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(WORDS, trainer)
    inner.add_special_tokens(list(controls))
    inner.add_tokens(["<tool_call>"])
    inner.save(str(folder / "tokenizer.json"))
    words = {"eos_token": eos, "tokenizer_class": "PreTrainedTokenizerFast"} | (
        {"bos_token": bos} if bos else {}
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("qwen"), SPLIT, QWEN, True, None, "<|im_end|>")


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("llama3"), LLAMA3, META, False, META[0], META[4])


@pytest.fixture(scope="module")
def llama2(tmp_path_factory):
    """Trains a sentencepiece model and makes the tokenizer.json of it with transformers."""
    folder, model = tmp_path_factory.mktemp("llama2"), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(w for w in WORDS if w), model_writer=model, vocab_size=800, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", split_digits=True, pad_id=-1,
        allow_whitespace_only_pieces=True, remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    words = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    hf.AutoTokenizer.from_pretrained(folder).save_pretrained(folder / "json")
    return folder


@pytest.mark.parametrize("name", ["qwen", "llama3"])
def test_ids_equal_transformers_on_random_unicode(name, request):
    folder = request.getfixturevalue(name)
    ours, theirs = open_tokenizer(folder), hf.AutoTokenizer.from_pretrained(folder)
    for text in random_texts(N):
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids, text
        assert ours.encode_continued(text) == ours.encode(text)
    assert ours.size == len(theirs)


def test_llama_as_json_equals_sentencepiece_on_random_unicode(llama2):
    pieces, ours = open_tokenizer(llama2), open_tokenizer(llama2 / "json")
    assert (ours.bos, ours.eos, ours.size) == (1, 2, pieces.size) and isinstance(
        pieces, SentencePieceTokenizer
    )
    library = sentencepiece.SentencePieceProcessor(model_file=str(llama2 / "tokenizer.model"))
    theirs = hf.AutoTokenizer.from_pretrained(llama2)
    for text in random_texts(N):
        ids = pieces.encode(text)
        assert ids == library.encode(text) == ours.encode(text), text
        assert ids == theirs(text, add_special_tokens=False).input_ids or text.startswith(" "), text
        assert pieces.encode_continued(text) == ours.encode_continued(text), text
        assert pieces.encode_unprefixed(text) == ours.encode_unprefixed(text), text
        assert pieces.decode(ids) == ours.decode(ids), text


@pytest.mark.parametrize("name", ["qwen", "llama3", "llama2/json"])
def test_text_is_never_control(name, request):
    first, _, rest = name.partition("/")
    tokenizer = open_tokenizer(request.getfixturevalue(first) / rest)
    controls = [*QWEN, *META, "<tool_call>", "<s>", "</s>", "<image>"]
    control_ids = {i for c in controls if (i := tokenizer.control(c)) is not None}
    assert control_ids

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(st.sampled_from(controls) | st.text(st.characters(exclude_categories=["Cs"]), max_size=6))
    )
    def check(parts):
        text = "".join(parts)
        ids = tokenizer.encode(text)
        assert not control_ids & set(ids)
        if "NFC" not in tokenizer.text and "\u2581" not in text:
            assert tokenizer.decode(ids) == text

    check()


def test_what_spells_nothing_is_skipped(qwen):
    tokenizer = open_tokenizer(qwen)
    ids = tokenizer.encode("a dog")
    assert tokenizer.decode([10**6, -1, tokenizer.eos, *ids, tokenizer.control("<tool_call>")]) == "a dog"


@pytest.mark.parametrize("name", ["qwen", "llama3", "llama2/json"])
def test_it_pickles_and_is_saved(name, request, tmp_path):
    first, _, rest = name.partition("/")
    tokenizer = open_tokenizer(request.getfixturevalue(first) / rest)
    for file, data in tokenizer.files().items():
        (tmp_path / file).write_bytes(data)
    again, copied = open_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))
    assert again == copied == tokenizer and again.encode("déjà vu") == tokenizer.encode("déjà vu")


# ------------------------------------------------------------------ qwen.tiktoken


def tiktoken_file(folder: Path) -> tuple[Path, dict[bytes, int]]:
    """Ranks of byte strings as training would leave them: bytes, then joins of what is there."""
    draw = random.Random(1)
    ranks = {bytes([b]): i for i, b in enumerate(draw.sample(range(256), 256))}
    text = " ".join(WORDS).encode()
    while len(ranks) < 900:
        start, n = draw.randrange(len(text) - 9), draw.randint(2, 6)
        piece = text[start : start + n]
        if piece not in ranks and any(piece[:i] in ranks and piece[i:] in ranks for i in range(1, n)):
            parts = plain_merges(piece, ranks)
            if len(parts) == 2:
                ranks[piece] = len(ranks)
    path = folder / "qwen.tiktoken"
    path.write_bytes(b"\n".join(base64.b64encode(p) + b" %d" % r for p, r in ranks.items()))
    return path, ranks


def plain_merges(piece: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Joins the lowest-ranked neighbours until none are left: the slow plain twin."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_tiktoken_files_are_merged_as_the_plain_twin_does(tmp_path):
    import unicodedata

    path, ranks = tiktoken_file(tmp_path)
    ours = open_tokenizer(tmp_path)
    assert (ours.bos, ours.eos, ours.size) == (None, 900, 900 + len(CONTROLS))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated")
    for text in random_texts(2000):
        text = unicodedata.normalize("NFC", text)
        words = [word for word, _ in split.pre_tokenize_str(text)]
        want = [ranks[p] for word in words for p in plain_merges(word.encode(), ranks)]
        assert ours.encode(text) == want, text
        assert ours.decode(want) == text


@pytest.mark.parametrize(
    "data", [b"", b"AA==", b"AA== x", b"!!! 0", b"AA== 0\nAA== 1", b"AA== 0\nAQ== 5", b"AA== 0"]
)
def test_a_bad_tiktoken_file_is_reported(data, tmp_path):
    (tmp_path / "qwen.tiktoken").write_bytes(data)
    with pytest.raises(UserError, match=r"qwen\.tiktoken"):
        open_tiktoken(tmp_path / "qwen.tiktoken")


@pytest.mark.parametrize(
    "data", [b"{}", b"[]", b"not json", b'{"model": {"type": "BPE"}}', b"\xff\xfe", b"[" * 10**5]
)
def test_a_bad_tokenizer_json_is_reported(data, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(UserError, match=r"tokenizer/damaged"):
        open_tokenizer(tmp_path)


def test_no_end_token_is_reported(qwen, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((qwen / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="eos_token"):
        open_tokenizer(tmp_path)


# ------------------------------------------------------------------ chat templates

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}"
    "{{ c }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
TALKS = [
    [("user", "What is this?"), ("assistant", "A red circle.")],
    [
        ("user", "Hi"),
        ("assistant", "5"),
        ("user", "<|im_end|> and <|eot_id|>?"),
        ("assistant", "  no\n\nway "),
    ],
    [("user", "Wie geht's, déjà vu? 12345"), ("assistant", "x"), ("user", "?"), ("assistant", "汉字")],
]


@pytest.mark.parametrize("talk", TALKS, ids=["short", "hostile", "unicode"])
@pytest.mark.parametrize("name, jinja", [("qwen", CHATML), ("llama3", HEADERS)])
def test_templates_equal_apply_chat_template(name, jinja, talk, request):
    folder = request.getfixturevalue(name)
    template = {"qwen": "chatml", "llama3": "llama3"}[name]
    ours, theirs = open_tokenizer(folder), hf.AutoTokenizer.from_pretrained(folder)
    assert default_template(ours) == template
    talk = [(role, text if name == "qwen" else text.strip()) for role, text in talk]
    hostile = any("<|" in text for _, text in talk)
    turns = tuple(Turn(role, text) for role, text in talk)
    sample = Sample(key="k", turns=turns, images=(), template=template, image_fit="pad")
    layout = lay_out(sample, ours, rows_of=FixedRows(4))
    ids = [i for span in layout for i in span.ids]
    messages = [{"role": role, "content": text} for role, text in talk]
    if not hostile:  # theirs reads control tokens out of what a user writes
        assert ids == theirs.apply_chat_template(messages, chat_template=jinja, return_dict=False)
        prompt = lay_out_prompt(
            Sample(key="k", turns=turns[:-1], images=(), template=template, image_fit="pad"),
            ours,
            rows_of=FixedRows(4),
        )
        assert [i for span in prompt for i in span.ids] == theirs.apply_chat_template(
            messages[:-1], chat_template=jinja, add_generation_prompt=True, return_dict=False
        )
    end = response_end(template, ours)
    learned = [list(span.ids) for span in layout if span.supervised]
    assert learned == [[*ours.encode(text), end] for role, text in talk if role == "assistant"]
    assert ids.count(end) == len(talk) + (name == "qwen")


def test_images_stand_before_the_question(qwen):
    ours = open_tokenizer(qwen)
    turns = (Turn("user", "what", images=2), Turn("assistant", "that"))
    images = (Image("a"), Image("b"))
    sample = Sample(key="k", turns=turns, images=images, template="chatml", image_fit="pad")
    kinds = [(span.kind, span.n) for span in lay_out(sample, ours, rows_of=FixedRows(4))]
    assert [n for kind, n in kinds if kind == "image"] == [4, 4]


@pytest.mark.parametrize("name, jinja", [("qwen", CHATML), ("llama3", HEADERS)])
def test_images_between_words_and_a_system_prompt_equal_the_text_split_at_its_markers(name, jinja, request):
    folder = request.getfixturevalue(name)
    ours, theirs = open_tokenizer(folder), hf.AutoTokenizer.from_pretrained(folder)
    turns = (Turn("user", "Before:  after: \nwhat?", 2, (8, 16)), Turn("assistant", "that", supervised=False))
    images = (Image("a"), Image("b"))
    sample = Sample(
        key="k", turns=turns, images=images, template=default_template(ours), system="Answer in Dutch."
    )
    layout = lay_out(sample, ours, rows_of=FixedRows(1))
    ids = [i for span in layout for i in (span.ids or [-1])]
    messages = [
        {"role": "system", "content": "Answer in Dutch."},
        {"role": "user", "content": "Before: <image> after: <image>\nwhat?"},
        {"role": "assistant", "content": "that"},
    ]
    text = theirs.apply_chat_template(messages, chat_template=jinja, tokenize=False)
    chunks = [theirs(chunk, add_special_tokens=False).input_ids for chunk in text.split("<image>")]
    assert ids == [*chunks[0], -1, *chunks[1], -1, *chunks[2]]
    assert [span.image for span in layout if span.image] == list(images)
    assert not any(span.supervised for span in layout)


@pytest.mark.parametrize("template", ["plain", "vicuna_v1"])
def test_templates_without_a_first_token(template, qwen):
    ours = open_tokenizer(qwen)
    turns = (Turn("user", "what", images=1), Turn("assistant", "that"))
    sample = Sample(key="k", turns=turns, images=(Image("a"),), template=template, image_fit="pad")
    layout = lay_out(sample, ours, rows_of=FixedRows(4))
    assert layout[0].role != "bos" and any(span.supervised for span in layout)


@pytest.mark.parametrize("answer", ["a cat.", "a cat. ", "two\n"])
def test_one_id_ends_every_answer_in_plain(answer, tmp_path):
    """Uses a vocabulary with the pieces ".\\n" and " \\n", as those of Qwen and LLaMA-3 do."""
    letters = {c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    merges = [(".", "\u010a"), ("\u0120", "\u010a"), ("\u010a", "\u010a")]
    vocab = letters | {a + b: len(letters) + i for i, (a, b) in enumerate(merges)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(["<|end|>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    ours = open_tokenizer(tmp_path)
    assert len(ours.encode(".\n")) == 1
    turns = (Turn("user", "a", images=1), Turn("assistant", answer))
    sample = Sample(key="k", turns=turns, images=(Image("a"),), template="plain", image_fit="pad")
    layout = lay_out(sample, ours, rows_of=FixedRows(4))
    learned = [i for span in layout if span.supervised for i in span.ids]
    end = response_end("plain", ours)
    assert learned[-1] == end == letters["\u010a"] and ours.decode(learned) == answer + "\n"
    assert stop_ids("plain", ours, [7, end]) == (7, end, ours.eos)


def test_a_template_that_does_not_fit_is_refused_by_name(qwen, llama2):
    pieces = SentencePieceTokenizer.open(llama2 / "tokenizer.model")
    require_fitting("chatml", open_tokenizer(qwen), "here")
    require_fitting("plain", pieces, "here")
    for template, words in (
        ("chatml", r"chatml.*<\|im_start\|>"),
        ("llama3", "llama3.*begin_of"),
        ("chatlm", "chatml`"),
    ):
        with pytest.raises(UserError, match=words):
            require_fitting(template, pieces, "here")


def test_a_template_whose_tokens_are_missing_is_reported(llama2):
    sample = Sample(key="k", turns=(Turn("user", "x"),), images=(), template="chatml", image_fit="pad")
    with pytest.raises(UserError, match=r"<\|im_start\|>.*plain, vicuna_v1"):
        lay_out(sample, SentencePieceTokenizer.open(llama2 / "tokenizer.model"), rows_of=FixedRows(4))
