"""Plays the cells: the same episodes in each, one model in memory at a time."""

import gc
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs.agent import AgentEnv, plain_settings
from lightning_vlmq.features import FeatureCache
from lightning_vlmq.policy import Policy, RandomPolicy, VLMPolicy
from lightning_vlmq.prompting.cells import Cell, Sheet, score_cell
from lightning_vlmq.prompts import AnyActionPrompt, PromptMethod
from lightning_vlmq.rollout import play
from lightning_vlmq.vlm import VLM

__all__ = ["Prompting"]


class Prompting:
    """How well VLMs act untrained, by how they are prompted.

    Args:
        env: The environment.
        prompt: How observations become prompts; whether a thought is asked for is a matter of the cell.
        episodes: Episodes of a cell, the same ones in each; at least 2.
        temperature: Of the replies; 0 is greedy.
        max_reply_tokens: Longest reply in tokens, stop token included.
        thought_tokens: So many more where the prompt asks for a thought.
        batch_size: Episodes played at once; on a small card less.
        seed: Of episodes and replies.
        dtype: Type of the models' weights.
        device: Where they compute.

    Raises:
        ValueError: There is no environment, or there are fewer than 2 episodes.
    """

    def __init__(
        self,
        env: AgentEnv | None,
        prompt: PromptMethod,
        *,
        episodes: int = 200,
        temperature: float = 0.4,
        max_reply_tokens: int = 24,
        thought_tokens: int = 64,
        batch_size: int = 32,
        seed: int = 0,
        dtype: str = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        if env is None:
            raise ValueError("nothing to play: give data.environment")
        if episodes < 2:
            raise ValueError(f"episodes: {episodes} have no spread; play at least 2")
        self.env = env
        self.prompt = prompt
        self.episodes = episodes
        self.temperature = temperature
        self.max_reply_tokens = max_reply_tokens
        self.thought_tokens = thought_tokens
        self.batch_size = batch_size
        self.seed = seed
        self.dtype = dtype
        self.device = torch.device(device)
        # as the Report's, apart from those of demonstrations
        self._seeds = range(100_000 + seed * episodes, 100_000 + (seed + 1) * episodes)

    def run(
        self,
        folder: str | Path,
        models: Sequence[str],
        action_prompts: Sequence[AnyActionPrompt],
        thoughts: Sequence[bool],
    ) -> Sheet:
        """Plays the cells that the folder's ``prompting.json`` lacks, each written when it is finished.

        A model that cannot be loaded or played does not stop the others: the sheet says why.

        Args:
            folder: Of ``prompting.json``.
            models: Folders or hub names.
            action_prompts: ``random`` is played once: neither model nor thought matters.
            thoughts: Whether the prompt asks for a thought.

        Raises:
            ValueError: The folder's cells were played with other settings.
        """
        sheet = Sheet(folder, self._settings())
        ways = [way for way in action_prompts if way != "random"]
        wanted: dict[str, list[Cell]] = {"": [Cell("", "random", False)]} if "random" in action_prompts else {}
        wanted |= {model: [Cell(model, way, thought) for way in ways for thought in thoughts] for model in models}
        missing = {model: [c for c in cells if c not in sheet.results] for model, cells in wanted.items()}
        missing = {model: cells for model, cells in missing.items() if cells}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, disable=not missing) as progress:
            bars = {c: progress.add_task(str(c), start=False, total=self.episodes) for m in missing.values() for c in m}
            for model, cells in missing.items():
                try:
                    self._play_model(model, cells, sheet, progress, bars)
                except Exception as error:  # whatever a foreign model raises
                    if os.environ.get("VLMQ_TRACEBACK"):
                        raise
                    sheet.failed[model] = _reason(error)
                gc.collect()  # encoders are in cycles, and hold their model
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        return sheet

    def _play_model(
        self, model: str, cells: Sequence[Cell], sheet: Sheet, progress: Progress, bars: dict[Cell, TaskID]
    ) -> None:
        vlm = VLM(model, lora_rank=0, dtype=self.dtype).to(self.device) if model else None
        base = vlm.base_fingerprint if vlm else ""
        if any(cell.model == model and result.base != base for cell, result in sheet.results.items()):
            raise ValueError(f"its other cells were played with other weights; give {sheet.path.name} another folder")
        features = FeatureCache(vlm, batch_size=min(16, self.batch_size)) if vlm else None
        for cell in cells:
            begin, episodes = time.monotonic(), []
            progress.start_task(bars[cell])
            policy = self._policy(cell, vlm, features)
            for episode in play(self.env, [policy], self._seeds, parallel=self.batch_size):
                episodes.append(episode)
                progress.update(bars[cell], completed=len(episodes))
            sheet.add(cell, score_cell(episodes, base, time.monotonic() - begin))

    def _policy(self, cell: Cell, vlm: VLM | None, features: FeatureCache | None) -> Policy:
        if vlm is None or cell.action_prompt == "random":
            return RandomPolicy()
        limit = self.max_reply_tokens + self.thought_tokens * cell.thought
        encoder = TurnEncoder(vlm, self.prompt.asking(cell.thought), features=features, max_reply_tokens=limit)
        return VLMPolicy(encoder, temperature=self.temperature, action_prompt=cell.action_prompt, seed=self.seed)

    def _settings(self) -> dict[str, object]:
        """What makes scores comparable; how many are played at once does not."""
        prompt = plain_settings(self.prompt, "prompt.") | plain_settings(self.prompt.parser, "prompt.parser.")
        del prompt["prompt.thought"]
        names = ("episodes", "temperature", "max_reply_tokens", "thought_tokens", "seed", "dtype")
        return {"env": self.env.name} | {name: getattr(self, name) for name in names} | prompt | self.env.settings


def _reason(error: Exception) -> str:
    """What went wrong, in one line; of what was not said for users also the kind."""
    lines = str(error).strip().splitlines() or [""]
    line = lines[0] if isinstance(error, ValueError) else f"{type(error).__name__}: {lines[0]}"
    return line if len(line) <= 300 else line[:299] + "…"
