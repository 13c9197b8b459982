"""Codes of problems with plugins, plans and evaluation settings."""

from lmmkit.errors import Code

# fmt: off

# data/

NO_STEP = Code(
    "data/no-step", cause="A stage has fewer samples than one batch, and `tail: drop` drops them.",
    expected="at least one optimizer step", hint="Lower `samples`, or set `tail: keep`.",
)

# evaluate/

NO_DATA = Code(
    "evaluate/no-data", cause="An evaluation task asks about records, and names no source.",
    expected="`data`: a source of the recipe", hint="Add `data` to the task.",
)
NO_KIND = Code(
    "evaluate/unknown-kind", cause="An evaluation task has an unknown kind.",
    expected="one of {kinds}", hint="{nearest}",
)
NO_STAGE = Code(
    "evaluate/unknown-stage", cause="An evaluation task names a stage that the recipe does not have.",
    expected="a stage of the recipe", hint="{nearest}",
)
NO_TASK = Code(
    "evaluate/unknown-task", cause="The command names neither a task of the recipe nor a benchmark.",
    expected="a task of the recipe's `evaluate` section, or a benchmark", hint="{nearest}",
)
NO_TASKS = Code(
    "evaluate/no-tasks", cause="The recipe has no evaluation tasks.",
    expected="at least one task", hint="Add an `evaluate` section with tasks.",
)

# model/

ATTENTION = Code(
    "model/attention-backend", cause="The attention backend cannot run on this machine.",
    expected="a backend that can run here",
    hint="Set `speed.attention` to `auto`, which takes the first backend that can run here.",
)
COMPILE = Code(
    "model/compile", cause="The recipe asks for `torch.compile`, which does not work on this machine.",
    expected="a machine that can compile",
    hint="Install a C++ compiler (on CUDA also Triton), or set `speed.compile` to `false`.",
)
CONTEXT = Code(
    "model/context", cause="The context is longer than the one that the decoder was trained with.",
    expected="at most {context}, the context it was trained with", hint="Lower `context`.",
)
IMAGE_SIZE = Code(
    "model/image-size",
    cause="The image size differs from the size that the encoder in the folder was made for.",
    expected="{size}, the size of the folder's encoder", hint="Remove `image_size`.",
)
NO_TEXT = Code(
    "model/no-text", cause="A model folder contains an encoder but no decoder.",
    expected="a folder with a decoder",
    hint="Name the folder in a recipe as `model.vision.from`, together with a decoder.",
)
NO_VISION = Code(
    "model/no-vision",
    cause="A model folder contains a connector but not the encoder that the connector reads.",
    expected="a connector with its encoder",
    hint="Import the model with its encoder: `lmmkit model import SRC DST --vision CLIP_FOLDER`.",
)
PLUGIN_SETTINGS = Code(
    "model/plugin-settings",
    cause="A model folder's recipe.yaml lacks the settings of plugins that the model needs to answer.",
    expected="settings of every plugin that the model needs to answer",
    hint="Restore the folder's recipe.yaml.",
)
TIMM = Code(
    "model/timm", cause="timm cannot build the encoder that the recipe describes.",
    expected="a ViT that timm can build",
    hint="Name a model of `timm.list_models('vit*')`, with arguments that it accepts.",
)
VOCAB = Code(
    "model/vocab", cause="The decoder's embedding is smaller than the tokenizer's vocabulary.",
    expected="an embedding for every token",
    hint="Use the tokenizer in this model's folder, or a decoder with a larger vocabulary.",
)

# optim/

NOT_INSTALLED = Code(
    "optim/not-installed", cause="The optimizer of the recipe needs a library that cannot be imported.",
    expected="an optimizer that is installed",
    hint='Run `pip install "lmmkit[lean]"`, or set `optim.kind` to `adamw`.',
)

# plan/

ATTN_KEYS = Code(
    "plan/attn-keys", cause="A term reads the attention to each of all rows of a view.",
    expected="`k` with a `kind` or a `token_name`",
    hint="Select the keys in the term's `AttnTo`, such as `k=Select(kind=\"image\")`.",
)
ATTN_SIZE = Code(
    "plan/attn-size",
    cause="The attention weights that terms read by `AttnTo` take more memory than `speed.attention_mb`.",
    expected="at most {most} MiB in the fullest micro-batch",
    hint="Select fewer queries or keys, read sums by `AttnMass`, lower `speed.tokens`, or raise `speed.attention_mb`.",
)
FROZEN = Code(
    "plan/frozen", cause="A term asks for a gradient into vision features that the stage does not train.",
    expected="`detach=True`, or a stage that trains {parts}",
    hint="Leave `detach` at its default in the term's need, or train the part.",
)
IMAGE_ROWS = Code(
    "plan/image-rows", cause="A term asks for vision features where there are none: of rows that are no image rows.",
    expected="an encoder, `at=Select(kind=\"image\")` without `shift`, and the stage `encoder` or `projected`",
    hint="Correct the need of the term.",
)
STEP_TERM = Code(
    "plan/step-term", cause="A term compares the items of a step, and the step has one sample.",
    expected="at least 2 samples a step", hint="Raise stages.{stage}.batch.samples, or remove the term.",
)
LAYERS = Code(
    "plan/layers", cause="A term reads layers or heads that the decoder does not have, or one of them twice.",
    expected="{layers}", hint="Correct the layers and heads that the term's `needs` name.",
)
NO_TARGET = Code(
    "plan/no-target", cause="A term reads the log-probability of rows that are never targets of next-token prediction.",
    expected="a selection of supervised text, without `shift`",
    hint="Select rows of answers: no `kind`, `role`, `token_name` or `supervised` that excludes them.",
)
CONNECTS = Code(
    "plan/connects", cause="Both, or neither, of the connector and the image reducer map to the decoder's width.",
    expected="`kind: none` if `connects` of the reducer is True, or else another kind",
    hint="With `connects = True` in its class a reducer is the connector itself.",
)
CONNECTOR_FIT = Code(
    "plan/connector", cause="A setting of the connector does not fit the encoder's grid or the decoder's width.",
    expected="{fitting}", hint="Change `{name}` of `model.connector`.",
)
NOT_A_REDUCER = Code(
    "plan/not-a-reducer", cause="`model.connector.reduce` names a plugin that is no image reducer.",
    expected="an instance of an `ImageReducer`", hint="Correct the name, or remove `reduce`.",
)
NO_VIEW = Code(
    "plan/no-view", cause="A term reads a view that no task of the stage makes.",
    expected="a view that the stage makes",
    hint="Give the task that makes the view a weight in the stage too. {nearest}",
)
NO_WEIGHT = Code(
    "plan/no-weight", cause="No stage gives the term a weight.",
    expected="a weight in some stage", hint="Add `{name}: 1.0` to a stage's losses, or remove the plugin.",
)
NOT_A_TERM = Code(
    "plan/not-a-term", cause="A stage gives a weight to a plugin that adds no term to the loss.",
    expected="`next_token`, or a loss or task plugin",
    hint="Remove the line: learned tokens and views act through the terms that read them. {nearest}",
)
OTHERS = Code(
    "plan/others", cause="A source, or a step, has too few other samples for the views of a plugin.",
    expected="a source, or a step, with as many other samples as the plugin asks for",
    hint="Ask for fewer samples, or use a larger source; for samples of a step raise `batch.samples`, and set "
    "`batch.tail: drop` if the last step is shorter. Or give the plugin weight 0 in this stage.",
)
NOT_A_TOKEN_WEIGHT = Code(
    "plan/not-a-token-weight", cause="`by` of next_token names a plugin that gives no weights to rows.",
    expected="an instance of a `TokenWeight`", hint="Correct the name, or remove it from `by`. {nearest}",
)
PER_WEIGHT = Code(
    "plan/per-weight",
    cause="The next-token loss is to be divided by the sum of weights that are not known before the step.",
    expected="`by` with plugins that have `spans` and no `weigh`",
    hint="Set `per: count`, or give the weights in `spans`, which gets the sample too.",
)
UNUSED_TOKEN_WEIGHT = Code(
    "plan/unused-token-weight", cause="A plugin weights rows of the next-token loss, and no stage uses it.",
    expected="its name in `by` of next_token in some stage",
    hint="Write `next_token: {{weight: 1.0, by: [{name}]}}` in a stage's losses, or remove the plugin.",
)
PATCHES = Code(
    "plan/patches",
    cause="A term reads the encoder's features row by row, and the image reducer or the connector makes the rows of"
    " patches that depend on the image.",
    expected="rows with fixed patches, or features of stage `projected`",
    hint="Use `VisionAt(at, stage=\"projected\")`, give the term weight 0, or use another reducer or connector.",
)
TILES = Code(
    "plan/tiles", cause="Images with rows by their shape (`image_fit` of kind `anyres` or `native`) meet something "
    "that needs images of one size.",
    expected="`crop`, `pad` or `stretch` with it", hint="Name another `image_fit`, or do without the other.",
)
REFERENCE = Code(
    "plan/reference", cause="A term reads the reference of a stage that has none, or one that does not fit.",
    expected="`start`, or a model folder with the same tokenizer, image size and grid",
    hint="Name a model that fits, or set `reference: start` in stage `{stage}`: the model with which it begins.",
)
SETTING = Code(
    "plan/setting", cause="A plugin's setting does not fit the sizes of the model.",
    expected="a setting that fits the model", hint="Change the setting or the model.",
)
NO_TEACHER = Code(
    "plan/teacher", cause="A plugin reads a teacher that the recipe does not have.",
    expected="a name in the recipe's `teachers` section", hint="{nearest}",
)
TEACHER_FIT = Code(
    "plan/teacher-fit",
    cause="The features of a teacher cannot be fitted to the image rows of the model as the plugin asks.",
    expected="`fit` \"resize\", or \"exact\" and a teacher with {grid} patches, as the model's encoder has",
    hint="Read it by `TeacherAt(..., fit=\"resize\")`, or set `image_size` of a teacher that accepts other sizes.",
)
TEACHER_MODEL = Code(
    "plan/teacher-model",
    cause="A plugin compares logits with those of a teacher that cannot read the rows of this model.",
    expected="a whole model with the same tokenizer, rows of the head and rows for an image, and no learned tokens",
    hint="Name another model folder as teacher, or train without the plugin that reads its logits.",
)
UNUSED_TEACHER = Code(
    "plan/unused-teacher", cause="No plugin of the recipe reads a teacher.",
    expected="a plugin whose needs read it", hint="Name `{name}` in the setting of a plugin, or remove it.",
)
TOKEN = Code(
    "plan/token", cause="A token strategy inserts after a token that the tokenizer does not have.",
    expected="the text of one token, as it continues a text, or the spelling of a control token",
    hint="Correct the token, or take a tokenizer that has it as one token.",
)
TOKENS = Code(
    "plan/tokens", cause="A stage's `tokens` names a plugin whose tokens act only where a term reads them.",
    expected="a token strategy that is `unread` and inserts tokens that other rows attend to",
    hint="Remove the name: learned tokens act through the terms that read them.",
)
TOKEN_TWICE = Code(
    "plan/token-twice", cause="Two plugins provide the same learned token.",
    expected="one provider for each token", hint="Remove one of the two plugins.",
)
UNPROVIDED_TOKEN = Code(
    "plan/unprovided-token", cause="A term reads a learned token that no plugin provides.",
    expected="a token that a plugin provides",
    hint="Add a token strategy that provides it under `plugins` (for `drt`: directed_token).",
)
UNREACHABLE = Code(
    "plan/unreachable", cause="A term reads rows that come before the image, so they cannot attend to it.",
    expected="rows that can attend to the image",
    hint="Move the token (directed_token.place: end), or set `allow_unreachable: true`.",
)
UNREAD_TOKEN = Code(
    "plan/unread-token", cause="No term reads the learned tokens that a plugin provides.",
    expected="a term that reads them, or `unread` tokens that a stage names in `tokens`",
    hint="Add a term that reads them, name registers in a stage's `tokens`, or remove the plugin.",
)
UNREAD_VIEW = Code(
    "plan/unread-view", cause="No term reads the views that a plugin makes.",
    expected="a term that reads them",
    hint="Add a term that reads them, `Select(view=...)`, or train on the text of the views (`text_loss`).",
)
VIEW_ROLE = Code(
    "plan/view-role", cause="A term reads views of a role that the task which makes the views does not have.",
    expected="a role in `roles` of the task that makes the view: {roles}", hint="Correct `view_role`. {nearest}",
)

# plugin/

API_VERSION = Code(
    "plugin/api-version", cause="The plugin was written for another version of the plugin API.",
    expected="API version {api}",
    hint="Install a release of the plugin for this version, or change it and set `api = {api}`. {changes}",
)
BAD_HOOK = Code(
    "plugin/bad-hook",
    cause="The plugin implements a hook that lmmkit does not have, or a hook with wrong arguments.",
    expected="only hooks and arguments that lmmkit has", hint="Correct the plugin.",
)
BAD_VALUE = Code(
    "plugin/bad-value", cause="A plugin's setting has a value of the wrong type.",
    expected="{type}", hint="Run `{explain}` for the settings and their types.",
)
CHANGED_FILE = Code(
    "plugin/changed-file", cause="A plugin file was changed while a run was using it.",
    expected="hash {hash}, as it was loaded", hint="Restore the file as it was, and resume.",
)
EDIT_KEY = Code(
    "plugin/edit-key", cause="The inserts of a token strategy depend on something that a prompt does not have.",
    expected="equal inserts for a record and its prompt, which has another key, no `meta`, and not the last answer",
    hint="Correct `edit` of the plugin.",
)
INSERT = Code(
    "plugin/insert", cause="A token strategy returns an insert that is not possible.",
    expected="`at` one of {positions}; a token of `provides`; as many rows as its module gives; `token` for"
    " `after_token` only",
    hint="Correct `edit` of the plugin.",
)
LABEL = Code(
    "plugin/label", cause="A plugin gives views labels that cannot be one tensor.",
    expected="a bool, int or float, or an array of them; of one type and form on all views of the plugin",
    hint="Correct `views` or `labels` of the plugin.",
)
LOAD_ERROR = Code(
    "plugin/load-error", cause="The plugin raises an exception when it is imported or returns its components.",
    expected="{plugin} to load without an error",
    hint="Correct or uninstall the plugin, or remove it from the recipe.",
)
MISSING_KEY = Code(
    "plugin/missing-key", cause="A plugin's required setting is missing.",
    expected="a value", hint="Add it under plugins.{name}; `{explain}` lists all settings.",
)
NO_COMPONENT = Code(
    "plugin/no-component", cause="The plugin does not offer a component of that name.",
    expected="a component that the plugin offers", hint="{nearest}",
)
NO_FILE = Code(
    "plugin/no-file", cause="The plugin's path is not a Python file.",
    expected="a Python file whose name ends in `.py`", hint="Correct the path.",
)
NO_HOOKIMPL = Code(
    "plugin/no-hookimpl", cause="The plugin has a function with the name of a hook but without @hookimpl.",
    expected="a hook marked with @hookimpl", hint="Put @hookimpl above the function.",
)
NO_OBSERVER_HOOK = Code(
    "plugin/no-observer-hook", cause="The recipe names an observer that implements no observer hook.",
    expected="at least one of {hooks}",
    hint="Implement one of these hooks, or remove the plugin from `output.observers`.",
)
NOT_A_COMPONENT = Code(
    "plugin/not-a-component", cause="The plugin offers an object that is not a component.",
    expected="a frozen dataclass derived from a component class of lmmkit.api", hint="Correct the plugin.",
)
RAISED = Code(
    "plugin/raised", cause="The code of a plugin raises an exception.",
    expected="no exception", hint="Correct the plugin. {changed}`{variable}=1` prints the full traceback.",
)
RESERVED_SETTING = Code(
    "plugin/reserved-setting",
    cause="A component declares a setting whose name is a key of every plugin section, or the name of the instance.",
    expected="a setting of another name than `use`, `allow_unreachable` and `name`", hint="Rename the setting.",
)
RETURNED = Code(
    "plugin/returned", cause="A method of a plugin returns something else than it must.",
    expected="{expected}", hint="Correct `{method}` of the plugin (docs/plugins.md, Protocol).",
)
SELECT = Code(
    "plugin/select", cause="A need selects rows by a word that no row has.",
    expected="{name} one of {choices}", hint="Correct `needs` of the plugin.",
)
SETTING_TYPE = Code(
    "plugin/setting-type", cause="A component declares a setting of a type that a recipe cannot contain.",
    expected="int, float, str, bool, None, Literal, or tuples and unions of these",
    hint="Declare settings of plain types. Tensors and modules belong into the module of `modules`.",
)
ADDITIVE = Code(
    "plugin/additive", cause="A plugin sets `additive` where it has no meaning, or to something else than a bool.",
    expected="`additive` of True, or False in a `Loss` or `AuxTask` with a `value` of its own",
    hint="Remove `additive`. A `StepTerm` does not depend on how a step is cut; a `RowLoss` and a text loss add up.",
)
OTHERS_KIND = Code(
    "plugin/others", cause="A plugin asks for other samples in a way that lmmkit does not have.",
    expected="`others` of the class: {kinds}",
    hint="Take `source`, other samples of the same source, or `step`, those of the same optimizer step.",
)
TWO_PACKAGES = Code(
    "plugin/two-packages", cause="Several installed packages offer a component of one name.",
    expected="a name that one package offers",
    hint="Uninstall the other package, or use a local file: `use: FILE.py:COMPONENT`.",
)
UNKNOWN_COMPONENT = Code(
    "plugin/unknown", cause="No installed plugin offers the component.",
    expected="an installed component", hint="{nearest} `lmmkit plugins list` shows what is installed.",
)
UNKNOWN_KEY = Code(
    "plugin/unknown-key", cause="A plugin does not have the setting.",
    expected="a setting of `{name}`", hint="{nearest}",
)
UNTRUSTED_FILE = Code(
    "plugin/untrusted-file",
    cause="The recipe uses a local plugin file, and the command does not allow it to run.",
    expected="permission to run the file",
    hint="Read {path}; if you trust it, add --trust-files to the command.",
)
WRONG_VIEW = Code(
    "plugin/view", cause="A task makes a view that does not agree with what its class declares, or with its readers.",
    expected="`role` one of `roles`; `supervision` train with `text_loss`, read for log-probabilities, else none",
    hint="Correct `views` of the plugin, or its `roles` and `text_loss`.",
)
