"""Predictions for rows: their order, batches, errors and memory."""

import json
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from datasets import Dataset
from pyarrow import parquet
from torch import Tensor

from trainer.errors import ConfigError
from trainer.export.bundle.predict import find_undefined as find_undefined_in_artifact
from trainer.predict import predictor
from trainer.predict.input_rows import InputRow, RowFormat, read_rows
from trainer.predict.predictor import Predictor, RowCounts, check_task, find_undefined
from trainer.protocols import Batching
from trainer.task.causal_lm import CausalLm
from trainer.task.text_classification import TextClassification
from trainer.task.token_classification import TokenClassification

TEXTS = [f"{'word ' * (number * 7 % 11)}end" for number in range(40)]


@pytest.fixture(scope="module")
def task() -> TextClassification:
    made = TextClassification(max_length=8, vocab_size=100, tokenizer=None, lowercase=True)
    made.fit(Dataset.from_dict({"text": TEXTS, "label": ["even", "odd"] * 20}))
    return made


def lengths(inputs: Mapping[str, Tensor]) -> Tensor:
    """Return logits that encode the number of tokens of each sample."""
    packed = "token_index" in inputs
    counts = (inputs["token_index"] >= 0).sum(dim=1) if packed else inputs["attention_mask"].sum(dim=1)
    return torch.stack([counts.float() / 4, torch.zeros(len(counts))], dim=1)


def make_rows(texts: list[str]) -> Iterator[InputRow | None]:
    for number, text in enumerate(texts, 1):
        yield InputRow(number, f"row {number}", {"text": text}, identity={"number": number})


@pytest.mark.parametrize("batching", ["packed", "padded"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_predictions_come_in_the_order_of_the_rows(
    task: TextClassification, batching: Batching, batch_size: int
) -> None:
    sizes: list[list[int]] = []

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        output = lengths(inputs)
        sizes.append((output[:, 0] * 4).int().tolist())
        return output

    row_counts = RowCounts()
    pairs = [
        each
        for window in Predictor(task, forward, batching, batch_size, 1).predict(make_rows(TEXTS), row_counts)
        for each in window
    ]
    counts = [min(8, len(text.split()) + 2) for text in TEXTS]

    assert [prediction["number"] for _, prediction in pairs] == list(range(1, 41))
    for count, (_, prediction) in zip(counts, pairs, strict=True):
        assert prediction["label"] == "even"
        assert prediction["probability"] == pytest.approx(1 / (1 + np.exp(-count / 4)), abs=1e-6)
    span = 16 * batch_size
    windows = [sorted(counts[start : start + span], reverse=True) for start in range(0, 40, span)]
    assert list(chain(*sizes)) == list(chain(*windows))
    assert max(map(len, sizes)) == min(batch_size, 40)
    assert (row_counts.num_rows, row_counts.num_errors) == (40, 0)
    assert row_counts.num_truncated == sum(len(text.split()) > 6 for text in TEXTS)


def test_unusable_rows_get_an_error(task: TextClassification) -> None:
    def some() -> Iterator[InputRow | None]:
        yield InputRow(1, "row 1", None, "row 1: has no text.")
        yield InputRow(2, "row 2", {"text": "end"})
        yield InputRow(3, "row 3", None, "row 3: is broken.")

    row_counts = RowCounts()
    (window,) = Predictor(task, lengths, "packed", 2, 1).predict(some(), row_counts)
    first, second, third = window

    assert first[1] == {"error": first[0].error} == {"error": "row 1: has no text."}
    assert second[1]["label"] == "even"
    assert second[0].error is None
    assert third[1] == {"error": "row 3: is broken."}
    assert (row_counts.num_rows, row_counts.num_errors) == (3, 2)


def test_text_that_is_empty_after_tokenization_is_an_error() -> None:
    language_model = CausalLm(max_length=8, vocab_size=100, tokenizer=None, lowercase=True)
    language_model.fit(Dataset.from_dict({"text": TEXTS}))
    size = language_model.info().vocab_size

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.zeros(*inputs["output_index"].shape, size)

    row_counts = RowCounts()
    (window,) = Predictor(language_model, forward, "packed", 4, 1).predict(
        make_rows(["word end", "\u200b\x01", "word"]), row_counts
    )

    assert window[1][1] == {"number": 2, "error": "row 2: text: is empty after tokenization."}
    assert [prediction.get("perplexity") for _, prediction in window] == [pytest.approx(size), None, None]
    assert row_counts.num_errors == 1


def test_batches_with_many_outputs_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    language_model = CausalLm(max_length=8, vocab_size=100, tokenizer=None, lowercase=True)
    language_model.fit(Dataset.from_dict({"text": TEXTS}))
    size = language_model.info().vocab_size
    monkeypatch.setattr(predictor, "_MAX_OUTPUTS", 16 * size)
    shapes = []

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        shapes.append(tuple(inputs["input_ids"].shape))
        return torch.zeros(*inputs["input_ids"].shape, size)

    sizes = [
        len(window)
        for window in Predictor(language_model, forward, "padded", 64, 1).predict(make_rows(TEXTS), RowCounts())
    ]

    assert sizes == [40]
    assert {rows * width for rows, width in shapes} <= {*range(17)}
    assert min(rows for rows, _ in shapes) == 2
    assert max(rows for rows, _ in shapes) > 2


def test_waiting_for_input_ends_a_window(task: TextClassification) -> None:
    def waiting() -> Iterator[InputRow | None]:
        yield None
        yield from make_rows(["a", "b"])
        yield None
        yield from make_rows(["c"])

    windows = Predictor(task, lengths, "packed", 2, 1).predict(waiting(), RowCounts())
    assert [len(window) for window in windows] == [2, 1]


def test_task_without_prediction_methods_is_refused() -> None:
    class Mine:
        def input_columns(self) -> tuple[str, ...]:
            return ("text",)

    with pytest.raises(
        ConfigError, match=r"task: Mine cannot predict, it has no encode_inputs, model_inputs, predictions\."
    ):
        check_task(Mine())


def write_csv(path: Path, texts: list[str]) -> None:
    path.write_text("text\n" + "\n".join(texts) + "\n")


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_txt(path: Path, texts: list[str]) -> None:
    path.write_text("\n".join(texts))


def write_parquet(path: Path, texts: list[str]) -> None:
    parquet.write_table(pyarrow.table({"text": texts}), path)


@pytest.mark.parametrize(
    "write", [write_csv, write_jsonl, write_txt, pytest.param(write_parquet, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_file(
    task: TextClassification, write: Callable[[Path, list[str]], None], tmp_path: Path
) -> None:
    file = tmp_path / f"rows.{write.__name__.removeprefix('write_')}"
    peaks, sizes = [], []
    size = 1_100 if write is write_parquet else 200  # Parquet is converted to Python objects 1,024 rows at a time
    for count in (size, size, 5 * size):  # the first run pays for one-time allocations
        texts = [f"{number}{'x' * 3_000}" for number in range(count)]
        write(file, texts)
        sizes.append(sum(map(len, texts)))
        del texts
        tracemalloc.start()
        rows_predictor = Predictor(task, lengths, "padded", 2, 1)
        total = sum(
            len(window) for window in rows_predictor.predict(read_rows(file, RowFormat(("text",), {})), RowCounts())
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert total == count

    assert peaks[2] - peaks[1] < 0.1 * (sizes[2] - sizes[1])


@pytest.mark.parametrize("shape", [(3, 2), (3, 5, 2), (3, 2, 5, 5)])
@pytest.mark.parametrize("find", ["run", "artifact"])
def test_nan_outside_of_padding_makes_a_row_undefined(shape: tuple[int, ...], find: str) -> None:
    """Row 0 has no NaN, row 1 one at its last token, row 2 one at padding."""
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    output = torch.zeros(shape)
    broken = {2: [(1, 1)], 3: [(1, 2, 1), (2, 2, 1)], 4: [(1, 1, 0, 2), (2, 1, 0, 2), (2, 1, 1, 0)]}
    for place in broken[len(shape)]:
        output[place] = float("nan")
    if find == "run":
        packed = {"output_index": torch.where(mask > 0, 7, -1)}
        for inputs in ({"attention_mask": mask}, packed):
            assert find_undefined(output, inputs) == [False, True, False]
    else:
        assert find_undefined_in_artifact(output.numpy(), {"attention_mask": mask.numpy()}) == [1]


@pytest.mark.parametrize("shape", [(), (3,), (3, 4, 2), (3, 2, 4, 4), (3, 5, 2, 2, 2)])
@pytest.mark.parametrize("name", ["attention_mask", "features"])
def test_outputs_of_a_shape_that_only_their_task_knows_are_not_searched(shape: tuple[int, ...], name: str) -> None:
    assert find_undefined(torch.full(shape, float("nan")), {name: torch.ones(3, 5)}) == []


def test_tags_whose_outputs_are_nan_are_an_error() -> None:
    task = TokenClassification(max_length=8, vocab_size=100, tokenizer=None, lowercase=True)
    task.fit(Dataset.from_dict({"words": [["a", "b"], ["c"]], "tags": [["B-X", "O"], ["O"]]}))

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        output = torch.zeros(*inputs["attention_mask"].shape, 2)
        output[0] = float("nan")  # the longest row comes first
        return output

    rows = [InputRow(number, f"row {number}", {"words": words}) for number, words in enumerate([["c"], ["a", "b"]])]
    (window,) = Predictor(task, forward, "padded", 2, 1).predict(iter(rows), RowCounts())
    assert [prediction.get("error") for _, prediction in window] == [None, "row 1: the output of the model is NaN."]
