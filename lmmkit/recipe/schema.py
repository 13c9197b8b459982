"""The whole recipe as frozen dataclasses: every key, what it means, its unit and its default.

pydantic builds them from plain mappings (`read.py`); nothing here is validated when it is built
directly in Python. A field that ends in `_` is the YAML key without it (`from_` is `from`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from annotated_types import MinLen
from pydantic import BeforeValidator, ConfigDict, Discriminator, Tag

from lmmkit.recipe import kinds as k
from lmmkit.recipe.kinds import Says
from lmmkit.recipe.places import Places

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: type[T]) -> type[T]:
    """A frozen keyword-only dataclass of which pydantic accepts exactly the keys."""
    # arbitrary types: only for Recipe.places, which never comes from a file
    cls.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
        extra="forbid",
        alias_generator=lambda name: name.rstrip("_"),
        arbitrary_types_allowed=True,
    )
    return dataclass(frozen=True, kw_only=True)(cls)


def _derive(obj: object, name: str, value: int) -> None:
    """Fills a field left at 0 ("work it out") while the frozen object is being built."""
    if getattr(obj, name) == 0:
        object.__setattr__(obj, name, value)


# model ---------------------------------------------------------------------------------------


@section
class VisionScratch:
    """A vision transformer built here. The switches default to CLIP's; SigLIP's are no class
    token, no pre-norm, `gelu_tanh` and 1e-6.
    """

    width: k.Count
    depth: k.Count  # blocks
    heads: k.Count
    patch: k.Count  # pixels a side
    image_size: k.Count  # pixels a side
    mlp: k.Count = 0  # hidden width; not given = 4 * width
    class_token: k.Flag = True  # dropped again before the connector
    pre_norm: k.Flag = True  # a layer norm between the embeddings and the first block
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    norm_eps: k.Positive = 1e-5
    feature_layer: k.Whole = -2  # 0 = the embeddings, n = after n blocks; -1 = after the last
    mean: k.Triple = CLIP_MEAN  # of RGB in 0..1
    std: k.PositiveTriple = CLIP_STD

    def __post_init__(self):
        _derive(self, "mlp", 4 * self.width)


@section
class VisionTimm:
    """A timm model by name. What is not given is what timm's own configuration says."""

    timm: k.Text
    weights: k.Text  # a safetensors file, or `none` for random ones
    image_size: k.Count | None = None
    feature_layer: k.Whole = -2
    mean: k.Triple | None = None
    std: k.PositiveTriple | None = None


@section
class VisionFrom:
    """A folder with a public encoder. What is not given is what the folder's files say."""

    from_: k.Text
    image_size: k.Count | None = None
    feature_layer: k.Whole = -2
    mean: k.Triple | None = None
    std: k.PositiveTriple | None = None


def _vision_shape(value: Any) -> str | None:
    if isinstance(value, Mapping):
        shape = next((key for key in ("from", "timm") if key in value), "scratch")
        return f"<{shape}>"
    known = {VisionFrom: "<from>", VisionTimm: "<timm>", VisionScratch: "<scratch>"}
    return known.get(type(value))


Vision = Annotated[
    Annotated[VisionScratch, Tag("<scratch>")]
    | Annotated[VisionTimm, Tag("<timm>")]
    | Annotated[VisionFrom, Tag("<from>")],
    Discriminator(_vision_shape),
    Says("a section: `from: FOLDER`, or `timm: NAME`, or shapes (width, depth, heads, ...)"),
]


@section
class Connector:
    """What maps vision width to text width: one linear, or linear-GELU-linear."""

    kind: Literal["linear", "mlp2x_gelu"]


@section
class TextScratch:
    """A decoder built here; the vocabulary size comes from the tokenizer."""

    width: k.Count
    depth: k.Count
    heads: k.Count
    mlp: k.Count  # hidden width of the gated MLP
    context: k.Count  # tokens in one sequence at most, image tokens included
    kv_heads: k.Count = 0  # not given = heads
    head_size: k.Count = 0  # not given = width / heads; stays 0 where that is not whole
    rope_theta: k.Positive = 1e4
    norm_eps: k.Positive = 1e-5
    qkv_bias: k.Flag = False
    qk_norm: k.Flag = False
    tied: k.Flag = False  # input and output embeddings are one matrix

    def __post_init__(self):
        _derive(self, "kv_heads", self.heads)
        if self.width % self.heads == 0:
            _derive(self, "head_size", self.width // self.heads)


@section
class TextFrom:
    """A folder with a public decoder; `context` may be shorter than what it was trained for."""

    from_: k.Text
    context: k.Count


def _text_shape(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return "<from>" if "from" in value else "<scratch>"
    return {TextFrom: "<from>", TextScratch: "<scratch>"}.get(type(value))


TextModel = Annotated[
    Annotated[TextScratch, Tag("<scratch>")] | Annotated[TextFrom, Tag("<from>")],
    Discriminator(_text_shape),
    Says("a section: `from: FOLDER` with context, or shapes (width, depth, heads, ...)"),
]


@section
class Tokenizer:
    """The folder that holds the tokenizer, and its kind."""

    from_: k.Text
    kind: Literal["sentencepiece"]


TemplateName = Literal["plain", "vicuna_v1"]
ImageShape = Literal["crop", "pad"]


@section
class Speaks:
    """The inference contract, saved with the weights: what a user's words are wrapped in.

    `after_eos` is how a later turn begins after the end-of-sequence token: with the ids of the
    published checkpoints, of a Hugging Face tokenizer of 4.37, or of the older slow one.
    """

    template: TemplateName
    image_shape: ImageShape
    after_eos: Literal["published", "hf437", "legacy"] = "published"


@section
class Model:
    """The parts, in the order in which a picture and a question pass through them."""

    vision: Vision
    connector: Connector
    text: TextModel
    tokenizer: Tokenizer
    speaks: Speaks


@section
class Numerics:
    """`bfloat16` computes so on CUDA; a CPU computes in float32 whatever stands here."""

    compute: Literal["float32", "bfloat16"] = "float32"
    weights: Literal["float32"] = "float32"
    loss: Literal["float32"] = "float32"


# data and stages -----------------------------------------------------------------------------


@section
class Source:
    """A record file and its folder of images, and the template its turns are written in."""

    kind: Literal["llava"]
    records: k.Text
    images: k.Text
    template: TemplateName
    image_shape: ImageShape


@section
class Batch:
    """`samples` make one optimizer step, over all ranks. `too_long`: what a sample above the
    context does. `tail`: whether the short last batch of an epoch is a step or left out.
    """

    samples: k.Count
    too_long: Literal["error", "truncate", "drop"] = "error"
    tail: Literal["keep", "drop"] = "keep"


@section
class Length:
    """How long a stage is; exactly one of the two is given."""

    epochs: k.Count | None = None  # each source as often as its weight asks
    steps: k.Count | None = None  # optimizer steps


@section
class Lora:
    """Low-rank updates in place of the full matrices; `targets` not given = every linear."""

    r: k.Count
    alpha: k.Positive
    dropout: k.Below1 = 0.0
    targets: Annotated[tuple[k.Text, ...], MinLen(1), Says("a list of layer names")] | None = None


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
    """AdamW and its schedule; the optimizer starts anew with each stage."""

    kind: Literal["adamw"] = "adamw"
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
    """Every `every` steps: the losses on `samples` of `data`, and the `tasks`.

    `best`: "task/metric" by which the best weights are kept.
    """

    every: k.Count
    data: k.Text
    samples: k.CountOrAll = "all"
    tasks: Annotated[tuple[k.Text, ...], Says("a list of tasks")] = ()
    best: k.Text | None = None


@section
class Stage:
    """One stretch of training; `losses` maps `next_token` and plugin instances to weights."""

    data: Annotated[
        Mapping[k.Text, k.Positive], MinLen(1), Says("a section of SOURCE: weight above 0")
    ]
    batch: Batch
    length: Length
    train: Train
    optim: Optim
    losses: Annotated[Mapping[k.Text, WeightOrNumber], MinLen(1), Says("a section of TERM: weight")]
    validate: Validate | None = None
    start: k.Text | None = None  # a model folder to start from in place of the stage before


# evaluation, output, speed -------------------------------------------------------------------


@section
class Task:
    """One task: a folder of task `files`, or a source of `data`. `kind` not given = the task's
    own name.
    """

    kind: k.Text | None = None
    data: k.Text | None = None
    files: k.Text | None = None
    samples: k.CountOrAll = "all"
    max_new_tokens: k.Count = 128


@section
class Evaluate:
    """`controls` repeat each task on a blank image and on another sample's image."""

    tasks: Annotated[Mapping[k.Name, Task], Says("a section of NAME: task")]
    controls: Annotated[
        tuple[Literal["blank", "swapped"], ...], Says("a list of blank and swapped")
    ] = ()


@section
class Output:
    """How often things are written, in optimizer steps; 0 = never. `keep`: checkpoints kept."""

    save_every: k.Natural = 500
    keep: k.Two = 2  # one alone would be lost with a broken write
    log_every: k.Count = 1
    pictures_every: k.Natural = 0


@section
class Speed:
    """What changes time and memory but not the mathematics."""

    tokens: k.Count = 8192  # rows of one micro-batch at most
    share_prefix: k.Flag = True
    attention: Literal["auto", "eager", "sdpa", "xformers"] = "auto"
    recompute: Literal["none", "all"] = "none"  # blocks run again in the backward pass
    compile: k.Flag = False
    shard: k.Count = 1  # devices over which one copy of the parameters is cut
    replicate: k.Count = 1  # such copies
    workers: k.Natural = 0  # data processes a rank
    threads: k.Natural = 0  # CPU threads; 0 = leave as found
    image_cache_mb: k.Natural = 0  # 0 = no cache


@section
class Recipe:
    """One whole run. `root` and `places` say where it was read; they take no part in equality."""

    format: k.One
    seed: k.Natural
    model: Model
    numerics: Numerics = field(default_factory=Numerics)
    # a plugin's own settings, as written; the plugin checks them
    plugins: Annotated[
        Mapping[k.Instance, k.Settings], Says("a section of INSTANCE: {its settings}")
    ] = field(default_factory=dict)
    data: Annotated[Mapping[k.Name, Source], MinLen(1), Says("a section of NAME: source")]
    stages: Annotated[Mapping[k.Name, Stage], MinLen(1), Says("a section of NAME: stage")]
    evaluate: Evaluate | None = None
    output: Output = field(default_factory=Output)
    speed: Speed = field(default_factory=Speed)
    root: str = field(default=".", compare=False)
    places: Places = field(default_factory=Places, compare=False, repr=False)

    def path(self, name: str) -> Path:
        """`name` below the root; an absolute name as it is."""
        return Path(self.root) / name

    def where(self, key: str) -> str:
        """'file:line:col KEY' for a problem found after reading, such as a plugin's."""
        return self.places.where(key)


HIDDEN = ("root", "places")  # fields of Recipe that are no keys
