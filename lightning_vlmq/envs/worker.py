"""Environments that are slow, or may crash: each in a process of its own that is restarted when it fails."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess, parent_process
from typing import Any

import gymnasium as gym

from lightning_vlmq.envs.agent import AgentEnv, EpisodeLostError, Outcome
from lightning_vlmq.turns import Observation

__all__ = ["WorkerEnv"]

_START_SECONDS = 120.0
"""For Python and the environment's own imports; not counted in ``timeout``."""

_CLOSE_SECONDS = 5.0


class WorkerEnv(AgentEnv):
    """An :class:`AgentEnv` that plays in a spawned process; whoever plays many of them has them step at once.

    A process that dies, hangs or raises is replaced: its episode ends where it stood (truncated), the next one begins
    with the next seed. The same seeds give the same episodes as in an ``AgentEnv``. The environment is sent to the
    process before its first ``reset``: what cannot be pickled (a browser, a window) is to be made in ``reset``.

    Args:
        env: As in ``AgentEnv``.
        workers: Processes at most where as many episodes as one likes are played at once, as in evaluation; a
            collector's ``environments`` are as many as it says.
        timeout: Seconds that a ``reset`` or ``step`` may take.
        max_failures: Failures of a process and those that replace it, without a step between, after which the
            failure is raised.
        **options: As in ``AgentEnv``.

    Attributes:
        failures: How often the process was lost.

    Raises:
        ValueError: A number is out of range, the environment cannot be pickled, or as in ``AgentEnv``.
    """

    def __init__(
        self, env: gym.Env, *, workers: int = 8, timeout: float = 60.0, max_failures: int = 3, **options: Any
    ) -> None:
        if workers < 1 or timeout <= 0 or max_failures < 1:
            raise ValueError(
                f"WorkerEnv: workers {workers} and max_failures {max_failures} must be at least 1, "
                f"timeout {timeout} above 0"
            )
        super().__init__(env, **options)
        self.settings["environment.class"] = AgentEnv.__name__  # it plays the same episodes
        try:
            self._recipe = pickle.dumps((env, options))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ValueError(
                f"env {type(env).__name__} cannot be sent to a process ({error}): "
                f"make that in its reset(), or use AgentEnv"
            ) from None
        self.workers = workers
        self.timeout = timeout
        self.max_failures = max_failures
        self.failures = 0
        self._in_a_row = 0
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts a process of its own."""
        return self.__dict__ | {"_process": None, "_connection": None, "failures": 0, "_in_a_row": 0}

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Observation:
        """As in ``AgentEnv``; a process that fails is replaced and asked again.

        Raises:
            RuntimeError: It failed ``max_failures`` times in a row.
        """
        self._seed = self._seed_of(seed)
        self._over = True
        while True:
            with contextlib.suppress(EpisodeLostError):
                found: Observation = self._call("reset", self._seed, options)
                self._over = False
                return found

    def step(self, reply: str) -> Outcome:
        """As in ``AgentEnv``.

        Raises:
            EpisodeLostError: The process failed; ``reset`` begins the next episode in a new one.
            RuntimeError: It failed ``max_failures`` times in a row.
            ValueError: If the episode is over.
        """
        self._check_going()
        outcome: Outcome = self._call("step", reply)
        self._over = outcome.terminated or outcome.truncated
        self._in_a_row = 0
        return outcome

    def random_action(self) -> str:
        """As in ``AgentEnv``; empty, which is no action, where the process failed: the next step says so."""
        return str(self._ask("random_action") or "")

    def expert_action(self) -> str | None:
        """As in ``AgentEnv``; ``None`` also where the process failed."""
        found = self._ask("expert_action")
        return None if found is None else str(found)

    def misled_action(self) -> str | None:
        """As in ``AgentEnv``; ``None`` also where the process failed."""
        found = self._ask("misled_action")
        return None if found is None else str(found)

    def close(self) -> None:
        """Ends the process, by force if it does not end."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        self._over = True
        if connection is not None:
            connection.close()  # the worker then closes its environment and ends
        if process is not None:
            process.join(_CLOSE_SECONDS)
            _kill(process)

    # -- parts ----------------------------------------------------------------------------------------------

    def _ask(self, method: str) -> object:
        try:
            return self._call(method)
        except EpisodeLostError:
            return None

    def _call(self, method: str, *arguments: object) -> Any:
        """The result of a method in the process, which is started where there is none."""
        fresh = self._connection is None
        if fresh and method != "reset":
            raise EpisodeLostError(f"the process of {self.name} is gone: call reset()")
        try:
            if fresh:
                self._start()
            assert self._connection is not None
            self._connection.send((method, arguments))
            if not self._connection.poll(self.timeout):
                raise TimeoutError(f"no answer within timeout = {self.timeout:g} s")
            worked, result = self._connection.recv()
        except TimeoutError as error:
            self._fail(method, str(error))
        except (EOFError, OSError):
            if self._process is not None:
                self._process.join(1.0)  # for its exit code
            self._fail(method, f"the process died (exit code {getattr(self._process, 'exitcode', None)})")
        if not worked:
            self._fail(method, *result)
        return result

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._recipe), name=self.name, daemon=True)
        process.start()
        self._process = process
        theirs.close()  # else its end would not be noticed here
        if not self._connection.poll(_START_SECONDS):
            raise TimeoutError(f"the process did not start within {_START_SECONDS:g} s")
        self._connection.recv()

    def _fail(self, method: str, what: str, trace: str = "") -> None:
        """Counts a failure and ends the process; always raises."""
        if self._process is not None:
            _kill(self._process)
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None
        self.failures += 1
        self._in_a_row += 1
        message = f"environment {self.name}, {method}(): {what}"
        if self._in_a_row >= self.max_failures:
            raise RuntimeError(f"{message}; {self._in_a_row} failures in a row\n{trace}".rstrip())
        warnings.warn(f"{message}; it is started anew ({self._in_a_row} in a row)", stacklevel=2)
        raise EpisodeLostError(message)


def _kill(process: BaseProcess) -> None:
    """Ends a worker and what it has started, also what is left of one that died."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it does not lead a group yet, or all are gone
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _serve(connection: Connection, recipe: bytes) -> None:
    """The worker: answers calls of the environment's methods until nobody asks any more."""
    os.setsid()  # Ctrl-C is for the trainer, who ends its workers; what they start ends with them
    signal.signal(signal.SIGTERM, lambda *_: _end())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        played: AgentEnv | None = None
        connection.send(None)
        while True:
            method, arguments = connection.recv()
            try:
                if played is None:
                    env, options = pickle.loads(recipe)
                    played = AgentEnv(env, **options)
                answer = (True, getattr(played, method)(*arguments))
            except Exception as error:
                answer = (False, (f"{type(error).__name__}: {error}", traceback.format_exc()))
            connection.send(answer)
    if played is not None:
        with contextlib.suppress(Exception):
            played.close()
    _end()


def _end_with_parent() -> None:
    """Ends the worker, whatever it does, where the trainer was killed."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    _end()


def _end() -> None:
    os.killpg(0, signal.SIGKILL)
