"""The predictions of an evaluation: they agree with its loss and metrics, for every task and layout."""

import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch import Tensor, nn

from tests.support.hostile_files import replace_metadata
from tests.support.jobs import rows, spans_of
from tests.support.stored_predictions import write_predictions
from tests.support.token_targets import batch_of, decoder, encoder, fitted
from trainer.config.metrics import kind_of
from trainer.deferred_logits import deferral
from trainer.distributed.ranks import Ranks
from trainer.errors import CheckpointError
from trainer.evaluate import evaluate
from trainer.intervals.confidence import metric_intervals
from trainer.loss.binary_cross_entropy import BinaryCrossEntropy
from trainer.loss.cosine_embedding import CosineEmbedding
from trainer.loss.crf import Crf
from trainer.loss.cross_entropy import CrossEntropy
from trainer.loss.global_pointer import GlobalPointer
from trainer.loss.info_nce import InfoNce
from trainer.loss.mse import Mse
from trainer.precision import Precision
from trainer.predictions import (
    GROUP_ROWS,
    TOP,
    Kind,
    predictions_schema,
    predictions_writer,
    read_about,
    read_batches,
    read_predictions,
)
from trainer.protocols import Batch, Batching, Loss
from trainer.row_recorder import RowRecorder, prediction_kind
from trainer.task.causal_lm import CausalLm
from trainer.task.masked_lm import MaskedLm
from trainer.task.multilabel_classification import MultilabelClassification
from trainer.task.named_metrics import build_named_metric, prepare_classes, prepare_labels
from trainer.task.regression import Regression
from trainer.task.sentence_embedding import SentenceEmbedding
from trainer.task.span_classification import SpanClassification
from trainer.task.text_classification import TextClassification
from trainer.task.token_classification import TokenClassification

CPU = torch.device("cpu")
TEXTS: dict[str, Any] = {"max_length": 16, "vocab_size": 200, "tokenizer": None, "lowercase": True}
VIEWS: dict[str, Any] = {"evaluate_pairs": False, "threshold": None, "dim": None, **TEXTS}
LINES = [text for text, _ in rows(23)]
WORDS = [text.split() for text in LINES]
COLUMNS: dict[str, list[Any]] = {
    "text": LINES,
    "label": [label for _, label in rows(23)],
    "labels": [sorted({label, *words[0][:1]}) for (_, label), words in zip(rows(23), WORDS, strict=True)],
    "value": [[float(len(words)), float(number)] for number, words in enumerate(WORDS)],
    "words": WORDS,
    "tags": [["B-long" if len(word) > 5 else "O" for word in words] for words in WORDS],
    "positive": [" ".join(words[:2]) for words in WORDS],
    "negative": [" ".join(words[1:4]) for words in reversed(WORDS)],
    "text_pair": [" ".join(words[:2]) for words in WORDS],
    "score": [float(number % 2) for number in range(23)],
    "spans": [spans_of(text) for text in LINES],
}
CE = CrossEntropy(None, 0.1, -100)


def crf(*between: Sequence[float]) -> Crf:
    """Return a CRF with these scores of transitions."""
    loss = Crf(False, -100, len(between))
    loss.between.data = torch.tensor(between)
    return loss


def pointer() -> GlobalPointer:
    """Return a loss whose scores are above 0 for some spans."""
    torch.manual_seed(1)
    loss = GlobalPointer(8, 2)
    nn.init.zeros_(loss.boundaries.bias)
    return loss


def span_encoder(task: Any) -> nn.Module:
    return encoder(task, num_outputs=16)


class Case(NamedTuple):
    task: Any
    loss: Loss
    layouts: tuple[Batching, ...] = ("packed",)
    model: Callable[[Any], nn.Module] = encoder


CASES = {
    "class": Case(TextClassification(**TEXTS), CE),
    "labels": Case(MultilabelClassification(threshold=0.45, **TEXTS), BinaryCrossEntropy(None, 0.0, -100)),
    "values": Case(Regression(**TEXTS), Mse()),
    "tags": Case(TokenClassification(**TEXTS), CE, ("packed", "padded")),
    "sequences": Case(TokenClassification(**TEXTS), crf([-2.0, 2.0], [3.0, -4.0]), ("packed", "padded")),
    "spans": Case(SpanClassification(span_end="exclusive", **TEXTS), pointer(), ("packed", "padded"), span_encoder),
    "masked": Case(MaskedLm(mask_share=0.3, whole_words=False, **TEXTS), CE, ("packed", "padded")),
    "causal": Case(CausalLm(**TEXTS), CE, ("packed", "full_rows", "padded"), decoder),
    "pairs": Case(SentenceEmbedding(supervision="pairs", **VIEWS), InfoNce(0.1, False)),
    "triplets": Case(SentenceEmbedding(supervision="triplets", **VIEWS), InfoNce(0.1, False)),
    "alone": Case(SentenceEmbedding(supervision="none", **VIEWS), InfoNce(0.1, False)),
    "scored": Case(SentenceEmbedding(supervision="scored", **VIEWS), CosineEmbedding(0.0)),
}


def metric_kind(task: Any) -> str:
    return kind_of(task.target, level=task.info().output_level, causal=getattr(task, "causal", None))


def record(
    case: Case, batching: Batching, *, deferred: bool = False, names: Sequence[str] = ()
) -> tuple[Any, pa.Table, dict[str, float]]:
    """Return the fitted task, its rows, and its values, with those of the named metrics."""
    task, encoded = fitted(case.task, **{name: COLUMNS[name] for name in case.task.columns()})
    schema = predictions_schema(prediction_kind(task), several_values=case.task.target == "values", about={})
    written: list[pa.Table] = []
    origins = lambda ids: {"file": [f"f{i}" for i in ids], "line": list(ids)}  # noqa: E731
    metrics = task.metrics()
    kind, outputs = metric_kind(task), task.info().num_outputs or 0
    prepare = {
        "multi_hot": prepare_labels,
        "values": lambda output, target: (task.in_units(output), task.in_units(target)),
    }
    decide = task.decide if kind == "multi_hot" else None
    prepared = prepare.get(kind, prepare_classes)
    metrics.add_metrics({name: build_named_metric(name, kind, outputs, prepared, decide) for name in names})
    recorder = RowRecorder(task, case.loss, schema, origins, written.append, "mrr" in metrics, "uniformity" in metrics)
    ids = [*range(len(encoded))]
    batches = [batch_of(task, encoded, ids[start : start + 9], batching) for start in range(0, len(ids), 9)]
    model = case.model(task)
    with deferral(model, deferred=deferred):
        values = evaluate(
            model, case.loss, batches, metrics, precision=Precision("fp32", CPU), device=CPU, recorder=recorder
        )
    recorder.finish(Ranks())
    return task, pa.concat_tables(written), values


@pytest.mark.parametrize(("name", "batching"), [(name, each) for name, case in CASES.items() for each in case.layouts])
def test_rows_add_up_to_the_loss_and_agree_with_the_metrics(name: str, batching: Batching) -> None:
    _, table, values = record(CASES[name], batching)
    columns = table.to_pydict()
    assert columns["row"] == columns["line"] == [*range(len(table))]
    assert columns["file"][-1] == f"f{len(table) - 1}"
    counts = np.array(columns["num_targets"])
    if name in ("pairs", "triplets", "alone"):  # the loss is a statistic of the batch
        assert columns["loss"] == [None] * len(table)
    else:
        assert (np.array(columns["loss"]) * counts).sum() / counts.sum() == pytest.approx(values["loss"], rel=1e-5)
    if name == "triplets":
        assert np.mean(columns["num_right"]) == pytest.approx(values["triplet_accuracy"])
        assert 0 < np.mean(columns["num_right"]) < 1
    elif name == "spans":
        found = [
            len({*target} & {*answer}) for target, answer in zip(columns["target"], columns["prediction"], strict=True)
        ]
        assert columns["num_right"] == found
        assert sum(found) / sum(map(len, columns["target"])) == pytest.approx(values["entity_recall"])
        assert sum(found) / sum(map(len, columns["prediction"])) == pytest.approx(values["entity_precision"])
        assert 0 < sum(found) < sum(map(len, columns["target"]))
    elif columns["num_right"][0] is not None:
        assert sum(columns["num_right"]) / counts.sum() == pytest.approx(values["accuracy"])
    answers = list(zip(columns["target"], columns["prediction"], strict=True))
    if name == "class":
        assert np.mean([target == answer for target, answer in answers]) == pytest.approx(values["accuracy"])
        assert columns["target"] == COLUMNS["label"]
    elif name == "labels":
        assert np.mean([{*target} == {*answer} for target, answer in answers]) == pytest.approx(values["exact_match"])
        assert columns["target"] == COLUMNS["labels"]
    elif name == "values":
        assert np.allclose(columns["target"], COLUMNS["value"], atol=1e-5)
        errors = np.abs(np.array(columns["prediction"]) - np.array(columns["target"]))
        assert errors.mean() == pytest.approx(values["mae"], rel=1e-5)
    elif name in ("tags", "sequences"):
        right = [a == b for target, answer in answers for a, b in zip(target, answer, strict=True)]
        assert np.mean(right) == pytest.approx(values["accuracy"])
        assert columns["target"][0] == COLUMNS["tags"][0][: len(columns["target"][0])]
    elif name == "scored":
        assert np.corrcoef(*zip(*answers, strict=True))[0, 1] == pytest.approx(values["pearson"], abs=1e-5)
    elif name in ("pairs", "triplets", "alone"):
        assert np.log(np.mean(columns["closeness"])) == pytest.approx(values["uniformity"], abs=1e-6)
    if name in ("pairs", "triplets"):
        assert np.mean([1 / rank for rank in columns["rank"]]) == pytest.approx(values["mrr"])
        assert np.mean([rank == 1 for rank in columns["rank"]]) == pytest.approx(values["recall_at_1"])
        assert np.mean([2 - 2 * answer for _, answer in answers]) == pytest.approx(values["alignment"], rel=1e-5)
    if name in ("masked", "causal"):
        assert columns["prediction"] == columns["target"] == [None] * len(table)


@pytest.mark.parametrize("name", ["tags", "sequences", "spans", "masked", "causal"])
def test_a_row_does_not_depend_on_the_layout(name: str) -> None:
    padded, *others = (record(CASES[name], batching)[1] for batching in reversed(CASES[name].layouts))
    losses = padded["loss"].to_numpy()
    assert len({*losses.tolist()}) > len(losses) / 2
    for table in others:
        assert np.allclose(table["loss"].to_numpy(), losses, rtol=1e-4)
        assert table.drop_columns(["loss"]) == padded.drop_columns(["loss"])


def test_predicted_tags_are_the_best_sequence() -> None:
    pushed = crf([-50.0, 0.0], [0.0, -50.0])
    _, table, values = record(CASES["sequences"]._replace(loss=pushed), "packed")
    assert all(one != other for row in table["prediction"].to_pylist() for one, other in pairwise(row))
    assert values["accuracy"] < 1


@pytest.mark.parametrize("name", ["class", "labels"])
def test_probabilities_belong_to_the_classes_in_order(name: str) -> None:
    task, table, _ = record(CASES[name], "packed")
    names, columns = task.info().class_names, table.to_pydict()
    probabilities = np.array(columns["probabilities"])
    assert probabilities.shape == (len(table), len(names))
    if name == "class":
        assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        assert [names[index] for index in probabilities.argmax(axis=1)] == columns["prediction"]
    else:
        shown = [{label for label, value in zip(names, row, strict=True) if value > 0.45} for row in probabilities]
        assert shown == [{*answer} for answer in columns["prediction"]]
        assert 0 < sum(map(len, shown)) < probabilities.size
    assert columns["top_classes"] == [None] * len(table)


@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_deferred_logits_give_the_same_rows(batching: Batching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.deferred_logits.MIN_ROWS", 5)
    monkeypatch.setattr("trainer.deferred_logits.CHUNK_ELEMENTS", 1)
    _, table, _ = record(CASES["causal"], batching)
    _, deferred, _ = record(CASES["causal"], batching, deferred=True)
    assert np.allclose(deferred["loss"].to_numpy(), table["loss"].to_numpy(), rtol=1e-5)
    assert deferred.drop_columns(["loss"]) == table.drop_columns(["loss"])


class ManyClasses(TextClassification):
    """A class for each text, and outputs that a test makes up."""


def test_of_many_classes_the_most_likely_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.row_recorder.MAX_CLASSES", 20)
    task, _ = fitted(ManyClasses(**TEXTS), text=LINES, label=[f"c{number:02}" for number in range(23)])
    written: list[pa.Table] = []
    schema = predictions_schema("class", several_values=False, about={})
    recorder = RowRecorder(task, CE, schema, lambda ids: {}, written.append)
    logits: Tensor = torch.arange(23.0).roll(3)[None]
    batch = Batch({}, torch.tensor([4]), 1, (0,))
    recorder.add(batch, batch, logits)
    (row,) = written[0].to_pylist()
    assert row["top_classes"] == [2, 1, 0, *range(22, 22 - TOP + 3, -1)]
    assert row["probabilities"] == pytest.approx(logits.softmax(dim=-1)[0, row["top_classes"]].tolist())
    assert (row["target"], row["prediction"]) == ("c04", "c02")


def test_row_groups_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    schema = predictions_schema("tokens", several_values=False, about={"classes": None})
    count = 2 * GROUP_ROWS + 100
    whole = pa.Table.from_pylist([{"row": row} for row in range(count)], schema)
    contents = set()
    for size in (1000, GROUP_ROWS, count):
        with predictions_writer(tmp_path / "p.parquet", schema) as writer:
            for start in range(0, count, size):
                writer.write(whole[start : start + size])
        contents.add((tmp_path / "p.parquet").read_bytes())
    assert len(contents) == 1
    table, about = read_predictions(tmp_path / "p.parquet", ["row"])
    assert table["row"].to_pylist() == [*range(count)]
    assert about == {"format": 1, "kind": "tokens", "classes": None}


def test_other_files_are_no_predictions(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(CheckpointError, match="cannot be read as Parquet"):
        read_about(path)
    schema = predictions_schema("tokens", several_values=False, about={})
    for metadata in ({}, {b"trainer.predictions": json.dumps({"format": 2}).encode()}):
        with predictions_writer(path, schema.with_metadata(metadata)):
            pass
        with pytest.raises(CheckpointError, match="this version can read"):
            read_about(path)
    with predictions_writer(path, schema) as writer:
        writer.write(pa.Table.from_pylist([{"row": row} for row in range(100)], schema))
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_predictions(path)


def test_predictions_of_other_classes_are_refused(tmp_path: Path) -> None:
    for kind, answers in (("class", ["a", None, "b"]), ("labels", [["a"], [], ["a", "b"]])):
        columns: dict[str, Any] = {"target": answers, "prediction": answers}
        file = write_predictions(tmp_path, kind, classes=["a", "c"], **columns)
        with pytest.raises(CheckpointError, match=r"is damaged: .*: must be one of the classes, got 'b'"):
            read_predictions(file)
        read_predictions(write_predictions(tmp_path, kind, classes=["a", "b"], **columns))


PAIR = {"target": ["a", "b"], "prediction": ["b", "b"]}
STRANGE: dict[str, tuple[Kind, list[str] | None, dict[str, list[Any]], str]] = {
    "a row without a number": ("class", ["a", "b"], {**PAIR, "row": [0, None]}, "row: must not be null"),
    "no number of targets": ("class", None, {**PAIR, "num_targets": [1, None]}, "num_targets: must not be null"),
    "a class that occurs twice": ("class", ["a", "b", "a"], PAIR, "classes: must not contain a name twice"),
    "a label that is null": ("labels", None, {"target": [[None]], "prediction": [[]]}, "target: a list must not"),
    "a number that is null": ("values", None, {"target": [[1.0]], "prediction": [[None]]}, "prediction: a list must"),
    "a tag too few": ("tags", None, {"target": [["O", "O"]], "prediction": [["O"]]}, "a tag for each tag of the tar"),
    "no tags": ("tags", None, {"target": [["O", "O"]], "prediction": [None]}, "a tag for each tag of the target"),
    "no span": ("spans", None, {"target": [["0:a:x"]], "prediction": [[]]}, "must be a span such as 0:2:person"),
    "a long position": ("spans", None, {"target": [["0:" + "9" * 5000 + ":x"]], "prediction": [[]]}, "must be a span"),
    "a probability too few": (
        "class",
        ["a", "b"],
        {**PAIR, "probabilities": [[0.5], [0.5]]},
        "probabilities: must contain one of each class",
    ),
    "probabilities that differ in number": (
        "class",
        None,
        {**PAIR, "probabilities": [[0.5], [0.5, 0.5]]},
        "probabilities: must have as many numbers in each row",
    ),
    "classes of some probabilities": (
        "class",
        ["a", "b"],
        {**PAIR, "probabilities": [[0.5], [0.5]], "top_classes": [[0], None]},
        "top_classes: must not be null",
    ),
    "a rank of 0": ("similarity", None, {"prediction": [0.5], "rank": [0]}, "rank: must be at least 1"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_values_that_no_evaluation_writes_are_damage(name: str, tmp_path: Path) -> None:
    kind, classes, columns, message = STRANGE[name]
    file = write_predictions(tmp_path, kind, classes=classes, **columns)
    for read in (lambda: read_predictions(file), lambda: [*read_batches(file, parquet.read_schema(file).names)]):
        with pytest.raises(CheckpointError, match=f"is damaged: .*{re.escape(message)}"):
            read()


def test_predictions_of_earlier_versions_are_read(tmp_path: Path) -> None:
    file = write_predictions(tmp_path, "similarity", prediction=[0.5, 0.25], rank=[1, 2], num_targets=[1, 1])
    table, _ = read_predictions(file)
    parquet.write_table(table.drop_columns(["input_digest"]), file)
    assert "closeness" in read_predictions(file)[0].column_names
    parquet.write_table(table.drop_columns(["closeness", "input_digest"]), file)
    columns = ["prediction", "rank", "closeness", "input_digest"]
    assert read_predictions(file, columns)[0].column_names == ["prediction", "rank"]
    assert "closeness" not in read_predictions(file)[0].column_names
    assert [len(batch) for batch in read_batches(file, ["prediction"])] == [2]
    intervals = metric_intervals(*read_predictions(file), {"mrr": 0.75, "uniformity": -1.0})
    assert intervals.by_name.keys() == {"mrr"}
    assert intervals.missing.keys() == {"uniformity"}


def test_metadata_that_are_nested_deeply_are_refused(tmp_path: Path) -> None:
    file = write_predictions(tmp_path, "values", prediction=[0.5], target=[1.0])
    replace_metadata(file, lambda _: b"[" * 100_000)
    with pytest.raises(CheckpointError, match="is damaged: is nested too deeply"):
        read_predictions(file)
