"""Codes of problems with plugins, plans and evaluation settings."""

from lmmkit.errors import Code

# fmt: off

# data/

NO_STEP = Code(
    "data/no-step", cause="A stage has fewer samples than one batch, and `tail: drop` drops them.",
    expected="at least one optimizer step", hint="Lower `samples`, or set `tail: keep`.",
)

# evaluate/

NO_KIND = Code(
    "evaluate/no-kind", cause="An evaluation task has an unknown kind.",
    expected="one of {kinds}", hint="{nearest}",
)
NO_STAGE = Code(
    "evaluate/no-stage", cause="An evaluation task names a stage that the recipe does not have.",
    expected="a stage of the recipe", hint="{nearest}",
)
NO_TASK = Code(
    "evaluate/no-task", cause="The command names an evaluation task that the recipe does not have.",
    expected="a task of the recipe's `evaluate` section", hint="{nearest}",
)
NONE = Code(
    "evaluate/none", cause="The recipe has no evaluation tasks.",
    expected="at least one task", hint="Add an `evaluate` section with tasks.",
)

# model/

ATTENTION = Code(
    "model/attention", cause="The attention backend cannot run on this machine.",
    expected="a backend that can run here",
    hint="Set the key to `auto`, which takes the first backend that can.",
)
COMPILE = Code(
    "model/compile", cause="The recipe asks for `torch.compile`, which does not work on this machine.",
    expected="a machine that can compile",
    hint="Install a C++ compiler (on CUDA also Triton), or set the key to `false`.",
)
CONTEXT = Code(
    "model/context", cause="The context is longer than the one that the decoder was trained with.",
    expected="at most {context}, the context it was trained with", hint="Lower the value.",
)
IMAGE_SIZE = Code(
    "model/image-size",
    cause="The image size differs from the one that the encoder's positions are made for.",
    expected="{size}, the size of the folder's encoder", hint="Remove the line.",
)
NO_TEXT = Code(
    "model/no-text", cause="A model folder contains an encoder but no decoder.",
    expected="a folder with a decoder",
    hint="Name the folder in a recipe as `model.vision.from`, beside a decoder.",
)
NO_VISION = Code(
    "model/no-vision",
    cause="A model folder contains a connector but not the encoder that the connector reads.",
    expected="a connector with its encoder",
    hint="Import the model with its encoder: `lmmkit model import SRC DST --vision CLIP_FOLDER`.",
)
PLUGINS = Code(
    "model/plugins",
    cause="A model folder's recipe.yaml lacks the settings of plugins that the model needs to answer.",
    expected="settings of every plugin that the model needs to answer",
    hint="Restore the folder's recipe.yaml.",
)
TIMM = Code(
    "model/timm", cause="timm cannot build the encoder that the recipe describes.",
    expected="a ViT that timm can build",
    hint="Take a model of `timm.list_models('vit*')`, with arguments that it accepts.",
)
VOCAB = Code(
    "model/vocab", cause="The decoder's embedding is smaller than the tokenizer's vocabulary.",
    expected="an embedding for every token",
    hint="Take the tokenizer from this model's folder, or a decoder with a larger vocabulary.",
)

# optim/

LIBRARY = Code(
    "optim/library", cause="The library of the recipe's optimizer cannot be imported.",
    expected="an optimizer that is installed",
    hint="Run `pip install 'bitsandbytes>=0.50'` (the extra `lean`), or take `adamw`.",
)

# plan/

LAYERS = Code(
    "plan/layers", cause="A term reads layers that the decoder does not have, or reads one twice.",
    expected="`all`, or numbers from 0 to {last}, each once", hint="Correct `layers`.",
)
MARK_TWICE = Code(
    "plan/mark-twice", cause="Two plugins provide the same learned token.",
    expected="one provider for each token", hint="Remove one of the two plugins.",
)
NO_TERM = Code(
    "plan/no-term", cause="A stage gives a weight to a plugin that is not a term.",
    expected="a term",
    hint="Remove the line: learned tokens act through the terms that read them. {nearest}",
)
NO_VIEW = Code(
    "plan/no-view", cause="A term reads a view that no task of the stage makes.",
    expected="a view that the stage makes", hint="Give that task a weight in the stage too. {nearest}",
)
SETTING = Code(
    "plan/setting", cause="A plugin's setting does not fit the sizes of the model.",
    expected="a setting that fits the model", hint="Change the setting or the model.",
)
TWO_MASSES = Code(
    "plan/two-masses", cause="The terms of one stage read the attention mass on different kinds of keys.",
    expected="one kind of keys in a stage", hint="Give a weight to one of these terms only.",
)
UNPROVIDED_MARK = Code(
    "plan/unprovided-mark", cause="A term reads a learned token that no plugin provides.",
    expected="a token that a plugin provides",
    hint="Add a token strategy that provides it under `plugins` (for `drt`: directed_token).",
)
UNREACHABLE = Code(
    "plan/unreachable", cause="A term reads rows that come before the image and cannot attend to it.",
    expected="rows that can attend to the image",
    hint="Move the token (directed_token.place: end), or set `allow_unreachable: true`.",
)
UNREAD_MARK = Code(
    "plan/unread-mark", cause="No term reads the learned tokens that a plugin provides.",
    expected="a term that reads them", hint="Add a term that reads them, or remove the plugin.",
)
UNREAD_VIEW = Code(
    "plan/unread-view", cause="A task makes a view that nothing reads.",
    expected="a term that reads them",
    hint="Declare a need on `Select(view=self.name)`, or train on the text of the view (`text_loss`).",
)
UNWEIGHED = Code(
    "plan/unweighed", cause="No stage gives the term a weight.",
    expected="a weight in some stage", hint="Add `{name}: 1.0` to a stage's losses, or remove the plugin.",
)

# plugin/

ABSENT = Code(
    "plugin/absent", cause="The plugin does not offer a component of that name.",
    expected="a component that the plugin offers", hint="{nearest}",
)
PLUGIN_API = Code(
    "plugin/api", cause="The plugin was written for another version of the plugin API.",
    expected="API version {api}", hint="Install a release of the plugin that matches.",
)
BAD_HOOK = Code(
    "plugin/bad-hook",
    cause="The plugin implements a hook that lmmkit does not have, or with wrong arguments.",
    expected="only hooks and arguments that lmmkit has", hint="Correct the plugin.",
)
BAD_VALUE = Code(
    "plugin/bad-value", cause="A plugin's setting has a value of the wrong type.",
    expected="{type}", hint="Run `{explain}` for the settings and their types.",
)
BROKEN = Code(
    "plugin/broken", cause="The plugin raises an exception when it is imported.",
    expected="{plugin} to import without an error",
    hint="Correct or uninstall the plugin, or remove it from the recipe.",
)
CHANGED_FILE = Code(
    "plugin/changed-file", cause="A plugin file was changed while a run uses it.",
    expected="hash {hash}, as it was loaded", hint="Restore the file as it was, and resume.",
)
DEAF = Code(
    "plugin/deaf", cause="The recipe names an observer that implements none of the observer hooks.",
    expected="at least one of {hooks}",
    hint="Implement one of these hooks, or remove the plugin from `output.observers`.",
)
KIND = Code(
    "plugin/kind", cause="The plugin offers a component of a wrong kind.",
    expected="a frozen dataclass derived from a component class of lmmkit.api", hint="Correct the plugin.",
)
MISSING_KEY = Code(
    "plugin/missing-key", cause="A plugin's required setting is missing.",
    expected="a value", hint="Add it under plugins.{name}; `{explain}` lists all settings.",
)
NO_FILE = Code(
    "plugin/no-file", cause="The plugin's path is not a Python file.",
    expected="a Python file whose name ends in `.py`", hint="Correct the path.",
)
UNKNOWN = Code(
    "plugin/unknown", cause="No installed plugin offers the component.",
    expected="an installed component", hint="{nearest} `lmmkit plugins list` shows what is installed.",
)
UNKNOWN_KEY = Code(
    "plugin/unknown-key", cause="A plugin does not have the setting.",
    expected="a setting of `{name}`", hint="{nearest}",
)
UNMARKED = Code(
    "plugin/unmarked", cause="The plugin has a function named like a hook but without @hookimpl.",
    expected="a hook marked with @hookimpl", hint="Put @hookimpl above the function.",
)
UNTRUSTED_FILE = Code(
    "plugin/untrusted-file",
    cause="The recipe uses a local plugin file, and the command does not allow it to run.",
    expected="permission to run the file",
    hint="Read {path}; if you trust it, add --trust-files to the command.",
)
