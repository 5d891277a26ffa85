"""The whole estimate: every family, every stage, the largest batch, the command."""

import shutil
from pathlib import Path

import pytest
import torch
from commands import shrunk
from PIL import Image
from steps import Precision, a_module
from tiny_families import FAMILIES, build

from lightning_vlmq import VLM, VLMQ, Demonstrations
from lightning_vlmq.cli import main
from lightning_vlmq.envs import AgentEnv, NumberLine
from lightning_vlmq.estimate import estimate
from lightning_vlmq.estimate.batch import LongestTurns
from lightning_vlmq.estimate.held import Held, size
from lightning_vlmq.estimate.parts import weights_of
from lightning_vlmq.estimate.stages import Training, encoding, generation
from lightning_vlmq.shapes import drop_numbers, shapes


def test_what_is_held_counts_once_until_it_goes() -> None:
    held = Held()
    with held:
        first = torch.zeros(100)  # 400 bytes, a block of 512
        assert held.now == 512
        again = first[10:].view(9, 10)
        assert held.now == 512
        second = first + 1
        assert held.now == held.peak == 1024
        del second
        assert (held.now, held.peak) == (512, 1024)
        del first
        assert held.now == 512  # seen through the view
    assert size([again, again.t(), torch.zeros(129)]) == 512 + 1024


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_what_its_shapes_take(name: str, tmp_path: Path) -> None:
    if FAMILIES[name].torchvision:
        pytest.importorskip("torchvision", reason="this family's processor needs it")
    build(FAMILIES[name], tmp_path)
    real = VLMQ(VLM(str(tmp_path), lora_rank=4), critic_width=40)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    with shapes():
        module = VLMQ(VLM(str(tmp_path), lora_rank=4), critic_width=40)
    drop_numbers(module)
    counts = [{name: p.numel() for name, p in each.named_parameters()} for each in (module, real)]
    assert counts[0] == counts[1]
    found = []
    data = Demonstrations(environment=AgentEnv(NumberLine()), max_reply_tokens=10)
    for each in (module, real):
        turns, resident = LongestTurns(each.vlm, data), weights_of(each)
        pictures = [Image.new("RGB", (64, 64), "white")] * 3
        replies = generation(each.vlm, turns.batch(5).inputs, resident)
        step = Training(each, Precision(False)).step(turns.batch(3))
        found.append([*step, encoding(each.vlm, pictures, resident), replies])
    # Gemma 3's configuration names a soft cap that its model does not apply, which shapes cannot tell
    assert found[0] == pytest.approx(found[1], rel=0.03 if name == "gemma3" else 0.01)


def test_what_generation_takes(tiny_folder: Path) -> None:
    vlm = VLM(str(tiny_folder), lora_rank=4)
    data = Demonstrations(environment=AgentEnv(NumberLine()), max_reply_tokens=12)
    turns, resident = LongestTurns(vlm, data), weights_of(vlm)
    found = generation(vlm, turns.batch(8).inputs, resident)
    held = Held()
    held.hold(resident)
    prompt = turns._encoder.prompts([turns._turn.observation] * 8)
    with held:
        held.hold(prompt.values())
        vlm.generate(prompt, max_new_tokens=12, temperature=1.0)
    assert found - size(resident) == pytest.approx(held.peak - size(resident), rel=0.15)


def test_the_largest_batch_fits_and_a_larger_one_does_not(tiny_folder: Path) -> None:
    data = Demonstrations("nowhere", AgentEnv(NumberLine()), batch_size=3, max_reply_tokens=12, mixture={"random": 1.0})
    module = a_module(tiny_folder, {}, {"min_pass_rate": 0.2, "threshold": 0.0}, numbers=False)
    found = estimate(module, data, precision=Precision(False))
    card = 0.7  # GB; half a GB is CUDA's
    largest = found.largest_batch(card)
    room = int(card * 2**30 * 0.95) - 2**29
    assert 20 < largest < 2000
    turns, training = LongestTurns(module.vlm, data), Training(module, Precision(False))
    assert training.step(turns.batch(round(largest * 0.98))).peak <= room
    assert training.step(turns.batch(round(largest * 1.02) + 1)).peak > room
    assert found.largest_batch(0.5) == 0


def test_the_parts_of_a_plain_configuration(tiny_folder: Path) -> None:
    module = a_module(
        tiny_folder, {"load_in_4bit": True, "dtype": "bfloat16"}, {"optimizer": "adamw8bit"}, numbers=False
    )
    data = Demonstrations(
        "nowhere",
        AgentEnv(NumberLine()),
        batch_size=3,
        max_reply_tokens=12,
        mixture={"base": 0.5, "random": 0.5},
        parallel=10,
    )

    class Collects:
        environments = 6
        asynchronous = False

    found = estimate(module, data, precision=Precision(True), callbacks=[Collects()], exchanged=True)
    parts = {part.name: part for part in found.parts}
    # two layers of q, k, v, o (32 x 32 each) and gate, up, down (32 x 48 each), rank 4: a row in and a row out each
    assert parts["adapter"].trained == 2 * 4 * (4 * (32 + 32) + 3 * (32 + 48))
    vlm = VLM(str(tiny_folder), lora_rank=0)
    language = [*vlm.hf.get_decoder().parameters(), vlm.hf.get_output_embeddings().weight]
    assert parts["language model"].frozen == sum(p.numel() for p in {id(p): p for p in language}.values())
    trained = sum(part.trained for part in found.parts)
    assert trained == sum(p.numel() for p in module.parameters() if p.requires_grad)
    # float32, and once more for the exchange
    assert found.gradients == pytest.approx(2 * 4 * trained, rel=0.2)  # small tensors fill no block of 512 bytes
    assert list(found.stages) == [
        "collecting demonstrations, 5 replies at once",
        "training step",
        "encoding pictures, 16 at once",
        "collecting, 6 replies at once",
    ]
    alone = estimate(module, data, precision=Precision(True))
    assert found.stages["training step"] - alone.stages["training step"] == found.gradients // 2
    assert found.peak == max(found.stages.values()) + 2**29
    Collects.asynchronous = True
    meanwhile = estimate(module, data, precision=Precision(True), callbacks=[Collects()], exchanged=True)
    play = meanwhile.stages.pop("collecting meanwhile, 6 replies at once, beside all below")
    assert list(meanwhile.stages) == list(found.stages)[:3]
    assert meanwhile.stages["training step"] == found.stages["training step"] + play + 2**29
    # the VLM once more, without what trains it
    assert size(weights_of(module.vlm)) < play < found.stages["collecting, 6 replies at once"]


def test_a_critic_s_memory_is_on_the_card(tiny_folder: Path) -> None:
    data = Demonstrations("nowhere", AgentEnv(NumberLine()), batch_size=3, max_reply_tokens=12, mixture={"random": 1.0})
    peaks = []
    for memory in (10, 110):
        options = {"critic_replay": 2, "critic_memory": memory}
        module = a_module(tiny_folder, {}, options, numbers=False)
        found = estimate(module, data, precision=Precision(False))
        # states of 3 x 12 tokens and 3 next ones of 32 numbers; ids and probabilities of 8 tokens at each; 12 tensors
        least = memory * (3 * 13 * (32 * 4 + 8 * (8 + 4)))
        assert least < found.critic_memory < least + memory * 12 * 512
        peaks.append((found.critic_memory, found.stages["training step"]))
    assert peaks[1][1] - peaks[0][1] == peaks[1][0] - peaks[0][0]


def test_the_command_reads_no_weights(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = tmp_path / "model"
    shutil.copytree(tiny_folder, without)
    (without / "model.safetensors").unlink()
    config = shrunk("numberline.yaml", without, tmp_path)
    arguments = ["estimate", f"--config={config}", f"--folder={tmp_path}", "--threads=1", "--data.max_reply_tokens=9"]
    main([*arguments, "--trainer.accelerator=gpu", "--trainer.devices=2", "--card_gb=24"])
    said = capsys.readouterr().out
    for line in ("language model", "adapter", "critic", "optimiser's state", "CUDA's context", "peak of the fit"):
        assert line in said
    assert "24 GB" in said
    assert "40 GB" not in said
    assert "and 9 a reply" in said
    assert not (tmp_path / "data").exists()


def test_errors_of_the_command_are_one_line(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = shrunk("numberline.yaml", tiny_folder, tmp_path)
    arguments = ["estimate", f"--config={config}", f"--folder={tmp_path}"]
    for more, told in (
        ("--card_gb=-1", "card_gb: a card has memory, not -1.0 GB; give its gigabytes, such as 24"),
        (
            "--trainer.precision=bf16-true",
            "trainer.precision: an estimate is of bf16-mixed, 16-mixed or 32-true, not of bf16-true; "
            "give one of these, and the type of the base's weights as vlm.dtype",
        ),
        ("--data.environment=null", f"{tmp_path}/data holds no turns to measure a batch by; give data.environment"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, more])
        assert capsys.readouterr().err.splitlines()[-1] == f"vlmq: {told}"
