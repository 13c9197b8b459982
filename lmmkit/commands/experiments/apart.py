"""Calls a function in a process of its own: the memory that it needs, such as for torch, is free afterwards."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from lmmkit.commands.support.jobs import noted_signals
from lmmkit.errors import LmmkitError, MachineError
from lmmkit.errors.ablation import MEASURING_ENDED

LOOK = 0.2  # seconds between two looks at signals
_T = TypeVar("_T")


def apart(work: Callable[..., _T], *arguments: Any) -> _T:
    """Returns what `work` returns in another process, or raises what it raises.

    Raises:
        KeyboardInterrupt: after a signal, with its number, when the process has ended.
        MachineError: if the process ends without a result.
    """
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(writer, work, arguments))
    with noted_signals() as received:
        process.start()
        writer.close()
        try:
            while not reader.poll(LOOK) and not received:
                pass
            if received:
                raise KeyboardInterrupt(received[0])
            good, result = reader.recv()
        except EOFError:
            process.join()
            got = f"exit code {process.exitcode}"
            raise MachineError(MEASURING_ENDED.at("the process that measures", got=got)) from None
        finally:
            if received:
                process.terminate()
            process.join()
            reader.close()
    if not good:
        raise result
    return result


def _send(writer: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer = True, work(*arguments)
    except BaseException as error:
        if not isinstance(error, LmmkitError | KeyboardInterrupt):
            error.add_note(traceback.format_exc())
        answer = False, error
    writer.send(answer)
