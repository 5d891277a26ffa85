"""The one wrapper between environments and agents: replies in, observations and shaped rewards out.

Penalties and limits are those of the paper's table 4; the wrapper owns them for every environment alike, so an
environment's own step limit should be lifted.
"""

from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym
import numpy as np

from lightning_vlmq.envs.pictures import encode_png
from lightning_vlmq.envs.text import Limits, TextTask
from lightning_vlmq.parsing import ActionParser, TagParser
from lightning_vlmq.turns import Observation

__all__ = ["AgentEnv", "EpisodeLostError", "Outcome", "plain_settings"]

_NO_SYNTAX = "Your last reply did not follow the syntax."
_NO_ACTION = "Your last reply was not a valid action."


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a reply.

    Attributes:
        observation: What the agent sees next; the last observation where the episode is over.
        action: The action text that was read from the reply; empty if invalid.
        valid: True if the reply was a valid action.
        reward: Reward with penalties, the one to learn from.
        env_reward: The environment's own reward, unscaled; 0 where the reply was invalid.
        terminated: True if the episode ended for good: by the environment or by a limit with its penalty.
        truncated: True if the environment cut the episode without meaning.
        goal: True if the environment's goal was reached by this reply.
    """

    observation: Observation
    action: str
    valid: bool
    reward: float
    env_reward: float
    terminated: bool
    truncated: bool
    goal: bool


class EpisodeLostError(RuntimeError):
    """The environment failed and the episode cannot go on; ``reset`` begins the next one."""


class AgentEnv:
    """Plays an environment in text.

    An invalid reply does not reach the environment: it costs ``invalid_penalty``, and the next observation repeats the
    picture with an error message. Too many invalid replies in a row, and ``step_limit`` replies without an end, end
    the episode for good (discount 0) with ``end_penalty`` on top; where both come at once it is paid once. An
    environment's own truncation is passed on without a penalty.

    Args:
        env: Environment that implements :class:`~lightning_vlmq.envs.text.TextTask`, its own step limit lifted.
        parser: Finds the action in a reply; ``None`` for ``TagParser()``.
        invalid_penalty: Reward of an invalid reply. This and the next three are the environment's own ``limits`` where
            they are ``None``, or Gym Cards' (:class:`~lightning_vlmq.envs.text.Limits`) where it has none.
        invalid_limit: Invalid replies in a row that end the episode; 0 for no limit.
        step_limit: Replies that end the episode; 0 for no limit.
        end_penalty: Added to the reward where a limit ends the episode.
        reward_scale: Factor on the environment's own reward.

    Attributes:
        settings: The arguments above, and those of environment and parser as far as they are public attributes there.
        workers: Processes to play in; 0 for this one.

    Raises:
        ValueError: If the environment does not speak text, or a limit is negative.
    """

    workers = 0

    def __init__(
        self,
        env: gym.Env,  # no type arguments: with them jsonargparse refuses an environment's own options
        *,
        parser: ActionParser | None = None,
        invalid_penalty: float | None = None,
        invalid_limit: int | None = None,
        step_limit: int | None = None,
        end_penalty: float | None = None,
        reward_scale: float = 1.0,
    ) -> None:
        missing = [name for name in _TEXT_MEMBERS if not hasattr(env, name)]
        if missing:
            raise ValueError(f"env {type(env).__name__} lacks {', '.join(missing)}: implement envs.text.TextTask")
        own: Limits = getattr(env, "limits", Limits())
        self.invalid_penalty = own.invalid_penalty if invalid_penalty is None else invalid_penalty
        self.invalid_limit = own.invalid_limit if invalid_limit is None else invalid_limit
        self.step_limit = own.step_limit if step_limit is None else step_limit
        self.end_penalty = own.end_penalty if end_penalty is None else end_penalty
        if self.invalid_limit < 0 or self.step_limit < 0:
            raise ValueError(f"invalid_limit {invalid_limit}, step_limit {step_limit}: use 0 for no limit")
        self.env = env
        self.parser: ActionParser = TagParser() if parser is None else parser
        self.reward_scale = reward_scale
        self._task = cast(TextTask, env)
        # taken now: later the environment's attributes may be its state
        self.settings = plain_settings(self, "environment.") | plain_settings(env, "environment.env.")
        self.settings |= plain_settings(self.parser, "environment.parser.")
        self._seeds = np.random.default_rng()
        self._random = np.random.default_rng()
        self._seed = 0
        self._steps = self._invalid = 0
        self._over = True

    @property
    def name(self) -> str:
        """Name of the environment."""
        return self._task.name

    @property
    def seed(self) -> int:
        """Seed of the episode, also where ``reset`` was given none: it repeats the episode."""
        return self._seed

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Observation:
        """Start an episode.

        Args:
            seed: Seeds the episode and the random actions; ``None`` draws the next seed of a series that the last
                seed given began.
            options: Options of the environment's own ``reset``.

        Returns:
            The first observation.
        """
        self._seed = self._seed_of(seed)
        # A stream of its own: the environment draws from default_rng(seed), and its draws must tell nothing here.
        self._random = np.random.default_rng([1, self._seed])
        self.env.reset(seed=self._seed, options=options)
        self._steps = self._invalid = 0
        self._over = False
        return self._observe("")

    def step(self, reply: str) -> Outcome:
        """Execute a reply, any text.

        Args:
            reply: The agent's complete reply.

        Returns:
            What came of it.

        Raises:
            ValueError: If the episode is over.
        """
        self._check_going()
        text = self.parser.parse(reply)
        action = None if text is None else self._task.parse(text)
        valid, terminated, truncated, goal, env_reward = action is not None, False, False, False, 0.0
        self._steps += 1
        if valid:
            _, own_reward, terminated, truncated, _ = self.env.step(action)
            env_reward = float(own_reward)
            reward = self.reward_scale * env_reward
            goal = self._task.goal_reached()
            self._invalid = 0
        else:
            reward = self.invalid_penalty
            self._invalid += 1
        at_limit = self._invalid == self.invalid_limit > 0 or self._steps == self.step_limit
        if at_limit and not (terminated or truncated):
            reward += self.end_penalty
            terminated = True
        self._over = bool(terminated or truncated)
        return Outcome(
            observation=self._observe("" if valid else _NO_SYNTAX if text is None else _NO_ACTION),
            action=text if valid and text is not None else "",
            valid=valid,
            reward=reward,
            env_reward=env_reward,
            terminated=bool(terminated),
            truncated=bool(truncated and not terminated),
            goal=goal,
        )

    def random_action(self) -> str:
        """Return the text of an action, uniform over those valid now; ``parser.format`` makes it a reply."""
        actions = self._task.valid_actions()
        return actions[int(self._random.integers(len(actions)))]

    def expert_action(self) -> str | None:
        """Return the text of the environment's expert action, or ``None`` where there is none."""
        return self._task.expert_action()

    def misled_action(self) -> str | None:
        """Return the text of what an expert for something else would do, or ``None`` where there is none."""
        misled = getattr(self._task, "misled_action", None)
        return None if misled is None else cast("str | None", misled())

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _seed_of(self, seed: int | None) -> int:
        """The seed given, or the next of the series."""
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        return int(self._seeds.integers(2**31)) if seed is None else seed

    def _check_going(self) -> None:
        if self._over:
            raise ValueError(f"the episode of {self.name} is over: call reset() before step()")

    def _observe(self, error: str) -> Observation:
        """Describe the present state."""
        task = self._task
        return Observation(
            objective=task.objective,
            actions=task.actions,
            example=task.example,
            text=task.text(),
            images=tuple(encode_png(picture) for picture in task.images()),
            summary=task.summary(),
            error=error,
            step=self._steps,
            step_limit=self.step_limit,
            invalid_streak=self._invalid,
            invalid_limit=self.invalid_limit,
        )


def plain_settings(thing: object, prefix: str) -> dict[str, Any]:
    """An object's class and public attributes of plain types, to tell whether two were made alike."""
    plain = {name: value for name, value in vars(thing).items() if not name.startswith("_") and _is_plain(value)}
    return {f"{prefix}{name}": value for name, value in {"class": type(thing).__name__, **plain}.items()}


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(each) for each in value)
    return isinstance(value, str | int | float | None)


_TEXT_MEMBERS = (
    "name",
    "objective",
    "actions",
    "example",
    "images",
    "text",
    "summary",
    "parse",
    "valid_actions",
    "expert_action",
    "goal_reached",
)
