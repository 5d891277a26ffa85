"""NumberLine: bring one number to another, one step at a time, both read from a picture."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from lightning_vlmq.envs.pictures import Picture, text_sprite
from lightning_vlmq.parsing import exact_match

__all__ = ["NumberLine"]

_SIZE = 300
_MARGIN = 4
_ACTIONS = ("-", "+")


class NumberLine(gym.Env[Picture, np.int64]):
    """Bold black "Target: g" above "Current: c" on white; ``-`` lowers c by one, ``+`` raises it, within 0 to 5.

    Start and goal are drawn uniformly from 0 to 5; where they are equal, the goal becomes ``(goal + 1) % 5``. Reward:
    +1 at the goal, which ends the episode; -1 if the distance did not shrink; else 0. Implements
    :class:`~lightning_vlmq.envs.text.TextTask`.

    Args:
        font_size: Height of the text in pixels.
        font_sizes: Draws the font size of each episode uniformly from this range, both ends included, instead.
        random_place: True draws the place of the text for each episode, wholly on the canvas; False centres it.
        max_steps: Steps after which the episode is truncated; ``None`` leaves limits to
            :class:`~lightning_vlmq.envs.agent.AgentEnv`. (The original: 10.)
        render_mode: ``rgb_array``, for Gymnasium.

    Raises:
        ValueError: If a text size does not fit on the canvas.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  Gymnasium declares it so
    name = "NumberLine"
    objective = "Make Current equal to Target."
    actions = "+ raises Current by one, - lowers it by one."
    example = "+"

    def __init__(
        self,
        font_size: int = 48,
        font_sizes: tuple[int, int] | None = None,
        random_place: bool = False,
        max_steps: int | None = None,
        render_mode: str | None = "rgb_array",
    ) -> None:
        self.font_sizes = (font_size, font_size) if font_sizes is None else font_sizes
        low, high = self.font_sizes
        if not 8 <= low <= high or any(free < 0 for free in _free_space(high)):
            raise ValueError(f"font sizes {low} to {high} do not fit a picture of {_SIZE} pixels: choose from 8 to 54")
        self.random_place = random_place
        self.max_steps = max_steps
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (_SIZE, _SIZE, 3), np.uint8)
        self.action_space = spaces.Discrete(2)
        self._current = self._target = self._steps = 0
        self._font_size, self._place = low, (0, 0)
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Picture, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds everything that is drawn; ``None`` goes on from the last seed.
            options: ``start`` and ``target`` (0 to 5) choose the pair instead of drawing it.

        Raises:
            ValueError: If an option is unknown or the pair is not two different numbers from 0 to 5.
        """
        super().reset(seed=seed)
        start, target = (int(value) for value in self.np_random.integers(0, 6, size=2))
        if start == target:
            target = (target + 1) % 5
        if options:
            if options.keys() != {"start", "target"}:
                raise ValueError(f"options {sorted(options)} are not NumberLine's: give both start and target")
            start, target = options["start"], options["target"]
            if start == target or start not in range(6) or target not in range(6):
                raise ValueError(f"start {start!r}, target {target!r}: choose two different numbers from 0 to 5")
        self._current, self._target, self._steps, self._over = int(start), int(target), 0, False
        low, high = self.font_sizes
        self._font_size = int(self.np_random.integers(low, high + 1))
        free = _free_space(self._font_size)
        if self.random_place:
            self._place = (int(self.np_random.integers(free[0] + 1)), int(self.np_random.integers(free[1] + 1)))
        else:
            self._place = (free[0] // 2, free[1] // 2)
        return self.render(), self._info()

    def step(self, action: int | np.int64) -> tuple[Picture, float, bool, bool, dict[str, Any]]:
        """Lower (0) or raise (1) the number.

        Raises:
            ValueError: If the episode is over or the action is not 0 or 1.
        """
        if self._over:
            raise ValueError("the episode is over: call reset() before step()")
        if action not in (0, 1):
            raise ValueError(f"action {action!r} is not NumberLine's: 0 lowers, 1 raises")
        distance = abs(self._target - self._current)
        self._current = min(5, max(0, self._current + (1 if action == 1 else -1)))
        self._steps += 1
        terminated = self._current == self._target
        if terminated:
            reward = 1.0
        else:
            reward = 0.0 if abs(self._target - self._current) < distance else -1.0
        truncated = not terminated and self.max_steps is not None and self._steps >= self.max_steps
        self._over = terminated or truncated
        return self.render(), reward, terminated, truncated, self._info()

    def render(self) -> Picture:
        """Draw the state, ``[300, 300, 3]``."""
        picture = np.full((_SIZE, _SIZE, 3), 255, np.uint8)
        x, y = _MARGIN + self._place[0], _MARGIN + self._place[1]
        for line in _lines(self._target, self._current):
            sprite = text_sprite(line, self._font_size)
            picture[y : y + sprite.shape[0], x : x + sprite.shape[1]] = sprite
            y += sprite.shape[0]
        return picture

    def images(self) -> tuple[Picture, ...]:
        """Return the one picture."""
        return (self.render(),)

    def text(self) -> str:
        """Return nothing: the picture says it all."""
        return ""

    def summary(self) -> str:
        """Return for instance ``Target: 3. Current: 5.``."""
        return f"Target: {self._target}. Current: {self._current}."

    def parse(self, text: str) -> int | None:
        """Return 0 for ``-``, 1 for ``+``, by exact match."""
        return exact_match(text, _ACTIONS)

    def valid_actions(self) -> list[str]:
        """Return ``-`` and ``+``."""
        return list(_ACTIONS)

    def expert_action(self) -> str | None:
        """Return the shortest way's action; ``None`` once the goal is reached."""
        if self._current == self._target:
            return None
        return "+" if self._current < self._target else "-"

    def goal_reached(self) -> bool:
        """Return True if the numbers are equal."""
        return self._current == self._target

    def _info(self) -> dict[str, Any]:
        return {"current": self._current, "target": self._target, "steps": self._steps}


def _lines(target: int, current: int) -> tuple[str, str]:
    """Return the two lines of text."""
    return f"Target: {target}", f"Current: {current}"


def _free_space(size: int) -> tuple[int, int]:
    """Return how far the two lines can move right and down, in pixels (negative: they do not fit)."""
    # The same for all numbers, so that the place tells nothing about them.
    sprites = [text_sprite(line, size) for value in range(6) for line in _lines(value, value)]
    return _SIZE - 2 * _MARGIN - max(s.shape[1] for s in sprites), _SIZE - 2 * _MARGIN - 2 * sprites[0].shape[0]
