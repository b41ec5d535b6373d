import logging
from typing import Any, get_args

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.predictions import predict
from trainer.config.signatures import attribute
from trainer.data.batch_plan import BatchIndices
from trainer.data.batches import Batches
from trainer.errors import ConfigError, DataError, RowError
from trainer.export.cases import forward_of, proof_cases
from trainer.loss.cosine_embedding import CosineEmbedding
from trainer.loss.info_nce import InfoNce
from trainer.model.text_encoder import TextEncoder
from trainer.protocols import Batch, Batching, Loss
from trainer.targets import count_targets
from trainer.task.sentence_embedding import SentenceEmbedding, Supervision

TEXTS = ["a red apple", "a green pear", "an old saw and a hammer and a nail", "hammer", "the saw"]
POSITIVES = ["apple", "pear", "saw and nail", "the new hammer and the old hammer and a saw", "a saw"]
NEGATIVES = ["an old nail", "saw", "pear", "green", "apple and pear"]
SCORES = [5.0, 4.0, 2.0, 0.0, 5.0]
COLUMNS = {"text": TEXTS, "positive": POSITIVES, "negative": NEGATIVES, "text_pair": POSITIVES, "score": SCORES}
CASES: list[dict[str, Any]] = [
    {"supervision": "none"},
    {"supervision": "none", "evaluate_pairs": True},
    {"supervision": "pairs"},
    {"supervision": "triplets"},
    {"supervision": "scored"},
    {"supervision": "scored", "threshold": 4.0},
]


def dataset(**changes: Any) -> Dataset:
    return Dataset.from_dict(COLUMNS | changes)


def task(**changes: Any) -> SentenceEmbedding:
    options: dict[str, Any] = {"supervision": "pairs", "evaluate_pairs": False, "threshold": None, "dim": None}
    texts = {"max_length": 8, "vocab_size": 150, "tokenizer": None, "lowercase": True}
    return SentenceEmbedding(**(options | texts | changes))


def fitted(**changes: Any) -> SentenceEmbedding:
    made = task(**changes)
    made.fit(dataset().select_columns(list(made.columns())))
    return made


def encoded(made: SentenceEmbedding) -> Dataset:
    rows = dataset().select_columns(list(made.columns()))
    return rows.map(made.encode, batched=True, batch_size=2, remove_columns=rows.column_names)


def batch(made: SentenceEmbedding, batching: Batching, *, training: bool = True, ids: Any = range(5)) -> Batch:
    return Batches(encoded(made), made, batching, seed=0, training=training)[BatchIndices(0, tuple(ids))]


def encoder(made: SentenceEmbedding, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    facts = {name: getattr(made.info(), name) for name in ("vocab_size", "num_outputs", "max_length")}
    model = TextEncoder(**facts, dim=16, depth=2, heads=2, hidden=32, dropout=dropout, pooling="mean")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def loss_for(made: SentenceEmbedding) -> Loss:
    return CosineEmbedding(0.0) if made.target == "similarity" else InfoNce(0.05, False)


def texts_of(made: SentenceEmbedding, of: Batch) -> list[str]:
    ids, mask = of.inputs["input_ids"], of.inputs["attention_mask"].bool()
    return [made.texts.tokenizer.decode(row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)]


def test_without_supervision_each_text_appears_twice() -> None:
    made = fitted(supervision="none")
    examples = batch(made, "padded", ids=(1, 3))

    assert texts_of(made, examples) == ["a green pear", "a green pear", "hammer", "hammer"]
    assert examples.target is not None
    assert examples.target.tolist() == [[1, 1], [3, 3]]
    assert (examples.num_samples, examples.ids, examples.target.dtype) == (2, (1, 3), torch.int64)
    assert made.columns() == ("text",)


def test_two_views_differ_only_by_dropout() -> None:
    made = fitted(supervision="none")
    for batching in get_args(Batching):
        inputs = batch(made, batching).inputs
        model = encoder(made, dropout=0.1)
        views = model(**inputs).view(5, 2, -1)
        assert not torch.isclose(views[:, 0], views[:, 1], atol=1e-4).all(dim=1).any()
        views = model.eval()(**inputs).view(5, 2, -1)
        torch.testing.assert_close(views[:, 0], views[:, 1], rtol=0, atol=1e-5)


def test_without_supervision_positives_are_for_evaluation_only() -> None:
    made = fitted(supervision="none", evaluate_pairs=True)

    assert made.columns() == ("text", "positive")
    assert texts_of(made, batch(made, "padded", ids=(0, 4))) == ["a red apple"] * 2 + ["the saw"] * 2
    evaluated = batch(made, "padded", training=False, ids=(0, 4))
    assert texts_of(made, evaluated) == ["a red apple", "apple", "the saw", "a saw"]
    assert "new" not in made.texts.tokenizer.get_vocab()
    assert made.monitor == "mrr"


def test_views_of_pairs_and_triplets() -> None:
    pairs, triplets = fitted(), fitted(supervision="triplets")

    for training in (True, False):
        examples = batch(pairs, "padded", training=training, ids=(2, 0))
        assert texts_of(pairs, examples) == ["an old saw and a hammer", "saw and nail", "a red apple", "apple"]
        examples = batch(triplets, "padded", training=training, ids=(4,))
        assert texts_of(triplets, examples) == ["the saw", "a saw", "apple and pear"]
        assert examples.target is not None
        assert examples.target.tolist() == [[4, 4, 4]]
    assert {"apple", "new"} <= pairs.texts.tokenizer.get_vocab().keys()


@pytest.mark.parametrize("options", [options for options in CASES if options != {"supervision": "scored"}])
def test_layouts_give_the_same_loss_and_gradient(options: dict[str, Any]) -> None:
    made = fitted(**options, dim=6)
    loss, model = loss_for(made), encoder(made)
    results = []
    for batching in ("padded", "packed", "bucketed", "fixed"):
        examples = batch(made, batching)  # type: ignore[arg-type]
        assert examples.target is not None
        assert count_targets(loss, examples) == 5
        output: Tensor = model(**examples.inputs)
        gradients = torch.autograd.grad(loss(output, examples.target), list(model.parameters()))
        results.append((output.detach(), torch.cat([gradient.flatten() for gradient in gradients])))
    (padded, expected), *others = results

    assert padded.shape == (5 * (3 if made.supervision == "triplets" else 2), 6)
    for output, gradient in others:
        torch.testing.assert_close(output, padded, rtol=0, atol=1e-5)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_scores_become_similarities() -> None:
    scaled, divided = fitted(supervision="scored"), fitted(supervision="scored", threshold=4.0)
    target = batch(scaled, "padded").target

    assert target is not None
    torch.testing.assert_close(target, torch.tensor([1.0, 0.6, -0.2, -1.0, 1.0]))
    target = batch(divided, "padded").target
    assert target is not None
    assert target.tolist() == [1, 1, -1, -1, 1]
    assert target.dtype == torch.float32
    assert scaled.similarity_target.encode([9.0, -1.0]) == [1, -1]


def test_two_scores_become_exactly_minus_one_and_one() -> None:
    made = task(supervision="scored")
    made.fit(dataset(score=[0.1, 0.7, 0.7, 0.1, 0.7]))

    assert made.similarity_target.encode([0.1, 0.7]) == [-1.0, 1.0]


def test_graded_scores_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for options, is_logged in (({}, True), ({"threshold": 4.0}, False)):
        caplog.clear()
        made = fitted(supervision="scored", **options)
        made.check({"train": encoded(made)})
        assert ("scores of 0 to 5 become similarities of -1 to 1" in caplog.text) is is_logged
        assert caplog.text.count("5 texts") == 2
        assert "train, text_pair: 5 texts" in caplog.text


def test_unusable_scores_are_errors() -> None:
    with pytest.raises(RowError, match="score: must be finite, got nan") as caught:
        fitted(supervision="scored").encode(
            {"text": TEXTS[:2], "text_pair": TEXTS[:2], "score": [1.0, float("nan")]},
        )
    assert (caught.value.position, caught.value.role) == (1, "score")
    with pytest.raises(DataError, match=r"score: must not be the same in every row of training, got \[2\.0\]"):
        task(supervision="scored").fit(dataset(score=[2.0] * 5))
    with pytest.raises(DataError, match=r"task\.threshold: must divide .* 0 to 5, got 5\.5"):
        task(supervision="scored", threshold=5.5).fit(dataset())


def test_invalid_settings_are_errors() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"evaluate_pairs": True}, "^evaluate_pairs: only supervision=none"),
        ({"threshold": 0.5}, "^threshold: only supervision=scored"),
        ({"dim": 0}, "^dim: must be at least 1, got 0"),
        ({"max_length": 2}, "max_length: must be at least 3"),
    ]
    for change, message in cases:
        with pytest.raises(ConfigError, match=message):
            task(**change)


def test_supervision_determines_monitor_and_target() -> None:
    cases: list[tuple[Supervision, str, str]] = [
        ("none", "loss", "views"),
        ("pairs", "mrr", "views"),
        ("scored", "spearman", "similarity"),
    ]
    for supervision, monitor, target in cases:
        made = task(supervision=supervision)

        assert (made.monitor, made.target) == (monitor, target)
        assert monitor in {"loss", *made.metrics().keys()}
        # A loss is held to the target of the task that is made, not to one that the class seems to have.
        assert attribute("trainer.task.sentence_embedding.SentenceEmbedding", "target") is None
        assert attribute("trainer.task.sentence_embedding.SentenceEmbedding", "inputs") == "tokens"


def test_metrics_accept_the_output_of_a_model() -> None:
    for options in CASES:
        made = fitted(**options)
        metrics = made.metrics()
        model = encoder(made).eval()
        for ids in ((0, 1, 2), (3, 4)):
            examples = batch(made, "packed", training=False, ids=ids)
            with torch.no_grad():
                metrics.update(model(**examples.inputs), examples.target)

        assert all(torch.isfinite(value) for value in metrics.compute().values())
        assert ("alignment" in metrics) is (made.target == "views" and len(made.roles) > 1)
        assert ("triplet_accuracy" in metrics) is (made.supervision == "triplets")


def test_training_brings_pairs_together() -> None:
    made = fitted(dim=8)
    model, loss = encoder(made), InfoNce(0.1, True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    examples = batch(made, "packed")
    assert examples.target is not None
    for _ in range(15):
        optimizer.zero_grad()
        loss(model(**examples.inputs), examples.target).backward()
        optimizer.step()
    metrics = made.metrics()
    metrics.update(model(**examples.inputs), examples.target)

    assert metrics.compute()["recall_at_1"] == 1


def test_lengths_include_all_training_views() -> None:
    none, pairs, triplets = (fitted(supervision=name) for name in ("none", "pairs", "triplets"))
    of_none = fitted(supervision="none", evaluate_pairs=True)
    rows = encoded(triplets)
    lengths = [[len(ids) for ids in rows[name]] for name in ("input_ids", "positive_ids", "negative_ids")]

    assert triplets.lengths(rows).tolist() == np.sum(lengths, axis=0).tolist()
    assert pairs.lengths(rows).tolist() == np.sum(lengths[:2], axis=0).tolist()
    assert none.lengths(rows).tolist() == [2 * length for length in lengths[0]]
    assert of_none.lengths(rows).tolist() == none.lengths(rows).tolist()
    assert max(map(len, rows["positive_ids"])) == 8
    assert rows["positive_truncated"] == [False, False, False, True, False]


def test_info_and_predictions() -> None:
    made, projected = fitted(), fitted(dim=3)

    assert made.info().arguments() == {**made.texts.info_fields(), "num_outputs": None, "num_train": 5}
    assert projected.info().num_outputs == 3
    assert encoder(made)(**batch(made, "padded").inputs).shape == (10, 16)
    assert predict(made, torch.tensor([[0.5, 2.0]])) == [{"embedding": [0.5, 2.0]}]


def test_export_cases_have_only_text_inputs() -> None:
    made = fitted(supervision="triplets")
    with torch.no_grad():
        cases = proof_cases(made, forward_of(encoder(made).eval()))

    assert {name for case in cases for name in case.inputs} == {"input_ids", "attention_mask"} == made.axes().keys()
    assert {case.expected.shape for case in cases} == {(size, 16) for size in (1, 3, 8)}


def test_info_nce_of_a_batch_equals_the_formula() -> None:
    made = fitted()
    model, examples = encoder(made), batch(made, "packed")
    assert examples.target is not None
    output = model(**examples.inputs)
    anchors, positives = F.normalize(output[::2]), F.normalize(output[1::2])
    expected = F.cross_entropy(anchors @ positives.T / 0.05, torch.arange(5), reduction="sum")

    torch.testing.assert_close(InfoNce(0.05, False)(output, examples.target), expected, rtol=1e-5, atol=1e-5)
