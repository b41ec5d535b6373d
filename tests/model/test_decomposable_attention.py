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


def reference(made: DecomposableAttention, first: list[int], second: list[int]) -> Tensor:
    """Equations 1 to 5 of Parikh et al. 2016, computed token by token: outputs (C,)."""
    sides = [[made.token_embedding.weight[token] for token in text] for text in (first, second)]
    pooled = []
    for own, other in (sides, sides[::-1]):
        others = [made.none, *other]
        compared = []
        for vector in own:
            scores = torch.stack([made.align(vector) @ made.align(value) / len(vector) ** 0.5 for value in others])
            aligned = sum(weight * value for weight, value in zip(scores.softmax(0), others, strict=True))
            compared.append(made.compare(torch.cat([vector, aligned, (vector - aligned).abs(), vector * aligned])))
        pooled += [torch.stack(compared).mean(0), torch.stack(compared).amax(0)]
    output: Tensor = made.head(made.aggregate(torch.cat(pooled)))
    return output


@torch.no_grad()
def test_matches_the_papers_equations() -> None:
    made = model()
    for first, second in (([3], [4, 5]), ([7, 8, 9, 7], [9]), ([1, 2, 3, 4, 5], [5, 4, 11])):
        expected = reference(made, first, second)
        torch.testing.assert_close(made(**pair(first, second))[0], expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_equal_tokens_attend_to_each_other_before_training() -> None:
    torch.manual_seed(0)
    made = DecomposableAttention(1000, 2, 2, dim=64, hidden=8, dropout=0.0)
    inputs = pair([10, 11, 12], [13, 11, 14, 15])
    tokens = made.token_embedding(inputs["input_ids"])
    types = inputs["token_type_ids"]
    aligned = made._align(tokens, types[:, :, None] != types[:, None, :])

    similarity = F.cosine_similarity(tokens, aligned, dim=-1)[0]
    assert similarity[[1, 4]].min() > 0.95
    assert similarity[[0, 2, 3, 5, 6]].max() < 0.5


def test_packed_rows_give_the_outputs_of_padded_rows() -> None:
    for count in (1, 33):
        made, texts = model(), samples(count)

        output = made(**typed(packed, texts))
        assert output.shape == (count, 3)
        torch.testing.assert_close(output, made(**typed(padded, texts)), rtol=0, atol=2e-6)


def test_packed_rows_give_the_gradients_of_padded_rows() -> None:
    made = model().double()
    gradients = []
    for layout in (packed, padded):
        made.zero_grad()
        made(**typed(layout, samples(9))).square().sum().backward()
        gradients.append([value.grad.clone() for value in made.parameters() if value.grad is not None])

    assert len(gradients[0]) == len(list(made.parameters()))
    for gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-11)


def test_samples_of_a_packed_row_do_not_see_each_other() -> None:
    made, texts = model(), samples(12)
    together = made(**typed(packed, texts))
    changed = made(**typed(packed, [*texts[:1], *samples(11, seed=1)]))

    torch.testing.assert_close(changed[0], together[0], rtol=0, atol=2e-6)
    assert not torch.allclose(changed[1], together[1], atol=1e-3)


@torch.no_grad()
def test_padding_does_not_matter_and_a_text_may_be_empty() -> None:
    made = model()
    texts = [np.array([4]), np.array([5, 6, 7])]
    short = typed(padded, texts)
    alone = made(**pair([], [4]))

    assert torch.isfinite(alone).all()
    torch.testing.assert_close(made(**short)[:1], alone, rtol=0, atol=1e-6)


@torch.no_grad()
def test_padding_that_is_not_finite_changes_nothing() -> None:
    made = model(num_token_types=1)
    compared = torch.rand(2, 3, 24)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    pooled = made._pooled(compared, mask, None, None)

    assert torch.equal(made._pooled(compared.masked_fill(~mask.unsqueeze(-1), torch.nan), mask, None, None), pooled)


def test_a_single_text_is_compared_with_itself() -> None:
    made, texts = model(num_token_types=1), samples(5)

    torch.testing.assert_close(made(**packed(texts)), made(**padded(texts)), rtol=0, atol=2e-6)


def test_gradients_reach_every_parameter_and_features_are_returned() -> None:
    inputs = typed(packed, samples(9))

    assert_gradients_reach_everything(model(), inputs)
    assert model(num_outputs=None)(**inputs).shape == (9, 24)


def test_invalid_values_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        model(dim=0, hidden=0, dropout=1.0)

    assert [message.split(":")[0] for message in caught.value.messages] == ["dim", "hidden", "dropout"]


def test_exported_outputs_match(tmp_path: Path) -> None:
    traced, *others = [_with_types(batch) for batch in exported_batches()]

    assert_exports_equal(model(), traced, others, AXES, LIMITS, tmp_path)


@pytest.mark.slow
def test_onnx_outputs_match(tmp_path: Path) -> None:
    traced, *others = [_with_types(batch) for batch in exported_batches()]

    assert_onnx_equal(model(), traced, others, AXES, LIMITS, tmp_path)


def _with_types(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let the second text of each pair begin in the middle; for a single token the first text is empty."""
    present = batch["attention_mask"]
    second = present.cumsum(1) > present.sum(1, keepdim=True) // 2
    return batch | {"token_type_ids": second.long() * present}
