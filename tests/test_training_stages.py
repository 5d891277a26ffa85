"""Stages of the embedded VLM's training: interrupted, continued, merged."""

import pytest
import torch

from scripts.embedded_vlm import training


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
        self.head = torch.nn.Linear(4, 2)


def run_stage(path, stop, **options):
    """Trains a tower until a step, from the state on disk where there is one."""
    torch.manual_seed(0)
    tower = Tower()
    trained = training.Trained(tower, path, steps=6, rate=0.01, warm_up=2, **options)
    for step in range(trained.start, stop):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        trained.update(step, (tower.head(tower.layers[0](inputs).tanh()) - inputs[:, :2]).square().mean())
    return trained


@pytest.mark.parametrize("merges", [{}, {4: (2, 0.25)}])
def test_an_interrupted_stage_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch, merges):
    monkeypatch.setattr(training, "SAVE_EVERY", 3)
    whole = run_stage(tmp_path / "whole.pt", 6, merges=merges)
    run_stage(tmp_path / "parts.pt", 5, merges=merges)  # two steps are lost, and made again
    assert run_stage(tmp_path / "parts.pt", 0, merges=merges).start == 3
    parts = run_stage(tmp_path / "parts.pt", 6, merges=merges)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(parts.module.state_dict()[name], value)
    assert parts.average.values.keys() == whole.average.values.keys()
    assert all(torch.equal(parts.average.values[name], value) for name, value in whole.average.values.items())
    assert not torch.equal(whole.average.values["head.weight"], whole.module.head.weight)


def test_a_stage_goes_on_from_between_its_weights_and_earlier_ones(tmp_path):
    plain = run_stage(tmp_path / "plain.pt", 4).average.values
    earlier = run_stage(tmp_path / "earlier.pt", 2).average.values
    merged = run_stage(tmp_path / "merged.pt", 4, merges={4: (2, 0.25)})
    for name, parameter in merged.module.named_parameters():
        torch.testing.assert_close(parameter.data, 0.75 * plain[name] + 0.25 * earlier[name])
        assert torch.equal(merged.average.values[name], parameter.data)


def test_a_stage_that_begins_on_trained_weights_warms_up_and_merges_with_them(tmp_path):
    torch.manual_seed(0)
    given = {name: value.clone() for name, value in Tower().named_parameters()}
    trained = run_stage(tmp_path / "later.pt", 6, begin=3, merges={6: (3, 0.5)})
    assert run_stage(tmp_path / "fresh.pt", 0, begin=3).start == 3
    assert trained._factor(3) == trained._factor(4) / 2  # two steps of warm-up, of three
    plain = run_stage(tmp_path / "plain.pt", 6, begin=3).average.values
    for name, value in trained.average.values.items():
        torch.testing.assert_close(value, 0.5 * plain[name] + 0.5 * given[name])
