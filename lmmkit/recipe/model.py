"""The `model` and `numerics` sections: parts, shapes, tokenizer, chat format and data types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Tag

from lmmkit.api.model_info import CLIP_MEAN, CLIP_STD, Activation, Resample
from lmmkit.api.sample import AfterEos, AnyRes, FitName, Native, TemplateName
from lmmkit.recipe import field_types as k
from lmmkit.recipe.field_types import Says, section

NO_WEIGHTS = "none"  # `model.vision.weights` of a timm encoder with random weights


def _derive(obj: object, name: str, value: int) -> None:
    """Sets a field whose value is 0 ("derive it") while the frozen object is created."""
    if getattr(obj, name) == 0:
        object.__setattr__(obj, name, value)


@section
class VisionScratch:
    """Describes a vision transformer by its shape. The defaults are those of CLIP. SigLIP has no class
    token, no pre-norm, `gelu_tanh` and 1e-6.
    """

    width: k.Size
    depth: k.Blocks  # blocks
    heads: k.Size
    patch: k.Size  # pixels a side
    image_size: k.Size  # pixels a side
    mlp: k.Size = 0  # hidden width; not given = 4 * width
    class_token: k.Flag = True  # removed before the connector
    pre_norm: k.Flag = True  # a layer norm between the embeddings and the first block
    patch_bias: k.Flag = False  # a bias on the patch embedding (SigLIP has one)
    activation: Activation = "quick_gelu"
    norm_eps: k.Positive = 1e-5
    feature_layer: k.Whole = -2  # 0 = the embeddings, n = after n blocks; -1 = after the last
    mean: k.Triple = CLIP_MEAN  # per RGB channel, values in 0..1
    std: k.PositiveTriple = CLIP_STD
    resample: Resample = "bicubic"  # interpolation when images are resized

    def __post_init__(self):
        _derive(self, "mlp", 4 * self.width)


@section
class VisionTimm:
    """Names a timm model. Values that are not given come from timm's configuration."""

    timm: k.Text
    weights: k.Text  # a safetensors file, or `none` for random weights
    args: k.Settings = field(default_factory=dict)  # further arguments of timm's constructor
    image_size: k.Size | None = None
    feature_layer: k.Whole = -2
    mean: k.Triple | None = None
    std: k.PositiveTriple | None = None
    resample: Resample | None = None


@section
class VisionFrom:
    """Names a folder with an encoder. Values that are not given come from the folder's files. The default
    `feature_layer` for a public encoder is -2.
    """

    from_: k.Text
    image_size: k.Size | None = None
    feature_layer: k.Whole | None = None
    mean: k.Triple | None = None
    std: k.PositiveTriple | None = None
    resample: Resample | None = None


_TIMM = "timm:"  # `from: timm:NAME` means `timm: NAME`


def _by_name(value: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(name := value.get("from"), str) and "timm" not in value:
        rest = {key: item for key, item in value.items() if key != "from"}
        return {"timm": name.removeprefix(_TIMM), **rest}
    return value


def _vision_shape(value: Any) -> str | None:
    if isinstance(value, Mapping):
        name = value.get("from")
        if "timm" in value or (isinstance(name, str) and name.startswith(_TIMM)):
            return "<timm>"
        return "<from>" if "from" in value else "<scratch>"
    known = {VisionFrom: "<from>", VisionTimm: "<timm>", VisionScratch: "<scratch>"}
    return known.get(type(value))


Vision = Annotated[
    Annotated[VisionScratch, Tag("<scratch>")]
    | Annotated[VisionTimm, BeforeValidator(_by_name), Tag("<timm>")]
    | Annotated[VisionFrom, Tag("<from>")],
    Discriminator(_vision_shape),
    Says("a section: `from: FOLDER`, or `timm: NAME` with weights, or shapes (width, depth, heads, ...)"),
]


CONNECTOR_SETTINGS = {  # of the kinds with fewer rows than tokens
    "pixel_shuffle": ("factor",), "average_pool": ("factor",), "resampler": ("queries", "depth", "heads"),
}  # fmt: skip


@section
class ConnectorConfig:
    """Describes the map from the encoder's tokens to rows of the decoder's width. `none`: the plugin `reduce` does it.

    `from_`: a folder from llava-hf, LLaVA or lmmkit with the connector's initial weights. `reduce`: the plugin that
    gives images fewer rows than the encoder has tokens. The others are settings of some kinds (`CONNECTOR_SETTINGS`).
    """

    kind: Literal["linear", "mlp2x_gelu", "none", "pixel_shuffle", "average_pool", "resampler"]
    from_: k.Text | None = None
    reduce: k.Text | None = None
    factor: k.Two | None = None  # a row for each square of factor x factor patches
    queries: k.Size | None = None  # rows of an image
    depth: k.Blocks | None = None  # blocks of a resampler; not given = 2
    heads: k.Size | None = None  # of a resampler; not given = 8

    def __post_init__(self):
        if self.kind == "resampler":
            for name, value in (("depth", 2), ("heads", 8)):
                object.__setattr__(self, name, getattr(self, name) or value)

    @property
    def settings(self) -> dict[str, int]:
        """Returns the settings of the kind."""
        return {name: getattr(self, name) for name in CONNECTOR_SETTINGS.get(self.kind, ())}


@section
class RopeScaling:
    """Describes how rotary positions were scaled to a longer context; see `model/rope.py`."""

    kind: Literal[
        "linear", "llama3", "yarn", "dynamic"
    ]  # dynamic: no effect up to `original`; exports keep it
    factor: k.Positive
    original: k.Natural = 0  # context before the scaling; llama3, yarn and dynamic
    low: k.Positive = 1.0  # llama3: turns within `original` below which a frequency is divided
    high: k.Positive = 4.0  # llama3: and above which it is kept
    fast: k.Positive = 32.0  # yarn: turns above which a frequency is kept
    slow: k.Positive = 1.0  # yarn: and below which it is divided
    magnitude: k.NotNegative = 0.0  # yarn: factor on sines and cosines; 0 = 0.1 ln(factor) + 1


@section
class TextScratch:
    """Describes a decoder by its shape."""

    width: k.Size
    depth: k.Blocks
    heads: k.Size
    mlp: k.Size  # hidden width of the gated MLP
    context: k.Count  # most tokens in one sequence, including image tokens
    kv_heads: k.Size = 0  # not given = heads
    head_size: k.Size = 0  # not given = width / heads; stays 0 if that is not an integer
    vocab: k.Natural = 0  # matrix rows of the embedding; not given = the tokenizer's size
    rope_theta: k.Positive = 1e4
    rope_scaling: RopeScaling | None = None
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
    """Names a folder with a decoder. `context` may be shorter than in its training."""

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
    """Names the folder with the tokenizer, and the tokenizer's kind."""

    from_: k.Text
    kind: Literal["auto", "sentencepiece", "tokenizers", "tiktoken"] = "auto"


FitKind = Literal["anyres", "native"]


@section
class AnyResFit(AnyRes):
    """Describes `image_fit: {kind: anyres, ...}`."""

    kind: FitKind
    grids: Annotated[tuple[k.TileGrid, ...], Says("a list of [lines, columns] of tiles")] = AnyRes.grids
    max_tiles: k.Tiles | None = None


@section
class NativeFit(Native):
    """Describes `image_fit: {kind: native, ...}`."""

    kind: FitKind
    max_patches: k.Count
    multiple: k.Tiles = 1


def _fit_shape(value: object) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    if kind is None or kind in get_args(FitKind):
        return f"<{kind or 'name'}>"
    other_keys = isinstance(value, Mapping) and {"max_patches", "multiple"} & value.keys()
    return "<native>" if other_keys else "<anyres>"  # an unknown kind is one problem, its keys are none


Fit = Annotated[
    Annotated[FitName, Tag("<name>")]
    | Annotated[AnyResFit, Tag("<anyres>")]
    | Annotated[NativeFit, Tag("<native>")],
    Discriminator(_fit_shape),
    Says(
        "crop, pad, stretch, {kind: anyres, grids: [[LINES, COLUMNS], ...]} or {kind: native, max_patches: N}"
    ),
]


@section
class Chat:
    """Describes the prompt format for inference, which is saved with the weights.

    `after_eos`: how a later turn is tokenized after the end-of-sequence token: with the ids of the
    published checkpoints (transformers 4.31), or with those of transformers 4.37. `system`: the system
    prompt, if not the template's own.
    """

    template: TemplateName
    image_fit: Fit
    after_eos: AfterEos = "published"
    system: k.Text | None = None


@section
class Model:
    """Describes the parts, in the order in which an image and a question pass through them."""

    vision: Vision | None = None  # neither vision nor connector given: a text-only model
    connector: ConnectorConfig | None = None
    text: TextModel
    tokenizer: Tokenizer
    chat: Chat


@section
class TeacherFrom(VisionFrom):
    """Names a folder with a frozen model whose outputs terms read. It is no part of the trained model. `dtype`: of its
    matrices, and on CUDA of its computation.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"


@section
class Numerics:
    """Sets the data types. `compute` applies on CUDA; a CPU always computes in float32. `frozen`: the type of
    the matrices in parts that no stage of the run trains, on any device.
    """

    compute: Literal["float32", "bfloat16"] = "float32"
    frozen: Literal["float32", "bfloat16"] = "float32"
