"""The paper's presets: every domain with every model is read by the command and fitted for a step."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import CONFIGS, SMALL, shrunk
from tiny_families import FAMILIES, build
from transformers import Phi3Config

from lightning_vlmq.adapters import add_adapter
from lightning_vlmq.cli import main
from lightning_vlmq.foreign import moondream2, moondream2_weights, xgen_mm

PAPER = CONFIGS / "paper"
DOMAINS = {"numberline": ["gym_cards"], "blackjack": ["gym_cards", "blackjack"], "babyai": ["babyai"]}
MODELS = sorted(path.stem for path in (PAPER / "models").glob("*.yaml"))
SHORT = [option for option in SMALL if "max_reply_tokens" not in option]
SHORT += ["--trainer.devices=1", "--trainer.strategy=auto", "--trainer.accelerator=cpu", "--trainer.max_steps=1"]


def read(name: str) -> Any:
    return yaml.safe_load((PAPER / f"{name}.yaml").read_text())


def options(vlm: Any) -> dict[str, Any]:
    return {key: value for key, value in vlm["init_args"].items() if key != "name"}


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family; the domains' own stand-in is an Idefics3."""
    made = {name: build(FAMILIES[name], tmp_path_factory.mktemp(name)) for name in MODELS}
    return {"": tiny_folder, **made}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("model", ["", *MODELS])
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_fits_with_every_model(
    domain: str, model: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *behind = DOMAINS[domain]
    files = [shrunk(f"paper/{first}.yaml", folders[model], tmp_path)]
    files += [PAPER / f"{name}.yaml" for name in [*behind, *[f"models/{model}"] * bool(model)]]
    arguments = [*SHORT, f"--model.vlm.name={folders[model]}"]
    if domain == "babyai":
        arguments += ["--data.turns=0", "--data.min_turns=4"]
    threads = torch.get_num_threads()
    main(["fit", *(f"--config={file}" for file in files), f"--folder={tmp_path / 'run'}", *arguments])
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 1

    found = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    own = read(first)
    wanted = read(f"models/{model}")["model"]["init_args"]["vlm"] if model else own["model"]["init_args"]["vlm"]
    vlm = found["model"]["init_args"].pop("vlm")
    assert vlm["class_path"].rsplit(".", 1)[-1] == wanted["class_path"].rsplit(".", 1)[-1]
    assert options(vlm).items() >= options(wanted).items()
    del own["model"]["init_args"]["vlm"]
    assert found["model"]["init_args"].items() >= own["model"]["init_args"].items()
    environment = found["data"]["init_args"]["environment"]["init_args"]
    assert environment["env"]["class_path"].rsplit(".", 1)[-1].lower() == domain
    assert environment["end_penalty"] == own["data"]["init_args"]["environment"]["init_args"]["end_penalty"]
    assert found["trainer"]["max_epochs"] == {"numberline": 75, "blackjack": 200, "babyai": 600}[domain]
    assert len(found["trainer"]["callbacks"]) == len(own["trainer"]["callbacks"])


@pytest.mark.parametrize("path", sorted(PAPER.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_each_field_stands_beside_its_table(path: Path) -> None:
    lines = path.read_text().splitlines()
    wiring = next((number for number, line in enumerate(lines) if "ModelCheckpoint" in line), len(lines))
    fields = [line for line in lines[:wiring] if re.match(r"\s*(?!- |class_path|#)\w+: \S", line)]
    assert fields
    without = [line for line in fields if not re.search(r"  # (table|eq\.|section|figure) \d|  # ours", line)]
    assert not without


def adapter_weights(network: Any, model: str) -> int:
    vlm = read(f"models/{model}")["model"]["init_args"]["vlm"]["init_args"]
    adapted = add_adapter(network, vlm["lora_targets"], None, r=vlm["lora_rank"], lora_alpha=vlm["lora_alpha"])
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_adapters_are_as_large_as_table_2_says() -> None:
    tower = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    with torch.device("meta"):
        text = {**moondream2_weights.TEXT, "vocab_size": 64, "intermediate_size": 8192}
        config = moondream2.Moondream2Config(text_config=text, vision_config=tower, projector_size=8)
        moondream = moondream2.Moondream2ForConditionalGeneration(config)
        # xGen-MM's language model is Phi-3-mini, whose shape is the default
        text = {**Phi3Config().to_dict(), "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        xgen = xgen_mm.XGenMMForConditionalGeneration(xgen_mm.XGenMMConfig(text_config=text, vision_config=tower))
        # queries, keys and values get an input matrix each, where the published code's one layer has one for the three
        assert adapter_weights(moondream, "moondream2") == 1_572_864 + 24 * 2 * 8 * 2048
        assert adapter_weights(xgen, "xgen_mm") == 12_582_912
