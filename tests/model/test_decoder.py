import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.decoders import CLASSES, FACTS, SHAPE, decoder, tokens
from tests.support.exported_models import (
    TOKEN_AXES,
    assert_exports_equal,
    assert_gradients_reach_everything,
    assert_onnx_equal,
    parameter_count,
)
from tests.support.token_batches import (
    exported_batches,
    of_samples,
    packed,
    padded,
    samples,
    token_layouts,
    typed,
)
from trainer.errors import ConfigError
from trainer.model.decoder import Decoder


def documents() -> dict[str, Tensor]:
    """Two blocks of running text: three documents, then the rest of the third and a fourth."""
    sequence_ids = torch.tensor([[1] * 5 + [2] * 9 + [3] * 6, [1] * 12 + [2] * 8])
    position_ids = torch.tensor([[*range(5), *range(9), *range(6)], [*range(12), *range(8)]])
    return {"input_ids": tokens(2, 20), "position_ids": position_ids, "sequence_ids": sequence_ids}


class TestAttention:
    @torch.no_grad()
    def test_later_tokens_do_not_change_earlier_outputs(self) -> None:
        model, before = decoder(), tokens(3, 20)
        for position in (1, 5, 19):
            after = before.clone()
            after[:, position:] = (after[:, position:] + 1 + tokens(3, 20 - position, seed=1) % 49) % 50
            old, new = model(before), model(after)

            assert torch.equal(old[:, :position], new[:, :position])
            assert not torch.isclose(old[:, position], new[:, position], atol=1e-3).all(-1).any()

    @torch.no_grad()
    def test_later_tokens_of_a_block_do_not_change_earlier_outputs(self) -> None:
        model, block = decoder(), documents()
        for position in (1, 4, 5, 19):
            later = {**block, "input_ids": block["input_ids"].clone()}
            later["input_ids"][:, position:] = tokens(2, 20 - position, seed=1)

            assert torch.equal(model(**block)[:, :position], model(**later)[:, :position])

    @torch.no_grad()
    def test_every_earlier_token_matters(self) -> None:
        model, before = decoder(), tokens(1, 20)
        after = before.repeat(20, 1)
        after[range(20), range(20)] = (after[range(20), range(20)] + 1) % 50
        moved = (model(after) - model(before)).abs().amax(-1)

        assert torch.equal(moved > 1e-4, torch.ones(20, 20).triu().bool())

    @torch.no_grad()
    def test_matches_torchs_causal_attention(self) -> None:
        model, ids = decoder().double(), tokens(4, 33)
        hidden = model.token_embedding.weight[ids] + model.position_embedding.weight[:33]
        for block in model.blocks:
            normed = F.linear(
                F.layer_norm(hidden, (32,), block.attention_norm.weight, block.attention_norm.bias),
                block.query_key_value.weight,
                block.query_key_value.bias,
            )
            query, key, value = (part.reshape(4, 33, 4, 8).transpose(1, 2) for part in normed.split(32, dim=-1))
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            hidden = hidden + block.attention_output(attended.transpose(1, 2).reshape(4, 33, 32))
            inner = block.feed_forward[0](block.feed_forward_norm(hidden))
            hidden = hidden + block.feed_forward[2](F.gelu(inner, approximate="tanh"))
        expected = model.norm(hidden) @ model.token_embedding.weight.T

        torch.testing.assert_close(model(ids), expected, rtol=0, atol=1e-12)
        # The same result with a mask instead of torch's causal attention.
        masked = model(ids, position_ids=torch.arange(33).expand(4, 33), sequence_ids=torch.ones_like(ids))
        torch.testing.assert_close(masked, expected, rtol=0, atol=1e-12)


class TestLayouts:
    @torch.no_grad()
    def test_token_outputs_are_equal_in_both_layouts(self) -> None:
        model, texts = decoder(), samples(12)
        outputs = []
        for layout, inputs in token_layouts(texts):
            output = model(**inputs)
            assert output.shape == (*layout.shape, 50)
            outputs.append(of_samples(layout, output))

        for text, in_padded, in_packed in zip(texts, *outputs, strict=True):
            alone = model(torch.from_numpy(text).unsqueeze(0))[0]
            torch.testing.assert_close(in_packed, alone, rtol=0, atol=1e-5)
            torch.testing.assert_close(in_padded, alone, rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_outputs_in_double_are_equal_in_both_layouts(self) -> None:
        texts = samples(12)
        (first, in_padded), (second, in_packed) = token_layouts(texts)
        model = decoder().double()
        pairs = zip(of_samples(first, model(**in_padded)), of_samples(second, model(**in_packed)), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
        for pooling in ("last", "mean", "max", "cls"):
            model = decoder(**CLASSES, pooling=pooling).double()
            torch.testing.assert_close(model(**packed(texts)), model(**padded(texts)), rtol=0, atol=1e-12)

    def test_sample_outputs_are_equal_in_both_layouts(self) -> None:
        model = decoder(**CLASSES)
        for count in (1, 33):
            output = model(**packed(samples(count)))

            assert output.shape == (count, 5)
            torch.testing.assert_close(output, model(**padded(samples(count))), rtol=0, atol=1e-5)

    def test_gradients_are_equal_in_both_layouts(self) -> None:
        model, texts = decoder().double(), samples(9)
        gradients = []
        for layout, inputs in token_layouts(texts):
            output = torch.cat(of_samples(layout, model(**inputs)))
            gradients.append(torch.autograd.grad(output.tanh().square().sum(), list(model.parameters())))

        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)

    @torch.no_grad()
    def test_padding_does_not_matter(self) -> None:
        model, texts = decoder(**CLASSES), samples(4)
        narrow = padded(texts, width=max(map(len, texts)))

        torch.testing.assert_close(model(**narrow), model(**padded(texts, pad_id=7)), rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_documents_of_a_block_do_not_see_each_other(self) -> None:
        model, block = decoder(), documents()
        output = model(**block)
        for row, bounds in ((0, (0, 5, 14, 20)), (1, (0, 12, 20))):
            for start, stop in pairwise(bounds):
                alone = model(block["input_ids"][row : row + 1, start:stop])[0]
                torch.testing.assert_close(output[row, start:stop], alone, rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_only_chosen_tokens_have_outputs(self) -> None:
        model, texts = decoder(), samples(12)
        for layout, inputs in token_layouts(texts):
            index = layout.index([np.arange(0, len(text), 3) for text in texts])
            expected = model(**inputs).flatten(0, 1)[index.clamp(min=0)]

            torch.testing.assert_close(model(**inputs, output_index=index), expected, rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_token_types(self) -> None:
        model, texts = decoder(**CLASSES, num_token_types=2), samples(9)
        inputs = typed(packed, texts)
        output = model(**inputs)

        torch.testing.assert_close(output, model(**typed(padded, texts)), rtol=0, atol=1e-5)
        assert not torch.allclose(model(**inputs | {"token_type_ids": 1 - inputs["token_type_ids"]}), output, atol=1e-3)


class TestTiedEmbeddings:
    def test_are_a_single_parameter(self) -> None:
        tied, own = decoder(), decoder(tie_embeddings=False)
        block = 4 * 32 + 32 * 96 + 96 + 32 * 32 + 32 + 32 * 48 + 48 + 48 * 32 + 32

        assert parameter_count(tied) == 50 * 32 + 64 * 32 + 3 * block + 2 * 32
        assert parameter_count(own) == parameter_count(tied) + 32 * 50 + 50
        assert list(tied.state_dict()) == [name for name, _ in tied.named_parameters()]
        assert not any(name.startswith("head.") for name in tied.state_dict())

    def test_gradient_is_the_sum_of_both_uses(self) -> None:
        tied, own, ids = decoder().double(), decoder(tie_embeddings=False).double(), tokens(3, 20)
        own.load_state_dict(
            {**tied.state_dict(), "head.weight": tied.token_embedding.weight, "head.bias": torch.zeros(50)}
        )
        for model in (tied, own):
            F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        both = own.token_embedding.weight.grad + own.head.weight.grad  # type: ignore[operator]

        torch.testing.assert_close(tied.token_embedding.weight.grad, both, rtol=0, atol=1e-12)

    def test_sample_outputs_have_their_own_head(self) -> None:
        assert decoder(**CLASSES).head.weight.shape == (5, 32)
        assert decoder(num_outputs=50, output_level="sample").head.weight.shape == (50, 32)

    def test_without_outputs_it_returns_the_features(self) -> None:
        for level, shape in (("token", (3, 20, 32)), ("sample", (3, 32))):
            model, ids = decoder(num_outputs=None, output_level=level), tokens(3, 20)

            assert model(ids, torch.ones_like(ids)).shape == shape
            assert not list(model.head.parameters())


def test_initialization_matches_gpt2() -> None:
    torch.manual_seed(0)
    shape = {"dim": 256, "depth": 8, "heads": 4, "hidden": 512, "dropout": 0.0, "pooling": "last"}
    model = Decoder(2000, 2000, 512, "token", **shape, tie_embeddings=True)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight"))))
        elif name.endswith("bias"):
            assert not parameter.any()
        else:
            added = "attention_output" in name or "feed_forward.2" in name
            assert parameter.std().item() == pytest.approx(0.005 if added else 0.02, rel=0.02), name
    with torch.no_grad():
        ids = torch.randint(2000, (4, 65))
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    assert loss.item() == pytest.approx(math.log(2000), abs=0.1)


def test_it_learns_to_copy_earlier_tokens() -> None:
    torch.manual_seed(0)
    model = Decoder(**FACTS, **(SHAPE | {"depth": 2}), tie_embeddings=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    # Four random tokens, repeated: from the second repetition on, the answer is four positions back.
    for step in range(100):
        ids = tokens(16, 4, seed=step).repeat(1, 3)
        logits = model(ids[:, :-1])[:, 3:]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 4:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert loss.item() < 0.5


def test_gradients_reach_every_parameter() -> None:
    # 64 tokens, so that every position is used.
    texts = [*samples(9), np.arange(64) % 50]
    for changes in ({}, {"tie_embeddings": False}, CLASSES, CLASSES | {"pooling": "mean", "num_token_types": 2}):
        for layout in (packed, padded):
            assert_gradients_reach_everything(decoder(**changes), typed(layout, texts))


def test_dropout_is_only_active_in_training() -> None:
    model, ids = decoder(dropout=0.5), tokens(3, 20)

    assert not torch.equal(model(ids), model(ids))
    torch.testing.assert_close(model.eval()(ids), decoder()(ids), rtol=0, atol=1e-6)


def test_invalid_values_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        decoder(dim=30, depth=0, dropout=1.0, num_outputs=9)

    keys = {message.split(":")[0] for message in error.value.messages}
    assert keys == {"depth", "heads", "dropout", "tie_embeddings"}
    assert decoder(num_outputs=9, tie_embeddings=False)(tokens(2, 3)).shape == (2, 3, 9)


def test_forward_does_not_synchronize_with_the_host() -> None:
    for changes in ({}, CLASSES):
        model, ids = decoder(**changes).to("meta"), tokens(3, 20).to("meta")
        # The meta device has no values, so reading one on the host fails.
        assert model(ids, torch.ones_like(ids)).shape[0] == 3
    assert decoder().to("meta")(**{name: value.to("meta") for name, value in documents().items()}).shape == (2, 20, 50)


@pytest.mark.parametrize("changes", [{}, CLASSES])
def test_exported_outputs_match(changes: dict[str, Any], tmp_path: Path) -> None:
    traced, *others = exported_batches()

    assert_exports_equal(decoder(**changes), traced, others, TOKEN_AXES, {"sequence": (1, 64)}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, CLASSES])
def test_onnx_outputs_match(changes: dict[str, Any], tmp_path: Path) -> None:
    traced, *others = exported_batches()

    assert_onnx_equal(decoder(**changes), traced, others, TOKEN_AXES, {"sequence": (1, 64)}, tmp_path)
