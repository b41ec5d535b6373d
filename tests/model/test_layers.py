"""Shared layers: the transformer block against its definition, and pooling of tokens."""

import math
from functools import partial
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.model.layers import Pooling, TransformerBlock, pool, pool_samples, take_tokens

TOKENS = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [100.0, 100.0]], [[5.0, 6.0], [-1.0, 0.0], [2.0, 3.0]]])
MASK = torch.tensor([[True, True, False], [True, True, True]])
POOLED = {
    "cls": [[1.0, -4.0], [5.0, 6.0]],
    "mean": [[2.0, -3.0], [2.0, 3.0]],
    "max": [[3.0, -2.0], [5.0, 6.0]],
    "last": [[3.0, -2.0], [2.0, 3.0]],
}


def make_block(dropout: float = 0.0, *, gelu: str = "none") -> TransformerBlock:
    torch.manual_seed(0)
    return TransformerBlock(8, 2, 12, dropout, gelu=gelu).double()  # type: ignore[arg-type]


def states(rows: int = 3, length: int = 7, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(block: TransformerBlock, hidden: Tensor, mask: Tensor) -> Tensor:
    """The block's output, computed for one row, head and position at a time; `mask` (R, L, L)."""
    projected = block.query_key_value(block.attention_norm(hidden))
    attended = torch.zeros_like(hidden)
    for row in range(hidden.shape[0]):
        for head in range(2):
            query, key, value = (projected[row, :, start + 4 * head : start + 4 * head + 4] for start in (0, 8, 16))
            for position in range(hidden.shape[1]):
                seen = [other for other in range(hidden.shape[1]) if mask[row, position, other]]
                weights = [math.exp(float(query[position] @ key[other]) / 2) for other in seen]
                total = math.fsum(weights)
                attended[row, position, 4 * head : 4 * head + 4] = sum(
                    weight / total * value[other] for weight, other in zip(weights, seen, strict=True)
                )
    hidden = hidden + block.attention_output(attended)
    return hidden + block.feed_forward(block.feed_forward_norm(hidden))


class TestBlock:
    @torch.no_grad()
    def test_matches_its_definition(self) -> None:
        block, hidden = make_block(), states()
        causal = torch.ones(3, 7, 7).tril().bool()
        some = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(2)) < 0.5
        some |= torch.eye(7).bool()

        for mask, output in (
            (torch.ones(3, 7, 7), block(hidden)),
            (causal, block(hidden, causal=True)),
            (causal, block(hidden, causal[:, None])),
            (some, block(hidden, some[:, None])),
        ):
            torch.testing.assert_close(output, reference(block, hidden, mask), rtol=0, atol=1e-12)

    def test_gelu_is_exact_or_the_tanh_approximation(self) -> None:
        value = states()
        exact, approximate = make_block().feed_forward[1](value), make_block(gelu="tanh").feed_forward[1](value)
        inner = math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)

        torch.testing.assert_close(exact, value * (1 + torch.erf(value / math.sqrt(2))) / 2, rtol=0, atol=1e-14)
        torch.testing.assert_close(approximate, value * (1 + inner.tanh()) / 2, rtol=0, atol=1e-14)
        assert not torch.equal(exact, approximate)

    @torch.no_grad()
    def test_extending_a_sequence_matches_the_whole_sequence(self) -> None:
        block, hidden = make_block(), states()
        mask = torch.ones(7, 7).tril().bool()
        empty = torch.empty(3, 2, 0, 4, dtype=torch.float64)
        for cut in (0, 4, 6):
            first, keys, values = block.extend(hidden[:, :cut], mask[:cut, :cut], empty, empty)
            rest, keys, values = block.extend(hidden[:, cut:], mask[cut:], keys, values)

            assert keys.shape == values.shape == (3, 2, 7, 4)
            torch.testing.assert_close(torch.cat([first, rest], 1), block(hidden, causal=True), rtol=0, atol=1e-12)

    def test_gradients(self) -> None:
        block, hidden = make_block(), states(2, 4).requires_grad_()

        assert torch.autograd.gradcheck(lambda values: block(values, causal=True), (hidden,))

    def test_dropout_is_only_active_in_training(self) -> None:
        block, hidden = make_block(0.5), states()

        assert not torch.equal(block(hidden), block(hidden))
        torch.testing.assert_close(block.eval()(hidden), make_block()(hidden), rtol=0, atol=1e-14)


class TestPooling:
    def test_values_and_gradients(self) -> None:
        for pooling in get_args(Pooling):
            tokens = TOKENS.double().requires_grad_()
            pooled = pool(tokens, MASK, pooling)
            (gradient,) = torch.autograd.grad(pooled.sum(), tokens)

            assert pooled.tolist() == POOLED[pooling]
            assert gradient[0, 2].tolist() == [0.0, 0.0], "padding has no gradient"
            assert gradient[0, :2].abs().sum() > 0
            assert torch.autograd.gradcheck(partial(pool, mask=MASK, pooling=pooling), (tokens,))

    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
    def test_padding_that_is_not_finite_changes_nothing(self, value: float) -> None:
        for pooling in get_args(Pooling):
            tokens = TOKENS.double().masked_fill(~MASK.unsqueeze(-1), value).requires_grad_()
            pooled = pool(tokens, MASK, pooling)
            (gradient,) = torch.autograd.grad(pooled.sum(), tokens)

            assert pooled.tolist() == POOLED[pooling]
            assert gradient[0, 2].tolist() == [0.0, 0.0]
            assert gradient.isfinite().all()

            # In packed rows, an index of -1 reads the first token of the rows, which belongs to another sample.
            rows = TOKENS.double().masked_fill(torch.tensor([[True, False, False], [False] * 3]).unsqueeze(-1), value)
            index = torch.tensor([[0, -1, -1], [3, 4, 5], [1, 2, -1]])
            others = pool_samples(rows, None, index, pooling)[1:]

            assert others.isfinite().all()
            assert others[0].tolist() == POOLED[pooling][1]

    def test_mean_in_half_precision_is_summed_in_float32(self) -> None:
        tokens = torch.full((1, 4096, 1), 1.001, dtype=torch.float16)
        mean = pool(tokens, torch.ones(1, 4096, dtype=torch.bool), "mean")

        assert mean.dtype == torch.float16
        assert mean.item() == tokens[0, 0, 0].item()

    @given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8), seed=st.integers(0, 99))
    def test_both_layouts_match_each_sample_alone(self, lengths: list[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        samples = [torch.randn(length, 3, generator=generator, dtype=torch.float64) for length in lengths]
        width = max(lengths) + 1
        padded = torch.full((len(samples), width, 3), 7.0, dtype=torch.float64)
        mask = torch.zeros(len(samples), width, dtype=torch.int64)
        index = torch.full((len(samples), width), -1)
        for row, sample in enumerate(samples):
            padded[row, : len(sample)] = sample
            mask[row, : len(sample)] = 1
            index[row, : len(sample)] = sum(lengths[:row]) + torch.arange(len(sample))
        packed = torch.cat(samples).unsqueeze(0)
        expected: dict[Pooling, Tensor] = {
            "cls": torch.stack([sample[0] for sample in samples]),
            "last": torch.stack([sample[-1] for sample in samples]),
            "mean": torch.stack([sample.mean(0) for sample in samples]),
            "max": torch.stack([sample.amax(0) for sample in samples]),
        }
        for pooling, values in expected.items():
            torch.testing.assert_close(pool_samples(padded, mask, None, pooling), values, rtol=0, atol=1e-14)
            torch.testing.assert_close(pool_samples(packed, None, index, pooling), values, rtol=0, atol=1e-14)

    def test_tokens_are_taken_at_positions_of_any_shape(self) -> None:
        for positions in (torch.tensor(3), torch.tensor([0, 5, 2]), torch.tensor([[4, -1], [1, 1], [-1, -1]])):
            taken = take_tokens(TOKENS, positions)

            assert taken.shape == (*positions.shape, 2)
            for position, vector in zip(positions.flatten().tolist(), taken.reshape(-1, 2), strict=True):
                assert torch.equal(vector, TOKENS[max(position, 0) // 3, max(position, 0) % 3])
