"""Policies: observations in, replies out, for many environments at once."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from lightning_vlmq.agreement import prompt_mark
from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs.agent import AgentEnv
from lightning_vlmq.prompts import ActionPrompt, forced_prefix
from lightning_vlmq.sampling import Sampled
from lightning_vlmq.turns import Observation

__all__ = ["ExpertPolicy", "Policy", "RandomPolicy", "Reply", "VLMPolicy"]


class Reply(NamedTuple):
    """What a policy answered.

    Attributes:
        text: The complete reply without stop token.
        ids: The sampled token ids, forced ones and stop token included; empty if no tokenizer was involved.
        tokenizer: Fingerprint of the tokenizer of ``ids``.
        log_probs: Log-probability of each sampled token, see :class:`~lightning_vlmq.turns.Turn`.
        cut: True if the reply hit its maximum length before a stop token.
        forced: Number of leading characters that an action prompt wrote.
    """

    text: str
    ids: tuple[int, ...] = ()
    tokenizer: str = ""
    log_probs: tuple[float, ...] = ()
    cut: bool = False
    forced: int = 0


class Policy(Protocol):
    """Anything that answers observations."""

    name: str

    def reply(self, envs: Sequence[AgentEnv], observations: Sequence[Observation]) -> list[Reply]:
        """One reply an environment, in order."""
        ...


class RandomPolicy:
    """A random valid action in the right syntax (action prompt ``random``)."""

    name = "random"

    def reply(self, envs: Sequence[AgentEnv], observations: Sequence[Observation]) -> list[Reply]:
        """One random valid action an environment, drawn from the environment's own seeded generator."""
        return [Reply(env.parser.format(env.random_action())) for env in envs]


class ExpertPolicy:
    """The environment's scripted expert.

    Args:
        misled: True takes the expert that wants something else, for data that are consistently wrong.
    """

    def __init__(self, misled: bool = False) -> None:
        self.misled = misled
        self.name = "misled" if misled else "expert"

    def reply(self, envs: Sequence[AgentEnv], observations: Sequence[Observation]) -> list[Reply]:
        """One action an environment.

        Raises:
            ValueError: The environment has no such expert.
        """
        replies = []
        for env in envs:
            action = env.misled_action() if self.misled else env.expert_action()
            if action is None:
                raise ValueError(f"{env.name} has no {self.name} policy; random and base play everything")
            replies.append(Reply(env.parser.format(action)))
        return replies


class VLMPolicy:
    """A VLM that answers prompts.

    Args:
        encoder: Renders prompts; holds the VLM.
        temperature: Of sampling; 0 is greedy.
        action_prompt: ``"agent"`` lets the VLM answer freely, ``"minimum"`` begins its reply with the tag.
        base: True switches the adapter off: the VLM as it was loaded.
        seed: Of sampling; every call draws anew from it.
        batch_size: Prompts generated at once.
        name: How turns name this policy.
        prompts: Where to note the mark of each prompt as the VLM read it, without what an action prompt forces, by what
            was observed; ``None`` notes nothing.
    """

    def __init__(
        self,
        encoder: TurnEncoder,
        *,
        temperature: float = 0.0,
        action_prompt: ActionPrompt = "agent",
        base: bool = False,
        seed: int = 0,
        batch_size: int = 128,
        name: str | None = None,
        prompts: dict[Observation, bytes] | None = None,
    ) -> None:
        self.encoder = encoder
        self.temperature = temperature
        self.action_prompt = action_prompt
        self.base = base
        self.batch_size = batch_size
        self.name = name or ("base" if base else "agent")
        self._prompts = prompts
        self._seeds = torch.Generator().manual_seed(seed)

    def reply(self, envs: Sequence[AgentEnv], observations: Sequence[Observation]) -> list[Reply]:
        """One reply an observation, all of a batch decoded together."""
        prefix = forced_prefix(self.action_prompt, self.encoder.prompt.parser)
        replies: list[Reply] = []
        for start in range(0, len(observations), self.batch_size):
            replies += self._generate(observations[start : start + self.batch_size], prefix)
        return replies

    def _generate(self, observations: Sequence[Observation], prefix: str) -> list[Reply]:
        encoder, vlm = self.encoder, self.encoder.vlm
        inputs = encoder.prompts(observations, prefix)
        forced = encoder.encode_text(prefix) if prefix else []
        if self._prompts is not None:
            rows = zip(observations, inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
            for observation, ids, mask in rows:
                self._prompts[observation] = prompt_mark(ids[mask][: int(mask.sum()) - len(forced)].tolist())
        inputs = {k: v.to(vlm.device) for k, v in inputs.items()}
        seed = int(torch.randint(2**31, (1,), generator=self._seeds))
        limit = encoder.max_reply_tokens - len(forced)

        def sample() -> list[Sampled]:
            return vlm.generate(inputs, max_new_tokens=limit, temperature=self.temperature, generator_seed=seed)

        if self.base:
            with vlm.base():
                sampled = sample()
        else:
            sampled = sample()
        return [self._as_reply(forced + ids, log_probs, prefix) for ids, log_probs in sampled]

    def _as_reply(self, ids: list[int], log_probs: list[float], prefix: str) -> Reply:
        vlm = self.encoder.vlm
        stopped = bool(ids) and ids[-1] in vlm.stop_ids
        text = self.encoder.decode_text(ids[:-1] if stopped else ids)
        return Reply(
            text=text,
            ids=tuple(ids),
            tokenizer=self.encoder.tokenizer_fingerprint,
            log_probs=tuple(log_probs),
            cut=not stopped,
            forced=len(prefix),
        )
