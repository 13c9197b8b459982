"""Codes of problems with recipes."""

from lmmkit.errors import Code

# fmt: off

# recipe/

ANCHOR = Code(
    "recipe/anchor", cause="The recipe uses a YAML anchor, alias or merge key.",
    expected="plain YAML without `&`, `*` and `<<`", hint="Write the value in each place where it is used.",
)
CONFLICT = Code(
    "recipe/conflict", cause="Two values of the recipe contradict each other.",
    expected="{expected}", hint="{fix}",
)
DUPLICATE_KEY = Code(
    "recipe/duplicate-key", cause="A section has the same key twice.",
    expected="each key once", hint="Remove one of the two.",
)
EMPTY = Code(
    "recipe/empty", cause="The recipe has no keys.",
    expected="a section of keys", hint="Start from a recipe of `lmmkit recipes list`.",
)
FILE = Code(
    "recipe/file", cause="The recipe file cannot be read as text.",
    expected="a UTF-8 file of at most {limit} bytes",
    hint="{meant}Check the path, its permissions and the encoding. `lmmkit recipes list` names recipes and grids.",
)
MISSING_KEY = Code(
    "recipe/missing-key", cause="A required key is missing; docs/recipes.md lists all keys.",
    expected="{expected}", hint="Add `{key}: ...`.",
)
NAME = Code(
    "recipe/name", cause="A name in the recipe has a wrong form or is reserved.",
    expected="{expected}", hint="Choose another name.",
)
NULL = Code(
    "recipe/null", cause="A key has no value, or the value null.",
    expected="{expected}", hint="{fix}",
)
OUT_OF_RANGE = Code(
    "recipe/out-of-range", cause="A value is outside the range that docs/recipes.md gives for the key.",
    expected="{expected}", hint="{fix}",
)
SET = Code(
    "recipe/set", cause="A `--set KEY=VALUE` option has a wrong form or an unknown key.",
    expected="{expected}", hint="{fix}",
)
TAG = Code(
    "recipe/tag", cause="The recipe uses a YAML tag.",
    expected="plain YAML without tags", hint="Remove the tag.",
)
UNKNOWN_KEY = Code(
    "recipe/unknown-key", cause="A section has a key that lmmkit does not know.",
    expected="one of the section's keys", hint="{fix}",
)
UNKNOWN_NAME = Code(
    "recipe/unknown-name", cause="A key refers to a name that the recipe does not define.",
    expected="{expected}", hint="{nearest}",
)
WRONG_TYPE = Code(
    "recipe/wrong-type", cause="A value has the wrong type; docs/recipes.md lists the types of all keys.",
    expected="{expected}", hint="{fix}",
)
RECIPE_YAML = Code(
    "recipe/yaml", cause="The recipe is not plain YAML 1.2.",
    expected="{expected}", hint="{fix}",
)
