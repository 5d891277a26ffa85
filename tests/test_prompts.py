import pytest
from jsonargparse import ArgumentParser

from lightning_vlmq.parsing import JsonParser, TagParser
from lightning_vlmq.prompts import PromptMethod, forced_prefix
from lightning_vlmq.turns import Observation

OBSERVATION = Observation(
    objective="Make Current equal to Target.",
    actions="+ raises Current by one, - lowers it by one.",
    example="+",
    images=(b"one", b"two"),
    summary="Target: 3. Current: 5.",
    step=2,
    step_limit=10,
    invalid_streak=1,
    invalid_limit=3,
)

GOLDEN = """\
Make Current equal to Target.
Actions: + raises Current by one, - lowers it by one.
Reply like: [action] +
Step 2 of 10. Invalid 1 of 3."""


def test_golden_messages():
    assert PromptMethod().messages(OBSERVATION) == [
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": GOLDEN}]}
    ]
    assert PromptMethod().images(OBSERVATION) == (b"one", b"two")


def test_error_and_text_stand_between_syntax_and_counters():
    observation = Observation(actions="up", example="up", text="A door.", error="Bad reply.", step_limit=5)
    expected = "Actions: up\nReply like: [action] up\nA door.\nBad reply.\nStep 0 of 5."
    assert PromptMethod().text(observation) == expected


def test_image_last():
    content = PromptMethod(image_first=False).messages(OBSERVATION)[0]["content"]
    assert [part["type"] for part in content] == ["text", "image", "image"]


def test_summary_replaces_pictures():
    method = PromptMethod(use_summary=True, counters=False)
    text = GOLDEN.replace("Step 2 of 10. Invalid 1 of 3.", "Target: 3. Current: 5.")
    assert method.messages(OBSERVATION) == [{"role": "user", "content": [{"type": "text", "text": text}]}]
    assert method.images(OBSERVATION) == ()


def test_agents_never_read_the_summary():
    assert "Target: 3" not in PromptMethod().text(OBSERVATION)


def test_parser_decides_the_example():
    assert 'Reply like: {"action": "+"}' in PromptMethod(JsonParser()).text(OBSERVATION)


def test_a_thought_is_asked_for_in_front_of_the_action():
    lines = PromptMethod(thought=True).text(OBSERVATION).splitlines()
    assert lines[1:4] == [
        "Actions: + raises Current by one, - lowers it by one.",
        "Before the action write a short thought: what you see, and what to do.",
        "Reply like: <thought> [action] +",
    ]
    assert 'Reply like: <thought> {"action": "+"}' in PromptMethod(JsonParser(), thought=True).text(OBSERVATION)


@pytest.mark.parametrize("parser", [TagParser(), JsonParser()])
def test_parsers_skip_a_thought(parser):
    assert parser.parse(f"Current is 2, below the target. {parser.format('+')}") == "+"


def test_a_prompt_method_with_and_without_thought():
    method = PromptMethod(image_first=False, counters=False)
    thinking = method.asking(True)
    assert (method.thought, thinking.thought, thinking.image_first, thinking.counters) == (False, True, False, False)
    assert thinking.asking(False).text(OBSERVATION) == method.text(OBSERVATION)
    own = PromptMethod(template="{objective}|{thought}|{example}")
    assert own.text(OBSERVATION) == "Make Current equal to Target.||[action] +"
    assert own.asking(True).text(OBSERVATION).split("|")[1].startswith("Before the action")
    message = r"thought: template '\{text\}' does not ask for one; put \{thought\} into it"
    with pytest.raises(ValueError, match=message):
        PromptMethod(template="{text}").asking(True)
    with pytest.raises(ValueError, match=message):
        PromptMethod(template="{text}", thought=True)


def test_template():
    method = PromptMethod(template="{{{objective}}} {example} ({step}/{step_limit}) {counters}{text}")
    assert method.text(OBSERVATION) == (
        "{Make Current equal to Target.} [action] + (2/10) Step 2 of 10. Invalid 1 of 3."
    )
    assert PromptMethod(template="{text}").text(Observation(text="{x} {{")) == "{x} {{"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{objektive} {text} {goal}", "unknown fields 'goal', 'objektive'"),
        ("{text.__class__}", "unknown fields"),
        ("{}", "unknown fields ''"),
        ("{step:{text}}", "unknown fields 'step'"),
        ("{text", "does not parse"),
        ("{text:d}", "cannot be filled"),
    ],
)
def test_bad_templates_are_refused_at_once(template, message):
    with pytest.raises(ValueError, match=message):
        PromptMethod(template=template)


def test_what_the_environment_says_is_cut_at_its_end():
    method = PromptMethod(max_tokens=140)
    observation = Observation(
        objective="Buy it.", text="0123456789" * 20, error="Bad reply.", summary="9" * 500, step=1
    )
    looks = []

    def characters(shown):
        looks.append(shown)
        return len(method.text(shown))

    read = method.fitted(observation, characters)
    assert method.text(read) == f"Buy it.\nReply like: [action] \n{('0123456789' * 20)[:94]} ...\nBad reply."
    assert len(method.text(read)) == 139  # within 2 % of it
    assert len(looks) <= 4
    assert read.summary == observation.summary, "what is not shown needs no room"
    short = Observation(text="0123456789")
    assert method.fitted(short, characters) is short
    assert PromptMethod().fitted(observation, characters) is observation


@pytest.mark.parametrize("text", ["a" * 5000 + "b" * 50, "b" * 50 + "a" * 5000, "ab" * 3000, "b" * 100, "a" * 40 + "b"])
def test_texts_of_uneven_density_are_cut_too(text):
    """A ``b`` counts like fifty ``a``."""
    method = PromptMethod(max_tokens=1000)
    looks = []

    def tokens(shown):
        looks.append(shown)
        return 10 + len(shown.text) + 49 * shown.text.count("b")

    read = method.fitted(Observation(text=text), tokens)
    found = tokens(read)
    assert found <= 1000
    assert found >= 1000 - 20 - 50 or read.text == text
    assert len(looks) < 40


def test_the_longest_of_what_is_said_is_cut_first():
    method = PromptMethod(max_tokens=100, use_summary=True, template="{text}|{summary}|{error}")
    observation = Observation(text="t" * 60, summary="s" * 300, error="e" * 20)
    read = method.fitted(observation, lambda shown: len(method.text(shown)))
    assert read.summary == "s" * 35 + " ..."
    assert read.text == "t" * 35 + " ..."
    assert method.asking(False).in_words().max_tokens == 100


def test_no_room_for_what_is_never_cut_is_said():
    observation = Observation(objective="Buy it.", text="0123456789" * 20)
    method = PromptMethod(max_tokens=30)
    with pytest.raises(ValueError, match=r"prompt\.max_tokens: 30 is too little .* take 34 tokens here; give at least"):
        method.fitted(observation, lambda shown: len(method.text(shown)))
    with pytest.raises(ValueError, match=r"prompt\.max_tokens: 0 leaves no prompt; give a number of tokens, or null"):
        PromptMethod(max_tokens=0)


def test_forced_prefix():
    assert forced_prefix("agent", TagParser()) == ""
    assert forced_prefix("minimum", TagParser("<a>")) == "<a>"
    with pytest.raises(ValueError, match="'partial' is unknown"):
        forced_prefix("partial", TagParser())


def test_from_a_configuration():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PromptMethod, "prompt")
    syntax = {"class_path": "lightning_vlmq.parsing.JsonParser", "init_args": {"key": "do"}}
    init_args = {"parser": syntax, "counters": False}
    config = parser.parse_object(
        {"prompt": {"class_path": "lightning_vlmq.prompts.PromptMethod", "init_args": init_args}}
    )
    method = parser.instantiate_classes(config).prompt
    assert method.parser.format("+") == '{"do": "+"}'
    assert not method.counters
