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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.build.instantiate import make
from trainer.build.parts import build_encoded, build_task, own_keys
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.schema import DataKeys, TrainJob
from trainer.config.stored import job_from_config
from trainer.data.loader import Batches
from trainer.data.plan import MicroBatch
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
        return {name: value.item() for name, value in metrics.compute().items()}

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
    raw = make("data", own_keys(job.data, DataKeys)).load(task.columns())
    splits = {}
    for split in ("train", "validation", "test"):
        # A split as one batch in the layout of training: masks are drawn as its evaluation draws them.
        batches = Batches(encoded[split], task, job.loader.batching, job.seed)
        batch = batches[MicroBatch(0, tuple(range(len(encoded[split]))))]
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


def image_classification(problem: Problem) -> Scores:
    def pixels(split: Split) -> np.ndarray:
        from io import BytesIO

        from PIL import Image

        images = [np.asarray(Image.open(BytesIO(image["bytes"])), dtype=np.float64) for image in split.raw["image"]]
        return np.stack(images).reshape(len(images), -1) / 255

    return {"majority": majority(problem), "logistic regression": logistic(problem, pixels, "accuracy")}


def pair_classification(problem: Problem) -> Scores:
    """Logistic regression on how alike the two texts are, in words and in letters, and how long they are."""
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
        return np.column_stack([*cosines, *lengths, common, common / np.expm1(lengths[1]).clip(1)])

    scaler = StandardScaler().fit(alike(problem.train))
    found = logistic(problem, lambda split: scaler.transform(alike(split)), "accuracy")
    return {"majority": majority(problem), "cosines, lengths, overlap + logistic regression": found}


def sentence_embedding(problem: Problem) -> Scores:
    """TF-IDF vectors; texts of one meaning are near together where they share words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

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
        "TF-IDF cosine": problem.score(vectors(TfidfVectorizer().fit(texts), problem.test)),
        "the best of six TF-IDF cosines": problem.best([partial(vectors, made) for made in tuned], "mrr"),
    }


def token_classification(problem: Problem) -> Scores:
    """The most frequent tag of each word, and a linear model of a word and its neighbours."""
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import SGDClassifier

    train = list(tagged_words(problem.train))
    counts: dict[str, Counter[int]] = {}
    for words, tags in train:
        for word, tag in zip(words, tags, strict=True):
            counts.setdefault(word, Counter())[tag] += 1
    usual = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    outside = Counter(tag for _, tags in train for tag in tags).most_common(1)[0][0]
    hasher = FeatureHasher(2**18, input_type="string", alternate_sign=False)
    model = SGDClassifier(loss="log_loss", alpha=1e-6, max_iter=10, tol=None, average=True, random_state=0)
    model.fit(
        hasher.transform(near for words, _ in train for near in windows(words)),
        [tag for _, tags in train for tag in tags],
    )

    def score(predict: Callable[[list[str]], Sequence[int]]) -> dict[str, float]:
        width, num_tags = problem.test.target.shape[1], len(problem.task.facts()["class_counts"])
        output = torch.zeros(len(problem.test.target), width, num_tags)
        for row, (words, _) in enumerate(tagged_words(problem.test)):
            output[row, range(len(words)), list(predict(words))] = 1
        return problem.score(output)

    return {
        "most frequent tag of a word": score(lambda words: [usual.get(word, outside) for word in words]),
        "logistic regression on a word and its neighbours": score(
            lambda words: model.predict(hasher.transform(windows(words)))
        ),
    }


def tagged_words(split: Split) -> Iterator[tuple[list[str], list[int]]]:
    """The words of each row that have an output, and their classes."""
    for words, tags in zip(split.raw["words"], split.encoded["tags"], strict=True):
        yield words[: len(tags)], tags.tolist()


def windows(words: Sequence[str]) -> list[list[str]]:
    """What a linear tagger sees of each word: itself, its shape and ending, two words before and behind it."""
    padded = ["", "", *words, "", ""]
    found = []
    for place, word in enumerate(words):
        near = [f"{offset}={padded[place + 2 + offset].lower()}" for offset in (-2, -1, 0, 1, 2)]
        shape = "".join("A" if sign.isupper() else "a" if sign.islower() else sign for sign in word[:8])
        pairs = [f"-1,0={padded[place + 1]} {word}".lower(), f"0,1={word} {padded[place + 3]}".lower()]
        found.append([*near, *pairs, f"word={word}", f"shape={shape}", f"end={word[-3:]}"])
    return found


Places = tuple[list[np.ndarray], np.ndarray]
"""The contexts of each order, int64 (N,), -1 for none, and the tokens found in them, int64 (N,)."""


def causal_lm(problem: Problem) -> Scores:
    """Tokens by themselves, after the one before them, and after the two before them."""
    size = problem.task.facts()["vocab_size"]

    def places(split: Split) -> Places:
        ids, wanted = split.batch.inputs["input_ids"].numpy(), split.target.numpy() != -100
        second = split.batch.inputs["position_ids"].numpy() > 0
        before = np.where(second, np.roll(ids, 1, axis=1) * size + ids, -1)
        return [np.zeros_like(ids)[wanted], ids[wanted], before[wanted]], split.target.numpy()[wanted]

    found = [places(split) for split in (problem.train, problem.validation, problem.test)]
    names = ("unigram", "interpolated bigram", "interpolated trigram")
    return {name: {"perplexity": perplexity(found, order, size)} for order, name in enumerate(names, 1)}


def masked_lm(problem: Problem) -> Scores:
    """Hidden tokens by themselves, and between their neighbours as the model sees them, hidden ones among them."""

    def hidden(split: Split) -> Places:
        index, target = (split.batch.inputs["output_index"].numpy(), split.target.numpy())
        at, ids = index[index >= 0], split.batch.inputs["input_ids"].numpy().ravel()
        return [np.zeros_like(at), ids[at - 1], ids[at + 1]], target[index >= 0]

    rows = list(zip(problem.train.encoded["input_ids"], problem.train.encoded["word_ids"], strict=True))
    ids = np.concatenate([row for row, _ in rows]).astype(np.int64)
    at = np.flatnonzero(np.concatenate([words for _, words in rows]) >= 0)
    train = ([np.zeros_like(at), ids[at - 1], ids[at + 1]], ids[at])
    found, size = [train, hidden(problem.validation), hidden(problem.test)], problem.task.facts()["vocab_size"]
    names = {"unigram": 1, "interpolated with both neighbours": 3}
    return {name: {"perplexity": perplexity(found, order, size)} for name, order in names.items()}


def perplexity(splits: Sequence[Places], order: int, size: int) -> float:
    """Of the test split, under a mixture of relative frequencies in the first `order` contexts and a uniform part.

    Where training has not seen a context, the other parts share its weight. The weights are those most likely on the
    validation split (Jelinek and Mercer 1980), found by expectation maximization.

    Args:
        splits: Training, validation and test.
        order: How many of their contexts are used.
        size: The vocabulary.
    """
    (contexts, tokens), *others = splits
    parts = [np.full((1 + order, len(found)), 1 / size) for _, found in others]
    for number, context in enumerate(contexts[:order], 1):
        totals = dict(zip(*np.unique(context, return_counts=True), strict=True))
        pairs = dict(zip(*np.unique(context * size + tokens, return_counts=True), strict=True))
        for part, (places, found) in zip(parts, others, strict=True):
            part[number] = [
                pairs.get(place * size + token, 0) / totals[place] if place >= 0 and place in totals else np.nan
                for place, token in zip(places[number - 1].tolist(), found.tolist(), strict=True)
            ]
    weights = np.full(1 + order, 1 / (1 + order))
    for _ in range(100):
        shares = _shares(weights, parts[0])
        weights = (shares / shares.sum(axis=0)).mean(axis=1)
    return float(np.exp(-np.log(_shares(weights, parts[1]).sum(axis=0)).mean()))


def _shares(weights: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """What each part gives to the probability of each token, (1 + order, N); NaN marks an unseen context."""
    known = ~np.isnan(parts)
    shares: np.ndarray = np.nan_to_num(parts) * weights[:, None] / (known * weights[:, None]).sum(axis=0)
    return shares


BASELINES: dict[str, Callable[[Problem], Scores]] = {
    "stdlib_docs": text_classification,
    "stdlib_labels": multilabel_classification,
    "stdlib_pairs": pair_classification,
    "stdlib_similar": sentence_embedding,
    "stdlib_tags": token_classification,
    "stdlib_masked_lm": masked_lm,
    "stdlib_causal_lm": causal_lm,
    "digits": image_classification,
    "breast_cancer": tabular_classification,
    "diabetes": tabular_regression,
}
"""By the name of the experiment."""


if __name__ == "__main__":
    main()
