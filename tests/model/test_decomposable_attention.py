from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.exported_models import (
    TOKEN_AXES,
    assert_exports_equal,
    assert_gradients_reach_everything,
    assert_onnx_equal,
)
from tests.support.token_batches import exported_batches, packed, padded, samples, typed
from trainer.errors import ConfigError
from trainer.model.decomposable_attention import DecomposableAttention

AXES = {**TOKEN_AXES, "token_type_ids": {0: "batch", 1: "sequence"}}
LIMITS = {"sequence": (1, 64)}


def model(**changes: Any) -> DecomposableAttention:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 50, "num_outputs": 3, "num_token_types": 2}
    made = DecomposableAttention(**(sizes | {"dim": 16, "hidden": 24, "dropout": 0.0} | changes))
    if changes.get("num_token_types") != 1:
        torch.nn.init.normal_(made.none)
        torch.nn.init.normal_(made.align.weight, std=0.3)
    return made


def pair(first: list[int], second: list[int]) -> dict[str, Tensor]:
    ids = torch.tensor([[*first, *second]])
    types = torch.tensor([[0] * len(first) + [1] * len(second)])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}


def written_out(made: DecomposableAttention, first: list[int], second: list[int]) -> Tensor:
    """Parikh et al. 2016, equations 1 to 5, token by token: outputs (C,)."""
    sides = [[made.token_embedding.weight[token] for token in text] for text in (first, second)]
    pooled = []
    for own, other in (sides, sides[::-1]):
        others = [made.none, *other]
        compared = []
        for vector in own:
            scores = torch.stack([made.align(vector) @ made.align(value) / len(vector) ** 0.5 for value in others])
            found = sum(weight * value for weight, value in zip(scores.softmax(0), others, strict=True))
            compared.append(made.compare(torch.cat([vector, found, (vector - found).abs(), vector * found])))
        pooled += [torch.stack(compared).mean(0), torch.stack(compared).amax(0)]
    output: Tensor = made.head(made.aggregate(torch.cat(pooled)))
    return output


@torch.no_grad()
@pytest.mark.parametrize(("first", "second"), [([3], [4, 5]), ([7, 8, 9, 7], [9]), ([1, 2, 3, 4, 5], [5, 4, 11])])
def test_equals_the_paper_written_out(first: list[int], second: list[int]) -> None:
    made = model()

    torch.testing.assert_close(made(**pair(first, second))[0], written_out(made, first, second), rtol=0, atol=1e-6)


@torch.no_grad()
def test_equal_tokens_find_each_other_before_anything_is_learnt() -> None:
    torch.manual_seed(0)
    made = DecomposableAttention(1000, 2, 2, dim=64, hidden=8, dropout=0.0)
    inputs = pair([10, 11, 12], [13, 11, 14, 15])
    tokens = made.token_embedding(inputs["input_ids"])
    types = inputs["token_type_ids"]
    found = made._found(tokens, types[:, :, None] != types[:, None, :])

    alike = F.cosine_similarity(tokens, found, dim=-1)[0]
    assert alike[[1, 4]].min() > 0.95
    assert alike[[0, 2, 3, 5, 6]].max() < 0.5


@pytest.mark.parametrize("count", [1, 2, 33])
def test_packed_rows_give_the_output_of_padded_ones(count: int) -> None:
    made, texts = model(), samples(count)

    output = made(**typed(packed, texts))
    assert output.shape == (count, 3)
    torch.testing.assert_close(output, made(**typed(padded, texts)), rtol=0, atol=2e-6)


def test_packed_rows_give_the_gradients_of_padded_ones() -> None:
    made = model().double()
    gradients = []
    for layout in (packed, padded):
        made.zero_grad()
        made(**typed(layout, samples(9))).square().sum().backward()
        gradients.append([value.grad.clone() for value in made.parameters() if value.grad is not None])

    assert len(gradients[0]) == len(list(made.parameters()))
    for gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-11)


def test_a_sample_does_not_see_its_neighbours() -> None:
    made, texts = model(), samples(12)
    together = made(**typed(packed, texts))
    changed = made(**typed(packed, [*texts[:1], *samples(11, seed=1)]))

    torch.testing.assert_close(changed[0], together[0], rtol=0, atol=2e-6)
    assert not torch.allclose(changed[1], together[1], atol=1e-3)


@torch.no_grad()
def test_padding_changes_nothing_and_a_text_may_be_empty() -> None:
    made = model()
    texts = [np.array([4]), np.array([5, 6, 7])]
    short = typed(padded, texts)
    alone = made(**pair([], [4]))

    assert torch.isfinite(alone).all()
    torch.testing.assert_close(made(**short)[:1], alone, rtol=0, atol=1e-6)


def test_one_text_is_compared_with_itself() -> None:
    made, texts = model(num_token_types=1), samples(5)

    torch.testing.assert_close(made(**packed(texts)), made(**padded(texts)), rtol=0, atol=2e-6)


def test_every_parameter_learns_and_there_are_features() -> None:
    inputs = typed(packed, samples(9))

    assert_gradients_reach_everything(model(), inputs)
    assert model(num_outputs=None)(**inputs).shape == (9, 24)


def test_what_is_out_of_range_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        model(dim=0, hidden=0, dropout=1.0)

    assert [message.split(":")[0] for message in caught.value.messages] == ["dim", "hidden", "dropout"]


def test_a_trace_and_a_program_give_its_outputs(tmp_path: Path) -> None:
    traced, *others = [_with_types(batch) for batch in exported_batches()]

    assert_exports_equal(model(), traced, others, AXES, LIMITS, tmp_path)


@pytest.mark.slow
def test_an_onnx_graph_gives_its_outputs(tmp_path: Path) -> None:
    traced, *others = [_with_types(batch) for batch in exported_batches()]

    assert_onnx_equal(model(), traced, others, AXES, LIMITS, tmp_path)


def _with_types(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The second text of each pair begins in its middle; of a single token the first text is empty."""
    there = batch["attention_mask"]
    second = there.cumsum(1) > there.sum(1, keepdim=True) // 2
    return batch | {"token_type_ids": second.long() * there}
