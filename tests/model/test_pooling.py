import pytest
import torch

from trainer.model.pooling import Pooling, pool

TOKENS = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [100.0, 100.0]], [[5.0, 6.0], [-1.0, 0.0], [2.0, 3.0]]])
MASK = torch.tensor([[True, True, False], [True, True, True]])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("cls", [[1.0, -4.0], [5.0, 6.0]]),
        ("mean", [[2.0, -3.0], [2.0, 3.0]]),
        ("max", [[3.0, -2.0], [5.0, 6.0]]),
    ],
)
def test_by_hand(how: Pooling, expected: list[list[float]]) -> None:
    assert pool(TOKENS, MASK, how).tolist() == expected


@pytest.mark.parametrize("how", ["cls", "mean", "max"])
def test_padding_has_no_gradient(how: Pooling) -> None:
    tokens = TOKENS.clone().requires_grad_()
    pool(tokens, MASK, how).sum().backward()

    assert tokens.grad is not None
    assert tokens.grad[0, 2].tolist() == [0.0, 0.0]
    assert tokens.grad[0, :2].abs().sum() > 0


def test_the_mean_of_many_half_precision_tokens_is_summed_in_float32() -> None:
    tokens = torch.full((1, 4096, 1), 1.001, dtype=torch.float16)
    mean = pool(tokens, torch.ones(1, 4096, dtype=torch.bool), "mean")

    assert mean.dtype == torch.float16
    assert mean.item() == tokens[0, 0, 0].item()
