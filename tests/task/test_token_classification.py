import json
import logging
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.support.predictions import predict
from tests.support.token_targets import LAYOUTS, assert_layouts_agree, batch_of, encoder, fitted, measured
from trainer.errors import DataError, RowError
from trainer.protocols import Batching
from trainer.task.token_classification import TokenClassification

WORDS = [
    ["John", "Smith", "lives", "in", "New", "York", "."],
    ["Mary", "don't", "like", "Rome"],
    ["he", "ran"],
    ["Paris", "and", "London", "are", "cities", "of", "Europe", "said", "Ann", "Lee"],
]
TAGS = [
    ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "O"],
    ["B-PER", "O", "O", "B-LOC"],
    ["O", "O"],
    ["B-LOC", "O", "B-LOC", "O", "O", "O", "B-LOC", "O", "B-PER", "I-PER"],
]


def task(**changes: Any) -> TokenClassification:
    options: dict[str, Any] = {"max_length": 14, "vocab_size": 200, "tokenizer": None, "lowercase": False}
    return TokenClassification(**(options | changes))


def made(**changes: Any) -> tuple[TokenClassification, Dataset]:
    return fitted(task(**changes), words=WORDS, tags=TAGS)


def test_info_describes_the_training_split() -> None:
    tagger, _ = made()

    assert tagger.classes.labels == ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    assert tagger.info().class_counts == [5, 3, 1, 2, 12]
    assert (tagger.info().num_outputs, tagger.info().output_level) == (5, "token")


def test_first_token_of_a_word_has_its_tag() -> None:
    tagger, rows = made()
    tokens = [tagger.texts.tokenizer.id_to_token(number) for number in rows["input_ids"][1]]

    assert tokens == ["[CLS]", "Mary", "don", "'", "t", "like", "Rome", "[SEP]"]
    assert list(rows["first"][1]) == [1, 2, 5, 6]
    assert [tagger.classes.labels[number] for number in rows["tags"][1]] == TAGS[1]
    assert list(rows["cut"]) == [0] * 4


def test_other_pieces_of_a_word_have_no_target() -> None:
    tagger, _ = fitted(task(), words=[["loop", "pool"]] * 9, tags=[["O", "B-PER"]] * 9)
    words = ["pololo", "loop", "loppool"]
    pieces = tagger.texts.tokenizer.encode(words, is_pretokenized=True)
    encoded = tagger.encode({"words": [words], "tags": [["O", "B-PER", "O"]]})

    assert [pieces.word_ids.count(number) > 1 for number in range(3)] == [True, False, True]
    assert [pieces.word_ids[place] for place in encoded["first"][0]] == [0, 1, 2]
    assert all(pieces.word_ids[place - 1] != pieces.word_ids[place] for place in encoded["first"][0])


def test_words_beyond_max_length_have_no_output_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    tagger, rows = made(max_length=8)
    with caplog.at_level(logging.INFO):
        tagger.check({"train": rows})

    assert list(rows["cut"]) == [1, 0, 0, 4]
    assert [len(first) for first in rows["first"]] == [len(tags) for tags in rows["tags"]] == [6, 4, 2, 6]
    assert "train: 5 of 23 words do not fit into 8 tokens; training and scores leave them out" in caplog.text


def test_tags_that_break_their_scheme_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    broken = [["O", "I-PER"], ["I-LOC", "I-LOC", "I-PER"], ["I-LOC"], ["B-LOC", "B-PER", "I-PER", "O"]]
    tagger, rows = fitted(task(), words=[["fox"] * len(tags) for tags in broken], tags=broken)
    with caplog.at_level(logging.INFO):
        tagger.check({"train": rows})
    message = "train: 4 tags break their scheme, most often I-LOC at the start of a sentence; loss.constraints=true"
    assert message in caplog.text

    caplog.clear()
    with caplog.at_level(logging.INFO):
        made()[0].check({"train": made()[1]})
        fitted(task(), words=[["a", "b"]], tags=[["NOUN", "VERB"]])[0].check({})
    assert "scheme" not in caplog.text


def test_word_that_the_tokenizer_drops_has_no_output() -> None:
    tagger, _ = made()
    encoded = tagger.encode({"words": [["John", "\x00", "Lee"], ["\x00"]], "tags": [["B-PER", "O", "B-PER"], ["O"]]})

    assert [first.tolist() for first in encoded["first"]] == [[1, 2], []]
    assert [tags.tolist() for tags in encoded["tags"]] == [[1, 1], []]
    assert encoded["cut"] == [1, 1]


def test_batch_of_words_without_output() -> None:
    tagger, _ = made()
    rows = Dataset.from_dict({"words": [["\x00"], ["\x00", "\x00"]], "tags": [["O"], ["O", "O"]]})
    rows = rows.map(tagger.encode, batched=True, remove_columns=rows.column_names)
    for batching in LAYOUTS:
        batch = batch_of(tagger, rows, [0, 1], batching)
        output = encoder(tagger)(**batch.inputs)
        assert batch.target is not None
        assert (batch.target == -100).all()
        assert output.shape[:-1] == batch.target.shape


def test_packed_batches_request_only_words() -> None:
    tagger, rows = made()
    packed = batch_of(tagger, rows, [2, 1], "packed")
    padded = batch_of(tagger, rows, [2, 1], "padded")

    assert packed.target is not None
    assert packed.target.tolist() == [[4, 4, -100, -100], [1, 4, 4, 0]]
    index = packed.inputs["output_index"]
    first = packed.inputs["input_ids"].flatten()[index.clamp(min=0)]
    assert first[0, :2].tolist() == [tagger.texts.tokenizer.token_to_id(word) for word in ("he", "ran")]
    assert ((index < 0) == (packed.target < 0)).all()
    assert (packed.inputs["token_index"] >= 0).sum(dim=1).tolist() == [len(rows["input_ids"][at]) for at in (2, 1)]
    assert "output_index" not in padded.inputs
    assert padded.target is not None
    assert padded.target.tolist() == [[-100, 4, 4, *[-100] * 5], [-100, 1, 4, -100, -100, 4, 0, -100]]
    assert packed.num_samples == padded.num_samples == 2
    assert packed.ids == (2, 1)


def test_layouts_agree() -> None:
    for max_length in (14, 6):
        tagger, rows = made(max_length=max_length)
        assert_layouts_agree(tagger, rows, encoder(tagger))


def test_metrics_over_batches_equal_those_of_the_split() -> None:
    tagger, rows = made()
    model = encoder(tagger)
    apart = [batch_of(tagger, rows, [number], "packed") for number in range(4)]

    assert measured(tagger, model, apart) == measured(tagger, model, [batch_of(tagger, rows, range(4), "packed")])


def test_metrics_equal_hand_computed_values() -> None:
    tagger, _ = made()
    target = torch.tensor([[1, 3, 4, 0], [4, 0, -100, -100]])
    predicted = torch.tensor(
        [[1, 3, 4, 1], [0, 0, 0, 0]]
    )  # PER 0-1 is right, LOC 3 is tagged PER, and there are two LOC for one
    metrics = tagger.metrics()
    metrics.update(torch.nn.functional.one_hot(predicted, 5).float(), target)

    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == pytest.approx(
        {"accuracy": 4 / 6, "entity_precision": 2 / 4, "entity_recall": 2 / 3, "entity_f1": 4 / 7}
    )


def test_tags_without_prefixes_are_scored_per_word() -> None:
    tagger, rows = fitted(task(), words=WORDS[:2], tags=[list("NNVPNN."), list("NVVN")])

    assert tagger.monitor == "macro_f1"
    assert set(measured(tagger, encoder(tagger), [batch_of(tagger, rows, [0, 1], "padded")])) == {
        "accuracy",
        "macro_f1",
    }


def test_metrics_have_directions_and_include_the_monitor() -> None:
    tagger, _ = made()
    metrics = tagger.metrics()

    assert all(metric.higher_is_better for metric in metrics.values())
    assert tagger.monitor in metrics


def test_unusable_rows_are_errors() -> None:
    cases: list[tuple[list[str], list[str], str, str]] = [
        (["a", "b"], ["O"], "tags", r"tags: must be one for each of 2 words, got \['O'\]"),
        ([], [], "words", r"words: must not be empty, got \[\]"),
        (["a"], ["B-PRE"], "tags", r"tags: does not occur in training, got 'B-PRE'\. Did you mean B-PER"),
    ]
    for words, tags, role, message in cases:
        tagger, _ = made()
        with pytest.raises(RowError, match=message) as caught:
            tagger.encode({"words": [["a"], words], "tags": [["O"], tags]})

        assert (caught.value.position, caught.value.role) == (1, role)


def test_single_tag_is_a_data_error() -> None:
    with pytest.raises(DataError, match="tags: needs at least 2 different labels"):
        task().fit(Dataset.from_dict({"words": [["a", "b"]], "tags": [["O", "O"]]}))


def test_predictions_are_tags_and_entities() -> None:
    cases: list[Batching] = ["padded", "packed"]
    for batching in cases:
        tagger, _ = made()
        rows = {"words": [["one", "\u200b", "two", "three"], ["one"]]}
        encoded = tagger.encode_inputs(rows)
        # One score per word; the padded layout has [CLS] and other tokens, too.
        scores = torch.nn.functional.one_hot(torch.tensor([[4, 1, 3], [0, 2, 2]]), 5).float()
        if batching == "padded":
            wide = torch.zeros(2, int(max(map(max, encoded["first"]))) + 2, 5)
            for row, places in enumerate(encoded["first"]):
                wide[row, places] = scores[row, : len(places)]
            scores = wide

        assert predict(tagger, scores, rows, batching) == [
            {
                "words": ["one", "\u200b", "two", "three"],
                "tags": ["O", None, "B-PER", "I-PER"],
                # Of scores 1 and 0: the class with the largest score has the probability e / (e + 4).
                "entities": [{"type": "PER", "start": 2, "end": 4, "probability": pytest.approx(0.163709, abs=1e-6)}],
            },
            {
                "words": ["one"],
                "tags": ["B-LOC"],
                "entities": [{"type": "LOC", "start": 0, "end": 1, "probability": pytest.approx(0.40461, abs=1e-6)}],
            },
        ]


def test_artifact_file_contains_the_tags() -> None:
    tagger, rows = made()

    assert json.loads(tagger.artifact_files()["tags.json"]) == tagger.classes.labels
    assert tagger.lengths(rows).tolist() == [len(ids) for ids in rows["input_ids"]]


def test_restored_state_has_the_monitor_of_its_tags() -> None:
    tagger, _ = fitted(task(), words=WORDS[:2], tags=[list("NNVPNN."), list("NVVN")])
    copy = task()
    copy.load_state_dict(tagger.state_dict())

    assert copy.monitor == tagger.monitor == "macro_f1"
