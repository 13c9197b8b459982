"""Trains the tokenizer of the data set: a small sentencepiece model with LLaMA's layout of ids."""

from __future__ import annotations

import io
from collections.abc import Iterable

import sentencepiece

VOCABULARY = 640
# Texts that training puts around the data. Without them their words would be split into letters.
FRAME = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.",
    "USER: ASSISTANT:",
    "Re-order the sentence to represent the information of the image:",
)


def train_tokenizer(texts: Iterable[str]) -> bytes:
    """Returns the bytes of a `tokenizer.model`: pieces 0 <unk>, 1 <s>, 2 </s>, 256 bytes, then BPE.

    Training uses one thread and reads from memory, so that equal texts give equal bytes. A model
    trained from files stores their paths.
    """
    lines = [text for text in texts if text]
    # Words of FRAME must be more frequent than rare letter pairs, for any number of captions.
    lines += FRAME * (1 + len(lines) // 200)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        input_sentence_size=0,
        shuffle_input_sentence=False,
        minloglevel=2,
    )
    return model.getvalue()
