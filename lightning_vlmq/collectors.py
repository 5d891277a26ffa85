"""Other models that play for demonstrations: any VLM, and language models that read the environment in words.

They write turns that train the student, and stay off-policy: what they say is kept in the student's tokens, without
log-probabilities.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs.agent import AgentEnv
from lightning_vlmq.features import FeatureCache
from lightning_vlmq.loading import named_dtype
from lightning_vlmq.policy import Reply, VLMPolicy
from lightning_vlmq.prompts import ActionPrompt, PromptMethod
from lightning_vlmq.sampling import drawn_with, from_the_model_itself
from lightning_vlmq.turns import Observation
from lightning_vlmq.vlm import VLM

__all__ = ["Collector", "CollectorPolicy", "OtherVLM", "Speaking", "TextLLM"]


class Speaking(NamedTuple):
    """How a collector replies.

    Attributes:
        limit: Tokens of a reply, in the model's own.
        temperature: 0 is greedy.
        seed: Of sampling.
        device: Where to compute.
    """

    limit: int
    temperature: float
    seed: int
    device: torch.device


class Collector(ABC):
    """A model beside the student. It is loaded when it is first asked, and frees its memory after a collection.

    Public attributes of plain types are its settings: turns collected with other settings are refused.
    """

    @abstractmethod
    def say(self, observations: Sequence[Observation], prompt: PromptMethod, how: Speaking) -> list[str]:
        """Replies to observations.

        Args:
            observations: One a reply.
            prompt: How the student's prompts are made.
            how: How long, how freely and where.
        """

    @abstractmethod
    def unload(self) -> None:
        """Frees its memory."""


class OtherVLM(Collector):
    """Another vision-language model (the paper's xGen-MM).

    Args:
        name: A folder, a name on the hub, or ``"embedded"``.
        dtype: Of its weights.
        action_prompt: ``"agent"`` lets it answer freely, ``"minimum"`` begins its reply with the tag.
        batch_size: Prompts generated at once.
    """

    def __init__(
        self, name: str, dtype: str = "bfloat16", action_prompt: ActionPrompt = "agent", batch_size: int = 16
    ) -> None:
        named_dtype(dtype)
        self.name = name
        self.dtype = dtype
        self.action_prompt: ActionPrompt = action_prompt
        self.batch_size = batch_size
        self._features: FeatureCache | None = None

    def say(self, observations: Sequence[Observation], prompt: PromptMethod, how: Speaking) -> list[str]:
        """Replies to pictures and prompts, as :class:`~lightning_vlmq.policy.VLMPolicy` gives them."""
        if self._features is None:
            self._features = FeatureCache(VLM(self.name, lora_rank=0, dtype=self.dtype))
        vlm = self._features.vlm.to(how.device)
        policy = VLMPolicy(
            TurnEncoder(vlm, prompt, features=self._features, max_reply_tokens=how.limit),
            temperature=how.temperature,
            action_prompt=self.action_prompt,
            seed=how.seed,
            batch_size=self.batch_size,
        )
        return [reply.text for reply in policy.reply([], observations)]

    def unload(self) -> None:
        """Frees its memory."""
        self._features = None
        _free()


class TextLLM(Collector):
    """A language model that reads no pictures but the environment's description in words (the paper's xLAM).

    Args:
        name: A folder or a name on the hub, of a model for causal language modelling with a chat template.
        dtype: Of its weights.
        batch_size: Prompts generated at once.
    """

    def __init__(self, name: str, dtype: str = "bfloat16", batch_size: int = 16) -> None:
        named_dtype(dtype)
        self.name = name
        self.dtype = dtype
        self.batch_size = batch_size
        self._model: Any = None
        self._tokenizer: Any = None

    @torch.no_grad()
    def say(self, observations: Sequence[Observation], prompt: PromptMethod, how: Speaking) -> list[str]:
        """Replies to prompts that tell in words what a picture would show.

        Raises:
            ValueError: There is no such model, it has no chat template, or the environment tells nothing in words.
        """
        if not all(observation.summary for observation in observations):
            raise ValueError(
                f"{self.name} reads no pictures, and the environment offers no summary in words; give it one, or take "
                f"an OtherVLM"
            )
        if self._model is None:
            self._load(how.device)
        texts, words = [], prompt.in_words()

        def chat(observation: Observation) -> list[dict[str, str]]:
            return [{"role": "user", "content": words.text(observation)}]

        def tokens(observation: Observation) -> int:
            read = self._tokenizer.apply_chat_template(chat(observation), add_generation_prompt=True, return_dict=True)
            return len(read["input_ids"])

        with drawn_with(how.seed, how.device):
            for start in range(0, len(observations), self.batch_size):
                shown = observations[start : start + self.batch_size]
                chats = [chat(words.fitted(observation, tokens)) for observation in shown]
                read = self._tokenizer.apply_chat_template(
                    chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
                ).to(how.device)
                ids = self._model.generate(
                    input_ids=read["input_ids"],
                    attention_mask=read["attention_mask"],
                    **from_the_model_itself(how.temperature),
                    repetition_penalty=1.0,  # a model's defaults may hold one
                    max_new_tokens=how.limit,
                    pad_token_id=self._tokenizer.pad_token_id,
                )
                replies = ids[:, read["input_ids"].shape[1] :]
                texts += self._tokenizer.batch_decode(replies, skip_special_tokens=True)
        return texts

    def _load(self, device: torch.device) -> None:
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(self.name, padding_side="left")
            if not tokenizer.chat_template:
                raise ValueError("no chat template; take a model that follows instructions")
            model: Any = AutoModelForCausalLM.from_pretrained(self.name, dtype=named_dtype(self.dtype))
        except (OSError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"collectors: {self.name!r} cannot play ({reason}); give a folder or a hub name of a language model"
            ) from None
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._tokenizer, self._model = tokenizer, model.to(device).eval()

    def unload(self) -> None:
        """Frees its memory."""
        self._model = self._tokenizer = None
        _free()


class CollectorPolicy:
    """A collector as a policy whose replies are in the student's tokens.

    What the student cannot say is left out: stop tokens and placeholders in the text, and what is behind its longest
    reply. The environment gets what is left.

    Args:
        name: How turns name this policy.
        collector: Who speaks.
        student: Renders prompts, and holds the tokenizer in which replies are kept.
        temperature: Of sampling.
        seed: Of sampling; every call draws anew from it.
    """

    def __init__(self, name: str, collector: Collector, student: TurnEncoder, *, temperature: float, seed: int) -> None:
        self.name = name
        self.collector = collector
        self.student = student
        self.temperature = temperature
        self._seeds = torch.Generator().manual_seed(seed)

    def reply(self, envs: Sequence[AgentEnv], observations: Sequence[Observation]) -> list[Reply]:
        """One reply an observation."""
        seed = int(torch.randint(2**31, (1,), generator=self._seeds))
        how = Speaking(self.student.max_reply_tokens, self.temperature, seed, self.student.vlm.device)
        return [self._as_students(text) for text in self.collector.say(observations, self.student.prompt, how)]

    def _as_students(self, text: str) -> Reply:
        student, vlm = self.student, self.student.vlm
        barred = {*vlm.stop_ids, *vlm.forbidden_ids}
        ids = [token for token in student.encode_text(text) if token not in barred][: student.max_reply_tokens]
        cut = len(ids) == student.max_reply_tokens
        kept = ids if cut else [*ids, vlm.stop_ids[0]]
        return Reply(text=student.decode_text(ids), ids=tuple(kept), tokenizer=student.tokenizer_fingerprint, cut=cut)


def _free() -> None:
    """What was let go of may hang in cycles, and CUDA keeps memory for itself until it is told."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
