"""NumberLines that take their time or fail; in a module of its own, so that a spawned process finds them."""

import time
from typing import Any

from lightning_vlmq.envs import NumberLine


class Slow(NumberLine):
    """Takes some seconds a step; ``fails_at`` is the step of an environment at which it raises, 0 for none."""

    def __init__(self, seconds: float = 0.0, fails_at: int = 0) -> None:
        super().__init__()
        self.seconds = seconds
        self.fails_at = fails_at
        self._made = 0

    def step(self, action: Any) -> Any:
        self._made += 1
        if self._made == self.fails_at:
            raise ZeroDivisionError("seven by nothing")
        time.sleep(self.seconds)
        return super().step(action)
