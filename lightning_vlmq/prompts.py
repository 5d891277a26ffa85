"""From an observation to chat messages: everything a model reads is rendered here, nothing of it is stored.

The order is the paper's: the objective, the documented actions, an example of the syntax, then what the
environment says. The counters stand in the prompt because they end episodes and are not in the picture. What a prompt
has too much is cut from what the environment says, before anything is a token: so no cut meets a picture's place.
"""

import copy
import string
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from lightning_vlmq.parsing import ActionParser, TagParser
from lightning_vlmq.turns import Observation

__all__ = ["ActionPrompt", "AnyActionPrompt", "Messages", "PromptMethod", "forced_prefix"]

ActionPrompt: TypeAlias = Literal["agent", "minimum"]
"""``agent``: the model answers freely; ``minimum``: its reply is begun with the parser's prefix."""

AnyActionPrompt: TypeAlias = Literal["agent", "minimum", "random"]
"""Also ``random``, which asks no model: a random valid action as text."""

Messages: TypeAlias = list[dict[str, Any]]
"""Messages as ``apply_chat_template`` takes them."""

_CUT = " ..."
"""Shows that an environment said more."""

_THOUGHT = "Before the action write a short thought: what you see, and what to do."

_FIELDS = (
    "objective",
    "actions",
    "thought",
    "example",
    "text",
    "summary",
    "error",
    "counters",
    "step",
    "step_limit",
    "invalid_streak",
    "invalid_limit",
)


class PromptMethod:
    """Renders an :class:`~lightning_vlmq.turns.Observation` as one user message: pictures and text.

    Args:
        parser: The syntax in which the model should reply; ``None`` for ``TagParser()``.
        image_first: True shows the pictures before the text, False behind it.
        use_summary: True leaves the pictures out and shows the environment's privileged description instead, for
            collectors that read text only.
        counters: True shows how many replies were given and how many in a row were invalid, with their limits.
        template: A text of your own with named fields in braces instead of the standard one: ``objective``,
            ``actions``, ``thought`` (what asks for one, empty without), ``example`` (a complete reply), ``text``,
            ``summary``, ``error``, ``counters``, ``step``, ``step_limit``, ``invalid_streak``, ``invalid_limit``.
            Double braces for a literal brace.
        thought: True asks for a thought in front of the action (chain of thought, ReAct); the parsers skip it. Leave
            it room: ``max_reply_tokens``.
        max_tokens: Longest prompt in tokens of the model that reads it, pictures included (the reply comes on top). In
            a longer one the end of what the environment says is cut; ``null`` for no limit.

    Raises:
        ValueError: If the template has unknown fields, does not parse, or has no place for the thought; or
            ``max_tokens`` is below 1.
    """

    def __init__(
        self,
        parser: ActionParser | None = None,
        image_first: bool = True,
        use_summary: bool = False,
        counters: bool = True,
        template: str | None = None,
        thought: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"prompt.max_tokens: {max_tokens} leaves no prompt; give a number of tokens, or null")
        self.parser: ActionParser = TagParser() if parser is None else parser
        self.image_first = image_first
        self.use_summary = use_summary
        self.counters = counters
        self.thought = thought
        self.max_tokens = max_tokens
        self.template = template
        if template is not None:
            _check_template(template, thought)
            self.text(Observation())

    def asking(self, thought: bool) -> "PromptMethod":
        """Return the same prompt method with or without a thought in front of the action.

        Raises:
            ValueError: If the template has no place for the thought.
        """
        if self.template is not None:
            _check_template(self.template, thought)
        other = copy.copy(self)
        other.thought = thought
        return other

    def in_words(self) -> "PromptMethod":
        """Return the same prompt method without pictures, with the environment's description in words.

        Raises:
            ValueError: If the template has no place for it.
        """
        if self.template is not None and "summary" not in _check_template(self.template, False):
            raise ValueError(f"summary: template {self.template!r} does not show it; put {{summary}} into it")
        other = copy.copy(self)
        other.use_summary = True
        return other

    def messages(self, observation: Observation) -> Messages:
        """Render the messages of a turn.

        Args:
            observation: What the agent sees.

        Returns:
            One user message whose content holds one ``{"type": "image"}`` per picture, in the order of
            :meth:`images`, and one ``{"type": "text"}``.
        """
        pictures: list[dict[str, Any]] = [{"type": "image"} for _ in self.images(observation)]
        words: list[dict[str, Any]] = [{"type": "text", "text": self.text(observation)}]
        return [{"role": "user", "content": pictures + words if self.image_first else words + pictures}]

    def images(self, observation: Observation) -> tuple[bytes, ...]:
        """Return the pictures (PNG bytes) that belong to :meth:`messages`."""
        return () if self.use_summary else observation.images

    def fitted(self, observation: Observation, count: Callable[[Observation], int]) -> Observation:
        """Shorten an observation until its prompt has no more than ``max_tokens`` tokens.

        Only what the environment says is cut (text, error, and the summary where it is shown), the longest of them
        first, at its end. Pictures stay whole, and so do objective, actions, example, counters and the chat template.

        Args:
            observation: What the agent sees.
            count: Gives the tokens of an observation's prompt, those of its pictures included.

        Returns:
            The observation itself where its prompt is short enough; else one whose prompt comes within 2 % of the limit
            where the text can be cut so finely.

        Raises:
            ValueError: The prompt is too long without any of it.
        """
        limit = self.max_tokens
        if limit is None or (most := count(observation)) <= limit:
            return observation
        said = {name: getattr(observation, name) for name in ("text", "error", *["summary"] * self.use_summary)}
        low, high = 0, max(len(text) for text in said.values())
        least = count(_begun(observation, said, 0))
        if least > limit:
            raise ValueError(
                f"prompt.max_tokens: {limit} is too little for pictures and instructions, which are never cut and take "
                f"{least} tokens here; give at least that, or fewer or smaller pictures"
            )
        slack, look = limit // 50, 0
        while least < limit - slack and high - low > 1:
            look += 1
            # tokens lie nearly evenly along a text: mostly two looks in place of a dozen; every third one halves
            part = 0.5 if look % 3 == 0 else (limit - slack / 2 - least) / (most - least)
            middle = min(max(low + round(part * (high - low)), low + 1), high - 1)
            tokens = count(_begun(observation, said, middle))
            if tokens <= limit:
                low, least = middle, tokens
            else:
                high, most = middle, tokens
        return _begun(observation, said, low)

    def text(self, observation: Observation) -> str:
        """Render the text of :meth:`messages`.

        Raises:
            ValueError: If a field of the template has a format that its value does not take.
        """
        example = ("<thought> " if self.thought else "") + self.parser.format(observation.example)
        thought = _THOUGHT if self.thought else ""
        if self.template is not None:
            values = {name: getattr(observation, name, "") for name in _FIELDS}
            values |= {"example": example, "counters": _counters(observation), "thought": thought}
            try:
                return self.template.format(**values)
            except (ValueError, TypeError) as error:
                raise ValueError(f"template {self.template!r} cannot be filled: {error}") from error
        parts = [
            observation.objective,
            f"Actions: {observation.actions}" if observation.actions else "",
            thought,
            f"Reply like: {example}",
            observation.text,
            observation.summary if self.use_summary else "",
            observation.error,
            _counters(observation) if self.counters else "",
        ]
        return "\n".join(part for part in parts if part)


def forced_prefix(action_prompt: ActionPrompt, parser: ActionParser) -> str:
    """Return the text with which an action prompt begins the reply for the model.

    Args:
        action_prompt: ``agent`` or ``minimum``.
        parser: The parser of the reply.

    Returns:
        The forced beginning of the reply, empty for ``agent``.

    Raises:
        ValueError: If the action prompt is unknown.
    """
    if action_prompt == "agent":
        return ""
    if action_prompt == "minimum":
        return parser.prefix
    raise ValueError(f"action prompt {action_prompt!r} is unknown: choose agent or minimum")


def _begun(observation: Observation, said: dict[str, str], characters: int) -> Observation:
    """The observation with the first characters only of each text that is longer."""
    cut: dict[str, Any] = {name: text[:characters] + _CUT for name, text in said.items() if len(text) > characters}
    return replace(observation, **cut)


def _counters(observation: Observation) -> str:
    """Write for instance ``Step 2 of 10. Invalid 0 of 3.``; a counter without limit is left out."""
    parts = []
    if observation.step_limit:
        parts.append(f"Step {observation.step} of {observation.step_limit}.")
    if observation.invalid_limit:
        parts.append(f"Invalid {observation.invalid_streak} of {observation.invalid_limit}.")
    return " ".join(parts)


def _check_template(template: str, thought: bool) -> set[str]:
    """Names of its fields; raise if it does not parse, has others than ours, or lacks the one for the thought."""
    try:
        fields = [(name, form or "") for _, name, form, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"template {template!r} does not parse: {error} (write {{{{ for a literal brace)") from error
    unknown = sorted({name for name, form in fields if name not in _FIELDS or "{" in form})
    if unknown:
        names = ", ".join(repr(name) for name in unknown)
        raise ValueError(f"template has unknown fields {names}: use {', '.join(_FIELDS)}")
    shown = {name for name, _ in fields}
    if thought and "thought" not in shown:
        raise ValueError(f"thought: template {template!r} does not ask for one; put {{thought}} into it")
    return shown
