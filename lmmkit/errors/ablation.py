"""Codes of problems with grids of ablations and their runs."""

from lmmkit.errors import Code

# fmt: off

# ablation/

ABLATION_ANSWERS = Code(
    "ablation/answers-differ", cause="The kept answers of a run do not add up to the figures of its results.json.",
    expected="{value}, as in results.json",
    hint="Remove the folders of its answers and results.json; the next call evaluates it again.",
)
BRANCH = Code(
    "ablation/branch", cause="`branch` names a stage after which no other one follows in a variant.",
    expected="a stage that all variants have, before the last one", hint="{nearest}",
)
NO_CHANGE = Code(
    "ablation/changes-nothing", cause="A variant of a grid trains in the same way as the base.",
    expected="a variant that changes the training", hint="Remove it, or correct the keys that it sets.",
)
EQUAL_ROOTS = Code(
    "ablation/equal-roots", cause="Two data folders of a grid have the same data, so they have the same runs.",
    expected="folders whose data differ, such as drawn with another seed",
    hint="Remove one of the two: equal runs would count as independent, and intervals would be too narrow.",
)
EQUAL_VARIANTS = Code(
    "ablation/equal-variants", cause="Two variants of a grid train in the same way.",
    expected="variants that differ in their training", hint="Remove one of the two.",
)
MANY_VARIANTS = Code(
    "ablation/many-variants", cause="A product of a grid has more combinations than anybody could train.",
    expected="at most {most} combinations", hint="Shorten its lists, or divide it into variants.",
)
GRID_OPTIONS = Code(
    "ablation/options", cause="Options of `lmmkit ablate` exclude each other.",
    expected="one of `lmmkit ablate GRID --dry-run`, `lmmkit ablate GRID --forecast`, "
    "`lmmkit ablate GRID --emit slurm` and `lmmkit ablate GRID --json`; `lmmkit ablate GRID --jobs N` without "
    "`lmmkit ablate GRID --emit slurm`, which runs nothing",
    hint="Remove the others.",
)
ONE_SEED = Code(
    "ablation/one-seed", cause="An interval over seeds is asked for one run, which has none.",
    expected="two or more seeds or roots, for `interval: seeds`",
    hint="Add seeds, or write `interval: questions`, which is about these runs only.",
)
MEASURING_ENDED = Code(
    "ablation/measuring-ended", cause="The process that opens the data and measures steps ended without a result.",
    expected="a process that ends by itself",
    hint="The system ends a process that needs too much memory: free some, or measure smaller batches. What was "
    "measured is kept.",
)
GRID_OTHER_DATA = Code(
    "ablation/other-data", cause="A run in the store was trained on another version of the data than its key says.",
    expected="{expected}", hint="Remove that run folder; the next call trains it again.",
)
GRID_OTHER_QUESTIONS = Code(
    "ablation/other-questions", cause="Runs that are to be compared have answered different sets of questions.",
    expected="the questions of {other}",
    hint="Remove the folder of those answers; the next call evaluates the run again.",
)
SET_SEED = Code(
    "ablation/set-seed", cause="A grid sets the key `seed` of its recipes, which its own `seeds` replace.",
    expected="the seeds of all runs in `seeds`", hint="Remove the key, and write the seed into `seeds`.",
)
UNLIKE_QUESTIONS = Code(
    "ablation/unlike-questions",
    cause="Two arms of a grid would answer other questions in a task of one name, or be scored by other rules.",
    expected="the questions of `{other}`: {expected}",
    hint="Change the task and its data for all arms, with `set` of the grid, or give the task another name.",
)
NO_MEASURE = Code(
    "ablation/unknown-measure", cause="A measure of a grid names no figure that the evaluation of its recipes gives.",
    expected="TASK/FIGURE, with a task of the recipe's `evaluate` section and a figure of its kind", hint="{nearest}",
)
NO_RECIPE = Code(
    "ablation/unknown-recipe", cause="A grid names a recipe that does not exist.",
    expected="a file relative to the grid or to the current folder, or a name from `lmmkit recipes list`",
    hint="{nearest}",
)
GIVEN_TWICE = Code(
    "ablation/twice", cause="A list of a grid has the same item twice.",
    expected="each item once", hint="Remove one of the two.",
)
