"""The baselines with an output for each token: taggers and language models that count. Run `scripts/baselines.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from baselines import Problem, Scores, Split


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
        width, num_tags = problem.test.target.shape[1], len(problem.task.info().class_counts)
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
    size = problem.task.info().vocab_size

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
    found, size = [train, hidden(problem.validation), hidden(problem.test)], problem.task.info().vocab_size
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
