from dataclasses import replace

import torch

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.callbacks.records import TurnValues, film_strips, q_and_returns, replies, turn_values, whole_replies
from lightning_vlmq.drawing import Frame
from lightning_vlmq.modules.judgement import CriticJudgement, Judgement
from lightning_vlmq.prompts import PromptMethod
from lightning_vlmq.turns import Episode, Observation, Turn


def test_frames_show_what_differs_in_the_prompt_and_the_middle_is_left_out() -> None:
    def observation(step: int, error: str = "") -> Observation:
        images = (bytes([step]),)
        return Observation(objective="Win.", example="+", images=images, error=error, step=step, step_limit=10)

    turns = [
        Turn("e", "e-7", i, observation(i, "No such action." if i == 7 else ""), reply=f"say {i}", policy="agent")
        for i in range(8)
    ]
    turns[0] = replace(turns[0], valid=True, reward=0.5, env_reward=1.0)
    turns[7] = replace(turns[7], reward=-12.0, terminated=True)
    episode = Episode((*turns, Turn("e", "e-7", 8, observation(8))))
    (strip,) = film_strips([episode], PromptMethod())
    assert strip.title == "e-7: 8 turns, return -11.5 (1)"
    # nine frames with the end: the first three and the last three
    assert [frame if isinstance(frame, int) else frame.title for frame in strip.frames] == [
        "turn 0 (agent)",
        "turn 1 (agent)",
        "turn 2 (agent)",
        3,
        "turn 6 (agent)",
        "turn 7 (agent)",
        "the end",
    ]
    first, last, end = strip.frames[0], strip.frames[-2], strip.frames[-1]
    assert first == Frame("turn 0 (agent)", (b"\0",), ("Step 0 of 10.",), "say 0", True, 0.5, 1.0)
    assert isinstance(last, Frame)
    assert last.prompt == ("No such action.", "Step 7 of 10.")
    assert (last.reply, last.valid, last.reward, last.env_reward) == ("say 7", False, -12.0, 0.0)
    assert end == Frame("the end", (b"\x08",), outcome="goal not reached")


def test_a_prompt_that_never_differs_shows_its_last_line() -> None:
    seen = Observation(objective="Win.", example="+", text="Now.")
    turn = Turn("e", "e-0", 0, seen, reply="+", valid=True, reward=1.0, env_reward=1.0, goal=True, terminated=True)
    (strip,) = film_strips([Episode((turn, Turn("e", "e-0", 1, seen)))], PromptMethod())
    frame, end = strip.frames
    assert strip.title == "e-0: 1 turn, return 1"
    assert isinstance(frame, Frame)
    assert frame.prompt == ("Now.",)
    assert isinstance(end, Frame)
    assert end.outcome == "goal reached"


def _judged(critic: bool = True) -> Judgement:
    """Of two turns, of two tokens and of one; powers of two, which float32 holds exactly."""
    parts = CriticJudgement(
        q=torch.tensor([[1.0, -1.0], [4.0, 9.0]]),
        v=torch.tensor([[0.5, 1.0], [4.0, 9.0]]),
        share=torch.tensor([[0.5, 0.25], [1.0, 9.0]]),
        advantage=torch.tensor([[0.5, -2.0], [0.0, 9.0]]),
        weight=torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        threshold=0.0,
        guarded=torch.tensor(False),
        q_alternatives=torch.tensor([[[8.0], [16.0]], [[32.0], [0.0]]]),
        share_alternatives=torch.tensor([[[0.5], [0.0]], [[0.0], [0.0]]]),
        r_t=torch.tensor([[0.0, 1.0], [2.0, 9.0]]),
        discount_t=torch.tensor([[0.5, 0.5], [0.0, 9.0]]),
    )
    return Judgement(
        log_pi=torch.tensor([[0.5, 0.25], [1.0, 1.0]]).log(),
        alternatives=torch.tensor([[[37], [18]], [[18], [0]]]),
        log_pi_alternatives=torch.tensor([[[0.25], [0.5]], [[0.125], [1.0]]]).log(),
        critic=parts if critic else None,
    )


def test_cells_hold_the_modules_own_numbers(encoder: TurnEncoder) -> None:
    observation = Observation(images=(b"png",))
    turns = [
        Turn("e", "e-1", 0, observation, reply="[+", policy="random", reward=1.0, valid=True),
        Turn("e", "e-1", 1, observation, reply="+", policy="base", td=False),
    ]
    tokens = [encoder.encode_text(text) for text in ("<>", ">")]
    first, second = replies(turns, tokens, _judged(), encoder)
    assert (first.title, first.notes) == ("e-1", ("turn 0 (random)", "valid, reward +1"))
    assert second.notes == ("turn 1 (base)", "not valid, reward +0", "td: false")
    assert first.pictures == (b"png",)
    one, two = first.cells
    assert (one.text, one.pi, one.q, one.v, one.advantage, one.weight) == ("<", 0.5, 1.0, 0.5, 0.5, 1.0)
    assert (two.text, two.pi, two.q, two.v, two.advantage, two.weight) == (">", 0.25, -1.0, 1.0, -2.0, 0.0)
    (other,) = one.alternatives
    assert (other.text, other.pi, other.q, other.counts) == (encoder.vlm.tokenizer.decode([37]), 0.25, 8.0, True)
    assert [alternative.counts for alternative in two.alternatives] == [False]  # it has no weight in V
    assert len(second.cells) == 1  # padding is no token


def test_without_a_critic_cells_hold_probabilities_alone(encoder: TurnEncoder) -> None:
    turns = [Turn("e", "e-1", i, Observation(), reply="r") for i in range(2)]
    first, _ = replies(turns, [[35, 37], [37]], _judged(critic=False), encoder)
    cell = first.cells[0]
    assert (cell.pi, cell.q, cell.v, cell.advantage, cell.weight) == (0.5, None, None, None, None)
    assert (cell.alternatives[0].pi, cell.alternatives[0].q) == (0.25, None)


def test_long_replies_keep_their_beginning_and_their_end(encoder: TurnEncoder) -> None:
    judged = Judgement(torch.zeros(1, 40), torch.zeros(1, 40, 1, dtype=torch.long), torch.zeros(1, 40, 1))
    (reply,) = replies([Turn("e", "e-1", 0, Observation(), reply="r")], [list(range(40))], judged, encoder)
    assert len(reply.cells) == 9 + 1 + 18
    assert reply.cells[9] == 13


def test_returns_by_hand() -> None:
    # from the end: 2; then 0 + .5 x 2 = 1, where the second turn begins; 1 + .5 x 1; .5 x 1.5; .5 x .75
    turns = [
        TurnValues(7.0, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.5, 0.5])),
        TurnValues(8.0, torch.tensor([0.0, 2.0]), torch.tensor([0.5, 0.0])),
    ]
    assert q_and_returns(turns) == [(7.0, 0.375), (8.0, 1.0)]
    # a judgement's padding is left out: 0 + .5 (1 + .5 x 2) = 1
    assert q_and_returns(turn_values([[35, 37], [37]], _judged())) == [(1.0, 1.0), (4.0, 2.0)]


def test_replies_as_single_actions() -> None:
    """The last token's Q, .5 x .25, .5 x .5; padding is left out."""
    assert whole_replies([[35, 37], [37]], _judged()) == [(-1.0, 0.125, 0.25), (4.0, 1.0, 0.0)]
