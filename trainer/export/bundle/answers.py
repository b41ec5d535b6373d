"""Makes answers of a model's outputs. The docstring of each class says what is printed for a row."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trainer.export.bundle.predict import Folder, Inputs, Row

TEMPERATURE = "temperature.json"


class Classes:
    """Prints a JSON object per row: `label` and its `probability`; with --top N the `probabilities` of the N best."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def answer(self, logits: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
        labels = self.folder.read_json("labels.json")
        thresholds, temperature = self.folder.read_rule("threshold.json", {}), self.folder.read_rule(TEMPERATURE, 1.0)
        plain = softmax(logits)
        probabilities = plain if temperature == 1.0 else softmax(logits / temperature)
        # A temperature may make two probabilities equal, so the order is the one without it.
        if top == 1 and not thresholds:
            best = plain.argmax(axis=-1)
            chosen = probabilities[np.arange(len(best)), best]
            return [
                {"label": labels[each], "probability": round(value, 6)}
                for each, value in zip(best.tolist(), chosen.tolist(), strict=True)
            ]
        order = np.argsort(-plain, axis=-1, kind="stable")
        for label, threshold in thresholds.items():  # at most one, of two labels
            positive = labels.index(label)
            chosen = np.where(probabilities[:, positive] > np.float32(threshold), positive, 1 - positive)
            order = np.stack([chosen, 1 - chosen], axis=1)
        best = order[:, :top]
        pairs = zip(best.tolist(), np.take_along_axis(probabilities, best, axis=1).tolist(), strict=True)
        return [
            best_answer("label", {labels[each]: round(value, 6) for each, value in zip(*pair, strict=True)})
            for pair in pairs
        ]


class Labels:
    """Prints a JSON object per row: its `labels`, most likely first, and their `probabilities`, at least --top N."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def answer(self, logits: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
        labels = self.folder.read_json("labels.json")
        limits = by_label(self.folder.read_json("threshold.json"), labels)
        temperatures = by_label(self.folder.read_rule(TEMPERATURE, 1.0), labels)
        answers: list[Row] = []
        for probabilities in 1 / (1 + np.exp(-logits / temperatures)):
            order = np.argsort(-probabilities, kind="stable")
            predicted = probabilities > limits
            shown = {
                labels[number]: round(float(probabilities[number]), 6)
                for place, number in enumerate(order)
                if predicted[number] or place < top
            }
            answers.append({"labels": [labels[each] for each in order if predicted[each]], "probabilities": shown})
        return answers


class Values:
    """Prints a JSON object per row: its `value`, a number or several, in the units of the training data."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def answer(self, standardized: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
        units = self.folder.read_json("values.json")
        values = (standardized.astype(np.float64) * units["std"] + units["mean"]).tolist()
        return [{"value": row[0] if len(row) == 1 else row} for row in values]


class Embeddings:
    """Prints a JSON object per row: its `embedding`, a list of numbers."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def answer(self, vectors: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
        return [{"embedding": row} for row in vectors.tolist()]


class Tags:
    """Prints a JSON object per row: `words`, their `tags` (null for words after the model's limit), and `entities`.

    An entity has a `type`, the words from `start` to before `end`, and its `probability` among all sequences of tags.
    If the folder has transitions.json, the tags are the best sequence for the scores of words and of transitions.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def answer(self, logits: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
        names = self.folder.read_json("tags.json")
        transitions = self.folder.read_rule("transitions.json", None)
        has_spans = any(name.startswith(("B-", "I-")) for name in names)
        answers: list[Row] = []
        for row, scores, words in zip(rows, logits, inputs["words"].tolist(), strict=True):
            # The first token of a word has its tag.
            first = {word: place for place, word in reversed([*enumerate(words)]) if word >= 0}
            read = sorted(first)
            chosen = scores[[first[word] for word in read]]
            best = chosen.argmax(axis=-1).tolist() if transitions is None else best_sequence(chosen, transitions)
            tag_of = {word: names[number] for word, number in zip(read, best, strict=True)}
            tags = [tag_of.get(word) for word in range(len(row["words"]))]
            answer: Row = {"words": row["words"], "tags": tags}
            if has_spans:
                answer["entities"] = entities(tags)
                rate_entities(answer["entities"], read, best, names, chosen, transitions)
            answers.append(answer)
        return answers


class Spans:
    """Prints a JSON object per row: the `text` and its `entities`, which may be in each other.

    An entity has a `type`, the characters from `start` to before `end`, their `text`, and as `probability` the sigmoid
    of its score.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def answer(self, scores: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
        labels = self.folder.read_json("labels.json")
        answers: list[Row] = []
        for row, own, starts, ends in zip(rows, scores, inputs["starts"], inputs["ends"], strict=True):
            possible = np.triu((starts >= 0)[:, None] & (starts >= 0))
            scores_by_place: dict[tuple[int, int, int], float] = {}
            for number, first, last in np.argwhere((own > 0) & possible).tolist():
                # Several tokens may be parts of one character.
                place, score = (int(starts[first]), -int(ends[last]), number), float(own[number, first, last])
                scores_by_place[place] = max(score, scores_by_place.get(place, 0.0))
            entities = [
                {"type": labels[number], "start": start, "end": -end, "text": row["text"][start:-end]}
                | {"probability": round(float(1 / (1 + np.exp(-score))), 6)}
                for (start, end, number), score in sorted(scores_by_place.items())
            ]
            answers.append({"text": row["text"], "entities": entities})
        return answers


class Masked:
    """Prints a JSON object per row: the `text`, and how its mask tokens were `filled`: `token` and `probability`.

    null is a mask after the model's limit; with --top N there are the `probabilities` of the N best tokens.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def answer(self, logits: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
        names, tokenizer = vocabulary(self.folder, logits.shape[-1]), tokenizer_of(self.folder)
        mask = next(name for name in ("[MASK]", "<mask>") if name in names)
        answers: list[Row] = []
        for row, ids, scores in zip(rows, inputs["input_ids"], logits, strict=True):
            text, *rest = row["text"].split(mask)
            places = np.flatnonzero(ids == names.index(mask))
            filled = [best_answer("token", most_likely(scores[place], names, top)) for place in places][: len(rest)]
            for token, following in zip(filled, rest, strict=False):
                piece = tokenizer.decode([names.index(token["token"])], skip_special_tokens=False).strip()
                text = (text.rstrip() + piece[2:] if piece.startswith("##") else text + piece) + following
            unread = rest[len(filled) :]
            answers.append({"text": mask.join([text, *unread]), "filled": [*filled, *[None] * len(unread)]})
        return answers


class NextTokens:
    """Prints a JSON object per row: the most likely tokens that come `next`, 5 or --top N, and the `perplexity`."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def answer(self, logits: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
        names = vocabulary(self.folder, logits.shape[-1])
        answers: list[Row] = []
        for scores, ids, mask in zip(logits, inputs["input_ids"], inputs["attention_mask"], strict=True):
            last = int(mask.sum()) - 1
            best = most_likely(scores[last], names, max(5, top)).items()
            following = [{"token": token, "probability": probability} for token, probability in best]
            answers.append({"next": following, "perplexity": perplexity(scores[:last], ids[1 : last + 1])})
        return answers


ANSWERS = {
    "classes": Classes,
    "labels": Labels,
    "values": Values,
    "embeddings": Embeddings,
    "tags": Tags,
    "spans": Spans,
    "masked": Masked,
    "next_tokens": NextTokens,
}


def best_sequence(scores: np.ndarray, transitions: Row) -> list[int]:
    """Return the tags with the largest sum of scores (W, C) and transitions (Viterbi 1967)."""
    start, between, end = (np.array(transitions[name], dtype=np.float32) for name in ("start", "between", "end"))
    if not len(scores):
        return []
    best = start + scores[0]
    before = []
    for word in scores[1:]:
        sums = best[:, None] + between
        before.append(sums.argmax(axis=0))
        best = sums.max(axis=0) + word
    tags = [int((best + end).argmax())]
    for pointers in reversed(before):
        tags.append(int(pointers[tags[-1]]))
    return tags[::-1]


@np.errstate(invalid="ignore")  # a score that is not a number makes the probability NaN, without a warning
def rate_entities(
    spans: list[Row], read: list[int], tags: list[int], names: list[str], scores: np.ndarray, transitions: Row | None
) -> None:
    """Give each entity its `probability`: its words have their tags, and the words next to them do not extend it.

    The sums over all sequences of tags come from the forward-backward algorithm (Culotta and McCallum 2004).
    """
    if not spans:
        return
    scores, size = scores.astype(np.float64), len(names)
    none: Row = {"start": np.zeros(size), "between": np.zeros((size, size)), "end": np.zeros(size)}
    start, between, end = (np.array((transitions or none)[name], dtype=np.float64) for name in none)
    before, after = [start + scores[0]], [end]
    for word in scores[1:]:
        before.append(np.logaddexp.reduce(before[-1][:, None] + between, axis=0) + word)
    for word in scores[:0:-1]:
        after.insert(0, np.logaddexp.reduce(between + word + after[0], axis=1))
    everything = np.logaddexp.reduce(before[-1] + end)
    parts = [(name[0], name[2:]) if name[1:2] == "-" and name[0] in "BIESLU" else ("S", None) for name in names]
    extends = np.array(
        [[one == other and a not in "ESLU" and b not in "BSU" for b, other in parts] for a, one in parts]
    )
    for span in spans:
        first = read.index(span["start"])
        last = first + span["end"] - span["start"] - 1
        own = tags[first : last + 1]
        total = scores[range(first + 1, last + 1), own[1:]].sum() + between[own[:-1], own[1:]].sum()
        if first:
            is_next = read[first - 1] == span["start"] - 1
            sums = (before[first - 1] + between[:, own[0]])[~(extends[:, own[0]] & is_next)]
            total += np.logaddexp.reduce(sums, initial=-np.inf) + scores[first, own[0]]
        else:
            total += before[0][own[0]]
        if last < len(read) - 1:
            is_next = read[last + 1] == span["end"]
            sums = (between[own[-1]] + scores[last + 1] + after[last + 1])[~(extends[own[-1]] & is_next)]
            total += np.logaddexp.reduce(sums, initial=-np.inf)
        else:
            total += after[last][own[-1]]
        span["probability"] = round(float(np.exp(np.minimum(0.0, total - everything))), 6)


def by_label(value: Any, labels: list[str]) -> np.ndarray:
    """Return a value of each label (C,), given one for all or one by label."""
    return np.array([value[label] if isinstance(value, dict) else value for label in labels], dtype=np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def most_likely(logits: np.ndarray, names: list[str], count: int) -> dict[str, float]:
    probabilities = softmax(logits)
    best = np.argsort(-probabilities, kind="stable")[:count]
    return {names[number]: round(float(probabilities[number]), 6) for number in best}


def best_answer(key: str, probabilities: dict[str, float]) -> Row:
    name, probability = next(iter(probabilities.items()))
    others = {"probabilities": probabilities} if len(probabilities) > 1 else {}
    return {key: name, "probability": probability, **others}


def tokenizer_of(folder: Folder) -> Any:
    return folder.load("texts.py")["open_tokenizer"](folder)


@cache
def vocabulary(folder: Folder, size: int) -> list[str]:
    """Return the tokens by their ids; a token without a name has its number."""
    tokenizer = tokenizer_of(folder)
    return [tokenizer.id_to_token(number) or str(number) for number in range(size)]


def perplexity(logits: np.ndarray, ids: np.ndarray) -> float | None:
    """Return the perplexity of all tokens except for the first one."""
    if not len(ids):
        return None
    shifted = (logits - logits.max(axis=-1, keepdims=True)).astype(np.float64)
    nll = np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(ids)), ids]
    return round(float(np.exp(nll.mean())), 6)


def entities(tags: list[str | None]) -> list[Row]:
    """An entity ends where the type changes, at B, S and U, and after E, S, L and U."""
    spans: list[Row] = []
    closed = True
    for place, tag in enumerate(tags):
        if tag is None or tag == "O":
            closed = True
            continue
        prefix, name = (tag[0], tag[2:]) if tag[1:2] == "-" and tag[0] in "BIESLU" else ("S", tag)
        if closed or prefix in "BSU" or name != spans[-1]["type"]:
            spans.append({"type": name, "start": place, "end": place})
        spans[-1]["end"] = place + 1
        closed = prefix in "ESLU"
    return spans
