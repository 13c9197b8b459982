"""Converts `qwen.tiktoken`, the vocabulary of Qwen-7B as first published, to a `tokenizer.json`.

The file lists byte strings by rank. Merging always joins the pair of the lowest rank. The merge rule
of a string is the pair that its bytes become when only lower ranks may be joined.
"""

from __future__ import annotations

import base64
import binascii
import json
from itertools import pairwise
from pathlib import Path

from lmmkit.data.text_tokenizers.hf_tokenizer import HFTokenizer
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import read_tokenizer_file
from lmmkit.errors import UserError
from lmmkit.errors.data import TIKTOKEN

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
MAX_PIECE = 512  # bytes; the published file's longest has 128


def open_tiktoken(path: Path) -> HFTokenizer:
    """Returns the tokenizer of a `.tiktoken` file. Raises `UserError` for the first bad line."""
    ranks = _ranks(path)
    letters = _letters()

    def spelt(piece: bytes) -> str:
        return "".join(letters[byte] for byte in piece)

    merges = [parts for piece, rank in ranks.items() if len(parts := _parts(piece, ranks, rank)) == 2]
    first = len(ranks)
    added = [
        {"id": first + i, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i, word in enumerate(CONTROLS)
    ]  # fmt: skip
    level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    value = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", **level}]},
        "post_processor": None, "decoder": {"type": "ByteLevel", **level},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {spelt(piece): rank for piece, rank in ranks.items()},
            "merges": [[spelt(left), spelt(right)] for left, right in merges],
        },
    }  # fmt: skip
    return HFTokenizer(text=json.dumps(value), bos=None, eos=first)


def _ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_tokenizer_file(path).splitlines(), start=1):
        try:
            word, rank = line.split()
            piece = base64.b64decode(word, validate=True)
            if int(rank) != len(ranks) or not 0 < len(piece) <= MAX_PIECE or piece in ranks:
                raise ValueError
        except (ValueError, binascii.Error):
            expected = "base64 and the next rank"
            raise UserError(TIKTOKEN.at(f"{path}:{number}", got=repr(line[:60]), expected=expected)) from None
        ranks[piece] = len(ranks)
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        got = f"no piece for {len(missing)} of the 256 bytes"
        raise UserError(TIKTOKEN.at(str(path), got=got, expected="a piece for every byte"))
    return ranks


def _parts(piece: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """Returns the pieces that the bytes become when only pieces of a rank under `below` may be joined."""
    parts = [bytes([byte]) for byte in piece]
    while len(parts) > 2:
        joined = [ranks.get(a + b, below) for a, b in pairwise(parts)]
        best = min(joined)
        if best >= below:
            break
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _letters() -> list[str]:
    """Returns the letter for each byte in byte-level vocabularies: the byte itself if it is printable."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in prints else next(spare)) for byte in range(256)]
