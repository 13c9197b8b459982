"""Codes of problems with files of answers and their comparison."""

from lmmkit.errors import Code

# fmt: off

# answers/

ANSWERS_CANNOT_WRITE = Code(
    "answers/cannot-write", 
    cause="The folder for the answers cannot be created, for example in a run that is read-only.",
    expected="a folder that can be created", hint="Name another folder: `lmmkit eval MODEL --out FOLDER`.",
)
CHANGED = Code(
    "answers/changed",
    cause="The folder has answers of another model, other data, other prompts or other settings.",
    expected="{before}, as in the answers that the folder has",
    hint="Name another folder (`lmmkit eval MODEL --out FOLDER`), or remove this one to ask all questions again.",
)
DAMAGED = Code(
    "answers/damaged", cause="A line of a file of answers cannot be read.",
    expected="an answer with its fields: {fields}", hint="Remove that line, or restore the file.",
)
DUPLICATE = Code(
    "answers/duplicate", cause="A file has several answers to one question.",
    expected="one answer to each question",
    hint="Remove all but one: a file that was appended to twice has such lines.",
)
NO_BENCHMARK = Code(
    "answers/no-benchmark", cause="`lmmkit eval` got an option about benchmarks, and `--on` names none.",
    expected="a benchmark that is no task of the recipe",
    hint="Name one (`lmmkit eval RUN --on pope`), or leave the option out: tasks of the recipe have `files`, `split` "
    "and `samples` there.",
)
NO_FILES = Code(
    "answers/no-files", cause="A benchmark needs its official files, and their folder is not given or does not exist.",
    expected="a folder with the official files of {title}", hint="{fix}",
)
NO_ROOT = Code(
    "answers/no-root", cause="`--root`, which moves the paths of a run, is given for a model that is not part of one.",
    expected="a run", hint="Leave it out; `lmmkit eval MODEL --files DIR` names the folder of benchmarks.",
)
NO_OUT = Code(
    "answers/no-out", cause="The answers would be written into a model folder that is not part of a run.",
    expected="a folder for the answers", hint="Name a folder: `lmmkit eval MODEL --out FOLDER`.",
)
NEEDS_TEN = Code(
    "answers/ten-answers", cause="A record has another number of right answers than the rule of its task needs.",
    expected="`answers`: ten texts, one of each annotator, for `match: {match}`", hint="Choose another `match`.",
)
EXTRA = Code(
    "answers/not-installed", cause="The command needs a library that cannot be imported.",
    expected="the extra `{extra}`", hint='Run `pip install "lmmkit[{extra}]"`.',
)
NO_ANSWERS = Code(
    "answers/no-answers", cause="The folder has no answers of the task.",
    expected="a task with answers", hint="{nearest}",
)
FOREIGN = Code(
    "answers/format", cause="A file of answers has a form that lmmkit does not know.",
    expected="one of {formats}: docs/evaluation.md describes them",
    hint="Name the form (`lmmkit answers score BENCHMARK --format FORM`), or correct the file.",
)
SAME_ANSWERS = Code(
    "answers/same", cause="Answers would be compared with themselves.",
    expected="the answers of two models", hint="Name a run or folder of another model.",
)
OTHER_QUESTIONS = Code(
    "answers/other-questions",
    cause="A file has no answer to a question of the task, or two results have no question in common.",
    expected="answers to the questions of the task, by their official ids",
    hint="Check the task, its split and the release of its files.",
)
