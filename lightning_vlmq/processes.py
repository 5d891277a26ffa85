"""Processes that end with this one, whatever ends it, and with them what they have started."""

import atexit
import contextlib
import functools
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess, parent_process
from typing import Any

__all__ = ["CLOSE_SECONDS", "failure", "kill", "spawn"]

CLOSE_SECONDS = 5.0
"""For a process to end by itself, once nobody asks it any more; then it is killed."""


def spawn(
    serve: Callable[..., None], *arguments: object, name: str, daemon: bool = True
) -> tuple[BaseProcess, Connection]:
    """Starts a process and returns it with a connection to it.

    Ctrl-C leaves the process alone: whoever started it is to end it.

    Args:
        serve: A function that can be imported; it is called there with the other end of the connection and the
            arguments, and when it returns the process ends, with what it has started.
        *arguments: What can be pickled.
        name: Of the process.
        daemon: False for one that starts processes of its own by ``multiprocessing``.
    """
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe()
    with theirs:  # closed here, else its end would not be noticed
        work = pickle.dumps((serve, arguments))
        process = context.Process(target=_enter, args=(theirs, work), name=name, daemon=daemon)
        process.start()
    _running().add(process)
    return process, connection


def kill(process: BaseProcess) -> None:
    """Ends a process and what it has started, also what is left of one that died."""
    _running().discard(process)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it does not lead a group yet, or all are gone
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(CLOSE_SECONDS)  # not for ever: a process in the kernel, waiting for a device, cannot be killed


@functools.cache
def _running() -> set[BaseProcess]:
    """Processes started here. They end with this one, whatever they do: multiprocessing would wait for them."""
    running: set[BaseProcess] = set()
    atexit.register(_kill_all, running)
    return running


def _kill_all(processes: set[BaseProcess]) -> None:
    for process in tuple(processes):
        kill(process)


# -- within the process -------------------------------------------------------------------------------------


def failure(error: BaseException) -> tuple[bool, tuple[str, str]]:
    """The answer that something failed: False, what, and the traceback."""
    return False, (f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


def _enter(connection: Connection, work: bytes) -> None:
    os.setsid()  # so Ctrl-C does not come here, and what is started here can be ended with it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable()  # what libraries log where they are imported the parent's have logged
    serve, arguments = pickle.loads(work)
    logging.disable(logging.NOTSET)
    try:
        serve(connection, *arguments)
    except Exception:
        traceback.print_exc()
    _end()


def _end_with_parent() -> None:
    """Ends this process where its parent was killed, unless it is in foreign code that holds Python's lock."""
    parent: Any = parent_process()
    parent.join()
    _end()


def _end() -> None:
    """Ends this process and what it has started."""
    os.killpg(0, signal.SIGKILL)
