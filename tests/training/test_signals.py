"""Signals set a flag; a second one kills; data workers leave them to their parent."""

import os
import signal
import threading
import time

import pytest

from lmmkit.training.signals import SIGNALS, Stop, exit_code, ignore_in_worker


def test_codes():
    assert [exit_code(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == [
        130,
        143,
        143,
    ]


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_sets_the_flag_and_no_more(signum):
    before = [signal.getsignal(s) for s in SIGNALS]
    with Stop() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), signum)
        assert stop.requested == signum
        os.kill(os.getpid(), signal.SIGTERM)  # the same request, sent on by a launcher
        assert stop.requested == signum
    assert [signal.getsignal(s) for s in SIGNALS] == before


@pytest.mark.parametrize("signum", SIGNALS)
def test_from_outside_the_loop_ends_in_order(fork, signum):
    ready, tell = os.pipe()

    def train():
        with Stop() as stop:
            os.write(tell, b"x")
            while stop.requested is None:
                time.sleep(0.005)
        return exit_code(stop.requested)

    pid = fork(train)
    os.read(ready, 1)
    os.kill(pid, signum)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == exit_code(signum)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_second_signal_kills(forked, signum):
    def train():
        with Stop(grace=0.0) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested == signal.SIGTERM
            os.kill(os.getpid(), signum)
            time.sleep(5)

    assert forked(train) == -signum


def test_another_thread_gets_no_handlers():
    before = [signal.getsignal(s) for s in SIGNALS]
    seen = []

    def body():
        with Stop() as stop:
            seen.append(([signal.getsignal(s) for s in SIGNALS], stop.requested))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


def test_workers_survive_a_signal_to_the_group(forked, fork):
    def train():
        os.setpgid(0, 0)
        ready, tell = os.pipe()
        go, release = os.pipe()

        def work():
            ignore_in_worker(0)
            os.write(tell, b"x")
            os.read(go, 1)
            return 5

        with Stop() as stop:
            workers = [fork(work), fork(work)]
            for _ in workers:
                os.read(ready, 1)
            for signum in SIGNALS:
                os.killpg(0, signum)
            assert stop.requested in SIGNALS
            os.write(release, b"xx")
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
        return 9 if codes == [5, 5] else 1

    assert forked(train) == 9
