"""What an environment offers so that an agent can play it in text and pictures."""

from typing import Any, Protocol, runtime_checkable

from lightning_vlmq.envs.pictures import Picture

__all__ = ["TextTask"]


@runtime_checkable
class TextTask(Protocol):
    """The text side of a Gymnasium environment, read by :class:`~lightning_vlmq.envs.agent.AgentEnv`.

    All methods describe the present state, after ``reset`` or ``step``. One more is read where it exists:
    ``misled_action() -> str | None``, like ``expert_action`` but of an expert that wants something else, for data that
    are consistently wrong.

    Attributes:
        name: Name of the environment, as it is stored with every turn.
        objective: What to achieve, one or two sentences.
        actions: Documentation of the actions; short, since every prompt holds it.
        example: One valid action, to show the syntax. It is the same in every prompt, so a model that copies it
            plays that action: a fixed example biases the base agent, but tells nothing about the state.
    """

    name: str
    objective: str
    actions: str
    example: str

    def images(self) -> tuple[Picture, ...]:
        """Return the pictures of the state, in the order in which they are shown."""
        ...

    def text(self) -> str:
        """Return what the environment says in words; empty if everything is in the pictures."""
        ...

    def summary(self) -> str:
        """Return the pictures in words, for collectors that see text only (privileged: agents do not get it)."""
        ...

    def parse(self, text: str) -> Any | None:
        """Return the action for ``step`` that a text names, or ``None`` if it is invalid; never raises."""
        ...

    def valid_actions(self) -> list[str]:
        """Return texts of the actions that are valid now; random play draws from them."""
        ...

    def expert_action(self) -> str | None:
        """Return a good action's text, or ``None`` where there is no expert."""
        ...

    def goal_reached(self) -> bool:
        """Return True if the goal was reached by the last step."""
        ...
