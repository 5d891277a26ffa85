"""BabyAI: missions in words in small grid worlds, from the ``minigrid`` package."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from lightning_vlmq.envs.pictures import Picture
from lightning_vlmq.envs.text import Limits
from lightning_vlmq.parsing import first_match

__all__ = ["BabyAI"]

_ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle")
"""Minigrid's actions 0 to 5. The seventh, ``done``, does nothing in BabyAI and is left out."""

_FACING = ("right", "down", "left", "up")


class BabyAI(gym.Env[Picture, np.int64]):
    """Any BabyAI level: the mission is in the prompt, the world in a picture.

    Reward: minigrid's own, ``1 - .9 * steps / (the level's step limit)`` where the mission is done, which ends the
    episode, else 0; the goal is a mission that is done. The level's own step limit does not end episodes, behind it a
    mission that is done pays .1; ``AgentEnv`` ends them at the paper's limits (64 steps, 5 invalid replies in a row),
    with its penalties. An action is the first of the six names in the reply, in any case. Implements
    :class:`~lightning_vlmq.envs.text.TextTask`; the scripted expert is minigrid's bot, also on its way to something
    else (:meth:`misled_action`). The bot does not solve every world: it fails in some of KeyInBox,
    PutNextS5N2Carrying, PutNextS6N3Carrying, PutNextS7N4Carrying, OpenDoorsOrderN2Debug and OpenDoorsOrderN4Debug.

    Args:
        level: Name of the level, one of minigrid's ``BabyAI-...`` ids.
        view: ``"full"`` shows the whole world from above, ``"agent"`` what the agent sees, itself at the bottom.
        tile_size: Side of a cell in pixels.
        pad_to: Cells a side to which the picture is padded with black, above and to the right; ``None`` leaves it as it
            is. A VLM that cuts pictures into 8 x 8 patches reads the agent's view of 7 x 7 cells better padded to 8,
            where each patch shows one cell (``scripts/babyai_states.py`` measures it).
        last_action: Tell in words what was done last and whether it changed anything, for instance ``You did: forward.
            Nothing changed.``: an agent that sees one picture at a time remembers neither, and pushes against what
            stands in its way.
        render_mode: ``rgb_array``, for Gymnasium.

    Raises:
        ValueError: The level is unknown, the view or tile size is no choice, or the picture has more cells than
            ``pad_to``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  Gymnasium declares it so
    actions = (
        "left and right turn you, forward moves you one cell, pickup takes the object in front of you, "
        "drop puts it down there, toggle opens or closes what is in front of you."
    )
    example = "forward"
    limits = Limits(invalid_penalty=-1.0, invalid_limit=5, step_limit=64, end_penalty=-200.0)  # table 4

    def __init__(
        self,
        level: str = "BabyAI-GoToRedBallGrey-v0",
        view: Literal["full", "agent"] = "full",
        tile_size: int = 28,
        pad_to: int | None = None,
        last_action: bool = False,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if view not in ("full", "agent"):
            raise ValueError(f"view {view!r}: choose full or agent")
        if not 4 <= tile_size <= 64:
            raise ValueError(f"tile_size {tile_size}: choose from 4 to 64 pixels")
        with _quiet():
            import minigrid  # noqa: F401  registers the levels; it takes a second, so not before it is needed
        levels = sorted(name for name in gym.registry if name.startswith("BabyAI-"))
        if level not in levels:
            raise ValueError(f"level {level!r} is unknown; minigrid has {len(levels)}: {', '.join(levels)}")
        self.level = level
        self.view = view
        self.tile_size = tile_size
        self.pad_to = pad_to
        self.last_action = last_action
        self.render_mode = render_mode
        world: Any = gym.make(level, disable_env_checker=True).unwrapped
        with _quiet():
            world.reset(seed=0)  # before it there is no world to measure
        columns, rows = (world.width, world.height) if view == "full" else (world.agent_view_size,) * 2
        if pad_to is not None:
            if max(columns, rows) > pad_to:
                raise ValueError(f"pad_to {pad_to}: {view} views of {level} have {columns} x {rows} cells; give more")
            columns = rows = pad_to
        self._env = world
        self.observation_space = spaces.Box(0, 255, (rows * tile_size, columns * tile_size, 3), np.uint8)
        self.action_space = spaces.Discrete(len(_ACTIONS))
        self._over = True
        self._done = False
        self._steps = 0
        self._last = ""
        self._bot: Any = None
        self._advice: int | None = None

    @property
    def name(self) -> str:
        """Name of the level."""
        return self.level

    @property
    def objective(self) -> str:
        """The mission, for instance ``Mission: go to the red ball.``."""
        return f"Mission: {self._env.mission}."

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Picture, dict[str, Any]]:
        """Make a new world and mission.

        Args:
            seed: Seeds everything that is drawn; ``None`` goes on from the last seed.
            options: None are known.

        Raises:
            ValueError: There are options.
        """
        super().reset(seed=seed)
        if options:
            raise ValueError(f"options {sorted(options)} are not BabyAI's: it has none")
        with _quiet():
            self._env.reset(seed=seed)
        self._over = self._done = False
        self._bot = self._advice = None
        self._steps = 0
        self._last = ""
        return self.render(), self._info()

    def step(self, action: int | np.int64) -> tuple[Picture, float, bool, bool, dict[str, Any]]:
        """Act: 0 left, 1 right, 2 forward, 3 pickup, 4 drop, 5 toggle.

        Raises:
            ValueError: If the episode is over or the action is not 0 to 5.
        """
        if self._over:
            raise ValueError("the episode is over: call reset() before step()")
        if action not in range(len(_ACTIONS)):
            raise ValueError(f"action {action!r} is not BabyAI's: choose 0 to 5 ({', '.join(_ACTIONS)})")
        # The level's own limit would end the episode, and behind it the reward would fall below 0.
        self._env.step_count = min(self._env.step_count, self._env.max_steps - 1)
        before = self._state() if self.last_action else None
        _, reward, terminated, _, _ = self._env.step(int(action))
        if self.last_action:
            self._last = f"You did: {_ACTIONS[action]}." + (" Nothing changed." if self._state() == before else "")
        self._steps += 1
        self._over = bool(terminated)
        self._done = self._over and reward > 0
        if self._bot is not None and not self._over:
            self._ask_bot(int(action))  # a bot that misses an action forgets what it has explored
        return self.render(), float(reward), self._over, False, self._info()

    def render(self) -> Picture:
        """Draw the world, ``[rows * tile_size, columns * tile_size, 3]``."""
        frame: Picture = self._env.get_frame(highlight=False, tile_size=self.tile_size, agent_pov=self.view == "agent")
        if self.pad_to is None:
            return frame
        side = self.pad_to * self.tile_size
        return np.pad(frame, ((side - frame.shape[0], 0), (0, side - frame.shape[1]), (0, 0)))

    def images(self) -> tuple[Picture, ...]:
        """Return the one picture."""
        return (self.render(),)

    def text(self) -> str:
        """Return what the agent did (``last_action``) and what it carries: no picture of the whole world shows it."""
        carries = f"You carry a {_describe(self._env.carrying)}." if self._env.carrying else ""
        return f"{self._last} {carries}".strip()

    def summary(self) -> str:
        """Return the world in words, for instance ``You are at 3, 4 facing up. A red ball is at 5, 1.``."""
        (x, y), grid = self._env.agent_pos, self._env.grid
        cells = ((column, row, grid.get(column, row)) for row in range(grid.height) for column in range(grid.width))
        things = [f"A {_describe(thing)} is at {column}, {row}." for column, row, thing in cells if _counts(thing)]
        return " ".join([f"You are at {x}, {y} facing {_FACING[self._env.agent_dir]}.", *things])

    def parse(self, text: str) -> int | None:
        """Return the index of the first action that the text names, as a word of its own."""
        return first_match(text, _ACTIONS)

    def valid_actions(self) -> list[str]:
        """Return all six: also those that change nothing now."""
        return list(_ACTIONS)

    def expert_action(self) -> str | None:
        """Return what minigrid's bot would do; ``None`` once the episode is over.

        The bot cannot always go on from what others did (an opened box, for instance): ``forward`` then.
        """
        if self._over:
            return None
        if self._advice is None:
            self._bot = None
            self._ask_bot(None)
        return "forward" if self._advice is None else _ACTIONS[self._advice]

    def misled_action(self) -> str | None:
        """Return what takes you to the nearest object that the mission does not mean; ``None`` once it is over.

        It is a function of the world alone, so that who imitates it learns it. In front of that object it is ``drop``,
        which does nothing there, and also where there is no other object.
        """
        if self._over:
            return None
        nearest = _nearest_other(self._env)
        advice = None if nearest is None else _advice_towards(self._env, nearest)
        return "drop" if advice is None else _ACTIONS[advice]

    def goal_reached(self) -> bool:
        """Return True if the mission was done by the last step."""
        return self._done

    def _state(self) -> tuple[Any, ...]:
        """What an action may change."""
        world = self._env
        return tuple(world.agent_pos), world.agent_dir, world.carrying, world.grid.encode().tobytes()

    def _ask_bot(self, taken: int | None) -> None:
        """Tell the bot what was done and keep its advice, ``None`` where it has none."""
        from minigrid.utils.baby_ai_bot import BabyAIBot

        self._advice = None
        with _quiet(), contextlib.suppress(Exception):  # it raises errors of all kinds where it is at a loss
            self._bot = self._bot or BabyAIBot(self._env)  # type: ignore[no-untyped-call]
            advice = int(self._bot.replan(taken))
            self._advice = advice if advice < len(_ACTIONS) else None

    def _info(self) -> dict[str, Any]:
        return {"mission": self._env.mission, "steps": self._steps}


def _nearest_other(world: Any) -> tuple[int, int] | None:
    """Where the nearest object is that the mission does not mean, as if nothing were in the way."""
    (x, y), grid = world.agent_pos, world.grid
    meant = {id(thing) for thing in _meant(world.instrs)}
    cells = [(column, row) for row in range(grid.height) for column in range(grid.width)]
    others = [cell for cell in cells if _counts(thing := grid.get(*cell)) and id(thing) not in meant]
    return min(others, key=lambda cell: abs(cell[0] - x) + abs(cell[1] - y), default=None)


def _meant(instruction: Any) -> Iterator[Any]:
    """The objects that an instruction means, or those that it is made of."""
    for part in vars(instruction).values():
        if hasattr(part, "obj_set"):
            yield from part.obj_set
        elif hasattr(part, "verify"):
            yield from _meant(part)


def _advice_towards(world: Any, place: tuple[int, int]) -> int | None:
    """The next action of a bot that knows the whole world and wants to face what is there; ``None`` where it does."""
    from minigrid.envs.babyai.core.verifier import GoToInstr, ObjDesc
    from minigrid.utils.baby_ai_bot import BabyAIBot

    thing, instructions = world.grid.get(*place), world.instrs
    wanted: Any = ObjDesc(thing.type, thing.color)  # type: ignore[no-untyped-call]
    wanted.obj_set, wanted.obj_poss = [thing], [place]
    with _quiet(), contextlib.suppress(Exception):  # as the expert does, it is at a loss at times
        try:
            world.instrs = GoToInstr(wanted)  # type: ignore[no-untyped-call]
            bot: Any = BabyAIBot(world)  # type: ignore[no-untyped-call]
        finally:
            world.instrs = instructions
        bot.vis_mask[:] = True
        advice = int(bot.replan())
        return advice if advice < len(_ACTIONS) else None
    return None


def _counts(thing: Any) -> bool:
    """True for what a description of the world names."""
    return thing is not None and thing.type not in ("wall", "floor")


def _describe(thing: Any) -> str:
    """A thing in words, for instance ``grey open door``."""
    state = ""
    if thing.type == "door":
        state = " open" if thing.is_open else " locked" if thing.is_locked else " closed"
    return f"{thing.color}{state} {thing.type}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on stdout: minigrid prints rejected samples, pygame a greeting."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
