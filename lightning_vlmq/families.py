"""What cannot be learned from a family's processor and vision tower: the whole list.

A family that is not here is taken as its processor and its model show it (``pictures.py``).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["FAMILIES", "Family"]


class Family(NamedTuple):
    """What is special about a family of models.

    Attributes:
        template: Chat template where the processor comes without one.
        reply_types: Values of inputs beside the tokens at the tokens of a reply.
    """

    template: str | None = None
    reply_types: Mapping[str, int] = MappingProxyType({})


FAMILIES = {
    # Pictures come first, whatever the order of the message, then the beginning of text; a line end closes the prompt.
    # Prompt tokens (type 0) see each other in both directions; a reply of type 0 would be seen by its own prompt.
    "paligemma": Family(
        template=(
            "{% for m in messages %}{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}{% endfor %}"
            "{{ bos_token }}{% for m in messages %}"
            "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
            "{{ '\n' if m['role'] == 'user' else eos_token }}{% endfor %}"
        ),
        reply_types={"token_type_ids": 1},
    ),
}
"""By ``model_type`` of the configuration."""
