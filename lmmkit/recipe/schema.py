"""The whole recipe as frozen dataclasses: every key, what it means, its unit and its default.

`model.py` and `stage.py` hold those sections, this file the rest and the whole. pydantic builds
them from plain mappings (`read.py`); what is built directly in Python is not validated. A field
that ends in `_` is the YAML key without it (`from_` is `from`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import MinLen

from lmmkit.recipe import field_types as k
from lmmkit.recipe.field_types import Says, section
from lmmkit.recipe.model import Model, Numerics
from lmmkit.recipe.source_positions import Places
from lmmkit.recipe.stage import Source, Stage


@section
class Task:
    """One task: a folder of task `files`, or a source of `data`. `kind` not given = the task's
    own name. `stage`: whose model answers; not given = the last.
    """

    kind: k.Text | None = None
    data: k.Text | None = None
    files: k.Text | None = None
    stage: k.Text | None = None
    samples: k.CountOrAll = "all"
    max_new_tokens: k.Count = 128


@section
class Evaluate:
    """`controls` repeat each task on a blank image and on another sample's image."""

    tasks: Annotated[Mapping[k.Name, Task], Says("a section of NAME: task")]
    controls: Annotated[tuple[Literal["blank", "swapped"], ...], Says("a list of blank and swapped")] = ()


@section
class Output:
    """How often things are written, in optimizer steps; 0 = never. `keep`: checkpoints kept.
    `async_save`: training goes on while a copy of the state is written.
    `observers`: plugins that are told how a run goes, and compute nothing.
    """

    save_every: k.Natural = 500
    keep: k.Two = 2  # one alone would be lost with a broken write
    async_save: k.Flag = False
    log_every: k.Count = 1
    images_every: k.Natural = 0
    observers: Annotated[tuple[k.Text, ...], Says("a list of files or installed plugins")] = ()


@section
class Speed:
    """What changes time and memory but not the mathematics."""

    tokens: k.Count = 8192  # rows of one micro-batch at most
    share_prefix: k.Flag = True
    attention: Literal["auto", "eager", "sdpa", "xformers"] = "auto"
    # decoder blocks that run again in the backward pass; a number: so many, from the first on
    recompute: Annotated[Literal["none", "all"] | k.Count, Says("none, all, or a number of blocks")] = "none"
    compile: k.Flag = False  # `torch.compile` around the attention of each layer
    deterministic: k.Flag = False  # only kernels that give the same bits each time
    workers: k.Few = 0  # data processes a rank
    threads: k.Few = 0  # CPU threads; 0 = leave as found
    image_cache_mb: k.Natural = 0  # 0 = no cache

    def recomputed(self, depth: int) -> int:
        """How many of `depth` blocks run again."""
        return (
            {"none": 0, "all": depth}[self.recompute]
            if isinstance(self.recompute, str)
            else min(self.recompute, depth)
        )


@section
class Parallel:
    """How the processes that torchrun starts share the work; one process alone does all of it.

    `shard` processes hold one copy of the parameters together, `replicate` is the number of copies.
    What is not a number fills up what there are. `exchange`: when gradients travel. Once a `step` is the
    least traffic, and holds them whole in between; with each `micro_batch` they are cut at once.
    """

    shard: Annotated[Literal["all"] | k.Count, Says("all, or a number of processes")] = "all"
    replicate: Annotated[Literal["auto"] | k.Count, Says("auto, or a number of copies")] = "auto"
    exchange: Literal["step", "micro_batch"] = "step"

    @property
    def copy(self) -> int:
        """The fewest processes that hold one copy."""
        return 1 if self.shard == "all" else self.shard

    @property
    def least(self) -> int:
        """The fewest processes that this asks for."""
        return self.copy * (1 if self.replicate == "auto" else self.replicate)

    def mesh(self, world: int) -> tuple[int, int] | None:
        """(copies, processes a copy) of `world` processes; None if they do not fit."""
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
    """One whole run. `root` and `places` say where it was read; they take no part in equality."""

    format: k.One
    seed: k.Natural
    model: Model
    numerics: Numerics = field(default_factory=Numerics)
    # a plugin's own settings, as written; the plugin checks them
    plugins: Annotated[Mapping[k.Instance, k.Settings], Says("a section of INSTANCE: {its settings}")] = (
        field(default_factory=dict)
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
        """`name` below the root; an absolute name as it is."""
        return Path(self.root) / name

    def where(self, key: str) -> str:
        """'file:line:col KEY' for a problem found after reading, such as a plugin's."""
        return self.places.where(key)


HIDDEN = ("root", "places")  # fields of Recipe that are no keys
