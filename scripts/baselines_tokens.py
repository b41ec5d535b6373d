"""Baselines with an output per token or span: taggers and count-based language models. Run `scripts/baselines.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from baselines import Problem, Scores, Split


def token_classification(problem: Problem) -> Scores:
    """Score the most frequent tag of each word, and a linear model of a word and its neighbors."""
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import SGDClassifier

    train = list(tagged_words(problem.train))
    counts: dict[str, Counter[int]] = {}
    for words, tags in train:
        for word, tag in zip(words, tags, strict=True):
            counts.setdefault(word, Counter())[tag] += 1
    most_frequent = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    outside = Counter(tag for _, tags in train for tag in tags).most_common(1)[0][0]
    hasher = FeatureHasher(2**18, input_type="string", alternate_sign=False)
    model = SGDClassifier(loss="log_loss", alpha=1e-6, max_iter=10, tol=None, average=True, random_state=0)
    model.fit(
        hasher.transform(window for words, _ in train for window in word_windows(words)),
        [tag for _, tags in train for tag in tags],
    )

    def score(predict: Callable[[list[str]], Sequence[int]]) -> dict[str, float]:
        width, num_tags = problem.test.target.shape[1], len(problem.task.info().class_counts)
        output = torch.zeros(len(problem.test.target), width, num_tags)
        for row, (words, _) in enumerate(tagged_words(problem.test)):
            output[row, range(len(words)), list(predict(words))] = 1
        return problem.score(output)

    return {
        "most frequent tag of a word": score(lambda words: [most_frequent.get(word, outside) for word in words]),
        "logistic regression on a word and its neighbors": score(
            lambda words: model.predict(hasher.transform(word_windows(words)))
        ),
    }


def tagged_words(split: Split) -> Iterator[tuple[list[str], list[int]]]:
    """Yield the words of each row that have an output, and their classes."""
    for words, tags in zip(split.raw["words"], split.encoded["tags"], strict=True):
        yield words[: len(tags)], tags.tolist()


def word_windows(words: Sequence[str]) -> list[list[str]]:
    """Return the features of each word: the word, its shape and ending, and two words on each side."""
    padded = ["", "", *words, "", ""]
    features = []
    for position, word in enumerate(words):
        window = [f"{offset}={padded[position + 2 + offset].lower()}" for offset in (-2, -1, 0, 1, 2)]
        shape = "".join(
            "A" if character.isupper() else "a" if character.islower() else character for character in word[:8]
        )
        pairs = [f"-1,0={padded[position + 1]} {word}".lower(), f"0,1={word} {padded[position + 3]}".lower()]
        features.append([*window, *pairs, f"word={word}", f"shape={shape}", f"end={word[-3:]}"])
    return features


MAX_SPAN = 30
"""Tokens of the longest span that is looked up."""
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6)
"""Shares of the occurrences of a string of tokens to choose from on the validation split."""


def span_classification(problem: Problem) -> Scores:
    """Score the usual labels of each string of tokens, and next to them calls by the rule that has made them."""
    from trainer.data.stdlib_spans import find_calls

    labels = problem.task.info().class_names or []
    spans = [np.asarray(row).reshape(-1, 3).tolist() for row in problem.train.encoded["spans"]]
    ids = [list(row) for row in problem.train.encoded["input_ids"]]
    labeled = Counter(
        (tuple(row[first : last + 1]), index)
        for row, own in zip(ids, spans, strict=True)
        for first, last, index in own
        if last - first < MAX_SPAN
    )
    known = {string for string, _ in labeled}
    occurring = Counter(string for row in ids for _, _, string in strings(row) if string in known)

    def usual(share: float, *, with_rule: bool) -> Callable[[Split], torch.Tensor]:
        chosen: dict[tuple[int, ...], list[int]] = {}
        for (string, index), count in labeled.items():
            if count > share * occurring[string] and not (with_rule and labels[index] == "call"):
                chosen.setdefault(string, []).append(index)

        def predict(split: Split) -> torch.Tensor:
            size, width, _ = split.target.shape
            output = torch.zeros(size, len(labels), width, width)
            columns, texts = (split.encoded[name] for name in ("input_ids", "starts", "ends")), split.raw["text"]
            for row, (tokens, starts, ends) in enumerate(zip(*columns, strict=True)):
                for first, last, string in strings(list(tokens)):
                    if string in chosen:
                        output[row, chosen[string], first, last] = 1
                if not with_rule:
                    continue
                beginnings, ends_at = ({place: token for token, place in enumerate(each)} for each in (starts, ends))
                for start, end in find_calls(texts[row]):
                    if start in beginnings and end in ends_at:
                        output[row, labels.index("call"), beginnings[start], ends_at[end]] = 1
            return output

        return predict

    names = {"usual labels of a string": False, "calls by their rule, usual labels of other strings": True}
    return {
        name: problem.best([usual(share, with_rule=with_rule) for share in SHARES], "entity_f1")
        for name, with_rule in names.items()
    }


def strings(tokens: Sequence[int]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Yield the first and the last place of each string of tokens, and the string."""
    for first in range(len(tokens)):
        for last in range(first, min(len(tokens), first + MAX_SPAN)):
            yield first, last, tuple(tokens[first : last + 1])


Contexts = tuple[list[np.ndarray], np.ndarray]
"""The contexts of each order, int64 (N,), -1 for none, and the tokens in these contexts, int64 (N,)."""


def causal_lm(problem: Problem) -> Scores:
    """Score n-grams: tokens without context, after one token, and after two tokens."""
    size = problem.task.info().vocab_size

    def contexts(split: Split) -> Contexts:
        ids, has_target = split.batch.inputs["input_ids"].numpy(), split.target.numpy() != -100
        second = split.batch.inputs["position_ids"].numpy() > 0
        before = np.where(second, np.roll(ids, 1, axis=1) * size + ids, -1)
        return [np.zeros_like(ids)[has_target], ids[has_target], before[has_target]], split.target.numpy()[has_target]

    splits = [contexts(split) for split in (problem.train, problem.validation, problem.test)]
    names = ("unigram", "interpolated bigram", "interpolated trigram")
    return {name: {"perplexity": perplexity(splits, order, size)} for order, name in enumerate(names, 1)}


def masked_lm(problem: Problem) -> Scores:
    """Score masked tokens without context, and between their neighbors as the model sees them, masked ones included."""

    def masked_contexts(split: Split) -> Contexts:
        index, target = (split.batch.inputs["output_index"].numpy(), split.target.numpy())
        at, ids = index[index >= 0], split.batch.inputs["input_ids"].numpy().ravel()
        return [np.zeros_like(at), ids[at - 1], ids[at + 1]], target[index >= 0]

    rows = list(zip(problem.train.encoded["input_ids"], problem.train.encoded["word_ids"], strict=True))
    ids = np.concatenate([row for row, _ in rows]).astype(np.int64)
    at = np.flatnonzero(np.concatenate([words for _, words in rows]) >= 0)
    train = ([np.zeros_like(at), ids[at - 1], ids[at + 1]], ids[at])
    splits = [train, masked_contexts(problem.validation), masked_contexts(problem.test)]
    size = problem.task.info().vocab_size
    names = {"unigram": 1, "interpolated with both neighbors": 3}
    return {name: {"perplexity": perplexity(splits, order, size)} for name, order in names.items()}


def perplexity(splits: Sequence[Contexts], order: int, size: int) -> float:
    """Return the test perplexity of a mixture of relative frequencies in the first `order` contexts and a uniform part.

    If training has not seen a context, the other parts share its weight. The weights maximize the likelihood of the
    validation split (Jelinek and Mercer 1980), by expectation maximization.

    Args:
        splits: Training, validation and test.
        order: The number of contexts to use.
        size: The size of the vocabulary.
    """
    (contexts, tokens), *others = splits
    parts = [np.full((1 + order, len(split_tokens)), 1 / size) for _, split_tokens in others]
    for number, context in enumerate(contexts[:order], 1):
        totals = dict(zip(*np.unique(context, return_counts=True), strict=True))
        pairs = dict(zip(*np.unique(context * size + tokens, return_counts=True), strict=True))
        for part, (split_contexts, split_tokens) in zip(parts, others, strict=True):
            part[number] = [
                pairs.get(before * size + token, 0) / totals[before] if before >= 0 and before in totals else np.nan
                for before, token in zip(split_contexts[number - 1].tolist(), split_tokens.tolist(), strict=True)
            ]
    weights = np.full(1 + order, 1 / (1 + order))
    for _ in range(100):
        shares = _shares(weights, parts[0])
        weights = (shares / shares.sum(axis=0)).mean(axis=1)
    return float(np.exp(-np.log(_shares(weights, parts[1]).sum(axis=0)).mean()))


def _shares(weights: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Return the contribution of each part to each token's probability, (1 + order, N); NaN marks an unseen context."""
    known = ~np.isnan(parts)
    shares: np.ndarray = np.nan_to_num(parts) * weights[:, None] / (known * weights[:, None]).sum(axis=0)
    return shares
