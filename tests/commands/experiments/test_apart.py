"""Functions in a process of their own: results, errors, signals, and a process that is killed."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from lmmkit.commands.experiments.apart import apart
from lmmkit.errors import MachineError, UserError
from lmmkit.errors.ablation import ONE_SEED


def work(what: str) -> int:
    """Does one of several things, in the other process."""
    if what == "refuse":
        raise UserError(ONE_SEED.at("seeds", got="one"))
    if what == "wrong":
        raise KeyError("a fault of lmmkit")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wait":
        time.sleep(100)
    return os.getpid()


def test_a_result_comes_from_another_process():
    assert apart(work, "") != os.getpid()


def test_errors_are_those_of_the_function():
    with pytest.raises(UserError) as refused:
        apart(work, "refuse")
    assert refused.value.problems[0].code == "ablation/one-seed"
    with pytest.raises(KeyError) as wrong:
        apart(work, "wrong")
    assert "in work" in wrong.value.__notes__[0], "where it happened in the other process"


def test_a_process_that_is_killed_is_reported():
    with pytest.raises(MachineError) as error:
        apart(work, "die")
    (problem,) = error.value.problems
    assert problem.code == "ablation/measuring-ended" and "-9" in problem.got


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both(signum):
    began = time.monotonic()
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signum)).start()
    with pytest.raises(KeyboardInterrupt) as error:
        apart(work, "wait")
    assert error.value.args == (signum,) and time.monotonic() - began < 50
