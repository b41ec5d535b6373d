import math

import pytest
import torch
from torch import Tensor

from trainer.model.attention import Block, stack_faults


def block(dropout: float = 0.0, *, gelu: str = "none") -> Block:
    torch.manual_seed(0)
    return Block(8, 2, 12, dropout, gelu=gelu).double()  # type: ignore[arg-type]


def states(rows: int = 3, length: int = 7, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(part: Block, hidden: Tensor, mask: Tensor) -> Tensor:
    """The block, attention one row, head and position at a time; `mask` (R, L, L)."""
    projected = part.query_key_value(part.attention_norm(hidden))
    attended = torch.zeros_like(hidden)
    for row in range(hidden.shape[0]):
        for head in range(2):
            query, key, value = (projected[row, :, start + 4 * head : start + 4 * head + 4] for start in (0, 8, 16))
            for place in range(hidden.shape[1]):
                seen = [other for other in range(hidden.shape[1]) if mask[row, place, other]]
                weights = [math.exp(float(query[place] @ key[other]) / 2) for other in seen]
                total = math.fsum(weights)
                attended[row, place, 4 * head : 4 * head + 4] = sum(
                    weight / total * value[other] for weight, other in zip(weights, seen, strict=True)
                )
    hidden = hidden + part.attention_output(attended)
    return hidden + part.feed_forward(part.feed_forward_norm(hidden))


@torch.no_grad()
@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_is_its_definition(gelu: str) -> None:
    part, hidden = block(gelu=gelu), states()
    causal = torch.ones(3, 7, 7).tril().bool()
    some = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(2)) < 0.5
    some |= torch.eye(7).bool()

    for mask, found in (
        (torch.ones(3, 7, 7), part(hidden)),
        (causal, part(hidden, causal=True)),
        (causal, part(hidden, causal[:, None])),
        (some, part(hidden, some[:, None])),
    ):
        torch.testing.assert_close(found, by_definition(part, hidden, mask), rtol=0, atol=1e-12)


def test_gelu() -> None:
    value = states()
    exact, approximate = block().feed_forward[1](value), block(gelu="tanh").feed_forward[1](value)
    inner = math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)

    torch.testing.assert_close(exact, value * (1 + torch.erf(value / math.sqrt(2))) / 2, rtol=0, atol=1e-14)
    torch.testing.assert_close(approximate, value * (1 + inner.tanh()) / 2, rtol=0, atol=1e-14)
    assert not torch.equal(exact, approximate)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_the_attention_weights_of_a_position_sum_to_1(causal: bool) -> None:
    part, seen = block(), []
    # One and the same value everywhere: what attends to it with weights w gets sum(w) of it.
    part.query_key_value.weight[16:] = 0
    part.attention_output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    part(states(), causal=causal)
    part.extend(states(), torch.ones(7, 7).bool(), torch.empty(3, 2, 0, 4), torch.empty(3, 2, 0, 4))

    for attended in seen:
        torch.testing.assert_close(attended, part.query_key_value.bias[16:].expand(3, 7, 8), rtol=0, atol=1e-14)


@torch.no_grad()
@pytest.mark.parametrize("cut", [0, 1, 4, 6])
def test_going_on_from_keys_and_values_is_the_whole(cut: int) -> None:
    part, hidden = block(), states()
    mask = torch.ones(7, 7).tril().bool()
    nothing = torch.empty(3, 2, 0, 4, dtype=torch.float64)
    first, keys, values = part.extend(hidden[:, :cut], mask[:cut, :cut], nothing, nothing)
    rest, keys, values = part.extend(hidden[:, cut:], mask[cut:], keys, values)

    assert keys.shape == values.shape == (3, 2, 7, 4)
    torch.testing.assert_close(torch.cat([first, rest], 1), part(hidden, causal=True), rtol=0, atol=1e-12)


def test_gradients() -> None:
    part, hidden = block(), states(2, 4).requires_grad_()

    assert torch.autograd.gradcheck(lambda values: part(values, causal=True), (hidden,))
    assert torch.autograd.gradcheck(lambda values: part(values, torch.ones(4, 4).tril().bool()), (hidden,))


def test_dropout_is_on_in_training_alone() -> None:
    part, hidden = block(0.5), states()

    assert not torch.equal(part(hidden), part(hidden))
    part.eval()
    torch.testing.assert_close(part(hidden), block()(hidden), rtol=0, atol=0)


def test_heads_divide_the_width() -> None:
    rest = {"depth": 1, "hidden": 8, "dropout": 0.0}
    assert stack_faults(dim=12, heads=4, **rest) == stack_faults(dim=1, heads=1, **rest) == []
    assert stack_faults(dim=12, heads=5, **rest) == ["heads: must divide dim (12), got 5."]


def test_all_that_no_stack_can_be_made_of_is_told() -> None:
    assert stack_faults(dim=12, depth=0, heads=0, hidden=-1, dropout=1.0) == [
        "depth: must be at least 1, got 0.",
        "heads: must be at least 1, got 0.",
        "hidden: must be at least 1, got -1.",
        "dropout: must be in [0, 1), got 1.0.",
    ]
