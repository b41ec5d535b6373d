"""The files next to weights: they are found for any path, and compared with the task."""

import json
import re
from pathlib import Path

import pytest
from torch import nn

from trainer.model.weights import fit_weights, mismatch_warnings
from trainer.task.tokenization import load_tokenizer, train_wordpiece
from trainer.weights_folder import find_tokenizer

THEIRS = train_wordpiece([["apple pear plum"]], vocab_size=100, lowercase=True)
OURS = train_wordpiece([["apple pear corn"]], vocab_size=THEIRS.get_vocab_size(), lowercase=True)
LABELS = ["a", "b", "c", "d", "e"]
SHAPES = {"token_embedding.weight": (THEIRS.get_vocab_size(), 16), "norm.weight": (16,), "head.weight": (5, 16)}
SIZES = {"vocab_size": THEIRS.get_vocab_size(), "num_outputs": 5}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the files that show what was learned."""
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "model/tokenizer.json").write_text(THEIRS.to_str())
    (run / "model/labels.json").write_text(json.dumps(LABELS))
    (run / "model/model.safetensors").touch()
    (run / "checkpoints/step-1").mkdir(parents=True)
    state = {"tokenizer": THEIRS.to_str(), "labels": LABELS, "class_counts": [1] * 5}
    (run / "checkpoints/step-1/task.json").write_text(json.dumps(state))
    return run


FOLDERS = {
    "": "model",
    "model": "model",
    "model/model.safetensors": "model",
    "checkpoints/step-1": "checkpoints/step-1",
}


def test_the_tokenizer_is_found(run: Path, tmp_path: Path) -> None:
    for weights, folder in FOLDERS.items():
        place = find_tokenizer(str(run / weights))
        assert place == str(run / folder)
        assert load_tokenizer(place).get_vocab() == THEIRS.get_vocab()
    assert find_tokenizer(str(tmp_path / "nowhere.pth")) is None


def test_equal_vocabularies_and_labels_give_no_warnings(run: Path) -> None:
    files = {"tokenizer.json": THEIRS.to_str(), "labels.json": json.dumps(LABELS)}
    for weights in FOLDERS:
        assert mismatch_warnings(str(run / weights), SHAPES, files, **SIZES) == []
        assert mismatch_warnings(str(run / weights), SHAPES, {}, **SIZES) == []


def _kept_after_the_remedy(message: str) -> tuple[str, ...]:
    """Return the tensors that keep their initial values after a load with the keys of a message."""
    keys = dict(re.findall(r"model\.(weights_\w+)='([^']*)'", message))
    model = nn.ModuleDict({"token_embedding": nn.Embedding(4, 2), "norm": nn.LayerNorm(2), "head": nn.Linear(2, 3)})
    report = fit_weights(
        model, model.state_dict(), json.loads(keys["weights_rename"]), json.loads(keys["weights_ignore"])
    )
    return report.kept


def test_different_vocabularies_and_labels_give_warnings(run: Path) -> None:
    files = {"tokenizer.json": OURS.to_str(), "labels.json": json.dumps(["a", "v", "w", "x", "y"])}
    theirs, ours = ({id: token for token, id in each.get_vocab().items()} for each in (THEIRS, OURS))
    count = sum(ours.get(id) != token for id, token in theirs.items())
    assert 0 < count < len(theirs)
    for weights, folder in FOLDERS.items():
        path = str(run / weights)
        vocabulary, classes = mismatch_warnings(path, SHAPES, files, **SIZES)
        assert f"{count} of {len(theirs)} tokens" in vocabulary
        assert f"task.tokenizer={run / folder} " in vocabulary
        left_out = {message: _kept_after_the_remedy(message) for message in (vocabulary, classes)}
        assert left_out == {vocabulary: ("token_embedding.weight",), classes: ("head.weight", "head.bias")}
        assert "(b is v here, c is w here, d is x here and 1 more)" in classes
        # Tensors that were not loaded cannot be misinterpreted.
        assert mismatch_warnings(path, {"norm.weight": (16,)}, files, **SIZES) == []


def test_files_of_other_programs_are_ignored(tmp_path: Path) -> None:
    for name, text in (("task.json", "[1]"), ("tokenizer.json", "no"), ("labels.json", "{")):
        (tmp_path / name).write_text(text)
        assert (
            mismatch_warnings(str(tmp_path), SHAPES, {"tokenizer.json": OURS.to_str(), "labels.json": "[]"}, **SIZES)
            == []
        )
