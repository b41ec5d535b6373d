"""Checks that hold for every task: stored state, fingerprint, examples, and equal results in every layout."""

import json
import pickle
from collections.abc import Mapping
from io import BytesIO
from typing import Any, get_args

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from PIL import Image

from trainer.data.batch_plan import BatchIndices
from trainer.data.batches import Batches
from trainer.export.cases import forward_of, proof_cases
from trainer.model.linear import Linear
from trainer.protocols import Batching
from trainer.task.causal_lm import CausalLm
from trainer.task.image_classification import ImageClassification
from trainer.task.masked_lm import MaskedLm
from trainer.task.multilabel_classification import MultilabelClassification
from trainer.task.pair_classification import PairClassification
from trainer.task.regression import Regression
from trainer.task.sentence_embedding import SentenceEmbedding
from trainer.task.span_classification import SpanClassification
from trainer.task.tabular_classification import TabularClassification
from trainer.task.tabular_regression import TabularRegression
from trainer.task.text_classification import TextClassification
from trainer.task.token_classification import TokenClassification


def _image(seed: int) -> dict[str, Any]:
    data = BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=(8, 6), dtype=np.uint8)
    Image.fromarray(pixels).save(data, format="PNG")
    return {"bytes": data.getvalue(), "path": None}


TEXTS = ["a red apple", "a green pear", "an old saw", "the new hammer and the saw again", "red and green", "saw"]
COLUMNS: dict[str, list[Any]] = {
    "text": TEXTS,
    "text_pair": TEXTS[::-1],
    "positive": TEXTS[::-1],
    "negative": TEXTS[3:] + TEXTS[:3],
    "label": ["fruit", "fruit", "tool", "tool", "fruit", "tool"],
    "labels": [["fruit", "red"], ["fruit"], ["tool"], ["tool", "tool"], ["red"], []],
    "value": [[1.0, 5.0], [2.0, 3.0], [4.0, 4.0], [9.0, 0.0], [2.0, 5.0], [6.0, 1.0]],
    "score": [5.0, 4.0, 2.0, 0.0, 5.0, 1.0],
    "words": [text.split() for text in TEXTS],
    "tags": [["O"] * (len(text.split()) - 1) + ["B-X"] for text in TEXTS],
    "spans": [[{"start": 0, "end": len(text), "label": "all"}, {"start": 0, "end": 1, "label": "X"}] for text in TEXTS],
    "features": [{"size": float(size), "color": color} for size, color in enumerate(["red", None, "green"] * 2)],
    "image": [_image(seed) for seed in range(6)],
}
TEXT: dict[str, Any] = {"max_length": 8, "vocab_size": 150, "tokenizer": None, "lowercase": True}
TEXT_CHANGES: list[dict[str, Any]] = [{"max_length": 9}, {"vocab_size": 151}, {"lowercase": False}]
MASKED = {**TEXT, "mask_share": 0.15, "whole_words": False}
EMBEDDING = {**TEXT, "supervision": "pairs", "evaluate_pairs": False, "threshold": None, "dim": None}
IMAGE = {"size": "auto", "channels": "auto", "resize": "stretch", "mean": "auto", "std": "auto", "augment": {}}
IMAGE_CHANGES: list[dict[str, Any]] = [
    {"size": 4},
    {"channels": 1},
    {"resize": "crop"},
    {"channels": 1, "mean": [0.5]},
    {"channels": 1, "std": [0.5]},
]
EMBEDDING_CHANGES: list[dict[str, Any]] = [
    {"supervision": "none"},
    {"supervision": "none", "evaluate_pairs": True},
    {"supervision": "triplets"},
    {"supervision": "scored"},
    {"supervision": "scored", "threshold": 3.0},
]
# Task, arguments, changes that give another encoding, and a change that gives the same one.
TASKS: dict[str, tuple[Any, dict[str, Any], list[dict[str, Any]], dict[str, Any]]] = {
    "text_classification": (TextClassification, TEXT, TEXT_CHANGES, {}),
    "multilabel_classification": (
        MultilabelClassification,
        {**TEXT, "threshold": 0.5},
        TEXT_CHANGES,
        {"threshold": 0.3},
    ),
    "pair_classification": (PairClassification, TEXT, TEXT_CHANGES, {}),
    "token_classification": (TokenClassification, TEXT, TEXT_CHANGES, {}),
    "span_classification": (
        SpanClassification,
        {**TEXT, "span_end": "exclusive"},
        [*TEXT_CHANGES, {"span_end": "inclusive"}],
        {},
    ),
    "regression": (Regression, TEXT, TEXT_CHANGES, {}),
    "causal_lm": (CausalLm, TEXT, TEXT_CHANGES, {}),
    # Masking is not encoding: another share finds the same encoded texts.
    "masked_lm": (MaskedLm, MASKED, TEXT_CHANGES, {"mask_share": 0.4, "whole_words": True}),
    "sentence_embedding": (SentenceEmbedding, EMBEDDING, TEXT_CHANGES + EMBEDDING_CHANGES, {"dim": 7}),
    "image_classification": (ImageClassification, IMAGE, IMAGE_CHANGES, {"augment": {"flip": 0.5}}),
    "tabular_classification": (TabularClassification, {"max_categories": 9}, [{"max_categories": 8}], {}),
    "tabular_regression": (TabularRegression, {"max_categories": 9}, [{"max_categories": 8}], {}),
}
FILES = {
    "text_classification": {"labels.json", "tokenizer.json"},
    "multilabel_classification": {"labels.json", "threshold.json", "tokenizer.json"},
    "pair_classification": {"labels.json", "tokenizer.json"},
    "token_classification": {"tags.json", "tokenizer.json"},
    "span_classification": {"labels.json", "tokenizer.json"},
    "regression": {"values.json", "tokenizer.json"},
    "causal_lm": {"tokenizer.json"},
    "masked_lm": {"tokenizer.json"},
    "sentence_embedding": {"tokenizer.json"},
    "image_classification": {"labels.json", "image.json"},
    "tabular_classification": {"labels.json", "table.json"},
    "tabular_regression": {"values.json", "table.json"},
}


def columns_of(task: Any) -> dict[str, list[Any]]:
    return {name: COLUMNS[name] for name in task.columns()}


def fit(task: Any) -> Any:
    columns = columns_of(task)
    features = Features({"text": Value("string"), "labels": List(Value("string"))}) if "labels" in columns else None
    task.fit(Dataset.from_dict(columns, features=features))
    return task


def as_lists(columns: Mapping[str, Any]) -> str:
    return json.dumps({name: list(values) for name, values in columns.items()}, default=_to_list)


def _to_list(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value.tolist()


@pytest.mark.parametrize("name", TASKS)
def test_restored_state_gives_the_same_task(name: str) -> None:
    task_class, arguments, changes, _ = TASKS[name]
    for change in [{}, *(changes if name == "sentence_embedding" else [])]:
        task, copy = fit(task_class(**(arguments | change))), task_class(**(arguments | change))
        copy.load_state_dict(json.loads(json.dumps(task.state_dict())))

        assert copy.info() == task.info()
        assert copy.monitor == task.monitor
        assert copy.state_dict() == task.state_dict() == pickle.loads(pickle.dumps(task)).state_dict()
        assert as_lists(copy.encode(columns_of(task))) == as_lists(task.encode(columns_of(task)))
        assert copy.artifact_files() == task.artifact_files()
        assert task.artifact_files().keys() == FILES[name]


@pytest.mark.parametrize("name", TASKS)
def test_fingerprint_changes_with_the_encoding_only(name: str) -> None:
    task_class, arguments, changes, neutral = TASKS[name]
    fingerprints = {task_class(**(arguments | change)).fingerprint() for change in [{}, *changes]}

    assert len(fingerprints) == len(changes) + 1
    task = task_class(**arguments)
    before = task.fingerprint()
    assert fit(task).fingerprint() == before == task_class(**(arguments | neutral)).fingerprint()


@pytest.mark.parametrize("name", TASKS)
def test_examples_match_the_axes(name: str) -> None:
    task_class, arguments, _, _ = TASKS[name]
    task = fit(task_class(**arguments))
    sizes = {"batch": 5, **{axis: high - 1 for axis, (_, high) in task.axis_limits().items()}}
    inputs = task.example(sizes, np.random.default_rng(0))
    real = task.model_inputs(task.encode_inputs({role: COLUMNS[role] for role in task.input_columns()}), "padded")

    assert inputs.keys() == task.axes().keys() == real.keys()
    for input_name, value in inputs.items():
        assert value.dtype == real[input_name].dtype
        assert all(value.shape[place] == sizes[axis] for place, axis in task.axes()[input_name].items())
    if "attention_mask" in inputs:
        assert inputs["attention_mask"][0].all()
        assert inputs["attention_mask"].sum() < inputs["attention_mask"].numel()
        assert inputs["input_ids"].max() < task.info().vocab_size


@pytest.mark.parametrize(
    "name", ["text_classification", "multilabel_classification", "pair_classification", "regression"]
)
def test_every_layout_gives_the_same_outputs_and_targets(name: str) -> None:
    task_class, arguments, _, _ = TASKS[name]
    task = fit(task_class(**arguments))
    rows = Dataset.from_dict(task.encode(columns_of(task)))
    info = task.info()
    torch.manual_seed(0)
    model = Linear(info.num_outputs, vocab_size=info.vocab_size, num_token_types=info.num_token_types or 1)
    batches = {
        batching: Batches(rows, task, batching, seed=0)[BatchIndices(0, (5, 0, 1, 2, 3, 4))]
        for batching in get_args(Batching)
    }
    padded = batches["padded"]
    expected = model(**padded.inputs)
    for batch in batches.values():
        assert batch.target is not None
        assert torch.equal(batch.target, padded.target)
        assert (batch.num_samples, batch.ids) == (6, (5, 0, 1, 2, 3, 4))
        torch.testing.assert_close(model(**batch.inputs), expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        cases = proof_cases(task, forward_of(model))
    assert all(case.inputs.keys() == task.axes().keys() for case in cases)
    assert any(case.padded for case in cases)
