"""What an environment offers so that an agent can play it in text and pictures."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from lightning_vlmq.envs.pictures import Picture

__all__ = ["Limits", "TextTask"]


class Limits(NamedTuple):
    """Penalties and limits of :class:`~lightning_vlmq.envs.agent.AgentEnv`; the defaults are Gym Cards' (table 4)."""

    invalid_penalty: float = -2.0
    invalid_limit: int = 3
    step_limit: int = 10
    end_penalty: float = -10.0


@runtime_checkable
class TextTask(Protocol):
    """The text side of a Gymnasium environment, read by :class:`~lightning_vlmq.envs.agent.AgentEnv`.

    All methods describe the present state, after ``reset`` or ``step``. Two more members are read where they exist:
    ``misled_action() -> str | None``, like ``expert_action`` but of an expert that wants something else, for data that
    are consistently wrong; and ``limits``, its own :class:`Limits`.

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
