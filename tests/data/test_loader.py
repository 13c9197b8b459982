"""Data workers: their open files, their errors by name, and their end."""

from __future__ import annotations

import gc
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lmmkit.data.loader import load_steps
from lmmkit.errors import MachineError
from lmmkit.training.signals import ignore_in_worker


@dataclass
class Batches:
    """A pipeline whose steps have `count` micro-batches of thirty tensors, and the open files of the worker."""

    count: int

    def step_and_skipped(self, index):
        opened = torch.tensor(len(os.listdir("/proc/self/fd")))
        return (opened, *([torch.full((3,), i + t) for t in range(30)] for i in range(self.count))), ()


def open_files(count):
    """Returns the most open files of the worker, and of this process."""
    gc.collect()  # the files of earlier loaders
    worker, here = 0, 0
    kept = []
    for step in load_steps(Batches(count), 0, 8, workers=1, worker_init=ignore_in_worker):  # type: ignore[arg-type]
        assert len(step) == count + 1 and step[1][5].tolist() == [5, 5, 5]
        kept = [*kept[-2:], step]
        worker, here = max(worker, int(step[0])), max(here, len(os.listdir("/proc/self/fd")))
    return worker, here


def test_open_files_do_not_grow_with_the_micro_batches_of_a_step():
    few, many = open_files(16), open_files(128)
    assert abs(many[0] - few[0]) <= 4, (few, many)
    assert many[1] - few[1] <= 20, "three steps with a file for each tensor would have 10,080 more"


def test_a_step_of_many_micro_batches_passes_where_few_files_may_be_open():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()
    few = len(os.listdir("/proc/self/fd")) + 200  # earlier tests of this process may have left some open
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
    try:
        assert open_files(128)[0] < few
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@dataclass
class Imported:
    """A pipeline whose step is whether the process that started the worker has torch in memory."""

    def step_and_skipped(self, index):
        maps = Path(f"/proc/{os.getppid()}/maps").read_text()
        return (torch.tensor("libtorch_cpu" in maps),), ()


def test_workers_are_forks_of_a_server_that_has_imported_torch():
    steps = load_steps(Imported(), 0, 2, workers=1, worker_init=ignore_in_worker)  # type: ignore[arg-type]
    assert [bool(step[0]) for step in steps] == [True, True]


@dataclass
class Fails:
    """A pipeline whose second step fails in the worker, in a way of its own."""

    way: str

    def step_and_skipped(self, index):
        if index == 1:
            if self.way == "files":
                raise OSError(24, "Too many open files")
            if self.way == "memory":
                raise MemoryError("no room for an image")
            if self.way == "bug":
                raise KeyError("colour_of_the_plugin")
            if self.way == "runtime":
                raise RuntimeError("shapes of the plugin differ")
            if self.way == "unsendable":
                return (lambda: None,), ()
            os.kill(os.getpid(), {"kill": 9, "bus": 7}[self.way])
        return (), ()


def run(way):
    """Returns the error of the second step; it must come at once."""
    began = time.monotonic()
    with pytest.raises(Exception) as error:
        list(load_steps(Fails(way), 0, 5, workers=2, worker_init=ignore_in_worker))  # type: ignore[arg-type]
    assert time.monotonic() - began < 120, "a hang takes 300 seconds"
    return error.value


@pytest.mark.parametrize(
    ("way", "code", "words"),
    [
        ("files", "data/step-refused", "Too many open files"),
        ("memory", "data/step-refused", "MemoryError: no room for an image"),
        pytest.param("unsendable", "data/worker-died", "could not send a step", marks=pytest.mark.slow),
        pytest.param("kill", "data/worker-died", "killed by SIGKILL", marks=pytest.mark.slow),
        pytest.param("bus", "data/worker-died", "killed by SIGBUS", marks=pytest.mark.slow),
    ],
)
def test_what_the_machine_refuses_is_named_at_once(way, code, words):
    error = run(way)
    assert isinstance(error, MachineError)
    (problem,) = error.problems
    assert problem.code == code and words in problem.got, problem
    assert "step 2" in problem.where or "step 1" in problem.where


def test_the_end_of_the_server_that_starts_workers_is_the_machine_s(monkeypatch):
    def connect(fds):
        raise EOFError  # as from a server that a signal ended while it imported torch

    monkeypatch.setattr("multiprocessing.forkserver.connect_to_new_process", connect)
    error = run("bug")
    assert isinstance(error, MachineError)
    assert [(each.code, each.got) for each in error.problems] == [
        ("data/worker-died", "the process that starts workers ended")
    ]


@pytest.mark.parametrize(
    ("way", "kind", "words"),
    [("bug", KeyError, "colour_of_the_plugin"), ("runtime", RuntimeError, "shapes of the plugin differ")],
)
def test_a_bug_in_a_worker_is_raised_as_itself(way, kind, words):
    error = run(way)
    assert type(error) is kind and words in str(error) and "step_and_skipped" in str(error)
