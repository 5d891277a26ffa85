"""Other models play, and what they say trains the student."""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import SMALL, shrunk, vlmq
from tiny_tokenizers import byte_level
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_vlmq import VLM, AgentEnv, PromptMethod, TurnEncoder, TurnStore, collect
from lightning_vlmq.collectors import Collector, CollectorPolicy, OtherVLM, Speaking, TextLLM
from lightning_vlmq.envs import NumberLine
from lightning_vlmq.policy import VLMPolicy
from lightning_vlmq.turns import Observation, Turn

CPU = torch.device("cpu")
ASKED = Speaking(limit=6, temperature=0.0, seed=0, device=CPU)
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<end_of_utterance>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def llm(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A random language model whose tokenizer is not the student's."""
    tokenizer = byte_level("</s>", {}, bos="<s>")
    tokenizer.chat_template = template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def seen(count: int) -> list[Observation]:
    env = AgentEnv(NumberLine())
    return [env.reset(seed=seed) for seed in range(count)]


class Talker(Collector):
    """Says what it was told to."""

    def __init__(self, text: str) -> None:
        self.text = text

    def say(self, observations: Sequence[Observation], prompt: PromptMethod, how: Speaking) -> list[str]:
        return [self.text] * len(observations)

    def unload(self) -> None:
        self.text = "unloaded"


def test_a_vlm_is_asked_as_the_student_is(encoder: TurnEncoder) -> None:
    other, observations = OtherVLM("embedded", "float32"), seen(2)
    short, long = (other.say(observations, PromptMethod(), ASKED._replace(limit=limit)) for limit in (2, 12))
    assert all(a != b and b.startswith(a) for a, b in zip(short, long, strict=True))
    own = TurnEncoder(VLM(lora_rank=0), max_reply_tokens=12)
    assert long == [reply.text for reply in VLMPolicy(own).reply([], observations)]
    held = weakref.ref(other._features.vlm)  # type: ignore[union-attr]
    other.unload()
    assert held() is None


def turns_of(store: TurnStore, policy: str) -> list[Turn]:
    return [turn for episode in store.episodes() for turn in episode.turns if turn.policy == policy and turn.reply]


def test_what_is_said_is_kept_in_the_students_tokens(encoder: TurnEncoder) -> None:
    student = TurnEncoder(encoder.vlm, max_reply_tokens=6)
    vlm, stop = student.vlm, student.vlm.stop_ids[0]
    for text, said, cut in (
        ("[action] +", "[action] +", False),
        ("", "", False),
        ("[action]<end_of_utterance><image> -", "[action] -", False),
        ("3 4 5 6 7 8 9", "3 4 5 6 7 8", True),
    ):
        (reply,) = CollectorPolicy("talker", Talker(text), student, temperature=1.0, seed=0).reply([], seen(1))
        ids = list(reply.ids)
        assert reply.cut == cut
        assert cut == (ids[-1] != stop)
        assert len(ids) <= 6
        assert not set(ids) & set(vlm.forbidden_ids)
        assert reply.text == vlm.tokenizer.decode(ids if cut else ids[:-1])
        assert reply.text == said
        assert reply.tokenizer == student.tokenizer_fingerprint
        assert reply.log_probs == ()


def test_a_vlm_and_a_language_model_write_turns_that_train(encoder: TurnEncoder, tmp_path: Path) -> None:
    env = AgentEnv(NumberLine())
    collectors = {"vlm": OtherVLM("embedded", dtype="float32"), "words": TextLLM(str(llm(tmp_path / "llm")), "float32")}
    mixture = {"vlm": 0.3, "words": 0.3, "random": 0.4}
    options: dict[str, Any] = {"turns": 40, "mixture": mixture, "parallel": 4, "seed": 3, "collectors": collectors}
    store = collect(env, encoder, tmp_path / "one", **options)
    for name in ("vlm", "words"):
        turns = turns_of(store, name)
        assert turns
        for turn in turns:
            assert encoder.reply_ids(turn) == list(turn.reply_ids)
            assert turn.log_probs == ()
    assert {turn.reply for turn in turns_of(store, "vlm")} != {turn.reply for turn in turns_of(store, "words")}
    pairs = [(store[row], store[row + 1]) for row in store.samples.tolist()[:8]]
    assert encoder.batch(*zip(*pairs, strict=True)).mask.any(1).all()
    # they have let go of their models, and play the same again
    assert collectors["vlm"]._features is None  # type: ignore[union-attr]
    assert collectors["words"]._model is None  # type: ignore[union-attr]
    again = collect(env, encoder, tmp_path / "two", **options)
    assert [t for e in store.episodes() for t in e.turns] == [t for e in again.episodes() for t in e.turns]
    options["collectors"] = {**collectors, "vlm": OtherVLM("embedded", dtype="float32", action_prompt="minimum")}
    with pytest.raises(ValueError, match=r"collected with collectors.vlm.action_prompt = 'agent', not 'minimum'"):
        collect(env, encoder, tmp_path / "one", **options)


def test_a_language_model_reads_words_in_place_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collector, observations = TextLLM(str(llm(tmp_path)), "float32", batch_size=4), seen(6)
    collector._load(CPU)
    asked: list[str] = []
    generate = collector._model.generate

    def noted(input_ids: torch.Tensor, **rest: Any) -> Any:
        asked.extend(collector._tokenizer.batch_decode(input_ids, skip_special_tokens=True))
        return generate(input_ids=input_ids, **rest)

    monkeypatch.setattr(collector._model, "generate", noted)
    together = collector.say(observations, PromptMethod(), ASKED)
    for text, observation in zip(asked, observations, strict=True):
        assert observation.summary
        assert observation.summary in text
        assert "[action]" in text
    alone = [collector.say([each], PromptMethod(), ASKED)[0] for each in observations]
    assert together == alone
    tempered = ASKED._replace(temperature=1.0)
    state = torch.get_rng_state()
    drawn = [collector.say(observations, PromptMethod(), tempered._replace(seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_long_description_in_words_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = TextLLM(str(llm(tmp_path)), "float32")
    observations = [replace(each, summary="It is far away. " * count) for count, each in enumerate(seen(3), 40)]
    collector._load(CPU)
    widths: list[int] = []
    generate = collector._model.generate

    def noted(input_ids: torch.Tensor, **rest: Any) -> Any:
        widths.append(input_ids.shape[1])
        return generate(input_ids=input_ids, **rest)

    monkeypatch.setattr(collector._model, "generate", noted)
    for prompt in (PromptMethod(), PromptMethod(max_tokens=150)):
        collector.say(observations, prompt, ASKED)
    assert 147 <= widths[1] <= 150 < widths[0]


def test_what_cannot_play_says_why(encoder: TurnEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no chat template; take a model that follows instructions"):
        TextLLM(str(llm(tmp_path / "plain", template=None))).say(seen(1), PromptMethod(), ASKED)
    with pytest.raises(ValueError, match=r"cannot play .*give a folder or a hub name"):
        TextLLM(str(tmp_path / "nothing")).say(seen(1), PromptMethod(), ASKED)
    blind = [Observation(objective="Win.")]
    with pytest.raises(ValueError, match="reads no pictures, and the environment offers no summary"):
        TextLLM("any").say(blind, PromptMethod(), ASKED)
    with pytest.raises(ValueError, match=r"put \{summary\} into it"):
        PromptMethod(template="{objective}").in_words()
    with pytest.raises(ValueError, match="dtype: 'float7'"):
        OtherVLM("embedded", dtype="float7")
    with pytest.raises(ValueError, match="collectors: 'random' is a policy of its own"):
        collect(
            AgentEnv(NumberLine()),
            encoder,
            tmp_path / "a",
            turns=5,
            mixture={"random": 1.0},
            collectors={"random": Talker("")},
        )


def test_collectors_stand_in_the_configuration(tiny_folder: Path, tmp_path: Path) -> None:
    path = shrunk("numberline.yaml", tiny_folder, tmp_path)
    config = yaml.safe_load(path.read_text())
    config["data"]["init_args"]["collectors"] = {
        "words": {"class_path": "lightning_vlmq.collectors.TextLLM", "init_args": {"name": str(llm(tmp_path / "llm"))}}
    }
    path.write_text(yaml.safe_dump(config))
    small = [option for option in SMALL if "mixture" not in option]
    run = tmp_path / "run"
    done = vlmq(
        "fit", f"--config={path}", f"--folder={run}", *small, "--data.init_args.mixture={words: 0.5, random: 0.5}"
    )
    assert done.returncode == 0, done.stderr
    assert turns_of(TurnStore(run / "data"), "words")
