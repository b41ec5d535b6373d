from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.exported_models import TOKEN_AXES, assert_exports_equal, assert_gradients_reach_everything
from tests.support.token_batches import exported_batches, of_samples, packed, padded, samples, token_layouts, typed
from tests.support.torch_encoder import torchs_encoder
from trainer.errors import ConfigError
from trainer.model.text_encoder import TextEncoder

SIZES: dict[str, Any] = {"vocab_size": 50, "num_outputs": 5, "max_length": 64}
SHAPE: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "hidden": 48, "dropout": 0.0, "pooling": "mean"}


def encoder(**changes: Any) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(**(SIZES | SHAPE | changes))


def test_packed_rows_give_the_outputs_of_padded_rows() -> None:
    for pooling in ("cls", "mean", "max", "last"):
        for count in (1, 33):
            model = encoder(pooling=pooling)
            output = model(**packed(samples(count)))

            assert output.shape == (count, 5)
            # The measured difference is 4e-7; the limit for all models is 1e-5.
            torch.testing.assert_close(output, model(**padded(samples(count))), rtol=0, atol=2e-6)


def test_packed_rows_give_the_gradients_of_padded_rows() -> None:
    for pooling in ("cls", "mean", "max", "last"):
        model = encoder(pooling=pooling).double()
        gradients = []
        for inputs in (packed(samples(9)), padded(samples(9))):
            model.zero_grad()
            model(**inputs).square().sum().backward()
            gradients.append(
                {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
            )

        assert gradients[0].keys() == dict(model.named_parameters()).keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=1e-11)


def test_samples_of_a_packed_row_do_not_see_each_other() -> None:
    model, texts = encoder(), samples(12)
    together = model(**packed(texts))
    changed = [*texts[:1], *samples(11, seed=1)]

    torch.testing.assert_close(model(**packed(changed))[0], together[0], rtol=0, atol=2e-6)
    assert not torch.allclose(model(**packed(changed))[1], together[1], atol=1e-3)


def test_padding_does_not_matter() -> None:
    model, texts = encoder(), samples(4)
    narrow = padded(texts, width=max(map(len, texts)))
    wide = padded(texts, pad_id=7)

    torch.testing.assert_close(model(**narrow), model(**wide), rtol=0, atol=2e-6)


def test_matches_torchs_pre_norm_encoder() -> None:
    model = encoder()
    reference = torchs_encoder(model, dim=32, heads=4, hidden=48, depth=2)
    inputs = padded(samples(6))
    mask = inputs["attention_mask"].bool()
    embedded = model.token_embedding(inputs["input_ids"]) + model.position_embedding(torch.arange(64))
    hidden = reference(embedded, src_key_padding_mask=~mask)
    mean = hidden.masked_fill(~mask.unsqueeze(-1), 0).sum(1) / mask.sum(1, keepdim=True)

    torch.testing.assert_close(model(**inputs), model.head(mean), rtol=0, atol=2e-6)


def test_dropout_is_only_active_in_training() -> None:
    model, inputs = encoder(dropout=0.5), padded(samples(3))

    assert not torch.equal(model(**inputs), model(**inputs))
    model.eval()
    assert torch.equal(model(**inputs), model(**inputs))


def test_invalid_values_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        encoder(dim=30, depth=0, dropout=1.0)

    assert {message.split(":")[0] for message in error.value.messages} == {"depth", "heads", "dropout"}


def test_token_outputs_are_equal_in_both_layouts() -> None:
    model, texts = encoder(output_level="token"), samples(12)
    outputs = []
    for layout, inputs in token_layouts(texts):
        output = model(**inputs)
        assert output.shape == (*layout.shape, 5)
        outputs.append(of_samples(layout, output))

    for in_padded, in_packed in zip(*outputs, strict=True):
        torch.testing.assert_close(in_packed, in_padded, rtol=0, atol=2e-6)


def test_the_head_reads_only_chosen_tokens() -> None:
    model, texts = encoder(output_level="token"), samples(12)
    seen: list[torch.Size] = []
    for layout, inputs in token_layouts(texts):
        everywhere = model(**inputs)
        wanted = layout.index([torch.arange(0, len(text), 3).numpy() for text in texts])
        hook = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
        output = model(**inputs, output_index=wanted)
        hook.remove()

        assert seen[-1] == (*wanted.shape, 32)
        expected = everywhere.flatten(0, 1)[wanted.clamp(min=0)]
        torch.testing.assert_close(output, expected, rtol=0, atol=2e-6)


def test_token_types_are_embedded_in_both_layouts() -> None:
    for layout in (packed, padded):
        pairs, single = encoder(num_token_types=2), encoder()
        inputs = typed(layout, samples(6))
        both = pairs(**inputs)

        assert dict(pairs.named_parameters())["token_type_embedding.weight"].shape == (2, 32)
        assert not torch.allclose(pairs(**inputs | {"token_type_ids": 1 - inputs["token_type_ids"]}), both, atol=1e-4)
        # If both types have the same embedding, it can just as well be added to each position.
        pairs.load_state_dict(single.state_dict(), strict=False)
        nn.init.constant_(pairs.token_type_embedding.weight, 0.25)  # type: ignore[union-attr]
        single.position_embedding.weight.data += 0.25
        torch.testing.assert_close(pairs(**inputs), single(**inputs), rtol=0, atol=2e-6)
    model, texts = encoder(num_token_types=2), samples(9)
    torch.testing.assert_close(model(**typed(packed, texts)), model(**typed(padded, texts)), rtol=0, atol=2e-6)


def test_without_outputs_it_returns_the_features() -> None:
    model, headed, inputs = encoder(num_outputs=None), encoder(), padded(samples(6))
    model.load_state_dict({name: value for name, value in headed.state_dict().items() if "head." not in name})

    assert model(**inputs).shape == (6, 32)
    assert torch.equal(headed.head(model(**inputs)), headed(**inputs))
    assert encoder(num_outputs=None, output_level="token")(**inputs).shape == (6, 64, 32)


def test_parameter_names_and_their_order() -> None:
    block = [
        f"{part}.{kind}"
        for part in (
            "attention_norm",
            "query_key_value",
            "attention_output",
            "feed_forward_norm",
            "feed_forward.0",
            "feed_forward.2",
        )
        for kind in ("weight", "bias")
    ]
    names = ["token_embedding.weight", "position_embedding.weight"]
    names += [f"blocks.{number}.{name}" for number in range(2) for name in block]
    names += ["norm.weight", "norm.bias", "head.weight", "head.bias"]

    assert [name for name, _ in encoder().named_parameters()] == list(encoder().state_dict()) == names
    # The output level does not change the random numbers that initialize the head.
    assert torch.equal(encoder(output_level="token").head.weight, encoder().head.weight)


def test_gradients_reach_every_parameter() -> None:
    # 64 tokens, so that every position is used.
    texts = [*samples(9), torch.arange(64).remainder(50).numpy()]
    for changes in ({}, {"pooling": "last"}, {"output_level": "token"}, {"num_token_types": 2}):
        for layout in (packed, padded):
            assert_gradients_reach_everything(encoder(**changes), typed(layout, texts))


def test_forward_does_not_synchronize_with_the_host() -> None:
    model = encoder(output_level="token").to("meta")
    for _, inputs in token_layouts(samples(5)):
        on_meta = {name: value.to("meta") for name, value in inputs.items()}
        # The meta device has no values, so reading one on the host fails.
        assert model(**on_meta, output_index=torch.zeros(3, 4, dtype=torch.int64, device="meta")).shape == (3, 4, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"output_level": "token"},
        pytest.param({"pooling": "last"}, marks=pytest.mark.slow),
        pytest.param({"num_token_types": 2}, marks=pytest.mark.slow),
    ],
)
def test_exported_outputs_match(changes: dict[str, Any], tmp_path: Path) -> None:
    batches, axes = exported_batches(), dict(TOKEN_AXES)
    if "num_token_types" in changes:
        axes["token_type_ids"] = {0: "batch", 1: "sequence"}
        batches = [{**batch, "token_type_ids": (batch["input_ids"] > 25).long()} for batch in batches]

    assert_exports_equal(encoder(**changes), batches[0], batches[1:], axes, {"sequence": (1, 64)}, tmp_path)
