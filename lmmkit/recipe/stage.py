"""The `data` and `stages` sections: sources, and how each stage trains on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import BeforeValidator

from lmmkit.recipe import field_types as k
from lmmkit.recipe.field_types import Says, section
from lmmkit.recipe.model import Fit, TemplateName


@section
class Columns:
    """Maps the columns of a source of kind `messages`: the name of each in its files. Not given: a usual name."""

    messages: k.Text | None = None  # `messages` or `conversations`
    images: k.Text | None = None  # `images` or `image`
    system: k.Text | None = None
    id: k.Text | None = None


@section
class Source:
    """Describes a data source: a record file and its folder of images, or shards that contain both, and the
    chat template for its turns. `columns`: the names of columns, for `messages`. `bad_records`: `error` stops the
    run at a bad record. `skip` replaces it by another record, for at most `bad_share` of the records, or ten.
    """

    kind: Literal["llava", "messages", "webdataset", "coco", "vqa"]
    records: k.Text
    images: k.Text | None = None  # not for `webdataset`
    template: TemplateName
    image_fit: Fit
    bad_records: Literal["error", "skip"] = "error"
    bad_share: k.Below1 = 0.001
    columns: Columns = field(default_factory=Columns, repr=False)
    annotations: k.Text | None = field(
        default=None, repr=False
    )  # for `vqa`: the answers to the questions in `records`

    @property
    def official(self) -> str | None:
        """Returns the kind if its files are official ones, which join two lists."""
        return self.kind if self.kind in ("coco", "vqa") else None

    def mapped(self) -> dict[str, str] | None:
        """Returns the columns that have a name in the recipe; None if the kind is not `messages`."""
        return {k: v for k, v in vars(self.columns).items() if v} if self.kind == "messages" else None


@section
class BatchConfig:
    """Describes the batch: `samples` per optimizer step, over all ranks. `too_long`: the treatment of samples
    longer than the context. `tail`: keep or drop the short last batch of an epoch. `group`: put similar
    samples into a step: all with or all without images (`modality`), or also of similar length (`length`).
    """

    samples: k.Samples
    too_long: Literal["error", "truncate", "drop"] = "error"
    tail: Literal["keep", "drop"] = "keep"
    group: Literal["none", "modality", "length"] = "none"


@section
class Length:
    """Sets the length of a stage. Exactly one of the two is given."""

    epochs: k.Count | None = None  # each source as often as its weight sets
    steps: k.Count | None = None  # optimizer steps


LoraTarget = Literal["q", "k", "v", "out", "gate", "up", "down"]


@section
class Lora:
    """Trains low-rank updates in place of the full matrices. At the end of the stage they are merged into the
    matrices and also saved separately. `targets` not given = every linear in the blocks.
    """

    r: k.Size
    alpha: k.Positive
    dropout: k.Below1 = 0.0
    targets: (
        Annotated[tuple[LoraTarget, ...], MinLen(1), Says("a list of q, k, v, out, gate, up, down")] | None
    ) = None


@section
class TrainPart:
    """Makes a part trainable; `lr` not given = the stage's."""

    lr: k.Positive | None = None


@section
class TrainText:
    """Makes the decoder trainable, fully or through `lora`; `lr` not given = the stage's."""

    lr: k.Positive | None = None
    lora: Lora | None = None


@section
class Train:
    """Names the trainable parts of a stage; the other parts are frozen."""

    vision: TrainPart | None = None
    connector: TrainPart | None = None
    text: TrainText | None = None
    plugins: TrainPart | None = None

    def parts(self) -> dict[str, TrainPart | TrainText]:
        """Returns the trainable parts, by name."""
        named = {name: getattr(self, name) for name in ("vision", "connector", "text", "plugins")}
        return {name: part for name, part in named.items() if part is not None}


@section
class Optim:
    """Sets AdamW and its schedule. Each stage starts with a new optimizer. `adamw8bit` keeps the two moments
    in 8 bits, with bitsandbytes.
    """

    kind: Literal["adamw", "adamw8bit"] = "adamw"
    lr: k.Positive
    weight_decay: k.NotNegative = 0.0
    betas: Annotated[tuple[k.Below1, k.Below1], Says("two numbers from 0 to below 1")] = (
        0.9,
        0.999,
    )
    eps: k.Positive = 1e-8
    clip: k.Positive | Literal["none"] = "none"  # largest norm over all gradients together
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: k.NotNegative = 0.0  # below 1: share of the stage, rounded up; from 1 on: steps


@section
class Weight:
    """Sets the weight of a term: `weight`, or a linear ramp from `from_` to `to` over the share `over` of the
    stage, then `to`. `watch` keeps measuring the term when its weight is 0. `by`, of `next_token` only, names plugins
    that weight its rows; `per` says by what the sum of the weighted losses is divided.

    In YAML a bare number is `{weight: number}`.
    """

    weight: k.NotNegative | None = None
    from_: k.NotNegative | None = None
    to: k.NotNegative | None = None
    over: k.Share | None = None  # not given with from and to = the complete stage
    watch: k.Flag = False
    by: Annotated[tuple[k.Text, ...], MinLen(1), Says("a list of plugins")] | None = field(
        default=None, repr=False
    )
    # the number of rows (also if not given), or the sum of their weights
    per: Literal["count", "weight"] | None = field(default=None, repr=False)

    def at(self, progress: float) -> float:
        """Returns the weight at `progress` (0..1) of the stage."""
        if self.weight is not None:
            return self.weight
        assert self.from_ is not None and self.to is not None, "checked when the recipe was read"
        return self.from_ + (self.to - self.from_) * min(1.0, progress / (self.over or 1.0))

    @property
    def constant_zero(self) -> bool:
        """Returns whether the weight is 0 during the complete stage."""
        return not any((self.weight, self.from_, self.to))


WeightOrNumber = Annotated[
    Weight,
    BeforeValidator(lambda v: {"weight": v} if type(v) in (int, float) else v),
    Says("a number, 0 or more, or {weight, watch}, or {from, to, over, watch}"),
]


@section
class Validate:
    """Describes the validation, every `every` steps and after the last: losses on `samples` samples from
    `data`, and `tasks`.

    `best`: the metric that selects the best weights to keep: "loss", a term, or "task/metric".
    """

    every: k.Count
    data: k.Text
    samples: k.CountOrAll = "all"
    tasks: Annotated[tuple[k.Text, ...], Says("a list of tasks")] = ()
    best: k.Text | None = None


@section
class Stage:
    """Describes one stage of training. `losses` maps `next_token` and plugin instances to weights. `tokens`
    names the plugins whose learned tokens the stage has although no term reads them."""

    data: Annotated[Mapping[k.Text, k.Positive], MinLen(1), Says("a section of SOURCE: weight above 0")]
    batch: BatchConfig
    length: Length
    train: Train
    optim: Optim
    losses: Annotated[Mapping[k.Text, WeightOrNumber], MinLen(1), Says("a section of TERM: weight")]
    tokens: Annotated[tuple[k.Text, ...], Says("a list of plugins")] = ()
    validate: Validate | None = None
    start: k.Text | None = None  # a model folder to start from, in place of the previous stage
    # the model that terms compare with: `start`, the weights that the stage begins with, or a model folder
    reference: k.Text | None = None
