"""Codes of problems with the arguments of a command."""

from lmmkit.errors import Code

# bench
BENCH_NO_STAGE = Code(
    "bench/no-stage",
    cause="`--stage` names a stage that the recipe does not have.",
    expected="one of {stages}",
    hint="Name one of these.",
)

# explain
EXPLAIN_UNKNOWN = Code(
    "explain/unknown",
    cause="No error of lmmkit has this code.",
    expected="a code from `lmmkit explain`",
    hint="{suggestion}",
)

# plugins
PLUGINS_NO_STAGE = Code(
    "plugins/no-stage",
    cause="`--stage` names a stage that the recipe does not have.",
    expected="a stage of the recipe",
    hint="{suggestion}",
)

# quickstart
QUICKSTART_NOT_EMPTY = Code(
    "quickstart/not-empty",
    cause="The folder for the quickstart already has files in it.",
    expected="a new or empty folder",
    hint="Name another folder with `--out`.",
)

# recipes
EXISTS = Code(
    "recipes/exists",
    cause="A file with the name of the copy is already there.",
    expected="a new file name",
    hint="Give another name.",
)
RECIPES_UNKNOWN = Code(
    "recipes/unknown",
    cause="No recipe of this name comes with lmmkit.",
    expected="a name from `lmmkit recipes list`",
    hint="{suggestion}",
)

# scenes
SCENES_NOT_EMPTY = Code(
    "scenes/not-empty",
    cause="The folder for the new scenes is a file, or has files in it.",
    expected="a new or empty folder",
    hint="Name another folder, or remove this one first.",
)
NOT_WRITABLE = Code(
    "scenes/not-writable",
    cause="The folder for the new scenes cannot be created or written.",
    expected="a folder that can be created and written",
    hint="Name another folder, or change its permissions.",
)
TOO_FEW = Code(
    "scenes/too-few",
    cause="The data set would be too small to train a tokenizer or to compare question types.",
    expected="at least {least}",
    hint="Ask for {least} scenes or more.",
)

# speak
TOKENS = Code(
    "speak/tokens",
    cause="The model needs learned tokens in every sequence, and token ids cannot express them.",
    expected="a model without learned tokens in every sequence",
    hint="Use `reply` or `answer`, which add the learned tokens.",
)
TOO_LONG = Code(
    "speak/too-long",
    cause="The prompt leaves too little of the context for the answer.",
    expected="at most {room} rows (the context without {max_new_tokens} new tokens)",
    hint="Shorten the prompt, or lower `max_new_tokens`.",
)
