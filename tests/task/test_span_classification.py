import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from trainer.data.batch_plan import BatchIndices
from trainer.data.batches import Batches
from trainer.errors import DataError, RowError
from trainer.files.mapped import MappedRows
from trainer.loss.global_pointer import GlobalPointer
from trainer.model.text_encoder import TextEncoder
from trainer.protocols import Batching
from trainer.spans import list_targets
from trainer.targets import compute_loss, with_loss_head
from trainer.task.span_classification import SpanClassification

TEXT: dict[str, Any] = {"max_length": 12, "vocab_size": 150, "tokenizer": None, "lowercase": False}
TEXTS = ["the bank of China in Bern", "Anna met Ben", "no names here at all", "Bern"]
SPANS: list[list[tuple[int, int, str]]] = [
    [(4, 17, "ORG"), (12, 17, "LOC"), (21, 25, "LOC")],
    [(0, 4, "PER"), (9, 12, "PER")],
    [],
    [(0, 4, "LOC"), (0, 4, "ORG")],
]


def dicts(rows: list[list[tuple[int, int, str]]], shift: int = 0) -> list[list[dict[str, Any]]]:
    return [[{"start": start, "end": end + shift, "label": label} for start, end, label in row] for row in rows]


def make(span_end: Any = "exclusive", **changes: Any) -> SpanClassification:
    task = SpanClassification(**(TEXT | changes), span_end=span_end)
    task.fit(Dataset.from_dict({"text": TEXTS, "spans": dicts(SPANS)}))
    return task


def encode(task: SpanClassification, texts: list[str], spans: list[list[tuple[int, int, str]]]) -> Any:
    return task.encode({"text": texts, "spans": dicts(spans)})


def decoded(task: SpanClassification, columns: Any, row: int) -> list[tuple[int, int, str]]:
    """Return the spans of an encoded row in characters."""
    starts, ends = columns["starts"][row], columns["ends"][row]
    return [
        (int(starts[first]), int(ends[last]), task.classes.labels[index])
        for first, last, index in np.array(columns["spans"][row]).reshape(-1, 3)
    ]


def test_spans_are_stored_as_tokens_and_read_back() -> None:
    task = make()
    columns = encode(task, TEXTS, SPANS)
    for row, spans in enumerate(SPANS):
        assert sorted(decoded(task, columns, row)) == sorted(spans)
    assert (task.classes.labels, task.classes.counts) == (["LOC", "ORG", "PER"], [3, 2, 2])
    assert columns["cut"] == columns["unaligned"] == [0, 0, 0, 0]


def test_an_inclusive_end_is_the_last_character() -> None:
    inclusive = make("inclusive").encode({"text": TEXTS, "spans": dicts(SPANS, shift=-1)})
    exclusive = encode(make(), TEXTS, SPANS)
    assert [each.tolist() for each in inclusive["spans"]] == [each.tolist() for each in exclusive["spans"]]


def test_spaces_at_the_ends_of_a_span_do_not_count_and_equal_spans_are_one() -> None:
    task = make()
    columns = encode(task, ["Anna met Ben"], [[(0, 5, "PER"), (0, 4, "PER"), (8, 12, "PER")]])
    assert decoded(task, columns, 0) == [(0, 4, "PER"), (9, 12, "PER")]


def test_characters_outside_of_ascii_count_as_one() -> None:
    task = make()
    text = "Anna 😀 met 北京 in Bern"
    columns = encode(task, [text], [[(0, 4, "PER"), (11, 13, "LOC"), (17, 21, "LOC")]])
    assert [text[start:end] for start, end, _ in decoded(task, columns, 0)] == ["Anna", "北京", "Bern"]


@pytest.mark.parametrize(
    ("span_end", "span", "message"),
    [
        ("exclusive", (3, 3), r"a span has no characters, got \[3, 3, 'PER'\]\. Set task\.span_end=inclusive"),
        ("exclusive", (4, 3), r"a span has no characters, got \[4, 3, 'PER'\]\. Places are counted in characters"),
        ("inclusive", (9, 12), r"a span ends beyond its text of 12 characters, .*Set task\.span_end=exclusive"),
        ("inclusive", (9, 13), r"a span ends beyond its text of 12 characters, .*Places are counted"),
        ("exclusive", (9, 13), r"a span ends beyond its text of 12 characters, .*Places are counted"),
    ],
)
def test_a_span_that_no_text_has_is_an_error_with_a_remedy(span_end: str, span: tuple[int, int], message: str) -> None:
    with pytest.raises(RowError, match=rf"^spans: {message}"):
        encode(make(span_end), ["Anna met Ben"], [[(*span, "PER")]])


def test_an_unknown_label_and_data_without_spans_are_errors() -> None:
    with pytest.raises(RowError, match=r"^spans: does not occur in training, got 'XXX'"):
        encode(make(), ["Anna"], [[(0, 4, "XXX")]])
    rows = Dataset.from_dict({"text": TEXTS, "spans": dicts(SPANS)}).select([2])
    with pytest.raises(DataError, match=r"^spans: needs at least 1 different label in training"):
        SpanClassification(**TEXT, span_end="exclusive").fit(rows)


def test_spans_that_tokens_cannot_express_are_counted(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    task = make(max_length=6)
    texts = [*TEXTS, "Anna met Ben"]
    spans = [*SPANS, [(0, 3, "PER"), (1, 4, "PER"), (8, 11, "PER")]]
    columns = encode(task, texts, spans)
    assert columns["cut"] == [1, 0, 0, 0, 0]
    assert columns["unaligned"] == [0, 0, 0, 0, 3]
    assert columns["fits_other"] == [0, 0, 0, 0, 2]
    rows = MappedRows(Dataset.from_dict({name: list(values) for name, values in columns.items()}).data)
    with caplog.at_level("INFO"):
        warnings = task.check({"train": rows})
    assert "train: 1 of 10 spans does not fit into 6 tokens; training and scores leave them out" in caplog.text
    assert warnings[0].startswith(
        "train: 3 of 10 spans are neither trained on nor scored: they begin or end inside of a token"
    )
    assert warnings[0].endswith("Set task.span_end=inclusive, with which 2 of them fit")


@pytest.mark.parametrize("batching", ["packed", "full_rows", "padded", "fixed"])
def test_every_layout_has_the_same_targets_scores_and_losses(batching: Batching) -> None:
    task = make()
    rows = Dataset.from_dict({name: list(values) for name, values in encode(task, TEXTS, SPANS).items()})
    model, loss = encoder(task)
    own, padded = (Batches(rows, task, each, seed=0)[BatchIndices(0, (3, 0, 2, 1))] for each in (batching, "padded"))
    assert own.target is not None
    assert padded.target is not None
    width = padded.target.shape[1]
    for each, other in zip(own.target, padded.target, strict=True):
        assert list_targets(each, 3) == list_targets(other, 3)
    assert torch.equal(own.target[:, :width], padded.target)
    assert (own.target[:, width:] == -100).all()
    scores, expected = (with_loss_head(model, loss).eval()(**each.inputs) for each in (own, padded))
    tokens = padded.target[..., 0] != -100
    seen = tokens[:, None, :, None] & tokens[:, None, None, :]
    torch.testing.assert_close(scores[:, :, :width, :width] * seen, expected * seen, rtol=0, atol=1e-5)
    values = [compute_loss(loss, model(**each.inputs), each) for each in (own, padded)]
    torch.testing.assert_close(*values, rtol=1e-5, atol=0)


def encoder(task: SpanClassification) -> tuple[TextEncoder, GlobalPointer]:
    info = task.info()
    torch.manual_seed(0)
    loss = GlobalPointer(8, info.num_outputs)
    sizes: dict[str, Any] = {"dim": 16, "depth": 1, "heads": 2, "hidden": 16, "dropout": 0.0, "pooling": "mean"}
    assert info.vocab_size is not None
    return TextEncoder(info.vocab_size, loss.in_features, 12, "token", **sizes).eval(), loss


def test_metrics_and_predictions_of_perfect_scores() -> None:
    task = make()
    columns = encode(task, TEXTS, SPANS)
    rows = Dataset.from_dict({name: list(values) for name, values in columns.items()})
    batch = Batches(rows, task, "padded", seed=0)[BatchIndices(0, (0, 1, 2, 3))]
    assert batch.target is not None
    width = batch.target.shape[1]
    scores = torch.full((4, 3, width, width), -1.0)
    # Below the diagonal, and at special tokens and padding, scores mean nothing.
    scores[:, :, 0], scores[:, :, -1, -1], scores[:, :, 3, 1] = 5.0, 5.0, 5.0
    for row in range(4):
        for first, last, index in list_targets(batch.target[row], 3):
            scores[row, index, first, last] = 1.0 + index
    metrics = task.metrics()
    metrics.update(scores, batch.target)
    assert {name: value.item() for name, value in metrics.compute().items()} == dict.fromkeys(task.monitors, 1.0)
    answers = task.predictions(
        scores, rows={"text": TEXTS}, encoded=task.encode_inputs({"text": TEXTS}), batching="padded", top=1
    )
    for text, spans, answer in zip(TEXTS, SPANS, answers, strict=True):
        expected = sorted(spans, key=lambda span: (span[0], -span[1], span[2]))
        assert answer["text"] == text
        assert answer["entities"] == [
            {
                **{"type": label, "start": start, "end": end, "text": text[start:end]},
                "probability": pytest.approx(1 / (1 + math.exp(-1 - task.classes.labels.index(label))), abs=1e-6),
            }
            for start, end, label in expected
        ]


def test_metrics_count_spans_of_all_types_and_of_each() -> None:
    task = make()
    target = torch.full((1, 4, 1), -1)
    target[0, 0, 0], target[0, 1, 0] = 1 * 3 + 0, 1 * 3 + 1  # LOC of the tokens 0 and 1, ORG of the token 1
    scores = torch.full((1, 3, 4, 4), -1.0)
    scores[0, 0, 0, 1] = scores[0, 0, 2, 2] = scores[0, 2, 3, 3] = 1.0  # a right one, a wrong one, a wrong type
    metrics = task.metrics()
    metrics.update(scores, target)
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values["entity_precision"] == pytest.approx(1 / 3)
    assert values["entity_recall"] == pytest.approx(1 / 2)
    assert values["entity_f1"] == pytest.approx(2 / 5)
    assert values["macro_f1"] == pytest.approx((2 / 3 + 0 + 0) / 3)
