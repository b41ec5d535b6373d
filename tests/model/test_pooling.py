from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.model.pooling import Pooling, pool, pool_samples, take_tokens

TOKENS = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [100.0, 100.0]], [[5.0, 6.0], [-1.0, 0.0], [2.0, 3.0]]])
MASK = torch.tensor([[True, True, False], [True, True, True]])
WAYS = get_args(Pooling)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("cls", [[1.0, -4.0], [5.0, 6.0]]),
        ("mean", [[2.0, -3.0], [2.0, 3.0]]),
        ("max", [[3.0, -2.0], [5.0, 6.0]]),
        ("last", [[3.0, -2.0], [2.0, 3.0]]),
    ],
)
def test_by_hand(how: Pooling, expected: list[list[float]]) -> None:
    assert pool(TOKENS, MASK, how).tolist() == expected


@pytest.mark.parametrize("how", WAYS)
def test_padding_has_no_gradient(how: Pooling) -> None:
    tokens = TOKENS.clone().requires_grad_()
    pool(tokens, MASK, how).sum().backward()

    assert tokens.grad is not None
    assert tokens.grad[0, 2].tolist() == [0.0, 0.0]
    assert tokens.grad[0, :2].abs().sum() > 0


@pytest.mark.parametrize("how", WAYS)
def test_gradients(how: Pooling) -> None:
    assert torch.autograd.gradcheck(lambda tokens: pool(tokens, MASK, how), (TOKENS.double().requires_grad_(),))


def test_the_mean_of_many_half_precision_tokens_is_summed_in_float32() -> None:
    tokens = torch.full((1, 4096, 1), 1.001, dtype=torch.float16)
    mean = pool(tokens, torch.ones(1, 4096, dtype=torch.bool), "mean")

    assert mean.dtype == torch.float16
    assert mean.item() == tokens[0, 0, 0].item()


def one_by_one(tokens: Tensor, how: str) -> Tensor:
    """The pooling of one sample's tokens (T, D)."""
    return {"cls": tokens[0], "last": tokens[-1], "mean": tokens.mean(0), "max": tokens.max(0).values}[how]


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8), how=st.sampled_from(WAYS), seed=st.integers(0, 99))
def test_both_layouts_are_each_sample_by_itself(lengths: list[int], how: Pooling, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples = [torch.randn(length, 3, generator=generator, dtype=torch.float64) for length in lengths]
    expected = torch.stack([one_by_one(sample, how) for sample in samples])
    width = max(lengths) + 1
    padded = torch.full((len(samples), width, 3), 7.0, dtype=torch.float64)
    mask = torch.zeros(len(samples), width, dtype=torch.int64)
    index = torch.full((len(samples), width), -1)
    for row, sample in enumerate(samples):
        padded[row, : len(sample)] = sample
        mask[row, : len(sample)] = 1
        index[row, : len(sample)] = sum(lengths[:row]) + torch.arange(len(sample))
    packed = torch.cat(samples).unsqueeze(0)

    torch.testing.assert_close(pool_samples(padded, mask, None, how), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(pool_samples(packed, None, index, how), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("index", [3, [0, 5, 2], [[4, -1], [1, 1], [-1, -1]]])
def test_tokens_at_places_of_any_shape(index: int | list[int]) -> None:
    places = torch.tensor(index)
    taken = take_tokens(TOKENS, places)

    assert taken.shape == (*places.shape, 2)
    for place, vector in zip(places.flatten().tolist(), taken.reshape(-1, 2), strict=True):
        assert torch.equal(vector, TOKENS[max(place, 0) // 3, max(place, 0) % 3])
