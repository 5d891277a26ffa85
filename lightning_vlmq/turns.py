"""Records of agent-environment interaction: one schema for memory and disk.

A :class:`Turn` is a row: what the agent saw, what it replied and what came of it. Transitions are computed
from consecutive rows, never stored: the observation after turn ``t`` is the observation of row ``t + 1``, and
every episode, also one cut short, ends with a row that holds its last observation and no reply.
"""

from dataclasses import dataclass, field

__all__ = ["SCHEMA_VERSION", "Episode", "Observation", "Turn"]

SCHEMA_VERSION = 2
"""Version of the row layout; written into every shard and checked when one is read."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What an environment shows an agent before a reply, raw: prompts are rendered from it, never stored.

    Attributes:
        objective: What the agent is to achieve, one or two sentences.
        actions: Documentation of the valid actions, as the agent should read it.
        example: The text of one valid action, to show the syntax.
        text: What the environment says this turn (may be empty).
        images: Pictures of this turn as PNG bytes, in the order in which a prompt shows them.
        summary: Privileged description of the pictures, for collectors that see text only (may be empty).
        error: Why the previous reply was invalid; empty when it was valid.
        step: Replies given in this episode so far.
        step_limit: Replies after which the episode ends; 0 for no limit.
        invalid_streak: Invalid replies in a row up to now.
        invalid_limit: Invalid replies in a row that end the episode; 0 for no limit.
    """

    objective: str = ""
    actions: str = ""
    example: str = ""
    text: str = ""
    images: tuple[bytes, ...] = ()
    summary: str = ""
    error: str = ""
    step: int = 0
    step_limit: int = 0
    invalid_streak: int = 0
    invalid_limit: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One row of the store: an observation, the reply to it and what the environment answered.

    Attributes:
        env: Name of the environment.
        episode: Identifier of the episode, unique in a store.
        index: Position in the episode, from 0.
        observation: What the agent saw.
        reply: The complete reply as text without stop token; ``None`` in the last row of an episode, which
            only holds the last observation.
        reply_ids: The token ids that were sampled, stop token included if one was sampled; empty where the
            reply did not come from a tokenizer.
        tokenizer: Fingerprint of the tokenizer that made ``reply_ids``; ids of another are encoded anew.
        log_probs: Log-probability of each sampled token, before temperature and masks; the tokens that an action
            prompt forced, which come first in ``reply_ids``, have none. Empty where nothing was sampled.
        cut: True if the reply hit the maximum length before a stop token.
        forced: Number of leading characters of ``reply`` that an action prompt wrote, not the policy.
        action: The action text that was read from the reply; empty if invalid.
        valid: True if the reply was a valid action.
        reward: Reward with penalties, the one to learn from.
        env_reward: The environment's own reward.
        terminated: True if the episode ended here for good (discount 0).
        truncated: True if the episode was cut here without meaning (the value is bootstrapped).
        goal: True if the environment's goal was reached on this turn.
        policy: Name of the policy that replied.
        seed: Seed that the episode was reset with.
        imitate: False keeps the reply out of the language loss.
        td: False keeps the turn out of the critic loss.
        weight: Weight of the turn in both losses.
    """

    env: str
    episode: str
    index: int
    observation: Observation
    reply: str | None = None
    reply_ids: tuple[int, ...] = ()
    tokenizer: str = ""
    log_probs: tuple[float, ...] = ()
    cut: bool = False
    forced: int = 0
    action: str = ""
    valid: bool = False
    reward: float = 0.0
    env_reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    goal: bool = False
    policy: str = ""
    seed: int = 0
    imitate: bool = True
    td: bool = True
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Episode:
    """Rows of one episode in order, the last one without a reply.

    Attributes:
        turns: The rows; ``turns[-1].reply is None``.
    """

    turns: tuple[Turn, ...] = field(default=())

    def __len__(self) -> int:
        """Number of replies."""
        return max(0, len(self.turns) - 1)

    @property
    def env_return(self) -> float:
        """Sum of the environment's own rewards."""
        return sum(turn.env_reward for turn in self.turns)

    @property
    def shaped_return(self) -> float:
        """Sum of the rewards with penalties."""
        return sum(turn.reward for turn in self.turns)

    @property
    def goal(self) -> bool:
        """True if the environment's goal was reached on any turn."""
        return any(turn.goal for turn in self.turns)

    @property
    def valid_replies(self) -> int:
        """Number of replies that were valid actions."""
        return sum(turn.valid for turn in self.turns if turn.reply is not None)
