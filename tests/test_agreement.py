"""What was played and what training reads, compared turn by turn."""

from dataclasses import replace

from lightning_vlmq.agreement import Agreement, compare, prompt_mark
from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.turns import Turn


def test_turns_that_training_reads_otherwise_are_counted(encoder: TurnEncoder, pairs: list[tuple[Turn, Turn]]) -> None:
    chosen = [(turn, after) for turn, after in pairs if turn.log_probs][:3]
    played = [turn for turn, _ in chosen]
    prompts = {turn.observation: prompt_mark(encoder.prompt_ids(turn.observation)[0]) for turn in played}
    tokens = sum(len(turn.log_probs) for turn in played)
    as_played = compare(encoder, played, chosen, prompts)
    assert as_played[:4] == (3, 0, 0, 0)
    assert (as_played.tokens, as_played.mean < 1e-5, as_played.fault) == (tokens, True, "")

    # tokens of another tokenizer: the reply is encoded anew, and is too long then
    (turn, after), *others = chosen
    anew = replace(turn, reply="<action> 1 </action>" * 9, tokenizer="other")
    found = compare(encoder, played, [(anew, after), *others], prompts)
    assert found[:4] == (3, 0, 0, 1)
    assert found.tokens == tokens - len(turn.log_probs)
    assert "differ: the reply's tokens in 1 of 3 turns" in found.fault

    elsewhere = replace(turn, observation=replace(turn.observation, objective="Something else.", images=()))
    found = compare(encoder, played[:1], [(elsewhere, after)], prompts)
    assert "differ: the picture in 1, the prompt in 1 of 1 turns" in found.fault
    assert compare(encoder, [], [], {}) == Agreement()
    assert Agreement(turns=1, difference=0.3, tokens=3).fault.endswith("look at the weights and the precision")
