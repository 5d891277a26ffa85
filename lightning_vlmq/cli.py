"""The command ``vlmq``: LightningCLI's fit, validate, test, and collect, estimate, export, prompting of our own."""

import itertools
import logging
import os
import sys
import warnings
import zipfile
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_vlmq.checkpoints import AtomicCheckpointIO
from lightning_vlmq.errors import located, of_an_environment, one_line
from lightning_vlmq.prompts import AnyActionPrompt
from lightning_vlmq.shapes import shapes

__all__ = ["VLMQCLI", "VLMQTrainer", "main"]

HELP = """Trains and scores vision-language agents by VLM Q-Learning. Examples:
vlmq fit --config configs/numberline.yaml;
vlmq fit --config configs/numberline.yaml --model.lr 5e-4 --seed_everything 2 --folder runs/two;
vlmq fit --config configs/numberline.yaml --ckpt_path last (resumes, or begins where there is nothing yet);
vlmq test --config configs/numberline.yaml --ckpt_path last (scores a checkpoint);
vlmq collect --config configs/numberline.yaml --folder runs/demos --data.turns 5000;
vlmq estimate --config configs/numberline.yaml --card_gb 24 (GPU memory of a fit, before it runs);
vlmq export --config configs/numberline.yaml --ckpt_path last --output exported;
vlmq prompting --config configs/numberline.yaml --folder runs/prompting --models '[embedded]' (untrained VLMs);
vlmq fit --model.help lightning_vlmq.VLMQ, --data.help lightning_vlmq.Demonstrations (what can be set)."""


class VLMQTrainer(L.Trainer):
    """Lightning's Trainer with the subcommands ``collect``, ``estimate``, ``export`` and ``prompting``."""

    def collect(self, model: L.LightningModule, datamodule: L.LightningDataModule) -> None:
        """Makes the demonstration set of the configuration (``data.turns``, ``data.mixture``) and scores it."""
        from lightning_vlmq.evaluation import print_scores, score_episodes
        from lightning_vlmq.store import TurnStore

        self.strategy._lightning_module = model
        datamodule.trainer = self
        datamodule.prepare_data()
        folder = datamodule.folder  # type: ignore[attr-defined]
        store = TurnStore(folder, skip_damaged=datamodule.skip_damaged)  # type: ignore[attr-defined]
        print_scores({"data": score_episodes(store.episodes())}, f"demonstrations in {folder}")

    def estimate(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule,
        card_gb: float | None = None,
        exchanged: bool | None = None,
    ) -> None:
        """Prints what a fit will take of a GPU's memory: parameters, memory by part, the largest batch that fits.

        Neither a GPU nor the model's weights are needed: its configuration and its processor are read, and each stage
        of the fit runs once on shapes without numbers (docs/models.md says what is assumed).

        Args:
            card_gb: Memory of a card; ``null`` takes 16, 24, 40 and 80 GB.
            exchanged: Whether several GPUs train together (DDP), each with its gradients once more to exchange;
                ``null`` takes it from ``trainer.devices`` and ``trainer.num_nodes``.
        """
        from lightning_vlmq.estimate import CARDS_GB, estimate, print_estimate
        from lightning_vlmq.modules import VLMQ

        if card_gb is not None and card_gb <= 0:
            raise ValueError(f"card_gb: a card has memory, not {card_gb} GB; give its gigabytes, such as 24")
        if not isinstance(model, VLMQ):
            raise ValueError(
                f"estimate knows VLMQ, not {type(model).__name__}; give model.class_path: lightning_vlmq.VLMQ"
            )
        datamodule.trainer = self
        found = estimate(
            model,
            datamodule,  # type: ignore[arg-type]
            precision=self.precision_plugin,
            callbacks=self.callbacks,  # type: ignore[attr-defined]
            accumulate=self.accumulate_grad_batches,
            clip=bool(self.gradient_clip_val),
            exchanged=bool(exchanged),
        )
        print_estimate(found, CARDS_GB if card_gb is None else [card_gb])

    def export(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule,
        ckpt_path: str,
        output: str,
        merged: bool = True,
    ) -> None:
        """Writes the VLM of a checkpoint for use without this package.

        Args:
            ckpt_path: Checkpoint of a fit.
            output: Folder to write.
            merged: True writes a whole model that ``from_pretrained`` loads; False the plain peft adapter.
        """
        checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        model.vlm.export(output, merged=merged)  # type: ignore[union-attr,operator]
        print(f"wrote the {'merged model' if merged else 'adapter'} to {output}")

    def prompting(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule,
        models: list[str] | None = None,
        action_prompts: Sequence[AnyActionPrompt] = ("agent", "minimum", "random"),
        thoughts: Sequence[bool] = (False, True),
        episodes: int = 200,
        temperature: float = 0.4,
        thought_tokens: int = 64,
        batch_size: int = 32,
    ) -> None:
        """Scores untrained VLMs by models x action prompts x thought on or off: a table and a bar chart.

        Writes ``prompting.json``, ``prompting.md`` and ``prompting.png`` into the run's folder. A cell of the table
        that is finished is not played again, so the same command goes on where it was interrupted, and a command with
        more models, action prompts or thoughts adds theirs.

        Environment and prompt are those of ``data``, and so is ``data.max_reply_tokens``; episodes and replies are
        drawn from ``seed_everything``; ``model.vlm`` says the type of the weights (``dtype``).

        Args:
            models: A list of VLMs, folders or hub names, such as [embedded, HuggingFaceTB/SmolVLM-256M-Instruct];
                ``null`` takes ``model.vlm.name``.
            action_prompts: agent: the VLM answers freely; minimum: its reply is begun with the tag; random: random
                valid actions, the same for every model.
            thoughts: Whether the prompt asks for a thought in front of the action (to which minimum leaves no room).
            episodes: Episodes of a cell, the same ones in each.
            temperature: Of the replies; 0 is greedy.
            thought_tokens: So many tokens more than ``data.max_reply_tokens`` for a reply with a thought.
            batch_size: Episodes played at once; less where memory is short.
        """
        from lightning_vlmq.prompting import Prompting, print_sheet, write_report

        vlm: Any = model.vlm
        prompting = Prompting(
            datamodule.environment,  # type: ignore[attr-defined]
            datamodule.prompt,  # type: ignore[attr-defined]
            episodes=episodes,
            temperature=temperature,
            max_reply_tokens=datamodule.max_reply_tokens,  # type: ignore[attr-defined]
            thought_tokens=thought_tokens,
            batch_size=batch_size,
            seed=datamodule.run_seed,  # type: ignore[attr-defined]
            dtype=str(vlm.token_embeddings().dtype).removeprefix("torch."),
            device=self.strategy.root_device,
        )
        names = models or [vlm.name]
        del model.vlm, vlm  # one model in memory at a time
        sheet = prompting.run(self.default_root_dir, names, action_prompts, thoughts)
        print_sheet(sheet)
        if sheet.results:
            print("wrote", *(str(path) for path in (sheet.path, *write_report(sheet))))
        if sheet.failed:
            raise ValueError(f"models: not played: {', '.join(sheet.failed)}; see why above; all others are done")


class VLMQCLI(LightningCLI):
    """LightningCLI with one folder for a run: logs, checkpoints, ``config.yaml``, ``results.json``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds ``--folder`` and ``--threads``."""
        parser.add_argument(
            "--folder", default="runs/default", help="Folder of the run: logs, checkpoints, results, demonstrations."
        )
        parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch; default: all cores.")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Names of subcommands and the arguments that the CLI fills in."""
        own = {"model", "datamodule"}
        known = {name: skipped for name, skipped in LightningCLI.subcommands().items() if name != "predict"}
        return {**known, "collect": own, "estimate": own, "export": own, "prompting": own}

    def before_instantiate_classes(self) -> None:
        """Places everything of the run into its folder."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        folder = config["folder"]
        if config["threads"]:
            torch.set_num_threads(config["threads"])
        # denormals of nearly converged activations slow a CPU down manyfold
        torch.set_flush_denormal(True)
        config["trainer"]["default_root_dir"] = folder
        if self.subcommand == "estimate":
            _for_an_estimate(config)
        if config["trainer"]["precision"] is None and config["trainer"]["accelerator"] in ("auto", "gpu", "cuda"):
            config["trainer"]["precision"] = _precision()
        if self.subcommand in ("validate", "test") and not config["ckpt_path"]:
            raise ValueError(f"{self.subcommand}: name a checkpoint to score: --ckpt_path best, last, or a file")
        if self.subcommand == "fit" and config["ckpt_path"] == "last" and not _checkpoints(folder, "last"):
            # so that a script may always resume; Lightning would begin anew without a word
            print(f"vlmq: there is no last checkpoint in {Path(folder, 'checkpoints')}: a fresh start", file=sys.stderr)
            config["ckpt_path"] = None
        elif config.get("ckpt_path"):
            config["ckpt_path"] = _checkpoint(folder, config["ckpt_path"])
        if self.subcommand == "fit" and not config["ckpt_path"] and getattr(rank_zero_only, "rank", 0) == 0:
            _make_way(Path(folder))

    def instantiate_classes(self) -> None:
        """Makes shapes of models whose memory is estimated."""
        with shapes() if self.subcommand == "estimate" else nullcontext():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Logs to TensorBoard in the run's folder, and saves atomically, unless the configuration says otherwise."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        if config["trainer"]["logger"] is None:
            kwargs["logger"] = TensorBoardLogger(config["folder"], name="", version="")
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer


class _SaveConfigOfFit(SaveConfigCallback):
    """Writes ``config.yaml`` of a fit, for all subcommands to take; scoring leaves it as it is."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self.config = self.config.clone()
            for key in ("ckpt_path", "weights_only"):  # collect and export do not know both
                self.config.pop(key, None)
            super().setup(trainer, pl_module, stage)


def _for_an_estimate(config: Any) -> None:
    """Asks for nothing that a machine without a GPU lacks, and for the precision that one with a GPU would take."""
    trainer = config["trainer"]
    if config["exchanged"] is None:
        config["exchanged"] = trainer["devices"] not in (1, "1", "auto") or trainer["num_nodes"] > 1
    if trainer["precision"] is None and trainer["accelerator"] in ("auto", "gpu", "cuda"):
        trainer["precision"] = "bf16-mixed"
    if trainer["precision"] in ("16-mixed", 16, "16"):
        trainer["precision"] = "bf16-mixed"  # of the same size, and known to a CPU
    if trainer["precision"] not in (None, "bf16-mixed", "bf16", "32-true", "32", 32):
        raise ValueError(
            f"trainer.precision: an estimate is of bf16-mixed, 16-mixed or 32-true, not of {trainer['precision']}; "
            f"give one of these, and the type of the base's weights as vlm.dtype"
        )
    for name, value in {
        "accelerator": "cpu",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "logger": False,
    }.items():
        trainer[name] = value


def _make_way(folder: Path) -> None:
    """Moves an earlier run's curves to a run of their own, lest they overlay, and says what becomes of it."""
    said = []
    if curves := list(folder.glob("events.out.tfevents.*")):
        aside = next(path for n in itertools.count(1) if not (path := folder / "earlier" / str(n)).exists())
        aside.mkdir(parents=True)
        for path in curves:
            path.rename(aside / path.name)
        said.append(f"its curves are in {aside} now")
    if any(Path(folder, "checkpoints").glob("*.ckpt")):
        said.append("its checkpoints will be replaced (to resume it: --ckpt_path last)")
    if said:
        print(f"{folder} holds an earlier run: {', '.join(said)}")


def _checkpoint(folder: str, which: str) -> str:
    """Path of a run's checkpoint ``best`` or ``last``, or of a file."""
    if which in ("best", "last"):
        found = _checkpoints(folder, which)
        if not found:
            where = Path(folder, "checkpoints")
            raise ValueError(f"ckpt_path: {which}: there is no {which} checkpoint in {where}; leave ckpt_path out")
        path = found[-1]
    else:
        path = Path(which)
        if not path.exists():
            raise ValueError(f"ckpt_path: there is no {which}; give best, last or a file")
    if path.is_file() and not zipfile.is_zipfile(path):
        raise ValueError(f"ckpt_path: {path} is damaged (no whole checkpoint); take another one")
    return str(path)


def _checkpoints(folder: str, which: str) -> list[Path]:
    """A run's checkpoints of that name, the newest one at the end."""
    return sorted(Path(folder, "checkpoints").glob(f"{which}*.ckpt"), key=os.path.getmtime)


def _precision() -> str | None:
    """bf16 on a GPU that has it; on a CPU it is no faster (docs/results.md)."""
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if has_bf16 else None


def _quiet() -> None:
    """Hides messages of libraries that a user of the command can do nothing about."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in record.msg)
    for message in (
        ".*is_gradient_checkpointing.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*IterableDataset. has .__len__. defined.*",
        ".*module.s. in eval mode at the start of training.*",  # dropout is switched on by AgentModule.on_train_start
        ".*does not have many workers.*",
        ".*a tied layer is part of the adapter.*",  # VLM.train_head: an untied copy, and exported as one
        ".*is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*your dataloader is not resumable.*",  # its DataModule is
    ):
        warnings.filterwarnings("ignore", message)


def main(args: ArgsType = None) -> None:
    """Entry of the console script."""
    _quiet()
    from lightning_vlmq.callbacks import InterruptCheckpoint  # not before: what it imports logs at once

    parsers = {name: {"exit_on_error": False} for name in VLMQCLI.subcommands()}
    try:
        VLMQCLI(
            model_class=L.LightningModule,
            datamodule_class=L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=VLMQTrainer,
            trainer_defaults={"callbacks": [InterruptCheckpoint()]},
            seed_everything_default=0,
            save_config_callback=_SaveConfigOfFit,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs={"description": HELP, "exit_on_error": False} | parsers,
            args=args,
        )
    except (ArgumentError, MisconfigurationException, ValueError) as error:
        if os.environ.get("VLMQ_TRACEBACK") or of_an_environment(error):
            raise
        given = sys.argv[1:] if args is None else args if isinstance(args, list) else []
        print(f"vlmq: {located(one_line(str(error)), given)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ArgumentError) else 1)
