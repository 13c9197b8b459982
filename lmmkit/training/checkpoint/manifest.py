"""What a checkpoint folder must hold, and the proof that it holds it.

`manifest.json` is written last, so a folder with one is complete; it lists size and crc32 of
every other file, so a folder that agrees with it is undamaged. It signs itself as well: its own
crc32 stands in it, and its bytes must be exactly those we would write. safetensors has no
checksum of its own.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from lmmkit.errors import Problem, UserError
from lmmkit.errors.training import DAMAGED, OTHER_MODEL, SCHEMA

WHOLE = 1  # the schema of a manifest whose tensors are whole
CUT = 2  # the schema of one whose tensors are cut over several files, as listed in `parts`
NAME = "manifest.json"
CHUNK = 4 << 20  # bytes read at a time for a crc32
PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*", re.ASCII)

Layout = dict[str, list]  # key -> [dtype, [sizes]]


def encode(files: Mapping[str, list[int]], tensors: Layout, parts: Mapping[str, list]) -> bytes:
    """The manifest of `files` (size and crc32) as the bytes to write.

    `parts`: [file, first row, rows] of every stretch of a tensor that is cut.
    """
    body = {
        "schema": CUT if parts else WHOLE,
        "versions": {name: _version(name) for name in ("lmmkit", "torch", "safetensors")},
        "files": dict(files),
        "tensors": tensors,
    }
    body |= {"parts": dict(parts)} if parts else {}
    return _encode(body | {"crc32": zlib.crc32(_encode(body))})


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, itself checked. Raises `UserError` if it cannot be trusted."""
    path = folder / NAME
    try:
        raw = path.read_bytes()
        body = json.loads(raw)
        signed = body.pop("crc32")
        intact = signed == zlib.crc32(_encode(body)) and raw == _encode(body | {"crc32": signed})
    except FileNotFoundError:
        raise UserError(DAMAGED.at(str(path), got="no manifest: the save did not finish")) from None
    except OSError as error:
        raise UserError(DAMAGED.at(str(path), got=error.strerror or str(error))) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise UserError(DAMAGED.at(str(path), got="a manifest with changed bytes"))
    if body.get("schema") not in (WHOLE, CUT):
        got, versions = f"schema {body.get('schema')}", body.get("versions")
        raise UserError(SCHEMA.at(str(path), got=got, known=f"{WHOLE} or {CUT}", versions=versions))
    if not _is_shaped(body):
        raise UserError(DAMAGED.at(str(path), got="a manifest that lmmkit does not write"))
    return body


def verify(folder: Path, *, contents: bool = True, share: tuple[int, int] = (0, 1)) -> tuple[Problem, ...]:
    """Everything wrong with a checkpoint; () for a sound one.

    Without `contents` only names and sizes are compared, which reads no tensor. `share` (rank, world):
    read this rank's share of the files alone, so that all ranks together read each once.
    """
    try:
        files = read(folder)["files"]
        present = {entry.name for entry in folder.iterdir()}
    except UserError as error:
        return error.problems
    except OSError as error:
        return (DAMAGED.at(str(folder), got=error.strerror or str(error)),)
    # Dot files are the file system's and the desktop's, never ours.
    extra = sorted(n for n in present - set(files) - {NAME} if not n.startswith("."))
    found = [DAMAGED.at(str(folder / name), got="a file the manifest does not list") for name in extra]
    for number, (name, (size, crc)) in enumerate(sorted(files.items())):
        mine = contents and number % share[1] == share[0]
        got = _fault(folder / name, name, size, crc if mine else None)
        if got is not None:
            found.append(DAMAGED.at(str(folder / name), got=got))
    return tuple(found)


def mismatches(folder: Path, expected: Mapping[str, Tensor]) -> tuple[Problem, ...]:
    """Returns how the tensors of a checkpoint differ in key, dtype or shape from those of a model.

    Read from the manifest alone, before any tensor is loaded. Raises `UserError` if it is damaged.
    """
    have: Layout = read(folder)["tensors"]
    of_model = layout(expected)
    return tuple(
        OTHER_MODEL.at(
            f"{folder}: tensor `{key}`", got=_shown(have.get(key)), tensor=_shown(of_model.get(key))
        )
        for key in sorted(have.keys() | of_model.keys())
        if have.get(key) != of_model.get(key)
    )


def layout(tensors: Mapping[str, Tensor]) -> Layout:
    """{key: [dtype, sizes]}, such as ["float32", [3, 4]]."""
    return {
        key: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for key, tensor in tensors.items()
    }


def crc32(path: Path) -> int:
    """crc32 of a file's bytes."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _is_shaped(body: Mapping[str, Any]) -> bool:
    """Whether the parts have the types we write: a crc32 keeps out accidents, not intent."""
    files, tensors, parts = body.get("files"), body.get("tensors"), body.get("parts", {})
    return (
        isinstance(files, dict)
        and all(isinstance(v, list) and [type(n) for n in v] == [int, int] for v in files.values())
        and isinstance(tensors, dict)
        and all(isinstance(v, list) and len(v) == 2 for v in tensors.values())
        and isinstance(parts, dict)
        and all(key in tensors and _tiles(files, tensors[key][1], parts[key]) for key in parts)
    )


def _tiles(files: Mapping[str, Any], shape: Any, pieces: Any) -> bool:
    """Whether stretches of rows are, in order and without a gap, all rows of a tensor."""
    at = 0
    for piece in pieces if isinstance(pieces, list) else ():
        if not isinstance(piece, list) or [type(x) for x in piece] != [str, int, int]:
            return False
        file, first, n = piece
        if file not in files or first != at or n < 1:
            return False
        at += n
    return isinstance(shape, list) and shape[:1] == [at]


def _fault(path: Path, name: str, size: int, crc: int | None) -> str | None:
    """Returns what is wrong with a file, None if nothing is. A manifest comes from outside: its names must not
    lead out of the folder."""
    if not PLAIN_NAME.fullmatch(name) or path.is_symlink():
        return "a link, or a name that could lead out of the folder"
    try:
        if not path.is_file():
            return "no such file"
        if (got := path.stat().st_size) != size:
            return f"{got} bytes, where {size} were written"
        if crc is not None and crc32(path) != crc:
            return "changed bytes (crc32 differs)"
    except OSError as error:
        return error.strerror or str(error)
    return None


def _shown(entry: list | None) -> str:
    return "no tensor" if entry is None else f"{entry[0]} {entry[1]}"


def _encode(body: Mapping[str, Any]) -> bytes:
    return (json.dumps(body, sort_keys=True, indent=1) + "\n").encode()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
