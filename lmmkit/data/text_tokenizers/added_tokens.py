"""Reads which tokens the files of a folder name, and compares them.

Besides its vocabulary, a tokenizer may have tokens that were added later. Public folders list them in
`added_tokens.json`, in `tokenizer_config.json` and in `tokenizer.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmmkit.data.text_tokenizers.sentencepiece_tokenizer import ADDED_TOKENS, MAX_IDS, read_tokenizer_file
from lmmkit.errors import UserError
from lmmkit.errors.data import TOKENIZER_DAMAGED, TOKENIZER_DISAGREE
from lmmkit.runs.files import read_json

TOKENIZER_CONFIG = "tokenizer_config.json"
UNUSED = "<|unused_{}|>"  # names an id between others; the `tokenizers` library cannot leave one out
_SHOWN = 4  # disagreements in a problem

Vocabulary = Mapping[int, str]
"""The spelling of each id."""


def read_added_tokens(folder: Path) -> dict[str, Vocabulary]:
    """Returns the added tokens by the name of the file that lists them, without files that list none.

    Raises `UserError` for a damaged file, and for ids that are no ids.
    """
    found: dict[str, Vocabulary] = {}
    if (path := folder / ADDED_TOKENS).is_file():
        listed = read_json(path, hint="Correct or remove the file.")
        found[ADDED_TOKENS] = _checked(path, [(token, word) for word, token in listed.items()])
    if (path := folder / TOKENIZER_CONFIG).is_file():
        listed = read_json(path, hint="Correct or remove the file.").get("added_tokens_decoder") or {}
        if not isinstance(listed, dict):
            raise _damaged(path, listed)
        words = [(_number(token), _content(word)) for token, word in listed.items()]
        found[TOKENIZER_CONFIG] = _checked(path, words)
    return {name: words for name, words in found.items() if words}


def read_vocabularies(path: Path) -> tuple[Vocabulary, Vocabulary] | None:
    """Returns the vocabulary and the added tokens of a tokenizer.json; None if it has another form."""
    try:
        value = json.loads(read_tokenizer_file(path))
        words = value["model"]["vocab"]
        listed = words.items() if isinstance(words, dict) else ((w[0], i) for i, w in enumerate(words))
        vocabulary = [(token, word) for word, token in listed]
        added = [(token["id"], token["content"]) for token in value.get("added_tokens") or ()]
        return _checked(path, vocabulary), _checked(path, added)
    except (UserError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def merged_vocabulary(folder: Path, files: Mapping[str, Vocabulary]) -> Vocabulary:
    """Returns the tokens of all files. Raises `UserError` if two give an id, or a token, to different ones."""
    ids: dict[int, tuple[str, str]] = {}
    words: dict[str, tuple[int, str]] = {}
    found = []
    for name, vocabulary in files.items():
        for token, word in vocabulary.items():
            other, file = ids.setdefault(token, (word, name))
            if other != word:
                found.append(f"id {token} is {other!r} in {file} and {word!r} in {name}")
                continue
            at, file = words.setdefault(word, (token, name))
            if at != token:
                found.append(f"{word!r} is id {at} in {file} and {token} in {name}")
    if found:
        more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UserError(TOKENIZER_DISAGREE.at(str(folder), got="; ".join(found[:_SHOWN]) + more))
    return {token: word for token, (word, _) in ids.items()}


def without_gaps(added: Vocabulary, size: int) -> dict[int, str]:
    """Returns the tokens from id `size` on, with a name for each id below the last that has none."""
    last = max(added, default=size - 1)
    return {token: added.get(token, UNUSED.format(token)) for token in range(size, last + 1)}


def _number(text: object) -> object:
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) < 12 else text


def _content(token: object) -> object:
    return token.get("content") if isinstance(token, dict) else token


def _checked(path: Path, words: Iterable[tuple[Any, Any]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for token, word in words:
        if type(token) is not int or not 0 <= token < MAX_IDS or not isinstance(word, str):
            raise _damaged(path, (token, word))
        if found.setdefault(token, word) != word:
            raise _damaged(path, f"{found[token]} and {word} for id {token}")
    return found


def _damaged(path: Path, got: object) -> UserError:
    expected = "one token for each id of an added token"
    return UserError(TOKENIZER_DAMAGED.at(str(path), got=repr(got)[:200], expected=expected))
