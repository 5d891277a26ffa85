"""Chunks of rows give what all rows at once give, and hold no more than one of them."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lightning_vlmq import chunks
from lightning_vlmq.chunks import in_chunks
from lightning_vlmq.estimate.held import Held

WIDTH = 5


class Made(NamedTuple):
    total: Tensor
    nothing: None
    more: tuple[Tensor, Tensor]


def layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, WIDTH, bias=bias)


def rows(number: int) -> Tensor:
    return torch.randn(number, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()


def results(head: nn.Linear, x: Tensor, **options: Any) -> tuple[Made, list[Tensor | None]]:
    def of_rows(x: Tensor) -> Made:
        y = head(x).tanh()
        return Made(y.logsumexp(-1), None, (y[:, 0], y.detach().argmax(-1)))

    made = in_chunks(of_rows, x, width=WIDTH, **options)
    (made.total.sum() + made.more[0].square().sum()).backward()
    return made, [p.grad for p in (x, *head.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("number", [1, 4, 7])
def test_values_and_gradients_are_those_of_all_rows_at_once(
    number: int, in_place: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, gradients = results(layer(bias), rows(number))
    monkeypatch.setattr(chunks, "CHUNK", 2 * WIDTH + 1)  # two rows
    head = layer(bias)
    found, others = results(head, rows(number), **({"layers": lambda: [nn.Sequential(head)]} if in_place else {}))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(others, gradients)
    assert "forward" not in vars(head)
    _, again = results(head, rows(number), layers=lambda: [head])  # gradients add up over batches
    torch.testing.assert_close(again[1:], [2 * each for each in gradients[1:]])


def test_a_chunk_is_computed_again_up_to_what_needs_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 2 * WIDTH)
    seen: list[str] = []

    def of_rows(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append("logits")
        y = x.exp().square().sum(-1)
        seen.append("statistics")
        return y, y.detach() + 1

    x = rows(4)
    in_chunks(of_rows, x, width=WIDTH)[0].sum().backward()
    assert seen == ["logits", "statistics"] * 2 + ["logits"] * 2
    seen.clear()
    with torch.no_grad():
        in_chunks(of_rows, x, width=WIDTH)
    assert seen == ["logits", "statistics"] * 2


def test_one_row_is_the_least_and_none_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 1)
    assert in_chunks(lambda x: x + 1, torch.zeros(3, 2), width=WIDTH).tolist() == [[1, 1]] * 3
    assert in_chunks(lambda x: x + 1, torch.zeros(0, 2), width=WIDTH).shape == (0, 2)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_gradient_of_a_weight_is_held_once(mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, size, number = 2000, 64, 64
    monkeypatch.setattr(chunks, "CHUNK", 8 * vocabulary)
    head, x = nn.Linear(size, vocabulary, bias=False), torch.randn(number, size, requires_grad=True)
    held = Held()
    held.hold([head.weight, x])
    there = held.now
    with held, torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
        found = in_chunks(lambda x: head(x).float().logsumexp(-1), x, width=vocabulary, layers=lambda: [head])
        kept = held.now - there
        found.sum().backward()
    weight, logits = head.weight.nbytes, number * vocabulary * 4
    assert kept < logits / 16  # nothing of the forward pass stands
    # the gradient; where bfloat16 computes, the weight in it; and five tensors of a chunk
    assert held.peak - there < weight * (1.5 if mixed else 1) + 5.5 * logits / 8
    assert head.weight.grad is not None
    wanted = torch.autograd.grad(head(x).logsumexp(-1).sum(), head.weight)[0]
    torch.testing.assert_close(head.weight.grad, wanted, **({"atol": 0.02, "rtol": 0.02} if mixed else {}))
