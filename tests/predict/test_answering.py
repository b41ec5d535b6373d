"""Rows to answers: their order, their batches, their faults, and the memory they take."""

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
from trainer.predict import answering
from trainer.predict.answering import Answering, Tally, check_task
from trainer.predict.asked import Reading, Row, rows_of
from trainer.protocols import Batching
from trainer.task.causal_lm import CausalLm
from trainer.task.text_classification import TextClassification

TEXTS = [f"{'word ' * (number * 7 % 11)}end" for number in range(40)]


@pytest.fixture(scope="module")
def task() -> TextClassification:
    made = TextClassification(max_length=8, vocab_size=100, tokenizer=None, lowercase=True)
    made.fit(Dataset.from_dict({"text": TEXTS, "label": ["even", "odd"] * 20}))
    return made


def lengths(inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits that say how many tokens each sample has."""
    packed = "token_index" in inputs
    counts = (inputs["token_index"] >= 0).sum(dim=1) if packed else inputs["attention_mask"].sum(dim=1)
    return torch.stack([counts.float() / 4, torch.zeros(len(counts))], dim=1)


def rows(texts: list[str]) -> Iterator[Row | None]:
    for number, text in enumerate(texts, 1):
        yield Row(number, f"row {number}", {"text": text}, named={"number": number})


@pytest.mark.parametrize("batching", ["packed", "padded"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_come_in_the_order_of_the_rows(task: TextClassification, batching: Batching, batch_size: int) -> None:
    sizes: list[list[int]] = []

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        output = lengths(inputs)
        sizes.append((output[:, 0] * 4).int().tolist())
        return output

    tally = Tally()
    found = [
        each
        for window in Answering(task, forward, batching, batch_size, 1).windows(rows(TEXTS), tally)
        for each in window
    ]
    counts = [min(8, len(text.split()) + 2) for text in TEXTS]

    assert [answer["number"] for _, answer in found] == list(range(1, 41))
    for count, (_, answer) in zip(counts, found, strict=True):
        assert answer["label"] == "even"
        assert answer["probability"] == pytest.approx(1 / (1 + np.exp(-count / 4)), abs=1e-6)
    span = 16 * batch_size
    windows = [sorted(counts[start : start + span], reverse=True) for start in range(0, 40, span)]
    assert list(chain(*sizes)) == list(chain(*windows))
    assert max(map(len, sizes)) == min(batch_size, 40)
    assert (tally.num_rows, tally.num_faults) == (40, 0)
    assert tally.num_truncated == sum(len(text.split()) > 6 for text in TEXTS)


def test_rows_that_cannot_be_used_are_passed_over(task: TextClassification) -> None:
    def some() -> Iterator[Row | None]:
        yield Row(1, "row 1", None, "row 1: lacks a text.")
        yield Row(2, "row 2", {"text": "end"})
        yield Row(3, "row 3", None, "row 3: is broken.")

    tally = Tally()
    (window,) = Answering(task, lengths, "packed", 2, 1).windows(some(), tally)
    first, second, third = window

    assert first[1] == {"error": first[0].fault} == {"error": "row 1: lacks a text."}
    assert second[1]["label"] == "even"
    assert second[0].fault is None
    assert third[1] == {"error": "row 3: is broken."}
    assert (tally.num_rows, tally.num_faults) == (3, 2)


def test_texts_of_which_the_tokenizer_leaves_nothing() -> None:
    writer = CausalLm(max_length=8, vocab_size=100, tokenizer=None, lowercase=True)
    writer.fit(Dataset.from_dict({"text": TEXTS}))
    size = writer.info().vocab_size

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.zeros(*inputs["output_index"].shape, size)

    tally = Tally()
    (window,) = Answering(writer, forward, "packed", 4, 1).windows(rows(["word end", "\u200b\x01", "word"]), tally)

    assert window[1][1] == {"number": 2, "error": "row 2: text: the tokenizer leaves nothing of it."}
    assert [answer.get("perplexity") for _, answer in window] == [pytest.approx(size), None, None]
    assert tally.num_faults == 1


def test_a_batch_of_many_outputs_is_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CausalLm(max_length=8, vocab_size=100, tokenizer=None, lowercase=True)
    writer.fit(Dataset.from_dict({"text": TEXTS}))
    size = writer.info().vocab_size
    monkeypatch.setattr(answering, "_OUTPUTS", 16 * size)
    shapes = []

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        shapes.append(tuple(inputs["input_ids"].shape))
        return torch.zeros(*inputs["input_ids"].shape, size)

    found = [len(window) for window in Answering(writer, forward, "padded", 64, 1).windows(rows(TEXTS), Tally())]

    assert found == [40]
    assert {rows * width for rows, width in shapes} <= {*range(17)}
    assert min(rows for rows, _ in shapes) == 2
    assert max(rows for rows, _ in shapes) > 2


def test_a_wait_ends_a_window(task: TextClassification) -> None:
    def waiting() -> Iterator[Row | None]:
        yield None
        yield from rows(["a", "b"])
        yield None
        yield from rows(["c"])

    windows = Answering(task, lengths, "packed", 2, 1).windows(waiting(), Tally())
    assert [len(window) for window in windows] == [2, 1]


def test_a_task_without_answers_is_told() -> None:
    class Mine:
        def input_columns(self) -> tuple[str, ...]:
            return ("text",)

    with pytest.raises(
        ConfigError, match=r"task: answers no rows: Mine lacks encode_inputs, model_inputs, predictions\."
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
    size = 1_100 if write is write_parquet else 200  # Parquet becomes Python objects 1,024 rows at a time
    for count in (size, size, 5 * size):  # the first one pays for what is made once
        texts = [f"{number}{'x' * 3_000}" for number in range(count)]
        write(file, texts)
        sizes.append(sum(map(len, texts)))
        del texts
        tracemalloc.start()
        answers = Answering(task, lengths, "padded", 2, 1)
        total = sum(len(window) for window in answers.windows(rows_of(file, Reading(("text",), {})), Tally()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert total == count

    assert peaks[2] - peaks[1] < 0.1 * (sizes[2] - sizes[1])
