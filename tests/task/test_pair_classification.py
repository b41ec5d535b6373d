from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.support.predictions import predict
from trainer.data.batch_plan import BatchIndices
from trainer.data.batches import Batches
from trainer.errors import ConfigError, DataError, RowError
from trainer.protocols import Batch, Batching
from trainer.task.pair_classification import PairClassification, encode_pairs
from trainer.task.tokenization import train_wordpiece

FIRST = ["a red apple", "a green pear", "an old saw and a hammer and a nail and a saw", "hammer", "saw"]
SECOND = ["apple", "hammer", "the new saw", "pear", "a saw and a hammer and a nail and a saw"]
LABELS = ["yes", "no", "yes", "no", "yes"]


def dataset(labels: list[str] = LABELS) -> Dataset:
    return Dataset.from_dict({"text": FIRST, "text_pair": SECOND, "label": labels})


def task(**changes: Any) -> PairClassification:
    options: dict[str, Any] = {"max_length": 11, "vocab_size": 150, "tokenizer": None, "lowercase": True}
    return PairClassification(**(options | changes))


def fitted(**changes: Any) -> PairClassification:
    made = task(**changes)
    made.fit(dataset())
    return made


@pytest.fixture
def without_types(tmp_path: Path) -> str:
    """A tokenizer that frames pairs without telling them apart by types."""
    words = sorted({word for text in FIRST + SECOND for word in text.split()})
    names = ["<s>", "</s>", "<unk>", *words]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>:0", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path)


def batch(made: PairClassification, batching: Batching) -> Batch:
    rows = dataset()
    encoded = rows.map(made.encode, batched=True, batch_size=2, remove_columns=rows.column_names)
    return Batches(encoded, made, batching, seed=0)[BatchIndices(0, tuple(range(5)))]


def test_pair_is_one_sequence_with_token_types() -> None:
    made = fitted()
    columns = made.encode({"text": FIRST, "text_pair": SECOND, "label": LABELS})
    tokens = [[made.texts.tokenizer.id_to_token(token) for token in ids] for ids in columns["input_ids"]]

    assert tokens[0] == ["[CLS]", "a", "red", "apple", "[SEP]", "apple", "[SEP]"]
    assert columns["token_type_ids"][0].tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert tokens[2] == ["[CLS]", "an", "old", "saw", "and", "a", "[SEP]", "the", "new", "saw", "[SEP]"]
    assert tokens[4] == ["[CLS]", "saw", "[SEP]", "a", "saw", "and", "a", "hammer", "and", "a", "[SEP]"]
    assert columns["truncated"] == [False, False, True, False, True]
    assert columns["label"] == [1, 0, 1, 0, 1]
    assert made.encode({"text": ["京"], "text_pair": ["都 apple"], "label": ["no"]})["unknown"] == [2]


def test_info_contains_the_number_of_token_types(without_types: str) -> None:
    made, other = fitted(), fitted(tokenizer=without_types)

    assert made.info().arguments() == {
        **made.texts.info_fields(),
        "num_outputs": 2,
        "class_counts": [2, 3],
        "class_names": ["no", "yes"],
        "num_token_types": 2,
        "num_train": 5,
    }
    assert other.info().num_token_types == 1
    assert batch(other, "padded").inputs.keys() == {"input_ids", "attention_mask"}
    assert other.axes().keys() == {"input_ids", "attention_mask"}
    assert other.example({"batch": 2, "sequence": 5}, np.random.default_rng(0)).keys() == other.axes().keys()


def test_vocabulary_contains_words_of_both_texts() -> None:
    vocabulary = fitted().texts.tokenizer.get_vocab()

    assert {"red", "new"} <= vocabulary.keys()


def test_example_has_ascending_token_types() -> None:
    made = fitted()
    inputs = made.example({"batch": 50, "sequence": 7}, np.random.default_rng(0))
    types, mask = inputs["token_type_ids"], inputs["attention_mask"]

    assert made.axes().keys() == inputs.keys()
    assert types.shape == (50, 7)
    assert types.unique().tolist() == [0, 1]
    assert (types <= mask).all()
    assert all((row[kept].diff() >= 0).all() for row, kept in zip(types, mask.bool(), strict=True))


def test_unusable_rows_are_errors() -> None:
    with pytest.raises(RowError, match=r"label: does not occur in training, got 'maybe'") as caught:
        fitted().encode({"text": ["a", "a"], "text_pair": ["b", "b"], "label": ["yes", "maybe"]})
    assert (caught.value.position, caught.value.role) == (1, "label")
    with pytest.raises(DataError, match="at least 2 different labels"):
        task().fit(dataset(["yes"] * 5))


def test_sizes_below_the_minimum_are_errors() -> None:
    for key, value in {"max_length": 4, "vocab_size": 99}.items():
        with pytest.raises(ConfigError, match=f"^{key}: must be at least"):
            task(**{key: value})


def test_metrics_and_predictions_are_those_of_classes() -> None:
    made = fitted()
    metrics = made.metrics()
    metrics.update(torch.tensor([[2.0, 1], [2, 1], [2, 1], [1, 2]]), torch.tensor([0, 0, 1, 1]))

    assert metrics.compute()["accuracy"].item() == 3 / 4
    assert metrics.compute()["macro_f1"].item() == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert predict(made, torch.tensor([[0.0, 0.0]])) == [{"label": "no", "probability": 0.5}]


WORDS = ["ant", "bee", "cat", "dog"]
pair_texts = st.lists(st.sampled_from([*WORDS, "zebra"]), max_size=25).map(" ".join)


def wordpiece() -> Tokenizer:
    return train_wordpiece([WORDS * 5], vocab_size=100, lowercase=True)


def roberta() -> Tokenizer:
    """`<s> a </s> </s> b </s>`, without token types."""
    names = ["<s>", "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>:0", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


TOKENIZERS = {"wordpiece": wordpiece(), "roberta": roberta()}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50)
@given(st.lists(st.tuples(pair_texts, pair_texts), min_size=1, max_size=5), st.integers(5, 30))
def test_truncation_equals_the_tokenizers_longest_first(
    name: str, pairs: list[tuple[str, str]], max_length: int
) -> None:
    tokenizer = TOKENIZERS[name]
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    expected = tokenizer.encode_batch(pairs)
    encoded = encode_pairs(tokenizer, *zip(*pairs, strict=True), max_length)

    assert [ids.tolist() for ids, _, _ in encoded] == [encoding.ids for encoding in expected]
    assert [types.tolist() for _, types, _ in encoded] == [encoding.type_ids for encoding in expected]
    assert [cut for _, _, cut in encoded] == [bool(encoding.overflowing) for encoding in expected]


def test_second_text_survives_a_long_first_one() -> None:
    tokenizer = wordpiece()
    (ids, types, cut), (_, _, whole) = encode_pairs(
        tokenizer, ["ant " * 50, "ant"], ["bee cat dog", "bee"], max_length=11
    )

    words = [tokenizer.id_to_token(token) for token in ids]
    assert words == ["[CLS]", *["ant"] * 5, "[SEP]", "bee", "cat", "dog", "[SEP]"]
    assert types.tolist() == [0] * 7 + [1] * 4
    assert (cut, whole) == (True, False)


def test_truncation_of_the_tokenizer_is_restored() -> None:
    tokenizer = wordpiece()
    encode_pairs(tokenizer, ["ant"], ["bee"], 5)
    assert tokenizer.truncation is None

    tokenizer.enable_truncation(7)
    before = tokenizer.to_str()
    encode_pairs(tokenizer, ["ant"], ["bee"], 5)
    assert tokenizer.to_str() == before


def test_long_texts_are_truncated_in_linear_time() -> None:
    # The library's own truncation builds 111,555 pieces here, 50 times as many at three times the length.
    encoded = encode_pairs(wordpiece(), ["ant " * 20_000], ["bee " * 20_000], 9)

    assert np.array(encoded[0][0]).shape == (9,)
