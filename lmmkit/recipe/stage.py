"""The `data` and `stages` sections: what is read, and what is learned from it for how long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import BeforeValidator

from lmmkit.recipe import field_types as k
from lmmkit.recipe.field_types import Says, section
from lmmkit.recipe.model import ImageFit, TemplateName


@section
class Source:
    """A record file and its folder of images, or shards that hold both, and the template its turns
    are written in. `bad_records`: whether one stops the run, or is passed over with another in its
    place, as long as they are no more than `bad_share` of the rows, or ten.
    """

    kind: Literal["llava", "webdataset"]
    records: k.Text
    images: k.Text | None = None  # for `llava`
    template: TemplateName
    image_fit: ImageFit
    bad_records: Literal["error", "skip"] = "error"
    bad_share: k.Below1 = 0.001


@section
class BatchConfig:
    """`samples` make one optimizer step, over all ranks. `too_long`: what a sample above the
    context does. `tail`: whether the short last batch of an epoch is a step or left out. `group`:
    whether a step's rows are alike: all with or all without pictures, and of like length.
    """

    samples: k.Samples
    too_long: Literal["error", "truncate", "drop"] = "error"
    tail: Literal["keep", "drop"] = "keep"
    group: Literal["none", "modality", "length"] = "none"


@section
class Length:
    """How long a stage is; exactly one of the two is given."""

    epochs: k.Count | None = None  # each source as often as its weight asks
    steps: k.Count | None = None  # optimizer steps


LoraTarget = Literal["q", "k", "v", "out", "gate", "up", "down"]


@section
class Lora:
    """Low-rank updates in place of the full matrices, merged into them as the stage ends and kept
    beside them; `targets` not given = every linear of the blocks.
    """

    r: k.Size
    alpha: k.Positive
    dropout: k.Below1 = 0.0
    targets: (
        Annotated[tuple[LoraTarget, ...], MinLen(1), Says("a list of q, k, v, out, gate, up, down")] | None
    ) = None


@section
class TrainPart:
    """A part that learns; `lr` not given = the stage's."""

    lr: k.Positive | None = None


@section
class TrainText:
    """The decoder learns, whole or through `lora`; `lr` not given = the stage's."""

    lr: k.Positive | None = None
    lora: Lora | None = None


@section
class Train:
    """What learns in a stage; a part that is not named stays as it is."""

    vision: TrainPart | None = None
    connector: TrainPart | None = None
    text: TrainText | None = None
    plugins: TrainPart | None = None

    def parts(self) -> dict[str, TrainPart | TrainText]:
        """The named parts only, by name."""
        named = {name: getattr(self, name) for name in ("vision", "connector", "text", "plugins")}
        return {name: part for name, part in named.items() if part is not None}


@section
class Optim:
    """AdamW and its schedule; the optimizer starts anew with each stage. `adamw8bit` keeps its two
    moments in 8 bits, by bitsandbytes.
    """

    kind: Literal["adamw", "adamw8bit"] = "adamw"
    lr: k.Positive
    weight_decay: k.NotNegative = 0.0
    betas: Annotated[tuple[k.Below1, k.Below1], Says("two numbers from 0 to below 1")] = (
        0.9,
        0.999,
    )
    eps: k.Positive = 1e-8
    clip: k.Positive | Literal["none"] = "none"  # largest norm of all gradients together
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: k.NotNegative = 0.0  # below 1: share of the stage, rounded up; from 1 on: steps


@section
class Weight:
    """What a term counts for: `weight`, or a line `from_` -> `to` over the first `over` of the
    stage and `to` after it. `watch` keeps measuring where the weight is 0.

    In YAML a bare number is `{weight: number}`.
    """

    weight: k.NotNegative | None = None
    from_: k.NotNegative | None = None
    to: k.NotNegative | None = None
    over: k.Share | None = None  # not given with from and to = the whole stage
    watch: k.Flag = False

    def at(self, progress: float) -> float:
        """The weight when `progress` (0..1) of the stage is done."""
        if self.weight is not None:
            return self.weight
        assert self.from_ is not None and self.to is not None, "checked when the recipe was read"
        return self.from_ + (self.to - self.from_) * min(1.0, progress / (self.over or 1.0))

    @property
    def constant_zero(self) -> bool:
        """Whether the term never counts in this stage."""
        return not any((self.weight, self.from_, self.to))


WeightOrNumber = Annotated[
    Weight,
    BeforeValidator(lambda v: {"weight": v} if type(v) in (int, float) else v),
    Says("a number, 0 or more, or {weight, watch}, or {from, to, over, watch}"),
]


@section
class Validate:
    """Every `every` steps and after the last: the losses on `samples` of `data`, and the `tasks`.

    `best`: the figure by which the best weights are kept: "loss", a term, or "task/metric".
    """

    every: k.Count
    data: k.Text
    samples: k.CountOrAll = "all"
    tasks: Annotated[tuple[k.Text, ...], Says("a list of tasks")] = ()
    best: k.Text | None = None


@section
class Stage:
    """One stretch of training; `losses` maps `next_token` and plugin instances to weights."""

    data: Annotated[Mapping[k.Text, k.Positive], MinLen(1), Says("a section of SOURCE: weight above 0")]
    batch: BatchConfig
    length: Length
    train: Train
    optim: Optim
    losses: Annotated[Mapping[k.Text, WeightOrNumber], MinLen(1), Says("a section of TERM: weight")]
    validate: Validate | None = None
    start: k.Text | None = None  # a model folder to start from in place of the stage before
