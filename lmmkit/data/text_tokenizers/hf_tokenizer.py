"""Converts text to token ids and back, with a `tokenizer.json` of the `tokenizers` library.

The added tokens of the file are control tokens here. A layout inserts them as ids. They are never
recognised in a text, as with sentencepiece.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from lmmkit.data.text_tokenizers.added_tokens import TOKENIZER_CONFIG, Vocabulary, without_gaps
from lmmkit.data.text_tokenizers.offsets import Offsets, offsets_of
from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import (
    MAX_IDS,
    SPACE,
    read_tokenizer_file,
    require_utf8,
)
from lmmkit.errors import UserError
from lmmkit.errors.data import TOKENIZER_CONTROL, TOKENIZER_DAMAGED, TOKENIZER_REGEX
from lmmkit.runs.files import read_json

TOKENIZER_JSON = "tokenizer.json"
MAX_GROWTH = 1000  # factor by which a normalizer may lengthen a text; LLaMA's needs 2


@dataclass(frozen=True, kw_only=True)
class HFTokenizer:
    """Holds a `tokenizer.json`; pickles as its text. The three ways to encode are those of
    `SentencePieceTokenizer`. They differ if the file adds a dummy prefix, as LLaMA's does, and agree in
    byte-level files.
    """

    text: str = field(repr=False)
    bos: int | None
    eos: int

    @classmethod
    def open(cls, path: str | Path) -> HFTokenizer:
        """Returns the tokenizer in the file `path`. Other files in its folder name the begin and end token.

        Raises `UserError` for a file that is missing or damaged, or if no end token is named.
        """
        path = Path(path)
        try:
            text = read_tokenizer_file(path).decode()
            value = json.loads(text)
            if not isinstance(value, dict):
                raise ValueError(f"a JSON {type(value).__name__}")
            if (growth := _growth(value.get("normalizer"))) > MAX_GROWTH:
                raise ValueError(f"a normalizer that makes a text up to {growth} times as long")
            inner = tokenizers.Tokenizer.from_str(text)
            if (size := _ids(inner)) > MAX_IDS:
                raise ValueError(f"ids up to {size - 1}")
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:  # the Rust side raises bare exceptions, and panics
            reason = (str(error) or type(error).__name__)[:200]
            raise UserError(
                TOKENIZER_DAMAGED.at(str(path), got=reason, expected="a tokenizer.json")
            ) from None
        bos, eos = (_named(path.parent, inner, key) for key in ("bos", "eos"))
        if eos is None:
            got = f"no `eos_token` in {TOKENIZER_CONFIG}"
            raise UserError(TOKENIZER_CONTROL.at(str(path), got=got, expected="an end token"))
        return cls(text=json.dumps(_strict(value)), bos=bos, eos=eos)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text on its own. Raises `UserError` for lone surrogates.

        Here the dummy prefix, a space, is added before every text, as sentencepiece does. The library
        would leave it out before a text that begins with a space.
        """
        return self.encode_continued(f" {text}" if self._prefixed and text else text)

    def encode_continued(self, text: str) -> list[int]:
        """Returns the ids of a text that directly follows text or a control token. Raises `UserError` for text that is
        not Unicode, and if a regular expression of the file fails on it."""
        text = require_utf8(text)
        try:
            return self._continued.encode(text, add_special_tokens=False).ids
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic: a regular expression in the file that backtracks too long
            where = f"{TOKENIZER_JSON} on the text {text[:40]!a}"
            raise UserError(TOKENIZER_REGEX.at(where, got=str(error)[:200])) from None

    def encode_unprefixed(self, text: str) -> list[int]:
        """Returns the ids of a text on its own, with the dummy prefix then removed from the first piece."""
        ids = self.encode(text)
        first = self._tokenizer.id_to_token(ids[0]) if ids else None
        if first is None or not self._prefixed or text.startswith((" ", SPACE)):
            return ids
        if first == SPACE:
            return ids[1:]
        rest = self._tokenizer.token_to_id(first.removeprefix(SPACE))
        return self.encode_continued(text) if rest is None else [rest, *ids[1:]]

    def offsets(self, text: str, ids: Sequence[int]) -> Offsets:
        """Returns the characters of a text from which each of its ids is made. `ids` are those of the text in one of
        the three ways to encode it."""
        return offsets_of(ids, (self._with_offsets(text, prefix) for prefix in ("", " ")))

    def _with_offsets(self, text: str, prefix: str) -> tuple[list[int], Offsets]:
        found = self._continued.encode(prefix + text, add_special_tokens=False)
        less = len(prefix)
        return found.ids, [(max(begin - less, 0), max(end - less, 0)) for begin, end in found.offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of these ids. Skips control tokens and ids that the tokenizer does not have."""
        spelt = [int(i) for i in ids if 0 <= int(i) < self.size and int(i) not in self._controls.values()]
        return self._tokenizer.decode(spelt, skip_special_tokens=True)

    def control(self, spelling: str) -> int | None:
        """Returns the id of a control token; None if there is no such token."""
        return self._controls.get(spelling)

    def spelling(self, token: int) -> str:
        """Returns the spelling of a token in the vocabulary."""
        return self._tokenizer.id_to_token(token) or ""  # if there is no such id

    @property
    def size(self) -> int:
        """Returns the bound of the ids: all are below it, control tokens included."""
        return self._size

    @property
    def text_size(self) -> int:
        """Returns the bound of the ids of text."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=False).values(), default=-1)

    @cached_property
    def _size(self) -> int:
        return _ids(self._tokenizer)

    def with_added(self, tokens: Vocabulary) -> HFTokenizer:
        """Returns the tokenizer with more control tokens. Their ids are above its own."""
        value = json.loads(self.text)
        new = [_added(token, word) for token, word in without_gaps(tokens, self.size).items()]
        return replace(
            self, text=json.dumps(value | {"added_tokens": [*value.get("added_tokens", ()), *new]})
        )

    def files(self) -> dict[str, bytes]:
        """Returns the files, by name, from which a folder can be opened again."""
        names = {i: spelling for spelling, i in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        words = {
            f"{key}_token": names[i] for key, i in (("bos", self.bos), ("eos", self.eos)) if i is not None
        }
        return {TOKENIZER_JSON: self.text.encode(), TOKENIZER_CONFIG: json.dumps(words).encode()}

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        return _opened(self.text)

    @cached_property
    def _continued(self) -> tokenizers.Tokenizer:
        return _opened(json.dumps(_unprefixed(json.loads(self.text)))) if self._prefixed else self._tokenizer

    @cached_property
    def _prefixed(self) -> bool:
        value = json.loads(self.text)
        return _unprefixed(value) != value

    @cached_property
    def _controls(self) -> dict[str, int]:
        return {token["content"]: token["id"] for token in json.loads(self.text).get("added_tokens") or ()}

    def __getstate__(self) -> dict[str, object]:
        return {"text": self.text, "bos": self.bos, "eos": self.eos}


def _opened(text: str) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer.from_str(text)
    inner.encode_special_tokens = True  # do not recognise them in a text; split them into pieces
    inner.no_padding()
    inner.no_truncation()
    return inner


def _ids(inner: tokenizers.Tokenizer) -> int:
    return 1 + max(inner.get_vocab(with_added_tokens=True).values(), default=-1)


def _added(token: int, word: str) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token, "content": word, **plain}


def _growth(normal: dict[str, Any] | None) -> int:
    """Returns how many times longer a normalizer may make a text. The factors of its steps multiply."""
    if normal is None:
        return 1
    if normal.get("type") == "Replace":
        return 1 + len(normal["content"])
    return math.prod(_growth(step) for step in normal.get("normalizers") or ())


def _strict(value: dict[str, Any]) -> dict[str, Any]:
    """Marks every added token as special. The library always recognises the others in a user's text."""
    tokens = [token | {"special": True} for token in value.get("added_tokens") or ()]
    return value | {"added_tokens": tokens, "post_processor": None}


def _unprefixed(value: dict[str, Any]) -> dict[str, Any]:
    """Returns the file's content without a dummy prefix."""
    value = copy.deepcopy(value)
    normal = value.get("normalizer") or {}
    steps = normal.get("normalizers", [normal] if normal else [])
    kept = [step for step in steps if step.get("type") != "Prepend"]
    if len(kept) < len(steps):
        value["normalizer"] = {"type": "Sequence", "normalizers": kept}
    split = value.get("pre_tokenizer") or {}
    for step in split.get("pretokenizers", [split] if split else []):
        if step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            step["prepend_scheme"] = "never"
    return value


def _named(folder: Path, inner: tokenizers.Tokenizer, key: str) -> int | None:
    """Returns the id of the begin (bos) or end (eos) token, from the first file that names it."""
    for name in (TOKENIZER_CONFIG, "special_tokens_map.json"):
        if (folder / name).is_file():
            word = read_json(folder / name, hint="Correct or remove the file.").get(f"{key}_token")
            word = word.get("content") if isinstance(word, dict) else word
            if isinstance(word, str):
                return inner.token_to_id(word)
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name, hint="Correct or remove the file.").get(f"{key}_token_id")
            found = found[0] if isinstance(found, list) and found else found
            if type(found) is int:
                return found
    return None
