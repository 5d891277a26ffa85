"""Environments that are slow, or may crash: each in a process of its own that is replaced when it fails."""

import contextlib
import pickle
import warnings
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

import gymnasium as gym

from lightning_vlmq.envs.agent import AgentEnv, EpisodeLostError, Outcome
from lightning_vlmq.processes import CLOSE_SECONDS, failure, kill, spawn
from lightning_vlmq.turns import Observation

__all__ = ["WorkerEnv"]

_START_SECONDS = 120.0
"""For Python, the environment's own imports and its construction; not counted in ``timeout``."""


class WorkerEnv(AgentEnv):
    """An :class:`AgentEnv` that plays in a spawned process; whoever plays many of them has them step at once.

    A process that dies, hangs or raises is replaced: its episode ends where it stood (truncated), the next one begins
    with the next seed. The same replies to the same seed give the same episode as in an ``AgentEnv``. The environment
    goes to the process as it is here before its first ``reset``: what cannot be pickled (a browser, a window) is to be
    made in ``reset``, and what is changed here later does not reach it. A copy starts a process of its own.

    Args:
        env: As in ``AgentEnv``.
        workers: Processes at most where as many episodes as one likes are played at once, as in evaluation; a
            collector's ``environments`` are as many as it says.
        timeout: Seconds that a ``reset`` or ``step`` may take.
        max_failures: Failures of a process and those that replace it, without a step between, after which the
            failure is raised.
        **options: As in ``AgentEnv``.

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
        except Exception as error:  # of many kinds
            raise ValueError(
                f"env {type(env).__name__} cannot be sent to a process ({error}): "
                f"make that in its reset(), or use AgentEnv"
            ) from None
        self.workers = workers
        self.timeout = timeout
        self.max_failures = max_failures
        self._new()

    def _new(self) -> None:
        self._in_a_row = 0
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._calling = self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the process."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_process", "_connection")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy without a process yet."""
        self.__dict__.update(state)
        self._new()

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Observation:
        """As in ``AgentEnv``.

        Raises:
            EpisodeLostError: The process failed; another ``reset`` begins an episode in a new one.
            RuntimeError: It failed ``max_failures`` times in a row, or it is closed.
        """
        self._seed = self._seed_of(seed)
        self._over = True
        found: Observation = self._call("reset", self._seed, options)
        self._over = False
        return found

    def step(self, reply: str) -> Outcome:
        """As in ``AgentEnv``.

        Raises:
            EpisodeLostError: The process failed; ``reset`` begins the next episode in a new one.
            RuntimeError: It failed ``max_failures`` times in a row, or it is closed.
            ValueError: If the episode is over.
        """
        self._check_going()
        outcome: Outcome = self._call("step", reply)
        self._over = outcome.terminated or outcome.truncated
        self._in_a_row = 0
        return outcome

    def random_action(self) -> str:
        """As in ``AgentEnv``; empty, which is no action, where the process failed: the next step says so."""
        return self._ask("random_action") or ""

    def expert_action(self) -> str | None:
        """As in ``AgentEnv``; empty where the process failed."""
        return self._ask("expert_action")

    def misled_action(self) -> str | None:
        """As in ``AgentEnv``; empty where the process failed."""
        return self._ask("misled_action")

    def close(self) -> None:
        """Ends the process for good, by force where it is busy or does not end."""
        self._closed = self._over = True
        if self._process is None or self._connection is None:
            return
        if not self._calling:  # else another thread waits for an answer, and holds the connection
            self._connection.close()  # the worker then closes its environment and ends
            self._process.join(CLOSE_SECONDS)
        kill(self._process)

    # -- parts ----------------------------------------------------------------------------------------------

    def _ask(self, method: str) -> str | None:
        try:
            found: str | None = self._call(method)
        except EpisodeLostError:
            return ""
        return found

    def _call(self, method: str, *arguments: object) -> Any:
        """The result of a method in the process, which ``reset`` starts where there is none."""
        if self._closed:
            raise RuntimeError(f"environment {self.name} is closed")
        self._calling = True
        try:
            if self._connection is None:
                if method != "reset":
                    raise EpisodeLostError(f"the process of {self.name} is gone: call reset()")
                self._start()
            connection = self._connection
            assert connection is not None
            connection.send((method, arguments))
            if not connection.poll(self.timeout):
                raise TimeoutError(f"no answer within timeout = {self.timeout:g} s")
            worked, result = connection.recv()
        except TimeoutError as error:
            self._fail(method, str(error))
        except (EOFError, OSError) as error:
            what = f"the process could not be used ({error})"
            if self._process is not None:
                self._process.join(1.0)  # for its exit code
                what = f"the process died (exit code {self._process.exitcode})"
            self._fail(method, what)
        finally:
            self._calling = False
        if not worked:
            self._fail(method, *result)
        return result

    def _start(self) -> None:
        self._process, self._connection = spawn(_serve, self._recipe, name=self.name)
        if not self._connection.poll(_START_SECONDS):
            raise TimeoutError(f"the process did not start within {_START_SECONDS:g} s")
        self._connection.recv()

    def _fail(self, method: str, what: str, trace: str = "") -> NoReturn:
        """Counts a failure and ends the process."""
        if self._process is not None:
            kill(self._process)
        if self._closed:
            raise RuntimeError(f"environment {self.name} is closed")
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None
        self._in_a_row += 1
        message = f"environment {self.name}, seed {self._seed}, {method}(): {what}"
        if self._in_a_row >= self.max_failures:
            raise RuntimeError(f"{message}; {self._in_a_row} failures in a row\n{trace}".rstrip())
        warnings.warn(f"{message}; it is started anew ({self._in_a_row} in a row)", stacklevel=2)
        raise EpisodeLostError(f"{message}\n{trace}".rstrip())


def _serve(connection: Connection, recipe: bytes) -> None:
    """The worker: answers calls of the environment's methods until nobody asks any more."""
    played: AgentEnv | None = None
    with contextlib.suppress(EOFError, OSError):
        failed = None
        try:
            env, options = pickle.loads(recipe)
            played = AgentEnv(env, **options)
        except Exception as error:
            failed = failure(error)
        connection.send(None)
        while True:
            method, arguments = connection.recv()
            try:
                answer = failed or (True, getattr(played, method)(*arguments))
            except Exception as error:
                answer = failure(error)
            connection.send(answer)
    if played is not None:
        with contextlib.suppress(Exception):
            played.close()
