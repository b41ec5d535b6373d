"""Attention masks of pretrained models, compared with a definition for each pair of positions."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.model.pretrained import FAMILIES, attention_masks, first_position

# The third row ends with padding, 0.
SEQUENCES = torch.tensor([[1, 1, 1, 2, 2, 3], [1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])


def config(**keys: Any) -> Any:
    return SimpleNamespace(**({"_attn_implementation": "sdpa", "pad_token_id": 1} | keys))


@pytest.mark.parametrize("keys", [{}, {"is_decoder": True}])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_tokens_see_only_their_own_sample(name: str, keys: dict[str, Any]) -> None:
    mask = attention_masks(FAMILIES[name], config(**keys), None, SEQUENCES, torch.float32)

    assert isinstance(mask, torch.Tensor)
    assert mask.shape == (3, 1, 6, 6)
    for row, sequence in enumerate(SEQUENCES.tolist()):
        for query, own in enumerate(sequence):
            for key, other in enumerate(sequence):
                visible = own == other and (key <= query or not (name == "gpt2" or keys))
                assert mask[row, 0, query, key] == visible


def test_tokens_do_not_see_padding() -> None:
    both = attention_masks(FAMILIES["bert"], config(), MASK, None, torch.float32)
    causal = attention_masks(FAMILIES["gpt2"], config(), MASK, None, torch.float32)

    assert torch.equal(both, MASK.bool()[:, None, None, :])
    assert torch.equal(causal[0, 0], torch.ones(6, 6).tril().bool())
    assert torch.equal(causal[1, 0, :3], torch.ones(6, 6).tril().bool()[:3])
    # A row without any allowed position would give NaN.
    assert causal.any(dim=-1).all()


def test_sliding_windows_stay_within_the_sample() -> None:
    for packed in [True, False]:
        keys = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 1}
        rows = SEQUENCES if packed else MASK
        masks = attention_masks(
            FAMILIES["modernbert"], config(**keys), None if packed else rows, rows if packed else None, torch.float32
        )

        assert set(masks) == {"full_attention", "sliding_attention"}
        near = masks["sliding_attention"]
        for row, sequence in enumerate(rows.tolist()):
            for query, own in enumerate(sequence):
                for key, other in enumerate(sequence):
                    assert near[row, 0, query, key] == (own == other and abs(query - key) <= 1)
        assert near.any(dim=-1).all()


def test_eager_masks_are_added_to_the_scores() -> None:
    mask = attention_masks(FAMILIES["bert"], config(_attn_implementation="eager"), MASK, None, torch.float64)

    assert mask.dtype == torch.float64
    assert torch.equal(mask == 0, MASK.bool()[:, None, None, :])
    assert mask.min() == torch.finfo(torch.float64).min


def test_first_position() -> None:
    assert {name: first_position(family, config()) for name, family in FAMILIES.items() if family.after_padding} == {
        "camembert": 2,
        "roberta": 2,
        "xlm-roberta": 2,
    }
    assert first_position(FAMILIES["bert"], config()) == 0
