"""Codes of problems with model folders, their import and their export."""

from lmmkit.errors import Code

# fmt: off

# convert/

CONVERT_EXISTS = Code(
    "convert/exists", cause="The path to write is a file, a link, or a folder that contains files.",
    expected="a new or empty folder", hint="Name another folder, or remove this one.",
)
LINK = Code(
    "convert/link", cause="A model folder to copy contains a link.",
    expected="only files and folders, no links",
    hint="Remove the link, or put the file that it points to in its place.",
)
OPTION = Code(
    "convert/option", cause="An option of `lmmkit model` does not apply to this model or this format.",
    expected="only options that apply to {what}", hint="Leave out {options}.",
)
ALREADY_LMMKIT = Code(
    "convert/already-lmmkit", cause="The folder to import is already in lmmkit's format.",
    expected="a model in a public format", hint="Use the folder without an import.",
)

# export/

TRAINED_ENCODER = Code(
    "export/trained-encoder",
    cause="The stage also trained the vision encoder, which a `peft` adapter cannot contain.",
    expected="an encoder with the weights of the base model",
    hint="Export the whole model: `lmmkit model export RUN DST --format llava-hf`.",
)
EXPORT_CANNOT_WRITE = Code(
    "export/cannot-write", cause="The folder of an export cannot be created or written.",
    expected="a folder that can be written to, with free space for the model",
    hint="Free disk space, change the permissions, or name another folder. Nothing of the export is left.",
)
EXPORT_DIFFERS = Code(
    "export/differs", cause="`--verify` found a difference between a model and its export.",
    expected="an export that answers like the model",
    hint="Do not use the export; report the difference, with the versions of lmmkit and transformers.",
)
NO_TRANSFORMERS = Code(
    "export/no-transformers",
    cause="`--verify` opens a llava-hf export with transformers, which is not installed.",
    expected="transformers 5 or newer",
    hint='Install it: `pip install "lmmkit[verify]"`. Or run `lmmkit model export` without verifying.',
)
EXPORT_EXISTS = Code(
    "export/exists", cause="The path to write is a file, a link, or a folder that contains files.",
    expected="a new or empty folder", hint="Name another folder, or remove this one.",
)
UNSUPPORTED_PART = Code(
    "export/unsupported-part", cause="The model has a part that the export format does not support.",
    expected="a model with {supported}", hint="Export the model with `lmmkit model export RUN DST --format lmmkit`.",
)
NO_LORA = Code(
    "export/no-lora", cause="A `peft` export needs LoRA weights, and the stage trained without LoRA.",
    expected="a stage with `lora`",
    hint="Export the whole model, or name RUN/model/STAGE of a stage with `lora`.",
)
NOT_LMMKIT = Code(
    "export/not-lmmkit", cause="The folder to export is not a model folder of lmmkit.",
    expected="a model folder that lmmkit wrote",
    hint="Import the folder first: `lmmkit model import SRC DST`.",
)

# model/

CANNOT_WRITE = Code(
    "model/cannot-write", cause="The model folder cannot be written.",
    expected="a folder that can be written to",
    hint="Free disk space or change the folder's permissions. Then run the command again; a run continues with "
    "`lmmkit train ... --resume`.",
)
MODEL_CONFIG = Code(
    "model/config", cause="A value in the `config.json` of a model folder is missing or wrong.",
    expected="{value}", hint="Restore the file, or write the folder again.",
)
FEATURE_LAYER = Code(
    "model/feature-layer", cause="`feature_layer` names a layer that the vision encoder does not have.",
    expected="{layers}", hint="Choose a layer in this range, or name a folder with the complete encoder.",
)
MODEL_FORMAT = Code(
    "model/format", cause="The folder is not a model folder of this version of lmmkit.",
    expected="format {known}", hint="Name RUN/model/STAGE of an lmmkit run.",
)
MISMATCH = Code(
    "model/tensor-mismatch",
    cause="A tensor of the model folder is missing, or its shape differs from the model of the recipe.",
    expected="shape {shape}",
    hint="Start from a model with the same shapes, or change the shapes in the recipe.",
)
EXTRA_TENSORS = Code(
    "model/extra-tensors",
    cause="A model folder has more tensors of a part than the model of the recipe, so some would be left out.",
    expected="only the tensors of the recipe's model",
    hint="Start from a model of the same kind and depth, or change the recipe.",
)
NO_FINISHED_STAGE = Code(
    "model/no-finished-stage", cause="The run has no finished stage, so it has no model to load.",
    expected="a model folder", hint="Finish the run: `lmmkit train ... --resume`.",
)
MODEL_DAMAGED = Code(
    "model/damaged", cause="A weights file of a model folder is missing or damaged.",
    expected="a complete safetensors file", hint="Restore the file, or train again.",
)

# weights/

WEIGHTS_ADAPTER = Code(
    "weights/adapter",
    cause="A LoRA adapter is incomplete, does not fit its base model, or comes without a base model.",
    expected="LoRA weights {that_fit}",
    hint="Name the base model of the adapter (`lmmkit model import SRC DST --base FOLDER`), or download "
    "the folder again.",
)
ARCHITECTURE = Code(
    "weights/architecture", cause="lmmkit does not support the architecture in the folder's config.",
    expected="one of {known}", hint="Convert the model to one of these.",
)
WEIGHTS_CONFIG = Code(
    "weights/config",
    cause="A value in the config of a public model folder is wrong, or lmmkit does not support it.",
    expected="a supported value: {values}", hint="{fix}",
)
DTYPE = Code(
    "weights/dtype",
    cause="Tensors of a public model folder are not floating-point numbers; they may be quantized.",
    expected="float tensors (quantized weights are not supported)",
    hint="Name a folder with the weights as they were before quantization.",
)
EXTRA = Code(
    "weights/extra-tensors", cause="A public model folder contains tensors that do not belong to its config.",
    expected="only the tensors of the config", hint="Download the folder again, or {fix}.",
)
INDEX = Code(
    "weights/index", cause="The index of sharded weights does not map tensor names to files.",
    expected="a `weight_map` from tensor names to file names", hint="Download the folder again.",
)
FOREIGN_PROMPT = Code(
    "weights/foreign-prompt", cause="The model was trained on prompts of a form that no chat template has.",
    expected="a model with the prompts of `vicuna_v1`, or a template that you choose",
    hint="Choose a template with other prompts for it: `lmmkit model import SRC DST --template {nearest}`. Answers may "
    "be worse than the model's own.",
)
MISSING = Code(
    "weights/missing-tensors", cause="A public model folder lacks tensors that its config requires.",
    expected="all tensors of the config", hint="Download the folder again, or {fix}.",
)
NO_WEIGHTS_FILE = Code(
    "weights/no-weights-file", cause="The folder contains no weights file.",
    expected="*.safetensors", hint="Name a folder with the weights of a model.",
)
PART = Code(
    "weights/missing-part", cause="The folder lacks the part of a model that the recipe takes from it.",
    expected="a folder with a {part} part", hint="Name another folder.",
)
PATH = Code(
    "weights/index-path", cause="The index of sharded weights names a file outside its folder.",
    expected="a file name in the same folder", hint="Download the folder again.",
)
PICKLE = Code(
    "weights/pickle", cause="The weights are in a pickle file, and opening such a file can run code.",
    expected="a safetensors file",
    hint="Convert it to safetensors, or read only its weights: "
    "`lmmkit model import SRC DST --allow-pickle`, then name DST.",
)
SHAPE = Code(
    "weights/shape", cause="The shapes of tensors in a public model folder differ from its config.",
    expected="the shapes of the config", hint="Download the folder again, or {fix}.",
)
SHARD = Code(
    "weights/missing-shard", cause="The index of sharded weights names a file that does not exist.",
    expected="a file named in {index}", hint="Download the folder again.",
)
TENSOR_TWICE = Code(
    "weights/tensor-twice", cause="Two weights files of one folder contain a tensor of the same name.",
    expected="each tensor once", hint="Remove the file that does not belong to the model.",
)
TWO_SETS = Code(
    "weights/two-sets",
    cause="A folder contains both one file with all weights and shards, and they may be two versions of them.",
    expected="one set of weights: model.safetensors, or shards with their index",
    hint="Remove the set that does not belong to the model. transformers would read model.safetensors.",
)
WRAPPED = Code(
    "weights/wrapped-names",
    cause="The tensors were saved from a wrapper around the model (by DistributedDataParallel, torch.compile, FSDP or "
    "peft), which adds to their names.",
    expected="the tensor names of the model alone",
    hint="Remove `{prefix}` from the names, or save the model inside the wrapper. The config need not change.",
)
WEIGHTS_DAMAGED = Code(
    "weights/damaged", cause="A weights file of a public model folder is damaged, or is another kind of file.",
    expected="a complete weights file", hint="Download the file again.",
)
