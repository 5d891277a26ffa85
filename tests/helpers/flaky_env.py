"""A NumberLine that fails where it is told to; in a module of its own, so that a spawned process finds it."""

import itertools
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from lightning_vlmq.envs import NumberLine


class Flaky(NumberLine):
    """``trouble`` names by ``"seed:step"`` (step 0 is the reset) what happens: die, hang,
    hang in C, raise, or take a second; ``once`` is a
    folder that remembers what has happened, so that it does not again."""

    def __init__(self, trouble: dict[str, str] | None = None, once: str = "", pids: str = "") -> None:
        super().__init__()
        self._trouble = trouble or {}
        self._once = once
        self._pids = pids
        self._at = (0, 0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._at = (seed or 0, 0)
        if self._pids:
            helper = subprocess.Popen(["sleep", "600"])
            Path(self._pids, f"{os.getpid()}-{helper.pid}").touch()
        self._fail()
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        self._at = (self._at[0], self._at[1] + 1)
        self._fail()
        return super().step(action)

    def _fail(self) -> None:
        key = f"{self._at[0]}:{self._at[1]}"
        what = self._trouble.get(key, self._trouble.get(f"*:{self._at[1]}"))
        if what is None:
            return
        if self._once:
            mark = Path(self._once, key.replace(":", "-"))
            if mark.exists():
                return
            mark.touch()
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang":
            time.sleep(600)
        if what == "hang in C":
            sum(itertools.repeat(1, 10**12))  # no other thread of Python runs then
        if what == "take a second":
            return time.sleep(1.0)
        raise ZeroDivisionError("seven by nothing")


class Picky(NumberLine):
    """Has its number only when it is asked to play."""

    def __init__(self, number: int = 7) -> None:
        if number != 7:
            raise ValueError(f"number {number} is not seven")
        super().__init__()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._number()
        return super().reset(seed=seed, options=options)

    def _number(self) -> int:
        return int("seven")
