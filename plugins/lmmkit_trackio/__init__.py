"""Gives the figures of a run to trackio, which stores them on this machine. `trackio show` opens them in a browser.

A recipe names it: `output: {observers: [trackio]}`. The project is "lmmkit"; a run has the name of its folder after
that of the folder above. A resume continues the run and writes the steps after the checkpoint again. Figures leave
the machine only if a variable of trackio (`TRACKIO_SPACE_ID`, `TRACKIO_SERVER_URL`) names another place.
"""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from lmmkit.api import hookimpl

try:
    import trackio
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('no trackio here; `pip install "lmmkit[trackio]"` brings it') from error


@hookimpl
def lmmkit_started(run: str, recipe: Mapping[str, Any]) -> None:
    """Opens the run; trackio completes it when the process ends."""
    name = "-".join(part for part in Path(run).resolve().parts[-2:] if part.strip("/"))
    with redirect_stdout(sys.stderr):
        trackio.init(
            project="lmmkit", name=name, config=dict(recipe), resume="allow", embed=False, auto_log_gpu=False,
            auto_log_cpu=False,
        )  # fmt: skip


@hookimpl
def lmmkit_logged(step: int, scalars: Mapping[str, float]) -> None:
    """Writes the figures of a step."""
    trackio.log(dict(scalars), step=step)
