"""Reads images that are written as text: `data:` addresses with base64, as the messages of OpenAI contain them.

In a record such an image has a mark as its name: the part of the record that contains it, and a hash of its address.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import re
from typing import TypeGuard

_HEAD = re.compile(r"data:(image/[^;,]*)?((?:;[^;,]*)*),", re.IGNORECASE)
MARK = re.compile(r"data:(messages|images):([0-9a-f]{32})")


def is_address(value: object) -> TypeGuard[str]:
    """Returns whether a value is a `data:` address."""
    return isinstance(value, str) and value[:5].lower() == "data:"


def mark_of(part: str, address: str) -> str:
    """Returns the mark of an address in a part of a record, `messages` or `images`."""
    return f"data:{part}:{_hash(address)}"


def address_bytes(address: str, most: int) -> bytes:
    """Returns the bytes of an image. White space in its base64 is left out.

    Raises `ValueError` with a reason if there are none, or more than `most`.
    """
    head = _HEAD.match(address)
    if head is None:
        raise ValueError("which is no address of an image")
    if not head[2].lower().endswith(";base64"):
        raise ValueError("which is not in base64")
    if (len(address) - head.end()) // 4 * 3 > most:
        raise ValueError(f"of {len(address)} characters, which are more than {most} bytes")
    text = "".join(address[head.end() :].split())
    try:
        found = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:  # a `binascii.Error`, or a text that is not ASCII
        raise ValueError(f"which is no base64: {error}") from error
    if not found:
        raise ValueError("which is empty")
    return found


def address_in(value: object, digest: str) -> str | None:
    """Returns the address with this hash among the texts of a value, of JSON or of a cell; None without one."""
    if is_address(value):
        return value if _hash(value) == digest else None
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    found = (address_in(part, digest) for part in parts)
    return next((each for each in found if each is not None), None)


def address_places(text: bytes) -> dict[str, tuple[int, int]]:
    """Returns where the addresses in a text of JSON are, by hash: the offset and the number of the bytes of its string.

    One that is written in an unusual way, such as `DATA:` or with an escape in `data:`, may be absent.
    """
    found, end = dict[str, tuple[int, int]](), 0
    while (start := text.find(b'"data:', end)) >= 0 and (end := text.find(b'"', start + 1) + 1):
        try:
            value = json.loads(text[start:end])
        except ValueError:  # a quote inside another text
            continue
        if is_address(value):
            found.setdefault(_hash(value), (start, end - start))
    return found


def _hash(address: str) -> str:
    return hashlib.blake2b(address.encode(errors="surrogatepass"), digest_size=16).hexdigest()
