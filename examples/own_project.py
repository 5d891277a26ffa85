"""VLM Q-Learning inside a Lightning project of your own: a module, a DataModule and callbacks.

`python examples/own_project.py` collects 1,000 bad demonstrations of NumberLine (whole rounds of episodes: some more)
and trains for 60 steps (a minute on a CPU; too short to play well, see configs/numberline.yaml for a full run).
"""

import sys

import lightning as L

from lightning_vlmq import VLM, VLMQ, AgentEnv, Demonstrations, EpisodeEvaluation, Schedule, TargetCriticEMA
from lightning_vlmq.envs import NumberLine


def main(folder: str = "runs/example", steps: int = 60, turns: int = 1_000) -> None:
    L.seed_everything(1)
    module = VLMQ(VLM("embedded", lora_rank=16), lr=1e-3, critic_lr=1e-3, warmup_steps=10)
    data = Demonstrations(
        f"{folder}/data",
        AgentEnv(NumberLine()),
        turns=turns,
        mixture={"random": 0.8, "base": 0.2},
        parallel=32,
        batch_size=8,
        batches_per_epoch=steps,
    )
    trainer = L.Trainer(
        max_steps=steps,
        gradient_clip_val=2.0,
        default_root_dir=folder,
        accelerator="cpu",
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        callbacks=[
            TargetCriticEMA(tau=0.02),
            Schedule("threshold", at=[steps // 2], values=[0.0]),
            EpisodeEvaluation(episodes=16),
        ],
    )
    trainer.fit(module, data)
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items() if "eval/" in name})


if __name__ == "__main__":
    main(*sys.argv[1:2])  # the folder
