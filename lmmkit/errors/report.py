"""Codes of problems with `lmmkit report`."""

from lmmkit.errors import Code

# fmt: off

# report/

SAME_RUN = Code(
    "report/same-run", cause="One run is named twice.",
    expected="each run once", hint="Remove one of the two.",
)
NO_COMMON_TASK = Code(
    "report/no-task", cause="`--on` names a task that one of the runs has no results of.",
    expected="a task with results in every run", hint="{nearest}",
)
OTHER_QUESTIONS = Code(
    "report/other-questions", cause="Runs that answered other questions would be compared.",
    expected="at least one question, with the same prompt and images, that {first} answered too",
    hint="Evaluate both on the same data (`lmmkit eval`), name another task (`lmmkit report RUN... --on TASK`), or "
    "write a report of each.",
)
GRID_DAMAGED = Code(
    "report/damaged-grid", cause="The file of a grid lacks a value, or has one of another kind.",
    expected="{content}", hint="Write it again: `lmmkit ablate GRID.yaml`.",
)
GRID_AND_RUNS = Code(
    "report/grid-and-runs", cause="A grid is named together with runs, or with a task, which is for runs.",
    expected="one grid alone, or runs",
    hint="Write a report of the grid (`lmmkit report GRID`), and another of the runs (`lmmkit report RUN --on TASK`).",
)
NOT_HTML = Code(
    "report/out", cause="The page would be written over a file that is no HTML page, or a folder.",
    expected="a new file, or a page to replace", hint="Name another file, such as `report.html`.",
)
