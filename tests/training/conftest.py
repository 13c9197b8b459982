"""Children that die: forked, because a fork costs milliseconds and an import of torch seconds."""

import os
import signal
import traceback

import pytest


def _fork(body):
    """Runs `body` in a child; gives its pid. The child never returns into pytest."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(20)  # no child outlives a broken test
        code = body() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@pytest.fixture
def fork():
    return _fork


@pytest.fixture
def forked():
    """Runs a function in a child and waits: its exit status, or minus the signal that ended it."""

    def run(body):
        return os.waitstatus_to_exitcode(os.waitpid(_fork(body), 0)[1])

    return run
