"""From a reply to an action: ``parse_agent`` (which part of the reply) and ``parse_env`` (which action it names).

An :class:`ActionParser` is the agent's half, the same for every environment; :func:`exact_match` and
:func:`first_match` are the environments' halves. None of them raises on any text a model may write.
"""

import json
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

__all__ = ["ActionParser", "JsonParser", "TagParser", "exact_match", "first_match", "strip_markdown"]

_MARKS = "*_`\"'"


@runtime_checkable
class ActionParser(Protocol):
    """Finds the action text in a reply, and writes the canonical reply of an action."""

    @property
    def prefix(self) -> str:
        """How every canonical reply begins; the action prompt ``minimum`` writes it for the model."""
        ...

    def parse(self, reply: str) -> str | None:
        """Return the action text of a reply, or ``None`` if the reply does not follow the syntax."""
        ...

    def format(self, action: str) -> str:
        """Return the shortest reply that :meth:`parse` reads as ``action``."""
        ...


class TagParser:
    """Drops everything up to and including the first tag; the rest is the action.

    The paper's parser. A second tag is part of the action text (and makes it invalid in most environments).

    Args:
        tag: The tag.

    Raises:
        ValueError: If the tag is blank.
    """

    def __init__(self, tag: str = "[action]") -> None:
        if not tag.strip():
            raise ValueError(f"tag {tag!r} is blank: give a text that marks the action, such as '[action]'")
        self.tag = tag

    @property
    def prefix(self) -> str:
        """The tag without the space behind it: tokenizers join that space with the action's first word."""
        return self.tag

    def parse(self, reply: str) -> str | None:
        """Return what stands behind the first tag without white space and markdown; ``None`` without a tag."""
        _, found, action = reply.partition(self.tag)
        return strip_markdown(action) if found else None

    def format(self, action: str) -> str:
        """Return for instance ``[action] +``."""
        return f"{self.tag} {action}"

    def __repr__(self) -> str:
        return f"TagParser(tag={self.tag!r})"


class JsonParser:
    """Reads the action from the first JSON object of the reply that holds the key.

    Args:
        key: The key whose value is the action: a string or a number.

    Raises:
        ValueError: If the key is empty.
    """

    def __init__(self, key: str = "action") -> None:
        if not key:
            raise ValueError("key is empty: give the JSON key that holds the action, such as 'action'")
        self.key = key

    @property
    def prefix(self) -> str:
        """The canonical reply up to the opening quote of the action."""
        return self.format("")[:-2]

    def parse(self, reply: str) -> str | None:
        """Return the action text, or ``None`` if no JSON object with the key is found."""
        decoder = json.JSONDecoder()
        for opening in re.finditer(r"\{", reply):
            try:
                value, _ = decoder.raw_decode(reply, opening.start())
            except (ValueError, RecursionError):
                continue
            action = value.get(self.key)
            if isinstance(action, str | int | float) and not isinstance(action, bool):
                return strip_markdown(str(action))
        return None

    def format(self, action: str) -> str:
        """Return for instance ``{"action": "+"}``."""
        return json.dumps({self.key: action}, ensure_ascii=False)

    def __repr__(self) -> str:
        return f"JsonParser(key={self.key!r})"


def strip_markdown(text: str) -> str:
    """Remove white space, emphasis, backticks and quotes around a text.

    Marks may be actions themselves (``*`` multiplies): of a text that holds nothing else only equal pairs around it
    are removed, so that ``*`` and `````*````` both give ``*``.
    """
    core = text.strip().strip(_MARKS + " \t\r\n")
    if core:
        return core
    text = text.strip()
    while len(text) > 2 and text[0] == text[-1]:
        text = text[1:-1].strip()
    return text


def exact_match(text: str, actions: Sequence[str]) -> int | None:
    """Return the index of the action that equals the text, case included, white space and markdown aside.

    Args:
        text: The action text, from :meth:`ActionParser.parse`.
        actions: The valid actions.

    Returns:
        Index into ``actions``, or ``None``.
    """
    action = strip_markdown(text)
    return actions.index(action) if action in actions else None


def first_match(text: str, actions: Sequence[str]) -> int | None:
    """Return the index of the action that stands first in the text, as a word of its own, in any case.

    Args:
        text: The action text, from :meth:`ActionParser.parse`.
        actions: The valid actions; where two begin at the same place the longer one counts.

    Returns:
        Index into ``actions``, or ``None``.
    """
    places: list[tuple[int, int, int]] = []
    for index, action in enumerate(actions):
        found = re.search(rf"(?<!\w){re.escape(action)}(?!\w)", text, re.IGNORECASE)
        if found:
            places.append((found.start(), -len(action), index))
    return min(places)[2] if places else None
