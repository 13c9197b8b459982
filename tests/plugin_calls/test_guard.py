"""Which exceptions are a plugin's, which a machine's, and which are bugs of lmmkit."""

from __future__ import annotations

import errno
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lmmkit.api import Ctx, HiddenAt, Loss, Select
from lmmkit.errors import UserError
from lmmkit.errors.training import EMPTY_TERM
from lmmkit.objective import sum_by_name
from lmmkit.plugin_calls.guard import TRACEBACK, calling, place_of
from tests.support.faulty_plugin import Faulty


class OneArgument(Loss):
    def value(self):  # type: ignore[override]
        return torch.zeros(())


def fault(call, owner) -> str:
    """Returns the message of the problem that a guarded call is reported as."""
    with pytest.raises(UserError) as error, calling("mine", "value", owner):
        call()
    (found,) = error.value.problems
    assert found.code == "plugin/raised"
    return f"{found.where}: {found.got}"


def test_a_method_with_a_wrong_signature_is_a_fault_of_the_plugin():
    loss = OneArgument(name="mine")
    assert fault(partial(loss.value, None), loss).startswith("mine.value, test_guard.py:")  # type: ignore[call-arg]


def test_a_method_that_is_not_implemented_is_a_fault_of_the_plugin():
    class Empty(Loss):
        pass

    loss = Empty(name="mine")
    assert "NotImplementedError" in fault(partial(loss.value, None), loss)


def test_an_inherited_method_that_fails_is_a_fault_of_the_plugin():
    """`count` of a loss without needs has no first need."""
    loss = OneArgument(name="mine")
    assert "IndexError" in fault(partial(loss.count, SimpleNamespace(value_count=len)), loss)


def test_reading_a_need_that_is_not_declared_is_a_fault_of_the_plugin():
    loss = OneArgument(name="mine")
    ctx = Ctx("mine", None, {}, None)
    assert "does not declare" in fault(partial(ctx.__getitem__, HiddenAt(Select())), loss)


def test_a_torch_module_called_wrongly_is_a_fault_of_the_plugin():
    module = nn.Embedding(2, 3)
    assert "TypeError" in fault(module, module)


def test_an_exception_inside_lmmkit_keeps_its_type():
    with pytest.raises(AttributeError), calling("mine", "value", Faulty(name="mine")):
        sum_by_name([None])  # type: ignore[list-item]
    with pytest.raises(NameError), calling("mine", "value", Faulty(name="mine")):
        absent  # noqa: B018, F821  # type: ignore[name-defined]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), OSError(errno.ENOSPC, "full"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        UserError(EMPTY_TERM.at("here", got="nothing")), KeyboardInterrupt(),
    ],
)  # fmt: skip
def test_a_fault_of_the_machine_passes_through_a_plugin(error):
    def plugin():
        raise error

    with pytest.raises(type(error)) as caught, calling("mine", "value", Faulty(name="mine")):
        plugin()
    assert caught.value is error


def test_the_full_traceback_is_printed_on_request(monkeypatch, capsys):
    loss = OneArgument(name="mine")
    fault(partial(loss.count, SimpleNamespace(value_count=len)), loss)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(TRACEBACK, "1")
    fault(partial(loss.count, SimpleNamespace(value_count=len)), loss)
    assert "Traceback" in capsys.readouterr().err


def test_the_place_is_the_method_or_else_the_class():
    task = Faulty(name="mine")
    assert place_of(task, "value").startswith("faulty_plugin.py:")
    inherited, own = place_of(task, "score"), place_of(task, "value")
    assert inherited.startswith("faulty_plugin.py:") and inherited != own, "`score` is not in the file"
