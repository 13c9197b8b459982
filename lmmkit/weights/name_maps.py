"""Maps public tensor names to lmmkit's names, in both directions.

A table pairs lmmkit's names with public ones; `{n}` is the layer number. `qkv.weight[q]` names matrix rows
in a fused matrix; without brackets the tensors are equal. `class_token[0]` is its only row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmmkit.errors import raise_all
from lmmkit.errors.weights import DTYPE, EXTRA, MISSING, SHAPE
from lmmkit.model.layers import FusedLinear
from lmmkit.progress import weighed
from lmmkit.weights.model_folder import unique_tensors
from lmmkit.weights.tensor_reader import Stored

Table = tuple[tuple[str, str], ...]
_SHOWN = 12  # names listed for each kind of problem


class MappedSlice(NamedTuple):
    """Locates a public tensor in lmmkit's: the tensor name and the matrix rows (None: all)."""

    name: str
    rows: slice | int | None

    def of(self, own: Mapping[str, Tensor]) -> Tensor:
        """Returns a tensor view of this slice."""
        return own[self.name] if self.rows is None else own[self.name][self.rows]


def map_names(module: nn.Module, table: Table) -> dict[str, MappedSlice]:
    """Returns the slice for each public name. The slices cover every tensor of the module exactly once."""
    own = unique_tensors(module)
    fused = {name: part.slices for name, part in module.named_modules() if isinstance(part, FusedLinear)}
    depth = 1 + max((int(n.split(".")[1]) for n in own if n.startswith("blocks.")), default=-1)
    found: dict[str, MappedSlice] = {}
    for ours, theirs in table:
        for n in range(depth) if "{n}" in ours else (0,):
            name, _, part = ours.replace("{n}", str(n)).rstrip("]").partition("[")
            if name in own and own[name].numel():
                found[theirs.replace("{n}", str(n))] = MappedSlice(name, _rows(fused, name, part))
    covered = dict.fromkeys(own, 0)
    for place in found.values():
        covered[place.name] += place.of(own).numel()
    wrong = [name for name, count in covered.items() if count != own[name].numel()]
    assert not wrong, f"the table does not cover {wrong}"
    return found


def _rows(fused: Mapping[str, Mapping[str, slice]], name: str, part: str) -> slice | int | None:
    if not part:
        return None
    return int(part) if part.isdigit() else fused[name.rpartition(".")[0]][part]


def fill_public(
    module: nn.Module, table: Table, stored: Mapping[str, Stored], *, prefix: str, spare: str, fix: str
) -> None:
    """Copies public tensors into the module, one at a time.

    Args:
        module: the module to fill; its values are overwritten.
        table: public names without `prefix`.
        stored: the tensors of the folder.
        prefix: the prefix of this part's public names in `stored`.
        spare: pattern of public names that `stored` may contain and the module does not have.
        fix: the end of the hint if tensors do not fit: an alternative to fetching the folder again.

    Raises:
        UserError: in the cases of `check_public`.
    """
    check_public(module, table, stored, prefix=prefix, spare=spare, fix=fix)
    own = unique_tensors(module)
    with torch.no_grad():
        places = map_names(module, table)
        title = f"loading {prefix.rstrip('.')}"
        for name in weighed(title, places, lambda name: places[name].of(own).nbytes):
            places[name].of(own).copy_(stored[prefix + name].read())


def check_public(
    module: nn.Module, table: Table, stored: Mapping[str, Stored], *, prefix: str, spare: str, fix: str
) -> None:
    """Compares names, shapes and types, from the headers only. The module may be on meta.

    Raises:
        UserError: with all tensors that are missing, extra, or of a wrong shape or type, and their counts.
    """
    own, expected = unique_tensors(module), map_names(module, table)
    file = str(next(iter(stored.values())).file.parent) if stored else "the folder"
    here = {name.removeprefix(prefix): s for name, s in stored.items() if name.startswith(prefix)}
    both = [name for name in expected if name in here]
    shapes = {name: tuple(expected[name].of(own).shape) for name in both}
    misshapen = [
        f"{name} {list(here[name].shape)} for {list(shapes[name])}"
        for name in both
        if here[name].shape != shapes[name]
    ]
    typed = [f"{name} {here[name].dtype}" for name in both if not _is_float(here[name].dtype)]
    found = (
        (MISSING, "missing", [name for name in expected if name not in here]),
        (EXTRA, "extra", [n for n in here if n not in expected and not re.search(spare, n)]),
        (SHAPE, "of another shape", misshapen),
        (DTYPE, "of another type", typed),
    )
    raise_all(
        code.at(f"{file}: {prefix}*", got=f"{len(names)} {what}: {_some(names)}", fix=fix)
        for code, what, names in found
        if names
    )


def public(module: nn.Module, table: Table, *, prefix: str) -> dict[str, Tensor]:
    """Returns the module's tensors under public names."""
    own = unique_tensors(module)
    return {prefix + name: place.of(own) for name, place in map_names(module, table).items()}


def _is_float(dtype: torch.dtype | str) -> bool:
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
