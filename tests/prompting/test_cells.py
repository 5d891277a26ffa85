from collections.abc import Callable, Sequence

import pytest

from lightning_vlmq.envs import AgentEnv
from lightning_vlmq.envs.exact_numberline import numberline_pairs
from lightning_vlmq.intervals import wilson
from lightning_vlmq.policy import Reply
from lightning_vlmq.prompting.cells import Result, score_cell
from lightning_vlmq.rollout import play
from lightning_vlmq.turns import Observation


class Scripted:
    """Replies what a function makes of the observation; three tokens each, or one where it is cut."""

    name = "scripted"

    def __init__(self, script: Callable[[Observation], str]) -> None:
        self.script = script

    def reply(self, envs: Sequence[AgentEnv], observations: Sequence[Observation]) -> list[Reply]:
        replies = []
        for observation in observations:
            text = self.script(observation)
            cut = not text.startswith("[action]")
            replies.append(Reply(text, log_probs=(-1.0,) if cut else (-1.0,) * 3, cut=cut))
        return replies


def played(env: AgentEnv, script: Callable[[Observation], str]) -> Result:
    options = [{"start": start, "target": target} for start, target in numberline_pairs()]
    return score_cell(list(play(env, [Scripted(script)], range(30), options=options)))


def test_always_plus(env: AgentEnv) -> None:
    result = played(env, lambda observation: "[action] +")
    # 15 pairs go up, in 5 x 1 + 4 x 2 + 3 x 3 + 2 x 4 + 1 x 5 = 35 turns; the others lose 1 in each of 10 turns
    assert result.scores["turns"] == 35 + 150
    assert (result.scores["syntax_accuracy"], result.scores["goal_reached"]) == (1, 0.5)
    assert result.scores["mean_return"] == (15 * 1 - 15 * 10) / 30
    assert (result.tokens_a_reply, result.cut) == (3, 0)
    assert result.intervals["goal_reached"] == pytest.approx(wilson(0.5, 30))
    assert result.intervals["return_above_0"] == pytest.approx(wilson(0.5, 30))
    assert result.intervals["syntax_accuracy"] == wilson(1, 30)  # 30 episodes that agree, not 185 replies
    # standard deviation of 15 ones and 15 times -10: 5.5 sqrt(30 / 29)
    half = 1.959964 * 5.5 / 29**0.5
    assert result.intervals["mean_return"] == pytest.approx((-4.5 - half, -4.5 + half))
    assert result.intervals["tokens_a_reply"] == (3, 3)
    assert result.replies == [("[action] +", 185)]


def test_every_other_reply_is_invalid(env: AgentEnv) -> None:
    result = played(env, lambda observation: "up" if observation.step % 2 == 0 else "[action] +")
    # a pair at distance d takes 2 d turns of at most 10: 2 x 35; the others 15 x 10
    assert result.scores["turns"] == 70 + 150
    assert result.scores["syntax_accuracy"] == 0.5
    assert result.scores["goal_reached"] == 0.5
    assert (result.tokens_a_reply, result.cut) == (2, 0.5)
    assert result.replies == [("up", 110), ("[action] +", 110)]


def test_nothing_valid(env: AgentEnv) -> None:
    result = played(env, lambda observation: "2")
    assert result.scores["turns"] == 30 * 3
    assert result.intervals["syntax_accuracy"] == pytest.approx((0, 0.1135), abs=1e-4)  # 0 of 30, Wilson
    assert result.intervals["mean_return"] == (0, 0)
