"""The benchmarks' pieces on a tiny shape: both sides do the same, what is counted, and the tables."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import rollouts, table, training_step
from benchmarks.case import CASES, PROMPT, make_folder, make_turns
from benchmarks.naive import naive_loss
from benchmarks.rows import Row, Spent, read_rows, row, save
from benchmarks.training_memory import peak
from benchmarks.ways import AFSFT, NAIVE, NO_CACHE, SFT, SINGLE, TRL_REPLIES, TRL_SFT, Ways
from lightning_vlmq import VLM, VLMQ
from lightning_vlmq.batches import TurnEncoder

TINY = CASES["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(TINY, tmp_path_factory.mktemp("tiny-case"))


@pytest.fixture(scope="module")
def ways(folder: Path) -> Ways:
    """Two windows of four turns, an adapter and critics that matter."""
    made = Ways(TINY, folder, turns=8)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.vlm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return made


def test_turns_have_the_lengths_of_the_case(folder: Path) -> None:
    vlm = VLM(str(folder), lora_rank=0)
    assert vlm.vocab_size == len(vlm.tokenizer) == 3100
    encoder, (turn,) = TurnEncoder(vlm, PROMPT), make_turns(TINY, 1)
    ids, (picture,) = encoder.prompt_ids(turn.observation)
    assert ids.count(vlm.image_token_id) == len(picture.features) == 4
    assert len(ids) - len(picture.ids) == 20
    assert len(encoder.reply_ids(turn)) == 5


def test_the_naive_losses_are_those_of_the_module(ways: Ways) -> None:
    module: VLMQ = ways.make(AFSFT).step.__self__.module  # type: ignore[attr-defined]
    with torch.no_grad():
        for head in (module.critic.online, module.critic.target):
            head.out.weight.normal_(std=0.1)  # type: ignore[union-attr,operator]
    batch, shown, next_shown = ways.make(NAIVE).collate()
    naive = _with_gradient(module, naive_loss(module, batch, shown, next_shown))
    for name in (SINGLE, AFSFT):
        own = _with_gradient(module, module.losses(ways.make(name).collate())[0])
        torch.testing.assert_close(own, naive, rtol=1e-5, atol=1e-6)
    assert naive[1].abs().max() > 1e-2
    # the filter lets some tokens through, not all
    passed = module.losses(batch)[1]["filter/pass_rate_all"]
    assert 0 < passed < 1


def _with_gradient(module: VLMQ, loss: Tensor) -> tuple[Tensor, Tensor]:
    trained = [p for p in module.parameters() if p.requires_grad]
    return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])


def test_without_a_cache_every_picture_is_encoded_in_each_batch(ways: Ways) -> None:
    way, features = ways.make(NO_CACHE), ways._forgetful.features
    for batches in (1, 2):
        way.collate()
        assert features.computed == batches * 2 * 5  # two windows of four turns, and the turn behind each


def test_trl_trains_on_the_same_tokens(ways: Ways) -> None:
    pytest.importorskip("trl")
    way, own = ways.make(TRL_SFT), ways.make(SFT)
    batch, ours = way.collate(), own.collate()
    assert torch.equal(batch["input_ids"][:, :-1], ours.inputs["input_ids"])  # ours does not read the last token
    assert torch.equal(batch["labels"][:, -5:], ours.reply_ids)
    assert (batch["labels"][:, :-5] == -100).all()
    scored = [training_step._operations(ways.make(name)) for name in (TRL_SFT, TRL_REPLIES)]
    # 3 x 2 operations at each of the other positions, of which the last of 32 predicts nothing
    assert scored[0] - scored[1] == 6 * 32 * 3100 * 8 * (31 - 5)


def test_a_step_of_each_way_is_timed_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--case", "tiny", "--rounds", "2", "--without_trl", "--clock", "cpu", "--note", "in a test"]
    training_step.main([*options, "--results", str(tmp_path)])
    rows = {(each.ours, each.other.split()[0]): each for each in read_rows(tmp_path / "training_step.json")}
    assert rows[AFSFT, NAIVE.split()[0]].n == 2
    assert rows[AFSFT, NAIVE.split()[0]].machine.endswith("CPU, 1 thread, in a test")
    assert not any("TRL" in each.ours + each.other for each in rows.values())
    assert "round 1: naive AFSFT" in capsys.readouterr().out


def test_floating_point_operations_are_counted_with_those_of_attention(ways: Ways) -> None:
    counted = {name: training_step._operations(ways.make(name)) for name in (SFT, AFSFT, SINGLE, NO_CACHE, NAIVE)}
    assert counted[SFT] < counted[AFSFT] < counted[SINGLE] < counted[NAIVE]
    query = torch.rand(1, 2, 8, 4)
    with training_step.operations() as counter:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert counter.get_total_flops() == 2 * 2 * (2 * 8 * 8 * 4)  # two products in each of two heads


def test_a_peak_is_the_most_that_is_held_at_once() -> None:
    def two_behind_one_another() -> None:
        for count in (1_000_000, 500_000):
            torch.empty(count, dtype=torch.uint8)

    def two_at_once() -> Tensor:
        one = torch.empty(1_000_000, dtype=torch.uint8)
        return torch.cat([one, one])  # its result is twice as large

    assert peak(two_behind_one_another) == 1_000_000
    assert peak(two_at_once) == 3_000_000


def test_replies_of_both_sides_are_of_the_same_length(folder: Path) -> None:
    found = rollouts.ways(TINY, folder, 2)  # each asserts the length of its replies
    assert {*rollouts.in_turn(found, 1)} == {
        "2 together",
        "2 together, first token",
        "one at a time",
        "one at a time, first token",
        "transformers' generate, one at a time",
    }


def _row(**changed: object) -> Row:
    made = row("bench", "one case", ("ours", [1.0, 4.0, 9.0]), ("theirs", [2.0, 4.0, 6.0]), unit="s", machine="a CPU")
    return made._replace(versions={"torch": "2"}, **changed)  # type: ignore[arg-type]


def test_ratios_are_paired_by_round() -> None:
    made = _row()
    assert (made.ratio_median, made.ratio_min, made.ratio_max, made.n) == (1.0, 0.5, 1.5, 3)
    assert (made.ours_median, made.other_median) == (4.0, 4.0)
    assert Spent(1.0, 2.0) + Spent(3.0, 5.0) == Spent(4.0, 7.0)


def test_rows_are_written_and_a_table_is_made_of_them(tmp_path: Path) -> None:
    rows = [_row(demanded="<= 2"), _row(case="another", ratio_median=0.125)]
    assert read_rows(save(rows, tmp_path)) == rows
    assert json.loads((tmp_path / "bench.json").read_text())[0]["ratio_max"] == 1.5
    text = "before\n<!-- rows of bench -->\nold\n<!-- end -->\nbehind\n<!-- rows of other -->\n<!-- end -->\n"
    found = table.filled(text, tmp_path)
    assert "| ours | theirs | 1.00 (.500, 1.50) | <= 2 | 4, 4 s |" in found
    assert "| ours | theirs | .125 (.500, 1.50) |  | 4, 4 s |" in found
    assert "a CPU; 3 rounds; torch 2." in found
    assert "old" not in found
    assert "Not measured yet." in found
    assert table.filled(found, tmp_path) == found


def test_the_documents_tables_are_those_of_the_results() -> None:
    text = table.DOCUMENT.read_text()
    assert table.filled(text, table.RESULTS) == text
