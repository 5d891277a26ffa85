import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

from lightning_vlmq import VLM, VLMQ, AgentEnv, Demonstrations, RandomState, Schedule, TargetCriticEMA
from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.envs import NumberLine
from lightning_vlmq.modules.optim import clip_groups

LR = {"lr": 1e-3, "critic_lr": 1e-3, "warmup_steps": 2, "critic_warmup_steps": 2}


def test_fitting_without_a_moving_target_is_refused(vlm: VLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs the callback .*TargetCriticEMA"):
        _trainer(tmp_path, 1, callbacks=[]).fit(VLMQ(vlm, **LR), _data(tmp_path))


def test_nan_stops_the_fit_and_says_where(vlm: VLM, tmp_path: Path) -> None:
    class Poison(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: TokenBatch, batch_idx: int) -> None:
            if batch_idx == 2:
                batch.reward.fill_(float("nan"))

    with pytest.raises(ValueError, match=r"the loss is nan at step 2 \(batch 2; not finite: .*loss/critic"):
        _trainer(tmp_path, 5, callbacks=[TargetCriticEMA(), Poison()]).fit(VLMQ(vlm, **LR), _data(tmp_path))


def test_a_gradient_that_is_nan_leaves_the_last_checkpoint_a_good_one(vlm: VLM, tmp_path: Path) -> None:
    class Poison(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, module: Any) -> None:
            if trainer.global_step == 5:  # the last step of the second epoch, behind which a checkpoint is written
                next(p for p in module.vlm.parameters() if p.grad is not None).grad.fill_(float("nan"))

    keep = ModelCheckpoint(tmp_path, filename="last", every_n_epochs=1, enable_version_counter=False)
    trainer = _trainer(tmp_path, 9, [TargetCriticEMA(), Poison(), keep], enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"the gradient's norm is nan at step 5 \(not finite: grad_norm/vlm"):
        trainer.fit(VLMQ(vlm, **LR), _data(tmp_path, batches_per_epoch=3))
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values() if value.is_floating_point())


def test_bf16_trains_a_float32_adapter(vlm: VLM, tmp_path: Path) -> None:
    module = VLMQ(vlm, threshold=0.0, **LR)
    before = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
    seen: list[torch.dtype] = []
    handle = (
        vlm.hf.get_decoder()
        .layers[0]
        .self_attn.q_proj.base_layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    )
    _trainer(tmp_path, 3, precision="bf16-mixed").fit(module, _data(tmp_path))
    handle.remove()
    assert set(seen) == {torch.bfloat16}
    after = dict(module.named_parameters())
    assert all(after[name].dtype == torch.float32 for name in before)
    assert all(not torch.equal(after[name], value) for name, value in before.items())


def test_rates_warm_up_then_fall_to_a_tenth(vlm: VLM) -> None:
    module = VLMQ(vlm, lr=1e-3, critic_lr=2e-3, warmup_steps=2, critic_warmup_steps=4, decay_steps=10)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(13):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    # warm-up (step + 1) / warmup, decay 1 - .09 step, never below .1
    assert rates[0] == pytest.approx([0.5e-3, 0.25 * 2e-3])
    assert rates[1] == pytest.approx([0.91e-3, 0.5 * 0.91 * 2e-3])
    assert rates[5] == pytest.approx([0.55e-3, 0.55 * 2e-3])
    assert rates[10] == pytest.approx([0.1e-3, 0.1 * 2e-3])
    assert rates[12] == pytest.approx([0.1e-3, 0.1 * 2e-3])


def test_rates_fall_over_the_whole_fit_where_no_steps_are_named(vlm: VLM, tmp_path: Path) -> None:
    rates = []

    class Rates(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = VLMQ(vlm, lr=1e-3, critic_lr=1e-3, warmup_steps=1, critic_warmup_steps=1, decay_steps=None)
    trainer = _trainer(tmp_path, 5)
    trainer.callbacks.append(Rates())  # type: ignore[attr-defined]
    trainer.fit(module, _data(tmp_path))
    assert rates == pytest.approx([1e-3, 0.82e-3, 0.64e-3, 0.46e-3, 0.28e-3])  # 1 - .9 step / 5


class _Endless(IterableDataset[TokenBatch]):
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize("epochs", [-1, 2])
def test_a_fit_without_end_cannot_tell_over_what_rates_fall(vlm: VLM, tmp_path: Path, epochs: int) -> None:
    trainer = _trainer(tmp_path, -1, max_epochs=epochs)
    with pytest.raises(ValueError, match=r"decay_steps: null needs an end of the fit; set trainer.max_steps"):
        trainer.fit(VLMQ(vlm, decay_steps=None), DataLoader(_Endless(), batch_size=None))


def test_a_critic_that_is_never_asked_is_warned_of(vlm: VLM, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"everything is imitated \(SFT\): give VLMQ a threshold"):
        _trainer(tmp_path, 1).fit(VLMQ(vlm, **LR), _data(tmp_path))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="everything is imitated")
        _trainer(tmp_path, 1, [TargetCriticEMA(), Schedule("threshold", [5], [0.0])]).fit(VLMQ(vlm), _data(tmp_path))


def test_groups_have_their_own_rates_warmups_and_norms(vlm: VLM, tmp_path: Path) -> None:
    module = VLMQ(vlm, lr=1e-3, critic_lr=2e-3, warmup_steps=10, critic_warmup_steps=5)
    config = module.configure_optimizers()
    optimizer, schedule = config["optimizer"], config["lr_scheduler"]["scheduler"]  # type: ignore[index]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4, 4e-4])
    for _ in range(4):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-4, 2e-3])

    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
    for group, size in zip(optimizer.param_groups, (0.001, 1000.0), strict=True):
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, size)
    small = [p.grad.clone() for p in optimizer.param_groups[0]["params"]]
    module.configure_gradient_clipping(optimizer, 2.0, "norm")
    # a huge gradient of the critic leaves the actor's as it was
    assert all(torch.equal(p.grad, g) for p, g in zip(optimizer.param_groups[0]["params"], small, strict=True))
    critic = torch.nn.utils.get_total_norm([p.grad for p in optimizer.param_groups[1]["params"]])
    assert float(critic) == pytest.approx(2.0, rel=1e-3)


def test_groups_without_a_name_go_by_their_number() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    (weight**2 / 2).sum().backward()  # the gradient is (3, 4)
    assert float(clip_groups(torch.optim.SGD([weight], lr=0.1), None, None)["grad_norm/0"]) == pytest.approx(5.0)


def test_adamw8bit_trains_with_quantised_state(vlm: VLM, tmp_path: Path) -> None:
    module = VLMQ(vlm, optimizer="adamw8bit", critic_width=64, **LR)
    trainer = _trainer(tmp_path, 3)
    before = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
    trainer.fit(module, _data(tmp_path))
    optimizer = trainer.optimizers[0]
    states = [optimizer.state[p]["state1"].dtype for g in optimizer.param_groups for p in g["params"]]
    # below 4,096 elements bitsandbytes keeps 32 bits: the critic's output layer is above
    assert torch.uint8 in states
    changed = [n for n, p in module.named_parameters() if p.requires_grad and not torch.equal(p, before[n])]
    assert len(changed) == len(before)


def test_checkpoints_hold_what_was_trained(vlm: VLM, tmp_path: Path) -> None:
    module = VLMQ(vlm, **LR)
    trainer = _trainer(tmp_path, 2)
    trainer.fit(module, _data(tmp_path))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    keys = set(checkpoint["state_dict"])
    assert {k for k in keys if k.startswith("vlm.")} == {f"vlm.{n}" for n in vlm.trainable_names()}
    assert any(k.startswith("critic.target") for k in keys)
    assert any("popart" in k for k in keys)
    other = VLMQ(vlm, critic_width=16, **LR)
    with pytest.raises(ValueError, match="the checkpoint has other shapes of critic"):
        other.on_load_checkpoint(checkpoint)
    del checkpoint["state_dict"][next(k for k in keys if "lora_A" in k)]
    with pytest.raises(ValueError, match="the checkpoint lacks vlm"):
        module.on_load_checkpoint(checkpoint)


@pytest.mark.filterwarnings("error:Found keys that are in the model state dict")
def test_checkpoints_know_their_base_and_their_filter(tiny_folder: Path, tmp_path: Path) -> None:
    module = VLMQ(VLM(str(tiny_folder), lora_rank=2), **LR)
    falling = Schedule("filter_temperature", [0, 4], [2.0, 1.0], shape="linear")
    trainer = _trainer(tmp_path, 2, [TargetCriticEMA(), Schedule("threshold", [1], [0.25]), falling])
    trainer.fit(module, _data(tmp_path))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    same = VLMQ(VLM(str(tiny_folder), lora_rank=2), **LR)
    same.on_load_checkpoint(checkpoint)
    assert same.threshold == 0.25
    assert same.filter_temperature == 1.75  # as it was in the last update, the second one
    same.load_state_dict(checkpoint["state_dict"])
    name = next(iter(checkpoint["state_dict"]))
    with pytest.raises(RuntimeError, match=name):
        same.load_state_dict({k: v for k, v in checkpoint["state_dict"].items() if k != name})
    other = VLM(str(tiny_folder), lora_rank=2)
    with torch.no_grad():
        other.token_embeddings().mul_(1.01)
    with pytest.raises(ValueError, match=r"made on other weights of .*tiny"):
        VLMQ(other, **LR).on_load_checkpoint(checkpoint)


def test_a_checkpoint_loads_by_lightnings_own_way(tiny_folder: Path, tmp_path: Path) -> None:
    module = VLMQ(VLM(str(tiny_folder), lora_rank=2), critic_width=16, **LR)
    trainer = _trainer(tmp_path, 2)
    trainer.fit(module, _data(tmp_path))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = VLMQ.load_from_checkpoint(tmp_path / "a.ckpt", vlm=VLM(str(tiny_folder), lora_rank=2), weights_only=True)
    assert loaded.hparams["critic_width"] == 16
    for name, value in module.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


@pytest.mark.parametrize(("optimizer", "accumulate", "replay"), [("adamw", 1, 2), ("adamw8bit", 2, 0)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tiny_folder: Path, tmp_path: Path, optimizer: str, accumulate: int, replay: int
) -> None:
    def module() -> VLMQ:
        torch.manual_seed(3)
        vlm = VLM(str(tiny_folder), lora_rank=4, lora_dropout=0.1)
        return VLMQ(vlm, optimizer=optimizer, critic_width=64, critic_replay=replay, **LR)  # type: ignore[arg-type]

    def callbacks() -> list[L.Callback]:
        return [TargetCriticEMA(tau=0.1), Schedule("threshold", [3], [0.0]), RandomState()]

    options: dict[str, Any] = {"accumulate_grad_batches": accumulate}
    whole = module()
    epochs = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    _trainer(tmp_path, 7, [*callbacks(), epochs], enable_checkpointing=True, **options).fit(whole, _data(tmp_path))

    first = _trainer(tmp_path, 4, callbacks(), **options)  # in the middle of the second epoch
    first.fit(module(), _data(tmp_path))
    first.save_checkpoint(tmp_path / "middle.ckpt")
    for checkpoint in ("middle.ckpt", "epoch=0.ckpt"):
        resumed = module()
        torch.manual_seed(99)
        _trainer(tmp_path, 7, callbacks(), **options).fit(resumed, _data(tmp_path), ckpt_path=tmp_path / checkpoint)
        for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
            assert torch.equal(a, b), (checkpoint, name)


def _data(tmp_path: Path, batches_per_epoch: int = 6) -> Demonstrations:
    return Demonstrations(
        str(tmp_path / "data"),
        AgentEnv(NumberLine()),
        turns=60,
        mixture={"random": 1.0},
        batch_size=4,
        batches_per_epoch=batches_per_epoch,
        validation_batches=1,
        seed=5,
    )


def _trainer(tmp_path: Path, steps: int, callbacks: list[L.Callback] | None = None, **options: Any) -> L.Trainer:
    return L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=2.0,
        callbacks=[TargetCriticEMA()] if callbacks is None else callbacks,
        **({"enable_checkpointing": False} | options),
    )
