"""Score simple models on the data of the experiments: same splits, same targets, and the task's own metrics.

    python scripts/baselines.py [--only digits stdlib_docs] [--output scripts/results/baselines.json]

Every baseline is fitted on the training split of `experiment=NAME` and scored on its test split; hyperparameters (a
penalty, the weights of a mixture) are chosen on the validation split. Needs scikit-learn.
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
from baselines_tokens import causal_lm, masked_lm, span_classification, token_classification
from torch import Tensor

from trainer.builders.data import build_encoded, build_task
from trainer.builders.instantiate import instantiate
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.jobs import TrainJob
from trainer.config.schema import option_keys
from trainer.config.sections import DataKeys
from trainer.config.stored import job_from_config
from trainer.data.batch_plan import BatchIndices
from trainer.data.batches import Batches
from trainer.protocols import Batch, Task

CONF = Path(__file__).parent.parent / "conf"
PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""Values of C to choose from on the validation split; scikit-learn's default is 1."""

Scores = dict[str, dict[str, float]]
"""The metrics of each baseline by name."""


@dataclass(frozen=True)
class Split:
    """Raw rows, their encoded rows in the same order, and one batch with all rows."""

    raw: Any
    encoded: Any
    batch: Batch

    @property
    def target(self) -> Tensor:
        assert self.batch.target is not None
        return self.batch.target


@dataclass(frozen=True)
class Problem:
    """The data and the metrics of an experiment, without its model."""

    task: Task
    train: Split
    validation: Split
    test: Split

    def score(self, output: Any, split: Split | None = None) -> dict[str, float]:
        """Return the task's metrics of outputs on a split, by default the test split."""
        metrics = self.task.metrics()
        metrics.update(torch.as_tensor(np.asarray(output)).float(), (split or self.test).target)
        values = {name: value.item() for name, value in metrics.compute().items()}
        # A correlation with a constant is undefined.
        return {name: value for name, value in values.items() if not np.isnan(value)}

    def best(self, candidates: Sequence[Callable[[Split], Any]], metric: str) -> dict[str, float]:
        """Return the test metrics of the candidate with the best metric on the validation split."""
        scores = [self.score(candidate(self.validation), self.validation)[metric] for candidate in candidates]
        return self.score(candidates[int(np.argmax(scores))](self.test))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BASELINES, default=list(BASELINES), metavar="NAME")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for name in arguments.only:
        problem = load_problem(name)
        started = time.perf_counter()
        scores = BASELINES[name](problem)
        sizes = {split: len(getattr(problem, split).raw) for split in ("train", "validation", "test")}
        results[name] = {"rows": sizes, "scores": scores}
        print(
            f"{name}: {sizes['train']} training rows, {sizes['test']} test rows, {time.perf_counter() - started:.0f} s"
        )
        for baseline, values in scores.items():
            print(f"  {baseline:<62}" + "".join(f"  {metric} {value:.4f}" for metric, value in values.items()))
    if arguments.output:
        document = {"python": platform.python_version(), "experiments": results}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def compose_job(*overrides: str) -> TrainJob:
    register_defaults()
    config, _ = compose(CONF, "train", list(overrides))
    return job_from_config(plain(config)[0])


def load_problem(name: str) -> Problem:
    """Return the splits of an experiment as its training sees them."""
    job = compose_job(f"experiment={name}")
    task = build_task(job)
    encoded = build_encoded(job, task, fitted=False).splits
    raw = instantiate("data", option_keys(job.data, DataKeys)).load(task.columns())
    splits = {}
    for split in ("train", "validation", "test"):
        # A split as one batch in the layout of training, with the masks of an evaluation.
        batches = Batches(encoded[split], task, job.loader.batching, job.seed)
        batch = batches[BatchIndices(0, tuple(range(len(encoded[split]))))]
        splits[split] = Split(raw[split], encoded[split], batch)
    return Problem(task, **splits)


def tf_idf(problem: Problem, **settings: Any) -> Callable[[Split], Any]:
    """Return a function to TF-IDF vectors of texts, fitted on the training split."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(**settings).fit(problem.train.raw["text"])
    return lambda split: vectorizer.transform(split.raw["text"])


def logistic(
    problem: Problem, features: Callable[[Split], Any], metric: str, penalties: Sequence[float] = PENALTIES
) -> dict[str, float]:
    """Score logistic regression, one-vs-rest for several labels per sample; `metric` chooses the penalty."""
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
    scores = np.asarray(model.decision_function(features(split)))
    return np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores


def majority(problem: Problem) -> dict[str, float]:
    """Score the most frequent training class."""
    counts = torch.bincount(problem.train.target).float()
    return problem.score(counts.expand(len(problem.test.target), -1))


def standardized_features(problem: Problem) -> Callable[[Split], np.ndarray]:
    """Return a function to the features as the model sees them, standardized on the training split."""
    return lambda split: np.asarray(split.encoded["features"], dtype=np.float32)


def text_classification(problem: Problem) -> Scores:
    return {"majority": majority(problem), **bags_of_words(problem, "accuracy")}


def multilabel_classification(problem: Problem) -> Scores:
    most = problem.train.target.mean(dim=0).logit().clamp(-20, 20)
    usual = problem.score(most.expand(len(problem.test.target), -1))
    return {"most frequent labels": usual, **bags_of_words(problem, "micro_f1")}


def bags_of_words(problem: Problem, metric: str) -> Scores:
    """Score TF-IDF with scikit-learn's defaults, and with the usual manual improvements."""
    pairs = tf_idf(problem, ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    return {
        "TF-IDF + logistic regression": logistic(problem, tf_idf(problem), metric, (1.0,)),
        "TF-IDF of words and word pairs + logistic regression, C tuned": logistic(problem, pairs, metric),
    }


def tabular_classification(problem: Problem) -> Scores:
    scores = logistic(problem, standardized_features(problem), "accuracy")
    return {"majority": majority(problem), "logistic regression": scores}


def tabular_regression(problem: Problem) -> Scores:
    from sklearn.linear_model import Ridge

    features = standardized_features(problem)
    rows, target = features(problem.train), problem.train.target.numpy()

    def predict(model: Any, split: Split) -> np.ndarray:
        return np.asarray(model.predict(features(split))).reshape(len(split.target), -1)

    models = [Ridge(alpha=alpha).fit(rows, target) for alpha in (0.1, 1.0, 10.0, 100.0)]
    return {
        "mean": problem.score(np.zeros((len(problem.test.target), target.shape[1]))),
        "ridge regression": problem.best([partial(predict, model) for model in models], "r2"),
    }


def regression(problem: Problem) -> Scores:
    """Score ridge regression on TF-IDF with scikit-learn's defaults, and with the usual manual improvements."""
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
        "TF-IDF of words and word pairs + ridge regression, alpha tuned": problem.best(tuned, "r2"),
    }


def image_classification(problem: Problem) -> Scores:
    def pixels(split: Split) -> np.ndarray:
        from io import BytesIO

        from PIL import Image

        images = [np.asarray(Image.open(BytesIO(image["bytes"])), dtype=np.float64) for image in split.raw["image"]]
        return np.stack(images).reshape(len(images), -1) / 255

    return {"majority": majority(problem), "logistic regression": logistic(problem, pixels, "accuracy")}


def pair_classification(problem: Problem) -> Scores:
    """Score logistic regression on the number of shared words; also on cosines of words and letters, and lengths."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import StandardScaler

    texts = [*problem.train.raw["text"], *problem.train.raw["text_pair"]]
    words = TfidfVectorizer(token_pattern=r"[A-Za-z]+|\d+").fit(texts)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3), min_df=2).fit(texts)
    split_words = words.build_analyzer()

    def cosine(one: Any, other: Any) -> np.ndarray:
        return np.asarray(one.multiply(other).sum(axis=1)).ravel()

    def similarities(split: Split) -> np.ndarray:
        sides = [split.raw[role][:] for role in ("text", "text_pair")]
        word_sets = [[{*split_words(text)} for text in side] for side in sides]
        common = np.array([len(one & other) for one, other in zip(*word_sets, strict=True)])
        lengths = [np.log1p([len(words) for words in side]) for side in word_sets]
        cosines = [cosine(*map(made.transform, sides)) for made in (words, letters)]
        return np.column_stack([common, *cosines, *lengths, common / np.expm1(lengths[1]).clip(1)])

    scaler = StandardScaler().fit(similarities(problem.train))
    tuned = logistic(problem, lambda split: scaler.transform(similarities(split)), "accuracy")
    shared = logistic(problem, lambda split: similarities(split)[:, :1], "accuracy", (1.0,))
    return {
        "majority": majority(problem),
        "number of shared words + logistic regression": shared,
        "cosines, lengths, overlap + logistic regression": tuned,
    }


def sentence_embedding(problem: Problem) -> Scores:
    """Score TF-IDF vectors: texts with the same meaning are close if they share words."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    def vectors(vectorizer: Any, split: Split) -> np.ndarray:
        both = [vectorizer.transform(split.raw[role]).toarray() for role in ("text", "positive")]
        return np.stack(both, axis=1).reshape(2 * len(split.raw), -1)

    texts = [*problem.train.raw["text"], *problem.train.raw["positive"]]
    variants: list[dict[str, Any]] = [{}, {"ngram_range": (1, 2), "min_df": 2}, {"token_pattern": r"[A-Za-z]+|\d+"}]
    tuned = [
        TfidfVectorizer(sublinear_tf=True, stop_words=stop, **options).fit(texts)
        for stop in (None, "english")
        for options in variants
    ]
    return {
        "cosine of word counts": problem.score(vectors(CountVectorizer().fit(texts), problem.test)),
        "TF-IDF cosine": problem.score(vectors(TfidfVectorizer().fit(texts), problem.test)),
        "best of six TF-IDF cosines": problem.best([partial(vectors, made) for made in tuned], "mrr"),
    }


BASELINES: dict[str, Callable[[Problem], Scores]] = {
    "stdlib_docs": text_classification,
    "stdlib_labels": multilabel_classification,
    "stdlib_pairs": pair_classification,
    "stdlib_sizes": regression,
    "stdlib_similar": sentence_embedding,
    "stdlib_tags": token_classification,
    "stdlib_spans": span_classification,
    "mlm": masked_lm,
    "stdlib_causal_lm": causal_lm,
    "digits": image_classification,
    "breast_cancer": tabular_classification,
    "diabetes": tabular_regression,
}
"""The baselines of each experiment by name."""


if __name__ == "__main__":
    main()
