"""Codes of problems with the arguments of a command."""

from lmmkit.errors import Code

# fmt: off

# bench/

BENCH_NO_STAGE = Code(
    "bench/unknown-stage", cause="`--stage` names a stage that the recipe does not have.",
    expected="one of {stages}", hint="Name one of these.",
)

# chat/

CHAT_MODEL = Code(
    "chat/model", cause="`lmmkit chat` got no model, or one together with `--demo`, which is a model too.",
    expected="one model: a run, a model folder, or the one that comes with lmmkit",
    hint="`lmmkit chat RUN_OR_MODEL`, or `lmmkit chat --demo`.",
)
CHAT_NO_WEB = Code(
    "chat/no-web", cause="starlette or uvicorn, which serve the page of `lmmkit chat --web`, is not installed.",
    expected="the packages of the extra `web`", hint='Run `pip install "lmmkit[web]"`.',
)
CHAT_PORT = Code(
    "chat/port", cause="The system does not give the port for the page of `lmmkit chat --web`.",
    expected="a free port", hint="Name another one (`lmmkit chat ... --web --port N`), or none, for any that is free.",
)
CHAT_TOP_P = Code(
    "chat/top-p", cause="`--top-p` is about drawing answers at random, and without `--temperature` they are greedy.",
    expected="a temperature above 0 beside it",
    hint="Run `lmmkit chat RUN --temperature T --top-p P`, or leave the option out.",
)
CHAT_WEB = Code(
    "chat/web", cause="`--prompt`, which asks one question and ends, is given with `--web`, or `--port` without it.",
    expected="`lmmkit chat RUN --prompt TEXT`, or `lmmkit chat RUN --web --port N`", hint="Remove one of the two.",
)
LEARNED_TOKENS = Code(
    "chat/learned-tokens",
    cause="The model needs learned tokens in every sequence, and plain token ids cannot contain them.",
    expected="a model without learned tokens in every sequence",
    hint="Use `reply` or `answer`, which add the learned tokens.",
)
TOO_LONG = Code(
    "chat/too-long", cause="The prompt leaves too little of the context for the answer.",
    expected="the prompt and {max_new_tokens} new tokens within the context, which has {context} rows",
    hint="Shorten the prompt, or ask for fewer new tokens (`lmmkit chat RUN --max-new-tokens N`; `max_new_tokens` of a "
    "task in the recipe).",
)

# demo/

DEMO_NOT_EMPTY = Code(
    "demo/not-empty", cause="The path for the demo is a file, or a folder that contains files.",
    expected="a new or empty folder", hint="Name another folder (`lmmkit demo DIR`), or remove this one first.",
)

# explain/

UNKNOWN_CODE = Code(
    "explain/unknown-code", cause="lmmkit has no error with this code.",
    expected="a code from `lmmkit explain`", hint="{suggestion}",
)

# files/

CANNOT_WRITE = Code(
    "files/cannot-write", cause="The system refuses to create or write a file or folder that a command writes.",
    expected="a file or folder that can be written, with free space on its disk",
    hint="Free disk space, change the permissions, or name another file or folder.",
)

# machine/

NO_MEMORY = Code(
    "machine/out-of-memory", cause="A command, or an answer, needs more memory than there is.",
    expected="what fits into the memory",
    hint="End other programs that use it, or make the work smaller: fewer or smaller images, a shorter conversation, "
    "fewer new tokens, weights in half the bytes (`lmmkit chat --dtype bfloat16`).",
)

# plugins/

PLUGINS_FILES = Code(
    "plugins/existing-file", cause="`lmmkit plugins new` would write over a file.",
    expected="no file of that name",
    hint="Take another name or another folder (`lmmkit plugins new NAME --out FOLDER`), or remove the file.",
)
PLUGINS_NAME = Code(
    "plugins/name", cause="A new plugin gets a name that cannot be imported, or that a recipe cannot have.",
    expected="a name of lower-case letters, digits and `_` that neither Python nor torch's modules nor lmmkit use",
    hint="Take a name such as `my_loss`.",
)
PLUGINS_NO_STAGE = Code(
    "plugins/unknown-stage", cause="`--stage` names a stage that the recipe does not have.",
    expected="a stage of the recipe", hint="{suggestion}",
)

# quickstart/

QUICKSTART_NOT_EMPTY = Code(
    "quickstart/not-empty", cause="The folder for the quickstart already contains files.",
    expected="a new or empty folder", hint="Name another folder: `lmmkit quickstart --out DIR`.",
)

QUICKSTART_OTHER = Code(
    "quickstart/other-kind",
    cause="The folder contains a stopped quickstart of the other kind, with or without `--fast`.",
    expected="a quickstart of the same kind, to continue it",
    hint="Continue it with the same option, or name another folder: `lmmkit quickstart --out DIR`.",
)

# recipes/

EXISTS = Code(
    "recipes/exists", cause="A file with the name of the copy exists already.",
    expected="a new file name", hint="Give another name.",
)
UNKNOWN_RECIPE = Code(
    "recipes/unknown-recipe", cause="lmmkit has no recipe of this name.",
    expected="a name from `lmmkit recipes list`", hint="{suggestion}",
)

# reference/

EXISTS_FILE = Code(
    "reference/exists", cause="`lmmkit reference` would write over a file.",
    expected="a new file",
    hint="Name another file (`lmmkit reference MODEL RECIPE --stage STAGE --out FILE`), or remove this one first.",
)
NO_SCORES = Code(
    "reference/no-scores", cause="`lmmkit reference` finds nothing to compute, or records that it cannot write.",
    expected="a stage whose terms read log-probabilities (`LogProb`), or fewer likeliest tokens than there are; "
    "sources of kind `llava`",
    hint="Name another stage or another recipe: `lmmkit reference MODEL RECIPE --stage STAGE --out FILE`.",
)

# scenes/

BIAS = Code(
    "scenes/bias", cause="`--bias` is no share.",
    expected="a number from 0 to 1", hint="Give the share of questions that have their usual answer, such as 0.9.",
)
NEEDS_BIAS = Code(
    "scenes/needs-bias", cause="An option of biased scenes is given without `--bias`.",
    expected="the bias too, as in `lmmkit data make-scenes DIR --bias 0.9`",
    hint="Give the bias, or leave the option out.",
)
SCENES_NOT_EMPTY = Code(
    "scenes/not-empty", cause="The path for the new scenes is a file, or a folder that contains files.",
    expected="a new or empty folder", hint="Name another folder, or remove this one first.",
)
NOT_WRITABLE = Code(
    "scenes/not-writable", cause="The folder for the new scenes cannot be created or written.",
    expected="a folder that can be created and written",
    hint="Name another folder, or change its permissions.",
)
TOO_FEW = Code(
    "scenes/too-few", cause="The data set is too small to train a tokenizer or to compare question types.",
    expected="at least {least}", hint="Ask for {least} scenes or more.",
)
UNKNOWN_KIND = Code(
    "scenes/unknown-kind", cause="`--kinds` names a kind of question that biased scenes do not have.",
    expected="one or more of {kinds}", hint="{nearest}",
)
