"""Codes of problems with runs, checkpoints, ranks and the files of a run."""

from lmmkit.errors import Code

# fmt: off

# checkpoint/

CHECKPOINT_CANNOT_WRITE = Code(
    "checkpoint/cannot-write", cause="The disk is full, or the run folder cannot be written to.",
    expected="free space for the checkpoint, in a folder that can be written to",
    hint="Free disk space, lower `output.keep`, or move the run. Older checkpoints are unchanged.",
)
DAMAGED = Code(
    "checkpoint/damaged",
    cause="A file of a checkpoint is missing, has changed since it was saved, or does not belong there.",
    expected="the file as it was saved",
    hint="Restore the file from a copy, or remove the folder of this checkpoint: the run then resumes from "
    "the one before.",
)
OTHER_MODEL = Code(
    "checkpoint/other-model",
    cause="A tensor of the checkpoint has another name, type or shape than in the model of the recipe.",
    expected="{tensor}", hint="Resume with the recipe that the run was started with, or begin a new run.",
)
SCHEMA = Code(
    "checkpoint/schema", cause="A version of lmmkit with another file format wrote the checkpoint.",
    expected="file format (schema) {known}", hint="Use the version that wrote the checkpoint: {versions}.",
)

# log/

LOG_CANNOT_WRITE = Code(
    "log/cannot-write", cause="A log of the run cannot be written.",
    expected="a file that can be written to",
    hint="Free disk space or change the file's permissions, then continue with `lmmkit train ... --resume`.",
)
NO_STEP = Code(
    "log/no-step", cause="A line of a log has no step number.",
    expected="a whole number as the value of `step`", hint="Remove that line, or restore the file.",
)

# parallel/

OPTIMIZER = Code(
    "parallel/optimizer", cause="Several processes train with an optimizer that works on one device only.",
    expected="an optimizer that can be sharded", hint="Set `optim.kind` to `adamw`, or train on one device.",
)
PROCESS_COUNT = Code(
    "parallel/process-count", cause="The number of processes does not fit the recipe's `parallel` section.",
    expected="a number of processes that fits: {counts}",
    hint="Start torchrun with one of these numbers, or change `parallel` (`--set parallel.shard=all`).",
)

# ranks/

TOO_FEW_DEVICES = Code(
    "ranks/too-few-devices", cause="A host runs more processes than it has CUDA devices.",
    expected="at most {devices} processes, one for each CUDA device",
    hint="Start torchrun with --nproc-per-node {devices}.",
)
DIFFER = Code(
    "ranks/differ", cause="The ranks were started with different recipes, data or plugins.",
    expected="the recipe and plan of rank 0", hint="Start every rank with the same files.",
)
NO_SHARED_FOLDER = Code(
    "ranks/no-shared-folder", cause="A rank cannot find the run folder that rank 0 has created.",
    expected="the folder that rank 0 has created",
    hint="Put the run folder on a file system that all hosts share (`lmmkit train ... --out DIR`).",
)
RANK_ENDED = Code(
    "ranks/rank-ended", cause="Another rank ended while this one communicated with it.",
    expected="every rank running",
    hint="Read the last messages of that rank, then start again with `lmmkit train ... --resume`.",
)

# resume/

CHANGED = Code(
    "resume/changed", cause="The recipe, plan or data differ from those of the run to resume.",
    expected="{before}, as in the run",
    hint="Resume with the recipe of the run (`lmmkit train {recipe} --root {root} --out {run} --resume`) and the same "
    "data, or begin a new run.{accept}",
)
OTHER_CUT = Code(
    "resume/other-cut",
    cause="The steps of a resumed run would be cut into other micro-batches, and the value of a term depends on that.",
    expected="{before}, as in the run",
    hint="Set `{key}` as it was, or begin a new run. Of {terms} the value is the mean over micro-batches "
    "(`additive = False`), so this is mathematics.",
)
OTHER_RANKS = Code(
    "resume/other-ranks",
    cause="A run would go on with another number of processes, and the value of a term depends on that.",
    expected="{before}, as in the run",
    hint="Start as many processes as before (`torchrun --nproc-per-node`), or begin a new run. Of {terms} the value is "
    "the mean over micro-batches (`additive = False`), so this is mathematics.",
)

# run/

RUN_CANNOT_WRITE = Code(
    "run/cannot-write", cause="The file system refuses to create or change a file of the run folder.",
    expected="a folder that can be written to, on a file system with locks",
    hint="Free disk space or change the permissions of the folder; a new run can use another folder "
    "(`lmmkit train ... --out DIR`).",
)
RUN_EXISTS = Code(
    "run/exists", cause="A new run would write into the folder of another run.",
    expected="a new or empty folder",
    hint="Continue that run (`lmmkit train ... --resume`), or name another folder (`lmmkit train ... --out DIR`).",
)
RUN_LINK = Code(
    "run/link",
    cause="A run folder contains a link, a pipe or a device, which could lead out of the folder.",
    expected="a file or a folder", hint="Put the file or folder itself there, or remove it.",
)
LOCKED = Code(
    "run/locked", cause="Another process trains in the run folder.",
    expected="one run in a folder at a time",
    hint="Wait for it or stop it (`kill {pid}` on {host}), then run `lmmkit train ... --resume`; or name another "
    "folder (`lmmkit train ... --out DIR`).",
)
NOT_A_FOLDER = Code(
    "run/not-a-folder", cause="The path of the run is not a folder that can be read.",
    expected="a folder", hint="Check the path, or name another folder.",
)
RUNS_COMPARE = Code(
    "run/compare", cause="`lmmkit runs` got a folder to list together with `--compare`, which names its two runs.",
    expected="`lmmkit runs FOLDER`, or `lmmkit runs --compare A B`", hint="Remove one of the two.",
)
NOT_A_RUN = Code(
    "run/not-a-run", cause="The folder does not exist, or no run has begun in it.",
    expected="the folder of a run (`lmmkit train --out DIR`)",
    hint="{below}Check the path; a run is a folder that contains `run.json`.",
)
NOT_EMPTY = Code(
    "run/not-empty", cause="A new run would write into a folder that contains other files.",
    expected="a new or empty folder", hint="Name another folder (`lmmkit train ... --out DIR`).",
)
RUN_DAMAGED = Code(
    "run/damaged", cause="A JSON file of the run is missing, damaged, or lacks a value.",
    expected="{content}", hint="{fix}",
)

# train/

EMPTY_TERM = Code(
    "train/empty-term", cause="A term of the loss had no items to average over in the first steps of a stage.",
    expected="at least one item",
    hint="Remove the term from the stage, or add data that it applies to (`lmmkit plugins trace`).",
)
NO_MAIN_GUARD = Code(
    "train/no-main-guard",
    cause="A script starts a training with data workers outside of `if __name__ == \"__main__\":`. Each worker "
    "imports the script, and would start the training again.",
    expected="the call of the training inside `if __name__ == \"__main__\":`",
    hint="Put the statements that train under `if __name__ == \"__main__\":`, or set `speed.workers` to 0.",
)
NO_STAGE = Code(
    "train/unknown-stage", cause="`--stage` names a stage that the recipe does not have.",
    expected="one of {stages}", hint="Name one of these.",
)
NO_START = Code(
    "train/no-start-model", cause="The model that a stage starts from does not exist.",
    expected="a model folder to start from",
    hint="Name one (`--set stages.{stage}.start=RUN/model/STAGE`), or train all stages in order.",
)
NOT_DETERMINISTIC = Code(
    "train/not-deterministic",
    cause="`speed.deterministic` is set, and an operation of the step has no deterministic kernel.",
    expected="deterministic kernels ({setting})",
    hint="If the message names attention, set `speed.attention` to another backend; otherwise set "
    "`speed.deterministic: false`.",
)
NOT_FINITE = Code(
    "train/not-finite",
    cause="Too many steps had a loss or gradient that is not a finite number. Such steps update nothing.",
    expected="finite numbers; at most {in_a_row} such steps in a row, and at most {most} of {window}",
    hint="Read the records in anomalies.jsonl. Then continue from the unchanged weights "
    "(`lmmkit train ... --resume`), or begin a new run with a lower `lr` or a `clip`.",
)
ONLY_WITH_RESUME = Code(
    "train/only-with-resume", cause="`--accept-data-change` is given for a new run.",
    expected="a run to resume", hint="Write `lmmkit train ... --resume --accept-data-change`, or remove the option.",
)
OUT_OF_MEMORY = Code(
    "train/out-of-memory", cause="A training step needs more memory than there is.",
    expected="a step that fits into the memory",
    hint="Set one of {keys}; keys of `speed` can change with `lmmkit train ... --resume`, from the last checkpoint. "
    "`lmmkit check` estimates the memory of a recipe.",
)

# validate/

BEST = Code(
    "validate/best", cause="`validate.best` names a result that the validation does not compute.",
    expected="`loss`, a term, or TASK/FIGURE of this section", hint="{suggestion}",
)
STAGE_NAME = Code(
    "validate/stage-name",
    cause="The best model of one stage and the last model of another stage would share a folder.",
    expected="a stage name that is not another stage's name followed by `-best`", hint="Rename the stage.",
)
OTHER_STAGE = Code(
    "validate/other-stage", cause="A validation names an evaluation task of another stage.",
    expected="a task of stage `{stage}`",
    hint="Name a task without `stage`, or remove this task from `validate.tasks`.",
)
