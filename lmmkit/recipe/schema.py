"""The recipe as frozen dataclasses: every key with its meaning, unit and default.

`model.py` and `stage.py` define the sections of those names; this file defines the others and `Recipe`.
pydantic builds the objects from plain mappings (`read.py`). Objects built directly in Python are not
validated. A trailing `_` in a field name is not part of the YAML key (`from_` is `from`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import Discriminator, Tag

from lmmkit.recipe import field_types as k
from lmmkit.recipe.field_types import Says, section
from lmmkit.recipe.model import Model, Numerics, TeacherFrom
from lmmkit.recipe.source_positions import Places
from lmmkit.recipe.stage import Source, Stage


@section
class Task:
    """Describes one task on the source `data`, or of a benchmark with its official files below `files`.

    `kind` not given = the task's name. `stage`: the stage whose model answers; not given = the last. `match`:
    how an answer is compared, for kind `questions`. `split`: of the benchmark; not given = its first.
    """

    kind: k.Text | None = None
    data: k.Text | None = None
    files: k.Text | None = None
    split: k.Text | None = None
    match: Literal["exact", "normalised", "vqa_soft", "choice", "yes_no"] = "exact"
    stage: k.Text | None = None
    samples: k.CountOrAll = "all"
    max_new_tokens: k.Count | None = None


@section
class EmptyImage:
    """Names an image file that is shown in place of every image: one without anything that questions ask for."""

    empty: k.Text


def _control_shape(value: object) -> str:
    return "<empty>" if isinstance(value, Mapping | EmptyImage) else "<name>"


Control = Annotated[
    Annotated[Literal["blank", "black", "swapped", "none"], Tag("<name>")]
    | Annotated[EmptyImage, Tag("<empty>")],
    Discriminator(_control_shape),
    Says("blank, black, swapped, none or {empty: FILE}"),
]


@section
class Evaluate:
    """Lists the evaluation tasks. `controls` repeat each question with another image, or without one."""

    tasks: Annotated[Mapping[k.Name, Task], Says("a section of NAME: task")]
    controls: Annotated[
        tuple[Control, ...], Says("a list of blank, black, swapped, none and {empty: FILE}")
    ] = ()


@section
class Output:
    """Sets how often output is written, in optimizer steps; 0 = never. `keep`: number of checkpoints kept.
    `async_save`: training continues while a copy of the state is written.
    `observers`: plugins that receive the events of a run and compute nothing for it.
    """

    save_every: k.Natural = 500
    keep: k.Two = 2  # with only one, a failed write could lose it
    async_save: k.Flag = False
    log_every: k.Count = 1
    images_every: k.Natural = 0
    observers: Annotated[tuple[k.Text, ...], Says("a list of files or installed plugins")] = ()


@section
class Speed:
    """Sets options that change time and memory but not the mathematics."""

    tokens: k.Count = 8192  # most rows in one micro-batch
    share_prefix: k.Flag = True
    attention: Literal["auto", "eager", "sdpa", "flash", "xformers"] = "auto"
    attention_mb: k.Count = 256  # most MiB of attention weights that terms read by `AttnTo`, in a micro-batch
    # decoder blocks that run again in the backward pass; a number N: the first N blocks
    recompute: Annotated[Literal["none", "all"] | k.Count, Says("none, all, or a number of blocks")] = "none"
    compile: k.Flag = False  # `torch.compile` around the attention of each layer
    deterministic: k.Flag = False  # only kernels with bit-identical results on each run
    workers: k.Few = 0  # data processes per rank
    threads: k.Few = 0  # CPU threads; 0 = do not change
    image_cache_mb: k.Natural = 0  # 0 = no cache

    def recomputed(self, depth: int) -> int:
        """Returns how many of `depth` blocks run again in the backward pass."""
        return (
            {"none": 0, "all": depth}[self.recompute]
            if isinstance(self.recompute, str)
            else min(self.recompute, depth)
        )


@section
class Parallel:
    """Describes how the processes from torchrun share the work. A single process does all of it.

    `shard` processes hold one copy of the parameters together; `replicate` is the number of copies.
    `all` and `auto` use all processes that there are. `exchange`: when gradients are reduced. `step`, once
    per step, has the least traffic and keeps full gradients until then; `micro_batch` shards them after
    each micro-batch.
    """

    shard: Annotated[Literal["all"] | k.Count, Says("all, or a number of processes")] = "all"
    replicate: Annotated[Literal["auto"] | k.Count, Says("auto, or a number of copies")] = "auto"
    exchange: Literal["step", "micro_batch"] = "step"

    @property
    def copy(self) -> int:
        """Returns the smallest number of processes that can hold one copy."""
        return 1 if self.shard == "all" else self.shard

    @property
    def least(self) -> int:
        """Returns the smallest number of processes that these settings need."""
        return self.copy * (1 if self.replicate == "auto" else self.replicate)

    def mesh(self, world: int) -> tuple[int, int] | None:
        """Returns (copies, processes per copy) for `world` processes; None if the settings do not fit."""
        shard, replicate = self.shard, self.replicate
        if world == 1:
            return 1, 1
        if shard == "all":
            replicate = 1 if replicate == "auto" else replicate
            shard = world // replicate
        elif replicate == "auto":
            replicate = world // shard
        return (replicate, shard) if replicate * shard == world else None


@section
class Recipe:
    """Describes one complete run. `root` and `places` record where it was read; equality ignores them."""

    format: k.One
    seed: k.Natural
    model: Model
    numerics: Numerics = field(default_factory=Numerics)
    # the settings of each plugin, unchanged; the plugin checks them
    plugins: Annotated[Mapping[k.Instance, k.Settings], Says("a section of INSTANCE: {its settings}")] = (
        field(default_factory=dict)
    )
    teachers: Annotated[Mapping[k.Instance, TeacherFrom], Says("a section of NAME: teacher")] = field(
        default_factory=dict
    )
    data: Annotated[Mapping[k.Name, Source], MinLen(1), Says("a section of NAME: source")]
    stages: Annotated[Mapping[k.Name, Stage], MinLen(1), Says("a section of NAME: stage")]
    evaluate: Evaluate | None = None
    output: Output = field(default_factory=Output)
    speed: Speed = field(default_factory=Speed)
    parallel: Parallel = field(default_factory=Parallel)
    root: str = field(default=".", compare=False)
    places: Places = field(default_factory=Places, compare=False, repr=False)

    def path(self, name: str) -> Path:
        """Returns the path `name` relative to the root; an absolute path unchanged."""
        return Path(self.root) / name

    def where(self, key: str) -> str:
        """Returns 'file:line:col KEY', for a problem found after reading, for example in a plugin."""
        return self.places.where(key)


HIDDEN = ("root", "places")  # fields of Recipe that are not keys
