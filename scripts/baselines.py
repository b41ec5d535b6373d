"""What simple models score on the data of the experiments: the same splits, the same targets, the task's own metrics.

    python scripts/baselines.py [--only digits stdlib_docs] [--output scripts/results/baselines.json]

Every row is learnt on the training split of `experiment=NAME` and scored on its test split; what is free to choose
(a penalty, the weights of a mixture) is chosen on the validation split. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines_tokens import causal_lm, masked_lm, token_classification
from torch import Tensor

from trainer.builders.data import build_encoded, build_task
from trainer.builders.instantiate import instantiate
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.jobs import DataKeys, TrainJob
from trainer.config.schema import option_keys
from trainer.config.stored import job_from_config
from trainer.data.batches import Batches, BatchIndices
from trainer.protocols import Batch, Task

CONF = Path(__file__).parent.parent / "conf"
PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""The values of C that are tried where one is chosen on the validation split; scikit-learn's default is 1."""

Scores = dict[str, dict[str, float]]
"""By the name of a baseline: the metrics."""


@dataclass(frozen=True)
class Split:
    """Raw rows, their encoded rows in the same order, and one batch with all of them."""

    raw: Any
    encoded: Any
    batch: Batch

    @property
    def target(self) -> Tensor:
        assert self.batch.target is not None
        return self.batch.target


@dataclass(frozen=True)
class Problem:
    """An experiment without its model."""

    task: Task
    train: Split
    validation: Split
    test: Split

    def score(self, output: Any, split: Split | None = None) -> dict[str, float]:
        """The task's metrics of outputs on a split, the test split unless another is named."""
        metrics = self.task.metrics()
        metrics.update(torch.as_tensor(np.asarray(output)).float(), (split or self.test).target)
        found = {name: value.item() for name, value in metrics.compute().items()}
        # A correlation with what is the same everywhere is none.
        return {name: value for name, value in found.items() if not np.isnan(value)}

    def best(self, candidates: Sequence[Callable[[Split], Any]], metric: str) -> dict[str, float]:
        """The test metrics of the candidate that is best on the validation split."""
        found = [self.score(candidate(self.validation), self.validation)[metric] for candidate in candidates]
        return self.score(candidates[int(np.argmax(found))](self.test))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BASELINES, default=list(BASELINES), metavar="NAME")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for name in arguments.only:
        problem = problem_of(name)
        started = time.perf_counter()
        scores = BASELINES[name](problem)
        sizes = {split: len(getattr(problem, split).raw) for split in ("train", "validation", "test")}
        results[name] = {"rows": sizes, "scores": scores}
        print(f"{name}: {sizes['train']} rows, {sizes['test']} of test, {time.perf_counter() - started:.0f} s")
        for baseline, values in scores.items():
            print(f"  {baseline:<58}" + "".join(f"  {metric} {value:.4f}" for metric, value in values.items()))
    if arguments.output:
        document = {"python": platform.python_version(), "experiments": results}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def job_of(*overrides: str) -> TrainJob:
    register_defaults()
    config, _ = compose(CONF, "train", list(overrides))
    return job_from_config(plain(config)[0])


def problem_of(name: str) -> Problem:
    """The splits of an experiment as its training sees them."""
    job = job_of(f"experiment={name}")
    task = build_task(job)
    encoded = build_encoded(job, task, fitted=False).splits
    raw = instantiate("data", option_keys(job.data, DataKeys)).load(task.columns())
    splits = {}
    for split in ("train", "validation", "test"):
        # A split as one batch in the layout of training: masks are drawn as its evaluation draws them.
        batches = Batches(encoded[split], task, job.loader.batching, job.seed)
        batch = batches[BatchIndices(0, tuple(range(len(encoded[split]))))]
        splits[split] = Split(raw[split], encoded[split].with_format("numpy"), batch)
    return Problem(task, **splits)


def tf_idf(problem: Problem, **settings: Any) -> Callable[[Split], Any]:
    """TF-IDF vectors of texts, learnt on the training split."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(**settings).fit(problem.train.raw["text"])
    return lambda split: vectorizer.transform(split.raw["text"])


def logistic(
    problem: Problem, features: Callable[[Split], Any], metric: str, penalties: Sequence[float] = PENALTIES
) -> dict[str, float]:
    """Logistic regression, one against the rest where a sample has several labels; `metric` chooses the penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    rows, target = features(problem.train), problem.train.target.numpy()
    candidates = []
    for penalty in penalties:
        model = LogisticRegression(C=penalty, max_iter=2000)
        fitted = (OneVsRestClassifier(model) if target.ndim == 2 else model).fit(rows, target)
        candidates.append(partial(_logits, fitted, features))
    return problem.best(candidates, metric)


def _logits(model: Any, features: Callable[[Split], Any], split: Split) -> np.ndarray:
    found = np.asarray(model.decision_function(features(split)))
    return np.stack([-found, found], axis=1) if found.ndim == 1 else found


def majority(problem: Problem) -> dict[str, float]:
    """The most frequent class of training."""
    counts = torch.bincount(problem.train.target).float()
    return problem.score(counts.expand(len(problem.test.target), -1))


def columns(problem: Problem) -> Callable[[Split], np.ndarray]:
    """The features as the model sees them: standardized by training."""
    return lambda split: np.stack(split.encoded["features"][:])


def text_classification(problem: Problem) -> Scores:
    return {"majority": majority(problem), **bags_of_words(problem, "accuracy")}


def multilabel_classification(problem: Problem) -> Scores:
    most = problem.train.target.mean(dim=0).logit().clamp(-20, 20)
    usual = problem.score(most.expand(len(problem.test.target), -1))
    return {"labels that most texts have": usual, **bags_of_words(problem, "micro_f1")}


def bags_of_words(problem: Problem, metric: str) -> Scores:
    """As scikit-learn has it by default, and with what is usually gained by hand."""
    pairs = tf_idf(problem, ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    return {
        "TF-IDF + logistic regression": logistic(problem, tf_idf(problem), metric, (1.0,)),
        "the same of words and pairs of words, C tuned": logistic(problem, pairs, metric),
    }


def tabular_classification(problem: Problem) -> Scores:
    found = logistic(problem, columns(problem), "accuracy")
    return {"majority": majority(problem), "logistic regression": found}


def tabular_regression(problem: Problem) -> Scores:
    from sklearn.linear_model import Ridge

    features = columns(problem)
    rows, target = features(problem.train), problem.train.target.numpy()

    def predict(model: Any, split: Split) -> np.ndarray:
        return np.asarray(model.predict(features(split))).reshape(len(split.target), -1)

    models = [Ridge(alpha=alpha).fit(rows, target) for alpha in (0.1, 1.0, 10.0, 100.0)]
    return {
        "mean": problem.score(np.zeros((len(problem.test.target), target.shape[1]))),
        "ridge regression": problem.best([partial(predict, model) for model in models], "r2"),
    }


def regression(problem: Problem) -> Scores:
    """Ridge regression on how often words occur, as scikit-learn has it by default and with what is gained by hand."""
    from sklearn.linear_model import Ridge

    rows = [tf_idf(problem), tf_idf(problem, ngram_range=(1, 2), sublinear_tf=True, min_df=2)]
    target = problem.train.target.numpy()

    def predict(features: Callable[[Split], Any], model: Any, split: Split) -> np.ndarray:
        return np.asarray(model.predict(features(split)))

    plain, *tuned = [
        partial(predict, features, Ridge(alpha=alpha).fit(features(problem.train), target))
        for features, alpha in [(rows[0], 1.0), *[(rows[1], alpha) for alpha in (0.3, 1.0, 3.0, 10.0)]]
    ]
    return {
        "mean": problem.score(np.zeros(problem.test.target.shape)),
        "TF-IDF + ridge regression": problem.score(plain(problem.test)),
        "the same of words and pairs of words, alpha tuned": problem.best(tuned, "r2"),
    }


def image_classification(problem: Problem) -> Scores:
    def pixels(split: Split) -> np.ndarray:
        from io import BytesIO

        from PIL import Image

        images = [np.asarray(Image.open(BytesIO(image["bytes"])), dtype=np.float64) for image in split.raw["image"]]
        return np.stack(images).reshape(len(images), -1) / 255

    return {"majority": majority(problem), "logistic regression": logistic(problem, pixels, "accuracy")}


def pair_classification(problem: Problem) -> Scores:
    """Logistic regression on the number of shared words; also on likeness in words and letters, and on lengths."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import StandardScaler

    texts = [*problem.train.raw["text"], *problem.train.raw["text_pair"]]
    words = TfidfVectorizer(token_pattern=r"[A-Za-z]+|\d+").fit(texts)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), min_df=2).fit(texts)
    split_words = words.build_analyzer()

    def cosine(one: Any, other: Any) -> np.ndarray:
        return np.asarray(one.multiply(other).sum(axis=1)).ravel()

    def alike(split: Split) -> np.ndarray:
        sides = [split.raw[role][:] for role in ("text", "text_pair")]
        found = [[{*split_words(text)} for text in side] for side in sides]
        common = np.array([len(one & other) for one, other in zip(*found, strict=True)])
        lengths = [np.log1p([len(words) for words in side]) for side in found]
        cosines = [cosine(*map(made.transform, sides)) for made in (words, letters)]
        return np.column_stack([common, *cosines, *lengths, common / np.expm1(lengths[1]).clip(1)])

    scaler = StandardScaler().fit(alike(problem.train))
    found = logistic(problem, lambda split: scaler.transform(alike(split)), "accuracy")
    shared = logistic(problem, lambda split: alike(split)[:, :1], "accuracy", (1.0,))
    return {
        "majority": majority(problem),
        "number of shared words + logistic regression": shared,
        "cosines, lengths, overlap + logistic regression": found,
    }


def sentence_embedding(problem: Problem) -> Scores:
    """TF-IDF vectors; texts of one meaning are near together where they share words."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    def vectors(vectorizer: Any, split: Split) -> np.ndarray:
        both = [vectorizer.transform(split.raw[role]).toarray() for role in ("text", "positive")]
        return np.stack(both, axis=1).reshape(2 * len(split.raw), -1)

    texts = [*problem.train.raw["text"], *problem.train.raw["positive"]]
    ways: list[dict[str, Any]] = [{}, {"ngram_range": (1, 2), "min_df": 2}, {"token_pattern": r"[A-Za-z]+|\d+"}]
    tuned = [
        TfidfVectorizer(sublinear_tf=True, stop_words=stop, **way).fit(texts)
        for stop in (None, "english")
        for way in ways
    ]
    return {
        "cosine of word counts": problem.score(vectors(CountVectorizer().fit(texts), problem.test)),
        "TF-IDF cosine": problem.score(vectors(TfidfVectorizer().fit(texts), problem.test)),
        "the best of six TF-IDF cosines": problem.best([partial(vectors, made) for made in tuned], "mrr"),
    }


BASELINES: dict[str, Callable[[Problem], Scores]] = {
    "stdlib_docs": text_classification,
    "stdlib_labels": multilabel_classification,
    "stdlib_pairs": pair_classification,
    "stdlib_sizes": regression,
    "stdlib_similar": sentence_embedding,
    "stdlib_tags": token_classification,
    "mlm": masked_lm,
    "stdlib_causal_lm": causal_lm,
    "digits": image_classification,
    "breast_cancer": tabular_classification,
    "diabetes": tabular_regression,
}
"""By the name of the experiment."""


if __name__ == "__main__":
    main()
