"""What lies beside weights: it is found wherever they are, and compared with what is learnt here."""

import json
from pathlib import Path

import pytest

from trainer.model.weights_origin import find_tokenizer, mismatch_warnings
from trainer.task.tokenization import load_tokenizer, train_wordpiece

THEIRS = train_wordpiece([["apple pear plum"]], vocab_size=100, lowercase=True)
OURS = train_wordpiece([["apple pear corn"]], vocab_size=THEIRS.get_vocab_size(), lowercase=True)
LABELS = ["a", "b", "c", "d", "e"]
SHAPES = {"token_embedding.weight": (THEIRS.get_vocab_size(), 16), "norm.weight": (16,), "head.weight": (5, 16)}
SIZES = {"vocab_size": THEIRS.get_vocab_size(), "num_outputs": 5}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder, as far as it tells what was learnt."""
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "model/tokenizer.json").write_text(THEIRS.to_str())
    (run / "model/labels.json").write_text(json.dumps(LABELS))
    (run / "model/model.safetensors").touch()
    (run / "checkpoints/step-1").mkdir(parents=True)
    state = {"tokenizer": THEIRS.to_str(), "labels": LABELS, "class_counts": [1] * 5}
    (run / "checkpoints/step-1/task.json").write_text(json.dumps(state))
    return run


PLACES = {"": "model", "model": "model", "model/model.safetensors": "model", "checkpoints/step-1": "checkpoints/step-1"}


@pytest.mark.parametrize("weights", PLACES)
def test_the_tokenizer_of_weights(weights: str, run: Path, tmp_path: Path) -> None:
    place = find_tokenizer(str(run / weights))
    assert place == str(run / PLACES[weights])
    assert load_tokenizer(place).get_vocab() == THEIRS.get_vocab()
    assert find_tokenizer(str(tmp_path / "nowhere.pth")) is None


@pytest.mark.parametrize("weights", PLACES)
def test_the_same_words_and_classes_are_no_doubt(weights: str, run: Path) -> None:
    files = {"tokenizer.json": THEIRS.to_str(), "labels.json": json.dumps(LABELS)}
    assert mismatch_warnings(str(run / weights), SHAPES, files, **SIZES) == []
    assert mismatch_warnings(str(run / weights), SHAPES, {}, **SIZES) == []


@pytest.mark.parametrize("weights", PLACES)
def test_other_words_and_classes_are_named_with_the_remedy(weights: str, run: Path) -> None:
    files = {"tokenizer.json": OURS.to_str(), "labels.json": json.dumps(["a", "v", "w", "x", "y"])}
    path = str(run / weights)
    theirs, ours = ({number: token for token, number in each.get_vocab().items()} for each in (THEIRS, OURS))
    count = sum(ours.get(number) != token for number, token in theirs.items())
    assert 0 < count < len(theirs)
    words, classes = mismatch_warnings(path, SHAPES, files, **SIZES)
    assert words == (
        f"weights: {count} of its {len(theirs)} tokens are others here, and token_embedding.weight has a row for each. "
        f"task.tokenizer={run / PLACES[weights]} takes its own; "
        "model.weights_ignore=[token_embedding.*] learns new rows."
    )
    assert classes == (
        "weights: classes that head.* tells apart have other names (b is v here, c is w here, d is x here and 1 more). "
        "Where they are other classes, model.weights_ignore=[head.*] learns a new head."
    )
    # What is learnt anew cannot be mistaken.
    assert mismatch_warnings(path, {"norm.weight": (16,)}, files, **SIZES) == []


def test_what_somebody_else_left_tells_nothing(tmp_path: Path) -> None:
    for name, text in (("task.json", "[1]"), ("tokenizer.json", "no"), ("labels.json", "{")):
        (tmp_path / name).write_text(text)
        assert (
            mismatch_warnings(str(tmp_path), SHAPES, {"tokenizer.json": OURS.to_str(), "labels.json": "[]"}, **SIZES)
            == []
        )
