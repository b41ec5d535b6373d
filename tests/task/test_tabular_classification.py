import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

from tests.support.predictions import predict
from trainer.data.batch_plan import BatchIndices, BatchPlan
from trainer.data.batches import Batches
from trainer.errors import ConfigError, DataError, RowError
from trainer.export.cases import forward_of, proof_cases, timed_inputs, traced_inputs
from trainer.files.mapped import RowReader
from trainer.sample_rng import SampleRng
from trainer.task.tabular_classification import TabularClassification

FEATURES = [
    {"size": 1.0, "color": "red"},
    {"size": 2.0, "color": None},
    {"size": None, "color": "green"},
    {"size": 9.0, "color": "red"},
]
LABELS = ["fruit", "fruit", "tool", "fruit"]


def dataset(labels: list[str] = LABELS) -> Dataset:
    return Dataset.from_dict({"features": FEATURES, "label": labels, "row": list(range(len(labels)))})


def task() -> TabularClassification:
    return TabularClassification(max_categories=10)


def fitted() -> TabularClassification:
    made = task()
    made.fit(dataset())
    return made


def encoded(made: TabularClassification) -> Dataset:
    rows = dataset()
    return rows.map(made.encode, batched=True, batch_size=3, remove_columns=rows.column_names)


def test_info_describes_the_training_split() -> None:
    made = fitted()

    assert made.class_target.classes.labels == ["fruit", "tool"]
    assert made.info().arguments() == {
        "num_features": 6,
        "num_outputs": 2,
        "class_counts": [3, 1],
        "class_names": ["fruit", "tool"],
        "num_train": 4,
    }


def test_batches_are_equal_in_every_layout() -> None:
    made = fitted()
    rows = encoded(made)
    batch = Batches(rows, made, "packed", seed=0)[BatchIndices(0, (2, 0))]
    padded = made.collate(RowReader(rows).read([2, 0]), SampleRng(0, 0, (2, 0)), "padded")

    assert batch.target is not None
    assert batch.target.tolist() == [1, 0]
    assert (batch.num_samples, batch.ids) == (2, (2, 0))
    assert batch.inputs.keys() == {"features"}
    assert torch.equal(batch.inputs["features"], padded.inputs["features"])
    expected = made.table.encode([FEATURES[2], FEATURES[0]])["features"]
    np.testing.assert_array_equal(batch.inputs["features"].numpy(), np.stack(expected))


def test_rows_have_no_length() -> None:
    made = fitted()

    assert made.lengths(encoded(made)) is None
    assert sorted(BatchPlan(4, 3, 0, None).batch(0).ids) != []


def test_unusable_labels_and_cells_are_errors() -> None:
    with pytest.raises(DataError, match="at least 2 different labels"):
        task().fit(dataset(["same"] * 4))
    with pytest.raises(RowError, match=r"label: does not occur in training, got 'tol'\. Did you mean tool") as caught:
        fitted().encode({"features": FEATURES[:2], "label": ["fruit", "tol"]})
    assert (caught.value.position, caught.value.role) == (1, "label")
    with pytest.raises(RowError, match="size: must be a number") as caught:
        fitted().encode({"features": [{"size": "big", "color": None}], "label": ["fruit"]})
    assert (caught.value.position, caught.value.role) == (0, "features")


def test_metrics_and_predictions_are_those_of_classes() -> None:
    made = fitted()
    metrics = made.metrics()
    metrics.update(torch.tensor([[2.0, 1], [2, 1], [2, 1], [1, 2]]), torch.tensor([0, 0, 1, 1]))

    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(
        {"accuracy": 3 / 4, "macro_f1": (4 / 5 + 2 / 3) / 2}
    )
    assert predict(made, torch.tensor([[-1.0, 1.0]])) == [
        {"label": "tool", "probability": pytest.approx(1 / (1 + np.exp(-2)))}
    ]


class OnFeatures(nn.Module):
    def __init__(self, made: TabularClassification) -> None:
        super().__init__()
        self.head = nn.Linear(made.info().num_features, made.info().num_outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.head(features)
        return output


def test_export_cases_vary_only_the_batch_size() -> None:
    made = fitted()
    with torch.no_grad():
        cases = proof_cases(made, forward_of(OnFeatures(made)))

    assert made.axes() == {"features": {0: "batch"}}
    assert traced_inputs(made)["features"].shape == (2, 6)
    assert [case.sizes for case in cases] == [{"batch": 1}, {"batch": 3}, {"batch": 8}]
    assert not any(case.padded for case in cases)
    assert [sizes for sizes, _ in timed_inputs(made)] == [{"batch": 1}, {"batch": 8}]


def test_max_categories_must_be_at_least_1() -> None:
    with pytest.raises(ConfigError, match=r"^max_categories: must be at least 1, got 0"):
        TabularClassification(max_categories=0)
