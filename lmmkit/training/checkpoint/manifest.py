"""The manifest of a checkpoint folder: the list of its files, with checksums.

`manifest.json` is written last, so a folder with a manifest is complete. It lists the size and crc32 of every
other file, because safetensors has no checksum; a folder that matches is undamaged. It also contains a crc32
of itself, and its bytes must be exactly those that lmmkit writes.

It also lists the files of the stage's frozen weights (`frozen_weights.py`).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from torch import Tensor

from lmmkit.errors import Problem, UserError
from lmmkit.errors.training import DAMAGED, OTHER_MODEL, SCHEMA
from lmmkit.progress import moving, working_bytes
from lmmkit.runs.files import file_crc32

_FORMAT = 1
FILE_NAME = "manifest.json"
PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*", re.ASCII)
FROZEN = re.compile(r"frozen-\d{8}-[0-9a-f]{8}", re.ASCII)
COPIES = ("a", "b")

TensorLayout = dict[str, list]  # key -> [dtype, [sizes]]


class Frozen(TypedDict):
    """Lists the files of a stage's frozen weights (size and crc32), the names of these tensors, and the
    pieces of those that are cut (`parts`)."""

    folder: str
    files: dict[str, list[int]]
    tensors: list[str]
    parts: dict[str, list]


class Findings(NamedTuple):
    """Describes the damage to a checkpoint: `problems` make it unusable; `spoiled` are damaged copies of
    files whose other copy is sound, with the reason. `frozen`: the folder of these files."""

    problems: tuple[Problem, ...]
    spoiled: dict[str, str]
    frozen: str | None = None


def encode(
    files: Mapping[str, list[int]],
    tensors: TensorLayout,
    parts: Mapping[str, list],
    frozen: Frozen | None = None,
) -> bytes:
    """Returns the manifest of `files` (size and crc32) as the bytes to write.

    `parts`: [file, first matrix row, number of matrix rows] for every piece of a tensor that is cut.
    """
    body = {
        "schema": _FORMAT,
        "versions": {name: _version(name) for name in ("lmmkit", "torch", "safetensors")},
        "files": dict(files),
        "tensors": tensors,
    }
    body |= {"parts": dict(parts)} if parts else {}
    body |= {"frozen": frozen} if frozen is not None else {}
    return _encode(body | {"crc32": zlib.crc32(_encode(body))})


def read(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a checkpoint, verified. Raises `UserError` if it is missing or invalid."""
    path = folder / FILE_NAME
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
    if body.get("schema") != _FORMAT:
        got, versions = f"schema {body.get('schema')}", body.get("versions")
        raise UserError(SCHEMA.at(str(path), got=got, known=_FORMAT, versions=versions))
    if not _is_shaped(body):
        raise UserError(DAMAGED.at(str(path), got="a manifest that lmmkit does not write"))
    return body


def verify(folder: Path, *, contents: bool = True) -> tuple[Problem, ...]:
    """Returns everything that makes a checkpoint unusable; () for a sound one. Without `contents` only names
    and sizes are compared, and no tensor is read."""
    return examine(folder, contents=contents).problems


def examine(
    folder: Path,
    *,
    contents: bool = True,
    every_copy: bool = False,
    share: tuple[int, int] = (0, 1),
    crc_of: Callable[[Path], int] | None = None,
) -> Findings:
    """Returns what is wrong with a checkpoint, and with the copies of its frozen weights.

    A second copy is read if the first is damaged, or with `every_copy`. `share` (rank, world): read only this
    rank's share of the files, so that all ranks together read each once. `crc_of`: used instead of `file_crc32`.
    """
    try:
        body = read(folder)
        present = {entry.name for entry in folder.iterdir()}
    except UserError as error:
        return Findings(error.problems, {})
    except OSError as error:
        return Findings((DAMAGED.at(str(folder), got=error.strerror or str(error)),), {})
    # The file system or the desktop creates dot files; lmmkit does not.
    extra = sorted(n for n in present - set(body["files"]) - {FILE_NAME} if not n.startswith("."))
    problems = [DAMAGED.at(str(folder / name), got="a file the manifest does not list") for name in extra]
    entries = [([f"{folder.name}/{name}"], *listed) for name, listed in sorted(body["files"].items())]
    if (frozen := body.get("frozen")) is not None:
        entries += [(copies(frozen, name), *listed) for name, listed in sorted(frozen["files"].items())]
    spoiled: dict[str, str] = {}
    ends = list(accumulate((size for _, size, _ in entries), initial=0))
    with working_bytes(f"reading {folder.name}", ends[-1]) as move:
        for number, (names, size, crc) in enumerate(entries):
            mine = contents and number % share[1] == share[0]
            with moving(move, ends[number], ends[number + 1]):
                faults = _faults(
                    folder.parent, names, size, crc if mine else None, every_copy, crc_of or file_crc32
                )
            if len(faults) < len(names):
                spoiled |= faults
            else:
                problems += [DAMAGED.at(str(folder.parent / name), got=got) for name, got in faults.items()]
    return Findings(tuple(problems), spoiled, frozen["folder"] if frozen is not None else None)


def copies(frozen: Frozen, name: str) -> list[str]:
    """Returns the paths of both copies of a file of frozen weights, relative to the checkpoints folder."""
    return [f"{frozen['folder']}/{copy}-{name}" for copy in COPIES]


def mismatches(folder: Path, expected: Mapping[str, Tensor]) -> tuple[Problem, ...]:
    """Returns how the tensors of a checkpoint differ in key, dtype or shape from those of a model.

    Reads only the manifest, before any tensor is loaded. Raises `UserError` if it is damaged.
    """
    have: TensorLayout = read(folder)["tensors"]
    of_model = layout(expected)
    return tuple(
        OTHER_MODEL.at(
            f"{folder}: tensor `{key}`", got=_shown(have.get(key)), tensor=_shown(of_model.get(key))
        )
        for key in sorted(have.keys() | of_model.keys())
        if have.get(key) != of_model.get(key)
    )


def layout(tensors: Mapping[str, Tensor]) -> TensorLayout:
    """Returns {key: [dtype, sizes]}, such as ["float32", [3, 4]]."""
    return {
        key: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for key, tensor in tensors.items()
    }


def _is_shaped(body: Mapping[str, Any]) -> bool:
    """Returns whether the fields have the types that lmmkit writes: a crc32 detects accidents, not intent."""
    tensors, frozen = body.get("tensors"), body.get("frozen")
    return (
        isinstance(tensors, dict)
        and all(isinstance(v, list) and len(v) == 2 for v in tensors.values())
        and _lists(body.get("files"), body.get("parts", {}), tensors)
        and (frozen is None or _is_frozen(frozen, tensors))
    )


def _is_frozen(frozen: Any, tensors: TensorLayout) -> bool:
    return (
        isinstance(frozen, dict)
        and frozen.keys() == Frozen.__annotations__.keys()
        and isinstance(frozen["folder"], str)
        and FROZEN.fullmatch(frozen["folder"]) is not None
        and isinstance(frozen["tensors"], list)
        and _lists(frozen["files"], frozen["parts"], tensors)
    )


def _lists(files: Any, parts: Any, tensors: TensorLayout) -> bool:
    """Returns whether `files` and `parts` have the types we write. No name may lead out of the folder."""
    return (
        isinstance(files, dict)
        and all(PLAIN_NAME.fullmatch(name) for name in files)
        and all(isinstance(v, list) and [type(n) for n in v] == [int, int] for v in files.values())
        and isinstance(parts, dict)
        and all(key in tensors and _tiles(files, tensors[key][1], parts[key]) for key in parts)
    )


def _tiles(files: Mapping[str, Any], shape: Any, pieces: Any) -> bool:
    """Returns whether the pieces cover all matrix rows of a tensor, in order and without a gap."""
    at = 0
    for piece in pieces if isinstance(pieces, list) else ():
        if not isinstance(piece, list) or [type(x) for x in piece] != [str, int, int]:
            return False
        file, first, n = piece
        if file not in files or first != at or n < 1:
            return False
        at += n
    return isinstance(shape, list) and shape[:1] == [at]


def _faults(
    folder: Path, names: list[str], size: int, crc: int | None, every_copy: bool, crc_of: Callable[[Path], int]
) -> dict[str, str]:  # fmt: skip
    """Returns what is wrong with the copies of a file, by name. Bytes are read of the first sound copy, or of all;
    of none without a `crc`."""
    faults: dict[str, str] = {}
    for before, name in enumerate(names):
        expected = crc if every_copy or len(faults) == before else None
        if (got := _fault(folder / name, size, expected, crc_of)) is not None:
            faults[name] = got
    return faults


def _fault(path: Path, size: int, crc: int | None, crc_of: Callable[[Path], int]) -> str | None:
    """Returns what is wrong with a file, else None. Refuses links: they may lead out of the folder."""
    if path.is_symlink() or path.parent.is_symlink():
        return "a link"
    try:
        if not path.is_file():
            return "no such file"
        if (got := path.stat().st_size) != size:
            return f"{got} bytes, where {size} were written"
        if crc is not None and crc_of(path) != crc:
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
