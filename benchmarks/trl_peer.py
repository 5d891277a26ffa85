"""TRL's SFTTrainer on the same turns: its own collated batch, its own training step.

TRL is for comparison only, and nothing else here takes it::

    pip install -c constraints.txt -e ".[bench]"
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from peft import LoraConfig
from PIL import Image
from transformers import AutoModelForImageTextToText

from benchmarks.case import PROMPT
from lightning_vlmq.adapters import adapter_targets
from lightning_vlmq.loading import load_processor
from lightning_vlmq.turns import Turn
from lightning_vlmq.vlm import VLM

__all__ = ["INSTALL", "TRL"]

INSTALL = 'pip install -c constraints.txt -e ".[bench]"'


class TRL:
    """An SFTTrainer, and its rows.

    Args:
        folder: Of the model, loaded anew.
        vlm: The same model with the adapter that this one's is to equal.
        turns: The turns to train on.
        clip: Largest norm of the gradient.
        set_to_none: Whether gradients go behind a step; else they stay, set to zero.

    Raises:
        SystemExit: TRL is not installed.
    """

    def __init__(self, folder: Path, vlm: VLM, turns: Sequence[Turn], clip: float, *, set_to_none: bool) -> None:
        self._to_none = set_to_none
        try:
            from datasets import Dataset
            from trl import SFTConfig, SFTTrainer
        except ImportError as error:
            raise SystemExit(f"TRL's part needs {error.name} ({INSTALL}); or leave it out: --without_trl") from None
        network: Any = AutoModelForImageTextToText.from_pretrained(folder)
        adapter = vlm.network.peft_config["default"]
        same = LoraConfig(
            r=adapter.r,
            lora_alpha=adapter.lora_alpha,
            lora_dropout=adapter.lora_dropout,
            target_modules=adapter_targets(network, "all-linear", None),
        )
        self._rows = Dataset.from_list([_row(vlm, turn) for turn in turns])
        self.trainer = SFTTrainer(
            model=network,
            # its defaults: bfloat16, checkpointing, prompts cut at 1,024 tokens
            args=SFTConfig(
                output_dir=str(folder / "trl"),
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                max_length=None,
                max_grad_norm=clip,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=self._rows,
            processing_class=load_processor(str(folder), None),
            peft_config=same,
        )
        trained = {n: p.shape for n, p in self.trainer.model.named_parameters() if p.requires_grad}
        own = {n: p.shape for n, p in vlm.network.named_parameters() if p.requires_grad}
        assert trained == own, "both sides train the same adapter"
        self.trainer.create_optimizer_and_scheduler(num_training_steps=1000)
        self.trainer.current_gradient_accumulation_steps = 1  # its training loop sets it

    def collate(self) -> Any:
        """A batch of all turns, from rows as its data loader does it: pictures and text are processed here."""
        return self.trainer.data_collator([self._decoded(number) for number in range(len(self._rows))])

    def _decoded(self, number: int) -> dict[str, Any]:
        row = self._rows[number]
        return {**row, "images": [Image.open(io.BytesIO(image)).convert("RGB") for image in row["images"]]}

    def step(self, batch: Any) -> None:
        """What a step of its training loop computes."""
        trainer = self.trainer
        trainer.training_step(trainer.model, batch)
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.model.zero_grad(self._to_none)

    def step_as_on_a_gpu(self, batch: Any) -> None:
        """The same, but that its head scores the reply's positions only: on a CPU it scores all of them."""
        with mock.patch("trl.trainer.utils._use_triton", return_value=True):
            self.step(batch)


def _row(vlm: VLM, turn: Turn) -> dict[str, Any]:
    """The very text that our side encodes; the collator makes tokens of it."""
    messages = PROMPT.messages(turn.observation)
    prompt = vlm.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    stop = vlm.tokenizer.convert_ids_to_tokens(vlm.stop_ids[0])
    return {"prompt": prompt, "completion": f"{turn.reply}{stop}", "images": list(turn.observation.images)}
