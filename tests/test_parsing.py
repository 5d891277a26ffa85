import time

import pytest

from lightning_vlmq.parsing import ActionParser, JsonParser, TagParser, exact_match, first_match, strip_markdown

NONSENSE = [
    "",
    " ",
    "\n",
    "[",
    "action",
    "{",
    '{"action"',
    "é漢字🂡\u200b\x00",
    "[action]" * 1250,
    "{" * 10_000,
    '{"a":' * 2_000,
]
NONSENSE += [
    "*" * 10_000,
    "[action]" + "`" * 10_000,
    '{"action": ' + "9" * 9_000 + "}",
    "null",
    "[]",
    '{"action": null}',
]


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        ("[action] +", "+"),
        ("[action]+", "+"),
        ("I think [action]\n  **hit**  \n", "hit"),
        ("**[action]** hit", "hit"),
        ('[action] "`stand`"', "stand"),
        ("[action] *", "*"),
        ("[action] `*`", "*"),
        ("[action]", ""),
        ("[action] + [action] -", "+ [action] -"),
        ("+", None),
        ("[Action] +", None),
        ("", None),
    ],
)
def test_tag_parser(reply, action):
    assert TagParser().parse(reply) == action


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        ('{"action": "+"}', "+"),
        ('I see 3. ```json\n{"thought": "up", "action": " hit "}\n```', "hit"),
        ('{"thought": {"action": "inner"}}', "inner"),
        ('{"other": 1} {"action": 10}', "10"),
        ('{"action": true}', None),
        ('{"action": ["+"]}', None),
        ("{'action': '+'}", None),
        ("[action] +", None),
    ],
)
def test_json_parser(reply, action):
    assert JsonParser().parse(reply) == action


def test_formats():
    assert TagParser("<a>").format("hit") == "<a> hit"
    assert TagParser().prefix == "[action]"
    assert JsonParser().format("+") == '{"action": "+"}'
    assert JsonParser("do").prefix == '{"do": "'
    assert JsonParser().format('click("é")') == '{"action": "click(\\"é\\")"}'


@pytest.mark.parametrize("parser", [TagParser(), TagParser("<act>"), JsonParser(), JsonParser("move")])
@pytest.mark.parametrize("action", ["+", "-", "hit", "10", "*", "(", 'click("12")', "pick up", "go_to x"])
def test_round_trip(parser, action):
    assert isinstance(parser, ActionParser)
    reply = parser.format(action)
    assert reply.startswith(parser.prefix)
    assert parser.parse(reply) == action


@pytest.mark.parametrize("parser", [TagParser(), JsonParser()])
def test_nonsense_never_raises_and_is_quick(parser):
    start = time.process_time()
    for reply in NONSENSE:
        action = parser.parse(reply)
        assert action is None or exact_match(action, ["+", "-"]) is None
        assert action is None or first_match(action, ["left"]) is None
    assert time.process_time() - start < 5


def test_strip_markdown():
    assert strip_markdown('  _`"hit"`_ ') == "hit"
    assert strip_markdown("pick_up") == "pick_up"
    assert strip_markdown("**") == "**"
    assert strip_markdown("***") == "*"


def test_exact_match():
    assert exact_match(" **-** ", ["-", "+"]) == 0
    assert exact_match("+", ["-", "+"]) == 1
    assert exact_match("+ 1", ["-", "+"]) is None
    assert exact_match("Hit", ["stand", "hit"]) is None
    assert exact_match("", ["stand", "hit"]) is None


def test_first_match():
    actions = ["left", "right", "go", "go forward"]
    assert first_match("I turn Right, then left", actions) == 1
    assert first_match("go forward", actions) == 3
    assert first_match("leftover", actions) is None
    assert first_match("", actions) is None


def test_blank_syntax_is_refused():
    with pytest.raises(ValueError, match="tag ' ' is blank"):
        TagParser(" ")
    with pytest.raises(ValueError, match="key is empty"):
        JsonParser("")
