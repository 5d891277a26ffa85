"""MoonDream2 and xGen-MM against what their public code says, at a tiny size and with random weights.

No published weights were run. The checks of all families run on both, too (``test_families.py``).
"""

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import moondream2_reference as reference
import pytest
import tiny_foreign_families as tiny
import torch
from family_turns import CLOSE, OBSERVATIONS, pairs
from PIL import Image
from tiny_tokenizers import byte_level
from torch import Tensor
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.foreign.moondream2 import MARGIN, tiling
from lightning_vlmq.foreign.xgen_mm import _not_padded
from lightning_vlmq.loading import locate
from lightning_vlmq.vlm import VLM


def saved(parts: tuple[Any, Any], folder: Path) -> str:
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def moondream_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    weights = tiny.moondream2_published(len(byte_level("<end_of_utterance>", {}, others=["<end_of_utterance>"])))
    return {name: weight * (3 if weight.ndim > 1 else 1) for name, weight in weights.items()}


@pytest.fixture(scope="module")
def moondream(moondream_weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return VLM(saved(tiny.moondream2(moondream_weights), tmp_path_factory.mktemp("moondream2")), lora_rank=0)


@pytest.fixture(scope="module")
def xgen(tmp_path_factory: pytest.TempPathFactory) -> VLM:
    torch.manual_seed(0)
    return VLM(saved(tiny.xgen_mm(), tmp_path_factory.mktemp("xgen_mm")), lora_rank=0)


@torch.no_grad()
def test_moondream2_says_what_its_public_code_would(moondream: VLM, moondream_weights: dict[str, Tensor]) -> None:
    encoder = TurnEncoder(moondream)
    batch = encoder.batch(*pairs())
    logits = moondream.logits(batch.predicting(moondream.hidden(batch.inputs)))
    begin, image = moondream.tokenizer.bos_token_id, moondream.image_token_id
    for row, observation in enumerate(OBSERVATIONS):
        pictures = [Image.open(io.BytesIO(image)) for image in observation.images]
        seen = []
        for picture in pictures:
            # margins of four patches of four pixels on both sides
            rows, columns = tiling(picture.height, picture.width, 16, 32)
            tiles = moondream.processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]
            assert len(tiles) == 1 + rows * columns
            seen.append(reference.features(moondream_weights, tiles, rows, columns, patch=4, margin=MARGIN))
        ids, _ = encoder.prompt_ids(observation)
        reply = batch.reply_ids[row, batch.mask[row]].tolist()
        text = [token for token in ids[1:] if token != image] + reply[:-1]
        wanted = reference.logits(moondream_weights, begin, seen, text)[-len(reply) :]
        torch.testing.assert_close(logits[row, : len(reply)], wanted, **CLOSE)
    assert {len(o.images) for o in OBSERVATIONS} == {0, 1, 3}


def test_moondream2_never_says_a_token_that_is_only_ours() -> None:
    words = len(byte_level("<end_of_utterance>", {}, others=["<end_of_utterance>"]))
    model, processor = tiny.moondream2(tiny.moondream2_published(words - 2))
    assert len(processor.tokenizer) == words == model.config.text_config.vocab_size
    assert model.lm_head.bias[-2:].tolist() == [-1e4, -1e4]
    assert not model.lm_head.weight[-2:].any()


@pytest.mark.parametrize(
    ("size", "tiles"),
    [
        ((378, 900), (1, 1)),  # one side fits into a tile
        ((500, 600), (3, 3)),  # 388 x 488: as many as the sides' proportion allows
        ((1300, 400), (6, 2)),  # 7 x 2 would be too many
        ((3000, 390), (8, 1)),  # 11 x 2 at least: fewer than it would take
    ],
)
def test_moondream2_cuts_a_picture_into_tiles(size: tuple[int, int], tiles: tuple[int, int]) -> None:
    assert tiling(*size, window=266, margin=112) == tiles


def test_moondream2_refuses_what_is_not_its_own(moondream_weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"'vision\.extra' is no weight of MoonDream2"):
        tiny.moondream2({**moondream_weights, "model.vision.extra": torch.zeros(1)})
    fewer = {name: weight for name, weight in moondream_weights.items() if "blocks.1.ln1" not in name}
    with pytest.raises(ValueError, match=r"the weights are not those of MoonDream2: .*layer_norm1"):
        tiny.moondream2(fewer)
    without = {name: weight for name, weight in moondream_weights.items() if "text.wte" not in name}
    with pytest.raises(ValueError, match=r"has no model\.language_model\.embed_tokens\.weight"):
        tiny.moondream2(without)


@torch.no_grad()
def test_xgen_mms_resampler_is_flamingos_and_padding_is_not_seen(xgen: VLM) -> None:
    ours = xgen.hf.model.resampler
    shape = SimpleNamespace(
        perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=False), vision_config=SimpleNamespace(embed_dim=16)
    )
    theirs = IdeficsPerceiverResampler(shape, embed_dim=16, depth=2, n_heads=2, head_dim=8, n_latents=4)
    names = {"norm_media": "context_layer_norm", "norm_latents": "latents_layer_norm", "to_q": "q_proj"}
    names |= {"to_out": "output_proj", "layers.": "blocks."}
    names |= {f".{i}.1.{old}.": f".{i}.1.{new}." for i in "01" for old, new in ((0, "ln"), (1, "fc"), (3, "c_proj"))}
    weights: dict[str, Tensor] = {}
    for name, weight in ours.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        if "to_kv" in name:
            weights |= {name.replace("to_kv", f"{k}_proj"): p for k, p in zip("kv", weight.chunk(2), strict=True)}
        elif not name.startswith("projection"):
            weights["layer_" + name if name.startswith("norm.") else name] = weight
    theirs.load_state_dict(weights)
    for block in theirs.blocks:
        block[1].act = torch.nn.GELU()
    media = torch.randn(1, 16, 16)
    kept = torch.arange(16).unsqueeze(0) < 10
    torch.testing.assert_close(ours(media, kept), ours.projection(theirs(media[:, :10])), **CLOSE)
    assert not torch.allclose(ours(media, kept), ours(media, torch.ones_like(kept)), atol=1e-3)


@torch.no_grad()
def test_xgen_mm_sees_strips_of_the_tiles_put_together(xgen: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiles of 4 x 4 side by side: the first strip holds the upper two rows of both."""
    body = xgen.hf.model
    tile = torch.arange(16.0)
    states = torch.stack([tile - 100, tile, tile + 50]).unsqueeze(-1)
    told: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(body.tower, "forward", lambda pixels: SimpleNamespace(last_hidden_state=states))
    monkeypatch.setattr(body.resampler, "forward", lambda media, kept: told.append((media, kept)) or media)
    body.see(torch.zeros(3, 3, 32, 32), [16, 60])  # nearly four times as wide as high: two of four rows are padding
    ((media, kept),) = told
    assert media[0].flatten().tolist() == (tile - 100).tolist()
    assert media[1].flatten().tolist() == [0, 1, 2, 3, 50, 51, 52, 53, 4, 5, 6, 7, 54, 55, 56, 57]
    assert kept.tolist() == [[True] * 16, [False] * 8 + [True] * 8, [True] * 8 + [False] * 8]


def test_xgen_mm_leaves_out_what_padding_shows() -> None:
    # 100 x 20 pixels in 8 x 4 places: one row is shown, of three left one above and one below are padding
    assert _not_padded([20, 100], 4, 8).int().sum(1).tolist() == [0, 8, 8, 0]
    assert _not_padded([100, 20], 8, 4).int().sum(0).tolist() == [0, 8, 8, 0]
    assert _not_padded([40, 80], 4, 8).all()


def test_xgen_mm_keeps_the_tokens_that_count_and_its_own() -> None:
    words = len(tiny.xgen_mm_tokenizer())
    weights = tiny.xgen_mm_published(words)
    model, processor = tiny.xgen_mm(weights)
    assert processor.image_token_id == words == model.config.image_token_id
    for ours, published, beside in (
        (model.get_input_embeddings().weight, "model.embed_tokens", "model.embed_tokens.additional_embedding"),
        (model.lm_head.weight, "lm_head", "lm_head.additional_fc"),
    ):
        assert torch.equal(ours[:words], weights[f"vlm.lang_model.{published}.weight"][:words])
        assert torch.equal(ours[words:], weights[f"vlm.lang_model.{beside}.weight"])
    fewer = {name: weight for name, weight in weights.items() if "to_kv" not in name}
    with pytest.raises(ValueError, match=r"the weights are not those of xGen-MM v1\.5: .*to_kv"):
        tiny.xgen_mm(fewer)


def test_folders_of_both_are_known_by_their_name_alone(moondream: VLM, xgen: VLM) -> None:
    code = """
import sys
from lightning_vlmq import VLM
for name in sys.argv[1:]:
    print(VLM(name, lora_rank=0).hf.config.model_type)
"""
    # a process of its own: in this one the helpers have made them known
    done = subprocess.run([sys.executable, "-c", code, moondream.name, xgen.name], capture_output=True, text=True)
    assert done.stdout.split() == ["moondream2", "xgen_mm"], done.stderr


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "moondream1", "auto_map": {"AutoConfig": "x.C"}}', r"convert it by .*moondream2_weights"),
        ('{"model_type": "xgenmm"}', r"convert it by .*xgen_mm_weights"),
        ('{"model_type": "none_such"}', r"no model of type 'none_such', .*; choose another"),
    ],
)
def test_models_that_transformers_lacks_are_refused_with_a_remedy(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=said):
        locate(str(tmp_path))
