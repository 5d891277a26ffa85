"""Who plays for a collector: one rank's environments, which go on from play to play where they stood."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.collection import online_seed
from lightning_vlmq.envs.agent import AgentEnv
from lightning_vlmq.policy import Policy, RandomPolicy, VLMPolicy
from lightning_vlmq.rollout import Rollout
from lightning_vlmq.turns import Episode, Observation

__all__ = ["Order", "Played", "Player"]


class Order(NamedTuple):
    """What to play; those of one epoch are the same, and what is drawn in its plays follows one upon the other.

    Attributes:
        epoch: In which it is ordered: what is drawn depends on it.
        steps: Replies in each environment.
        epsilon: Probability of an explored reply.
        temperature: Of the policy's replies.
        time_limit: Seconds after which the play ends between two turns; 0 for no limit.
    """

    epoch: int
    steps: int
    epsilon: float
    temperature: float
    time_limit: float


class Played(NamedTuple):
    """What came of a play.

    Attributes:
        order: What was ordered.
        turns: Replies.
        cut: Whether ``time_limit`` ended it.
        ended: Episodes that ended.
        failures: Failures of environments.
        seconds: What it took.
        environment_seconds: What of it environments took.
        prompts: Marks of the prompts that the VLM read in the last turns of ``ended``, by what was observed.
    """

    order: Order
    turns: int = 0
    cut: bool = False
    ended: tuple[Episode, ...] = ()
    failures: int = 0
    seconds: float = 0.0
    environment_seconds: float = 0.0
    prompts: Mapping[Observation, bytes] = {}


class Player:
    """Environments of one rank and the policies that reply there.

    Args:
        environment: What to play; copies of it do.
        encoder: Renders prompts; holds the VLM.
        environments: How many play at once.
        explore: Explored replies are ``"random"`` valid actions or the VLM's own after ``"minimum"``, the tag.
        run_seed: Seed of the run.
        rank: Whose episodes and draws these are, apart from those of the other ranks.
        ranks: How many there are.
        next_seed: Number of the first episode.

    Attributes:
        next_seed: Number of the next episode.
    """

    def __init__(
        self,
        environment: AgentEnv,
        encoder: TurnEncoder,
        *,
        environments: int,
        explore: Literal["random", "minimum"],
        run_seed: int,
        rank: int,
        ranks: int,
        next_seed: int,
    ) -> None:
        self.next_seed = next_seed
        self._environment, self._encoder = environment, encoder
        self._environments, self._explore = environments, explore
        self._run_seed, self._rank, self._ranks = run_seed, rank, ranks
        self._rollout: Rollout | None = None
        self._order: Order | None = None
        self._prompts: dict[Observation, bytes] = {}
        self._policies: list[Policy] = []

    def play(self, order: Order, keep: Callable[[Episode], None], stop: Callable[[], bool]) -> Played:
        """Plays, now.

        Args:
            order: What to play.
            keep: Takes each episode as it ends.
            stop: Asked behind each turn whether to end the play there.
        """
        begin = time.monotonic()
        waited, failures = (self._rollout.waited, len(self._rollout.failures)) if self._rollout else (0.0, 0)
        if self._rollout is None:
            seed = self._seed + order.epoch  # a resumed run does not draw the same again
            self._rollout = Rollout(self._environment, self._starts(), self._environments, seed)
        if order != self._order:
            self._order, self._prompts = order, {}
            self._policies = self._who_replies(order)
        rollout, shares = self._rollout, [1 - order.epsilon, order.epsilon]
        turns, cut = 0, False
        ended: list[Episode] = []
        playing = time.monotonic()
        for _ in range(order.steps):
            if order.time_limit and turns and time.monotonic() - playing > order.time_limit:
                cut = True
                break
            turns += rollout.running
            for episode in rollout.turn(self._policies, shares):
                keep(episode)
                ended.append(episode)
            if stop():
                break
        lasts = [episode.turns[-2].observation for episode in ended]
        return Played(
            order,
            turns,
            cut,
            tuple(ended),
            len(rollout.failures) - failures,
            time.monotonic() - begin,
            rollout.waited - waited,
            {last: self._prompts[last] for last in lasts if last in self._prompts},
        )

    def begin(self, order: Order) -> None:
        """Plays ahead, where somebody else can do so meanwhile: nobody here."""

    def weights_of_play(self) -> AbstractContextManager[None]:
        """Within this context the VLM has the weights that played last: those it has here."""
        return contextlib.nullcontext()

    def open_episodes(self) -> list[Episode]:
        """Episodes that are open, marked as truncated."""
        return self._rollout.open_episodes() if self._rollout else []

    def close(self) -> None:
        """Closes the environments; open episodes stay."""
        if self._rollout is not None:
            self._rollout.close()

    # -- parts ----------------------------------------------------------------------------------------------

    def _who_replies(self, order: Order) -> list[Policy]:
        """The policy itself, and who explores; they note their prompts."""
        options: dict[str, Any] = {
            "temperature": order.temperature,
            "seed": self._seed + 1 + order.epoch,
            "prompts": self._prompts,
        }
        own = VLMPolicy(self._encoder, **options)
        if self._explore == "minimum":
            return [own, VLMPolicy(self._encoder, **options, action_prompt="minimum", name="minimum")]
        return [own, RandomPolicy()]

    def _starts(self) -> Iterator[tuple[int, Mapping[str, object]]]:
        while True:
            number = self.next_seed * self._ranks + self._rank
            self.next_seed += 1
            yield online_seed(self._run_seed, number), {}

    @property
    def _seed(self) -> int:
        """Of draws, apart for each rank."""
        return online_seed(self._run_seed, 0) + 1_000_003 * self._rank
