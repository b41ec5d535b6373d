"""The experiments: each composes, runs through in seconds, and learns more than a simple model of the same data."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.jobs import events, working_in
from tests.support.sources import write_idx
from trainer.cli import main
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.stored import job_from_config

CONF = Path(__file__).parent.parent / "conf"
QUIET = ["device=cpu", "logger.console=none", "logger.tensorboard=false", "export.formats=[]"]


class Simple(NamedTuple):
    """A simple model of an experiment's data: what it is, and its score on the test split."""

    name: str
    metric: str
    score: float


SIMPLE = {
    "stdlib_docs": Simple("TF-IDF + logistic regression", "accuracy", 0.7337),
    "stdlib_focal": Simple("TF-IDF + logistic regression", "macro_f1", 0.6751),
    "stdlib_labels": Simple("TF-IDF + logistic regression", "micro_f1", 0.6640),
    "stdlib_pairs": Simple("number of shared words + logistic regression", "accuracy", 0.8322),
    "stdlib_sizes": Simple("TF-IDF + ridge regression", "r2", 0.3242),
    "stdlib_similar": Simple("cosine of word counts", "mrr", 0.2948),
    "stdlib_tags": Simple("most frequent tag of a word", "entity_f1", 0.4402),
    "mlm": Simple("unigram", "perplexity", 432.56),
    "stdlib_causal_lm": Simple("interpolated bigram", "perplexity", 82.11),
    "digits": Simple("logistic regression", "accuracy", 0.9620),
    "breast_cancer": Simple("majority", "accuracy", 0.5789),
    "diabetes": Simple("ridge regression", "r2", 0.4398),
}
"""`python scripts/baselines.py` on Python 3.11; other versions have other docstrings, and nearly these scores."""

NEEDS_FILES = {"mnist"}
NEEDS_LIBRARY = {name for name in SIMPLE if name.startswith("stdlib")} | {"mlm"}
"""Parses the standard library and learns a vocabulary first, a few seconds each."""


def train(folder: Path, name: str, *overrides: str) -> dict[str, float]:
    """Trains an experiment; its metrics on the test split."""
    with working_in(folder):
        assert main(["train", f"experiment={name}", f"run.dir={folder}/run", *QUIET, *overrides]) == 0
    (test,) = [event for event in events(folder / "run", "eval") if event["split"] == "test"]
    return test


def test_all_are_here() -> None:
    found = {file.stem for file in (CONF / "experiment").glob("*.yaml")}
    assert found == SIMPLE.keys() | NEEDS_FILES


@pytest.mark.parametrize("name", [*SIMPLE, *NEEDS_FILES])
def test_composes_without_a_fault(name: str, tmp_path: Path) -> None:
    register_defaults()
    files = [f"data.folder={tmp_path}"] * (name in NEEDS_FILES)
    config, choices = compose(CONF, "train", [f"experiment={name}", *files])
    values, unresolved = plain(config)

    assert unresolved == []
    assert job_from_config(values).train.duration == values["train"]["duration"]
    assert choices["experiment"] == name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in NEEDS_LIBRARY)) for name in SIMPLE]
)
def test_runs_through_in_seconds(name: str, tmp_path: Path) -> None:
    test = train(tmp_path, name, "debug=smoke")

    assert test[SIMPLE[name].metric] == test[SIMPLE[name].metric], "not NaN"
    assert test["step"] == 6


def test_runs_through_on_files_in_seconds(tmp_path: Path) -> None:
    write_idx(tmp_path / "idx", 120)
    test = train(tmp_path, "mnist", "debug=smoke", f"data.folder={tmp_path}/idx", f"data.cache_dir={tmp_path}/cache")

    assert test["step"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", SIMPLE)
def test_learns_more_than_a_simple_model(name: str, tmp_path: Path) -> None:
    _, metric, simple = SIMPLE[name]
    score = train(tmp_path, name)[metric]

    assert score < simple if metric == "perplexity" else score > simple
