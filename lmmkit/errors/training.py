"""Codes of problems with runs, checkpoints, ranks and the files of a run."""

from lmmkit.errors import Code

# checkpoint
CHECKPOINT_CANNOT_WRITE = Code(
    "checkpoint/cannot-write",
    cause="The disk has no room for a checkpoint, or the run folder refuses new files.",
    expected="room for the checkpoint, in a folder that can be written to",
    hint="Free space, lower `output.keep`, or move the run; older checkpoints are unchanged.",
)
DAMAGED = Code(
    "checkpoint/damaged",
    cause="A file of a checkpoint is missing, has changed since it was saved, or does not belong there.",
    expected="the file as it was saved",
    hint="Restore it from a copy, or remove the folder of this checkpoint: the run then resumes from the one before.",
)
OTHER_MODEL = Code(
    "checkpoint/other-model",
    cause="A tensor of the checkpoint has another name, type or shape than the model of the recipe.",
    expected="{tensor}",
    hint="Resume with the recipe the run was started with, or begin a new run.",
)
SCHEMA = Code(
    "checkpoint/schema",
    cause="The checkpoint was written by a version of lmmkit with another file format.",
    expected="schema {known}",
    hint="Use the version that wrote the checkpoint: {versions}.",
)

# log
LOG_CANNOT_WRITE = Code(
    "log/cannot-write",
    cause="A log of the run cannot be written.",
    expected="a file that can be written to",
    hint="Free space or change the access rights, then continue with `--resume`.",
)
NO_STEP_NUMBER = Code(
    "log/step",
    cause="A line of a log has no step number.",
    expected="a whole number under `step`",
    hint="Remove that line, or restore the file.",
)

# parallel
OPTIMIZER = Code(
    "parallel/optimizer",
    cause="Several processes train together with an optimizer that works on one device only.",
    expected="an optimizer that can be sharded",
    hint="Set it to `adamw`, or train on one device.",
)
WORLD = Code(
    "parallel/world",
    cause="The number of processes does not fit the recipe's `parallel` section.",
    expected="a number of processes that fits: {counts}",
    hint="Start torchrun with one of these, or change `parallel` (`--set parallel.shard=all`).",
)

# ranks
DEVICES = Code(
    "ranks/devices",
    cause="A host runs more processes than it has CUDA devices.",
    expected="at most {devices} processes, one for each CUDA device",
    hint="Start torchrun with --nproc-per-node {devices}.",
)
DIFFER = Code(
    "ranks/differ",
    cause="The ranks were started with different recipes, data or plugins.",
    expected="the recipe and plan of rank 0",
    hint="Start every rank with the same files.",
)
FOLDER = Code(
    "ranks/folder",
    cause="A rank cannot find the run folder that rank 0 has created.",
    expected="the folder that rank 0 has created",
    hint="Put it on a file system that all hosts share (`--out`).",
)
RANK_LOST = Code(
    "ranks/lost",
    cause="Another rank ended while this one was communicating with it.",
    expected="every rank running",
    hint="Read the last messages of that rank; then start again with `--resume`.",
)

# resume
RUN_CHANGED = Code(
    "resume/changed",
    cause="Recipe, plan or data differ from those of the run that is to be resumed.",
    expected="{before}, as in the run",
    hint="Resume with {recipe} on the same data, or begin a new run.{accept}",
)

# run
RUN_CANNOT_WRITE = Code(
    "run/cannot-write",
    cause="The file system refuses to create or change a file of the run folder.",
    expected="a folder that can be written to, on a file system with locks",
    hint="Free disk space or change the folder's permissions, or name another folder (`--out DIR`).",
)
RUN_EXISTS = Code(
    "run/exists",
    cause="A new run would be written into the folder of another run.",
    expected="an empty or a new folder",
    hint="Continue that run (`--resume`), or name another folder (`--out DIR`).",
)
RUN_LINK = Code(
    "run/link",
    cause="A run folder contains a link, a pipe or a device, which could lead out of the folder.",
    expected="a file or a folder",
    hint="Put the file or folder itself there, or remove it.",
)
LOCKED = Code(
    "run/locked",
    cause="Another process is training in the run folder.",
    expected="one run in a folder at a time",
    hint="Wait for it or stop it (`kill {pid}` on {host}), then `--resume`; or name another folder (`--out DIR`).",
)
NO_FOLDER = Code(
    "run/no-folder",
    cause="The path of the run is not a folder that can be read.",
    expected="a folder",
    hint="Name another folder (`--out DIR`).",
)
NOT_A_RUN = Code(
    "run/not-a-run",
    cause="The folder does not exist, or no run has begun in it.",
    expected="the folder of a run (`lmmkit train --out DIR`)",
    hint="Check the path; a run is the folder that contains `run.json`.",
)
NOT_EMPTY = Code(
    "run/not-empty",
    cause="A new run would be written into a folder with other files.",
    expected="an empty or a new folder",
    hint="Name another folder (`--out DIR`).",
)
RUN_UNREADABLE = Code(
    "run/unreadable",
    cause="A JSON file of the run is missing, damaged, or lacks a value.",
    expected="{content}",
    hint="{fix}",
)

# train
IDLE_TERM = Code(
    "train/idle-term",
    cause="A term of the loss found nothing to average in the first steps of a stage.",
    expected="items to average",
    hint="Remove it from the losses of the stage, or add data it applies to (`lmmkit plugins trace`).",
)
UNKNOWN_STAGE = Code(
    "train/no-stage",
    cause="`--stage` names a stage that the recipe does not have.",
    expected="one of {stages}",
    hint="Name one of these.",
)
NO_START = Code(
    "train/no-start",
    cause="The model that a stage starts from is not there.",
    expected="a model folder to start from",
    hint="Name one (`--set stages.{stage}.start=RUN/model/STAGE`), or train all stages in turn.",
)
NOT_DETERMINISTIC = Code(
    "train/not-deterministic",
    cause="`speed.deterministic` is set, and a kernel of the step has no deterministic version.",
    expected="deterministic kernels ({setting})",
    hint="Set `speed.attention` to another backend if attention is named, or set `speed.deterministic: false`.",
)
NOT_FINITE = Code(
    "train/not-finite",
    cause="Too many steps had a loss or gradient that is not a finite number, so they updated nothing.",
    expected="finite numbers; at most {in_a_row} such steps in a row, and at most {most} of {window}",
    hint="Look at the records in anomalies.jsonl; then `--resume` from the unchanged weights, or begin a new run "
    "with a lower `lr` or a `clip`.",
)
NOT_RESUMED = Code(
    "train/option",
    cause="`--accept-data-change` is given for a new run.",
    expected="a run that is resumed",
    hint="Add `--resume`, or remove the option.",
)
OUT_OF_MEMORY = Code(
    "train/out-of-memory",
    cause="The memory does not suffice for a training step.",
    expected="a step that fits into the memory",
    hint="Set one of {keys}; keys of `speed` can change with `--resume`, from the last checkpoint. "
    "`lmmkit check` estimates the memory of a recipe.",
)

# validate
BEST = Code(
    "validate/best",
    cause="`validate.best` names a figure that the validation does not compute.",
    expected="a figure of this section",
    hint="{suggestion}",
)
BEST_FOLDER = Code(
    "validate/name",
    cause="The best model of one stage and the last model of another stage would share a folder.",
    expected="a stage name that does not end another stage's name with `-best`",
    hint="Rename the stage.",
)
OTHER_STAGE = Code(
    "validate/stage",
    cause="A validation names an evaluation task of another stage.",
    expected="a task of stage `{stage}`",
    hint="Name a task without `stage`, or remove it.",
)
