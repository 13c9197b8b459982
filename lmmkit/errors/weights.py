"""Codes of problems with model folders, their import and their export."""

from lmmkit.errors import Code

# convert
CONVERT_EXISTS = Code(
    "convert/exists",
    cause="The folder to write is a file, a link, or a folder with files in it.",
    expected="a new or empty folder",
    hint="Name another folder, or remove this one.",
)
LINK = Code(
    "convert/link",
    cause="A model folder that is to be copied contains a link.",
    expected="files and folders",
    hint="Remove the link, or put the file it points to in its place.",
)
OPTION = Code(
    "convert/option",
    cause="An option of `lmmkit model` does not apply to this model or this format.",
    expected="only options that apply to {what}",
    hint="Leave out {options}.",
)
OURS = Code(
    "convert/ours",
    cause="The folder to import is already in lmmkit's format.",
    expected="a model in a public format",
    hint="Use the folder without an import.",
)

# export
EXPORT_ADAPTER = Code(
    "export/adapter",
    cause="The stage also trained the vision encoder, which a `peft` adapter cannot contain.",
    expected="an encoder with the weights of the base model",
    hint="Export the whole model: `--format llava-hf`.",
)
EXPORT_EXISTS = Code(
    "export/exists",
    cause="The folder to write is a file, a link, or a folder with files in it.",
    expected="a new or empty folder",
    hint="Name another folder, or remove this one.",
)
EXPORT_FORMAT = Code(
    "export/format",
    cause="The export format has no way to express a part of the model.",
    expected="a model with {supported}",
    hint="Export the model with `--format lmmkit`.",
)
NO_LORA = Code(
    "export/no-lora",
    cause="A `peft` export needs low-rank updates, and the stage trained without them.",
    expected="a stage with `lora`",
    hint="Export the whole model, or name RUN/model/STAGE of a stage with `lora`.",
)
SOURCE = Code(
    "export/source",
    cause="The folder to export is not a model folder written by lmmkit.",
    expected="a model folder written by lmmkit",
    hint="Import the folder first: `lmmkit model import SRC DST`.",
)

# model
CANNOT_WRITE = Code(
    "model/cannot-write",
    cause="The model folder cannot be written.",
    expected="a folder that can be written to",
    hint="Free disk space or change the folder's permissions, then continue with `--resume`.",
)
MODEL_CONFIG = Code(
    "model/config",
    cause="The `config.json` of a model folder has a missing or wrong value.",
    expected="{value}",
    hint="Restore the file, or write the folder again.",
)
FEATURE_LAYER = Code(
    "model/feature-layer",
    cause="`feature_layer` names a layer that the vision encoder does not have.",
    expected="{layers}",
    hint="Choose a layer in this range, or name a folder with the whole encoder.",
)
MODEL_FORMAT = Code(
    "model/format",
    cause="The folder is not a model folder of this version of lmmkit.",
    expected="format {known}",
    hint="Name RUN/model/<stage> of an lmmkit run.",
)
MISMATCH = Code(
    "model/mismatch",
    cause="A tensor of the model folder is missing or has another shape than in the recipe's model.",
    expected="shape {shape}",
    hint="Start from a model with the same shapes, or change the shapes in the recipe.",
)
MODEL_NONE = Code(
    "model/none",
    cause="The run has no finished stage, so there is no model to load.",
    expected="a model folder",
    hint="Finish the run: `lmmkit train ... --resume`.",
)
MODEL_UNREADABLE = Code(
    "model/unreadable",
    cause="A weights file of a model folder is missing or damaged.",
    expected="a complete safetensors file",
    hint="Train again, or restore the file.",
)

# weights
WEIGHTS_ADAPTER = Code(
    "weights/adapter",
    cause="Low-rank updates are incomplete, do not fit their base model, or come without it.",
    expected="low-rank updates {that_fit}",
    hint="Name the base model of the updates (`--base FOLDER`), or fetch the folder again.",
)
ARCHITECTURE = Code(
    "weights/architecture",
    cause="lmmkit does not support the architecture that the folder's config names.",
    expected="one of {known}",
    hint="Convert the model to one of these.",
)
WEIGHTS_CONFIG = Code(
    "weights/config",
    cause="The config of a public model folder has a wrong value, or one that lmmkit does not support.",
    expected="a supported value: {values}",
    hint="Correct the file, or fetch the folder again.",
)
DTYPE = Code(
    "weights/dtype",
    cause="Tensors of a public model folder are not floating-point numbers, for example quantized.",
    expected="float tensors (quantized weights are not supported)",
    hint="Fetch the folder again, or {fix}.",
)
EXTRA = Code(
    "weights/extra",
    cause="A public model folder contains tensors that its config has no place for.",
    expected="no tensors beyond those of the config",
    hint="Fetch the folder again, or {fix}.",
)
INDEX = Code(
    "weights/index",
    cause="The index of sharded weights does not say which file holds which tensor.",
    expected="a `weight_map` from tensor names to file names",
    hint="Fetch the folder again.",
)
MISSING = Code(
    "weights/missing",
    cause="A public model folder lacks tensors that its config asks for.",
    expected="all tensors of the config",
    hint="Fetch the folder again, or {fix}.",
)
WEIGHTS_NONE = Code(
    "weights/none",
    cause="The folder contains no weights file.",
    expected="*.safetensors",
    hint="Name a folder with the weights of a model.",
)
PART = Code(
    "weights/part",
    cause="The folder does not contain the part of a model that the recipe takes from it.",
    expected="a folder with a {part} part",
    hint="Name another folder.",
)
PATH = Code(
    "weights/path",
    cause="The index of sharded weights names a file outside its folder.",
    expected="a plain name in the same folder",
    hint="Fetch the folder again.",
)
PICKLE = Code(
    "weights/pickle",
    cause="The weights are in a pickled file, and opening such a file can run code.",
    expected="a safetensors file",
    hint="Convert it to safetensors, or read only its weights: "
    "`lmmkit model import SRC DST --allow-pickle`, then name DST.",
)
SHAPE = Code(
    "weights/shape",
    cause="Tensors of a public model folder have other shapes than its config says.",
    expected="the shapes of the config",
    hint="Fetch the folder again, or {fix}.",
)
SHARD = Code(
    "weights/shard",
    cause="A file that the index of sharded weights names is missing.",
    expected="a file named in {index}",
    hint="Fetch the folder again.",
)
TWICE = Code(
    "weights/twice",
    cause="Two weights files of one folder contain a tensor of the same name.",
    expected="each tensor once",
    hint="Remove the file that does not belong.",
)
WEIGHTS_UNREADABLE = Code(
    "weights/unreadable",
    cause="A weights file of a public model folder is damaged or is not a weights file.",
    expected="a complete weights file",
    hint="Fetch the file again.",
)
