"""A NumberLine that takes its time or fails; in a module of its own, so that a spawned process finds it."""

import time
from typing import Any

from lightning_vlmq.envs import NumberLine


class Slow(NumberLine):
    """Its picture takes some seconds; ``fails_at`` is the step of an environment at which it raises, 0 for none."""

    def __init__(self, seconds: float = 0.0, fails_at: int = 0) -> None:
        super().__init__()
        self.seconds = seconds
        self.fails_at = fails_at
        self._made = 0

    def step(self, action: Any) -> Any:
        self._made += 1
        if self._made == self.fails_at:
            raise ZeroDivisionError("seven by nothing")
        return super().step(action)

    def images(self) -> Any:
        time.sleep(self.seconds)
        return super().images()
