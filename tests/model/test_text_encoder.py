from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.model.text_encoder import TextEncoder
from trainer.task.packing import packed_inputs, padded_inputs

SIZES: dict[str, Any] = {"vocab_size": 50, "num_outputs": 5, "max_length": 64}
SHAPE: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "hidden": 48, "dropout": 0.0, "pooling": "mean"}


def encoder(**changes: Any) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(**(SIZES | SHAPE | changes))


def samples(count: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(50, size=length) for length in random.integers(1, 65, size=count)]


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("count", [1, 2, 33])
def test_packed_rows_give_the_output_of_padded_ones(pooling: str, count: int) -> None:
    model = encoder(pooling=pooling)
    packed = model(**packed_inputs(samples(count), pad_id=0))
    padded = model(**padded_inputs(samples(count), pad_id=0, width=64))

    assert packed.shape == (count, 5)
    # Measured 4e-7; the house's limit is 1e-5.
    torch.testing.assert_close(packed, padded, rtol=0, atol=2e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_packed_rows_give_the_gradients_of_padded_ones(pooling: str) -> None:
    model = encoder(pooling=pooling).double()
    gradients = []
    for inputs in (packed_inputs(samples(9), pad_id=0), padded_inputs(samples(9), pad_id=0, width=64)):
        model.zero_grad()
        model(**inputs).square().sum().backward()
        gradients.append(
            {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        )

    assert gradients[0].keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=1e-11)


def test_a_sample_does_not_see_its_neighbours() -> None:
    model, texts = encoder(), samples(12)
    together = model(**packed_inputs(texts, pad_id=0))
    changed = [*texts[:1], *samples(11, seed=1)]

    torch.testing.assert_close(model(**packed_inputs(changed, pad_id=0))[0], together[0], rtol=0, atol=2e-6)
    assert not torch.allclose(model(**packed_inputs(changed, pad_id=0))[1], together[1], atol=1e-3)


def test_padding_changes_nothing() -> None:
    model, texts = encoder(), samples(4)
    narrow = padded_inputs(texts, pad_id=0, width=max(map(len, texts)))
    wide = padded_inputs(texts, pad_id=7, width=64)

    torch.testing.assert_close(model(**narrow), model(**wide), rtol=0, atol=2e-6)


def test_equals_torchs_own_pre_norm_encoder() -> None:
    model = encoder()
    reference = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True),
        num_layers=2,
        norm=nn.LayerNorm(32),
        enable_nested_tensor=False,
    )
    names = {
        "attention_norm": "norm1",
        "query_key_value.weight": "self_attn.in_proj_weight",
        "query_key_value.bias": "self_attn.in_proj_bias",
        "attention_output": "self_attn.out_proj",
        "feed_forward_norm": "norm2",
        "feed_forward.0": "linear1",
        "feed_forward.2": "linear2",
    }
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.startswith("blocks."):
            for ours, theirs in names.items():
                name = name.replace(f".{ours}", f".{theirs}")
            state[name.replace("blocks.", "layers.")] = value
        elif name.startswith("norm."):
            state[name] = value
    reference.load_state_dict(state)
    inputs = padded_inputs(samples(6), pad_id=0, width=64)
    mask = inputs["attention_mask"].bool()
    embedded = model.token_embedding(inputs["input_ids"]) + model.position_embedding(torch.arange(64))
    hidden = reference(embedded, src_key_padding_mask=~mask)
    mean = hidden.masked_fill(~mask.unsqueeze(-1), 0).sum(1) / mask.sum(1, keepdim=True)

    torch.testing.assert_close(model(**inputs), model.head(mean), rtol=0, atol=2e-6)


def test_dropout_is_on_in_training_alone() -> None:
    model, inputs = encoder(dropout=0.5), padded_inputs(samples(3), pad_id=0, width=64)

    assert not torch.equal(model(**inputs), model(**inputs))
    model.eval()
    assert torch.equal(model(**inputs), model(**inputs))


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        encoder(dim=30, depth=0, dropout=1.0)

    assert [message.split(":")[0] for message in caught.value.messages] == ["depth", "heads", "dropout"]
