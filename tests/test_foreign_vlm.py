"""A VLM outside transformers, behind its adapter: what the network says itself, and a fit by ``class_path``.

The checks of all families run on it, too (``test_families.py``).
"""

import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import SMALL, shrunk, vlmq
from family_turns import CLOSE, OBSERVATIONS, fit, pairs
from family_turns import adapted as with_adapter
from foreign_adapter import ForeignVLM, adapted
from foreign_vlm import Network, Piece, pixels
from PIL import Image
from tiny_tokenizers import byte_level
from transformers import AutoModelForImageTextToText

from lightning_vlmq import VLMQ
from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.turns import Observation

HELPERS = Path(__file__).parent / "helpers"


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network(words=len(tokenizer()))


@pytest.fixture(scope="module")
def folder(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("foreign")
    for part in adapted(network, tokenizer()):
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TurnEncoder:
    return TurnEncoder(ForeignVLM(str(folder), lora_rank=0))


def tokenizer() -> Any:
    return byte_level("<end_of_utterance>", {"image_token": "<image>"}, others=["<end_of_utterance>"])


def conversation(encoder: TurnEncoder, observation: Observation) -> list[Piece]:
    """A prompt as the network itself takes it."""
    ids = encoder.encode_text(f"user: {'<image>' * len(observation.images)}{encoder.prompt.text(observation)}")
    ids += encoder.encode_text("<end_of_utterance>assistant: ")
    pieces: list[Piece] = [[]]
    pictures = iter(observation.images)
    for token in ids:
        if token == encoder.vlm.image_token_id:
            pieces += [pixels(Image.open(io.BytesIO(next(pictures))), 32), []]
        else:
            pieces[-1].append(token)
    return pieces


@torch.no_grad()
def test_states_and_logits_are_the_networks_own(network: Network, encoder: TurnEncoder) -> None:
    batch = encoder.batch(*pairs())
    states = encoder.vlm.hidden(batch.inputs)
    logits = encoder.vlm.logits(batch.predicting(states))
    for row, observation in enumerate(OBSERVATIONS):
        reply = batch.reply_ids[row, batch.mask[row]].tolist()
        whole = [*conversation(encoder, observation), reply[:-1]]
        wanted = network.read(whole)
        torch.testing.assert_close(states[row, : len(wanted)], wanted, **CLOSE)
        torch.testing.assert_close(logits[row, : len(reply)], network(whole)[-len(reply) :], **CLOSE)


@torch.no_grad()
def test_replies_are_the_networks_own(network: Network, encoder: TurnEncoder) -> None:
    """Left-padded in a batch with remembered keys and values; the network reads all anew for each token."""
    vlm = encoder.vlm
    said = [reply.ids for reply in vlm.generate(encoder.prompts(OBSERVATIONS), max_new_tokens=8)]
    wanted = [network.reply(conversation(encoder, o), 8, vlm.stop_ids, vlm.forbidden_ids) for o in OBSERVATIONS]
    assert said == wanted
    assert len({tuple(ids) for ids in said}) > 1


def test_layers_below_the_adapter_run_once(folder: Path) -> None:
    ForeignVLM(str(folder), lora_rank=0)  # from here on any VLM finds it
    vlm = with_adapter(folder, lora_layers=1)
    inputs = TurnEncoder(vlm).batch(*pairs()).inputs
    with torch.no_grad():
        states, base = vlm.hidden_and_base(inputs)
        assert torch.equal(states, vlm.hidden(inputs))
        with vlm.base():
            torch.testing.assert_close(base, vlm.hidden(inputs))
    assert not torch.allclose(states, base, atol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_few_updates_teach_it(folder: Path) -> None:
    vlm = ForeignVLM(str(folder), lora_rank=8, train_head=True)
    batch = TurnEncoder(vlm).batch(*pairs())

    def likelihood() -> float:
        with torch.no_grad(), vlm.inference():
            scores = vlm.logits(batch.predicting(vlm.hidden(batch.inputs))).log_softmax(-1)
        return float(scores.gather(-1, batch.reply_ids.unsqueeze(-1)).squeeze(-1)[batch.mask].mean())

    before = likelihood()
    module = VLMQ(vlm, threshold=None, lr=3e-2, critic_width=16, warmup_steps=1, critic_warmup_steps=1)
    fit(module, batch, 60)
    assert likelihood() > before / 2  # log-probabilities: from near the uniform one


def test_a_configuration_names_it_by_class_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: TurnEncoder
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")]))
    config = shrunk("numberline.yaml", folder, tmp_path)
    values = yaml.safe_load(config.read_text())
    values["model"]["init_args"]["vlm"] = {
        "class_path": "foreign_adapter.ForeignVLM",
        "init_args": {"name": str(folder), "lora_rank": 2, "lora_layers": 1},
    }
    config.write_text(yaml.safe_dump(values))
    place = [f"--config={config}", f"--folder={tmp_path / 'run'}"]
    done = vlmq("fit", *place, *SMALL)
    assert done.returncode == 0, done.stderr
    assert "goal" in done.stdout
    done = vlmq("export", *place, "--ckpt_path=last", f"--output={tmp_path / 'merged'}")
    assert done.returncode == 0, done.stderr
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    base = encoder.vlm.hf
    changed = {
        name
        for (name, ours), (_, theirs) in zip(base.named_parameters(), merged.named_parameters(), strict=True)
        if not torch.equal(ours, theirs)
    }
    block = "model.language_model.layers.1.block"
    assert changed == {f"{block}.{part}.weight" for part in ("ask", "out", "up", "down")}
