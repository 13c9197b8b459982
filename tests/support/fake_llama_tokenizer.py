"""Writes a sentencepiece model in place of LLaMA's: as many pieces, the same kind, and the
pieces that the tests' sentences need at LLaMA's ids. Every other id is a character that no test writes.
"""

from __future__ import annotations

import functools
import string
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from sentencepiece import sentencepiece_model_pb2 as pb

SIZE = 32_000
SPACE = "\u2581"
FIRST_MERGE = 259  # merges come by rank: the lower the id, the earlier the merge
FIRST_CHAR = 29_871

# "_" is the space mark. Among them all steps that lead to the words the tests spell.
MERGES = {
    "__": 259, "_t": 260, "in": 262, "_a": 263, "en": 264, "on": 265, "_th": 266, "_s": 269,
    "at": 271, "or": 272, "an": 273, "_c": 274, "is": 275, "it": 277, "_the": 278, "_m": 286,
    "_o": 288, "ER": 1001, "_U": 501, "_on": 373, "_mat": 1775, "_US": 3148, "US": 3308,
    "_cat": 6635, "USER": 11889, "SS": 1799, "IST": 9047, "ST": 1254, "ANT": 13566, "AN": 2190,
    "_A": 319, "_i": 474, "_is": 338, "____": 268,
}  # fmt: skip
CHARS = {SPACE: 29871, "a": 29874, ":": 29901, "5": 29945}


@functools.cache
def llama_like() -> bytes:
    """Returns the serialized model."""
    pieces = {i: piece.replace("_", SPACE) for piece, i in MERGES.items()}
    pieces |= {i: char for char, i in CHARS.items()}
    free = (i for i in range(FIRST_CHAR, SIZE) if i not in pieces)
    chars = string.ascii_letters + string.digits + string.punctuation
    pieces |= {next(free): char for char in chars if char not in CHARS}

    model = pb.ModelProto()
    normal, unknown, control, byte = 1, 2, 3, 6
    for piece, kind in ("<unk>", unknown), ("<s>", control), ("</s>", control):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for value in range(256):
        model.pieces.add(piece=f"<0x{value:02X}>", score=0.0, type=byte)
    for i in range(FIRST_MERGE, SIZE):
        piece = pieces.get(i, chr(0xF0000 + i))
        model.pieces.add(piece=piece, score=float(FIRST_MERGE - i), type=normal)
    model.trainer_spec.model_type = pb.TrainerSpec.BPE
    model.trainer_spec.vocab_size = SIZE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


@functools.cache
def processor(model: bytes, *, dummy_prefix: bool = True) -> SentencePieceProcessor:
    """Returns the bare sentencepiece processor of a model: the twin that `Tokenizer` is compared with."""
    parsed = pb.ModelProto.FromString(model)
    parsed.normalizer_spec.add_dummy_prefix = dummy_prefix
    found = SentencePieceProcessor()
    found.LoadFromSerializedProto(parsed.SerializeToString())
    return found


def write_llama_like(folder: Path) -> Path:
    """Writes the model to `folder`; gives the file's path."""
    path = folder / "tokenizer.model"
    path.write_bytes(llama_like())
    return path
