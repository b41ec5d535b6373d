"""The experiments: each composes, trains in seconds with debug=smoke, and beats a simple baseline on the same data."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.jobs import events, working_in
from tests.support.sources import write_idx
from trainer.cli import main
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.stored import job_from_config
from trainer.data.quality import LIMITS

CONF = Path(__file__).parent.parent / "conf"
QUIET = ["device=cpu", "logger.console=none", "logger.tensorboard=false", "export.formats=[]"]


class Baseline(NamedTuple):
    """A simple model of an experiment's data, and its score on the test split."""

    name: str
    metric: str
    score: float


BASELINES = {
    "stdlib_docs": Baseline("TF-IDF + logistic regression", "accuracy", 0.7337),
    "stdlib_focal": Baseline("TF-IDF + logistic regression", "macro_f1", 0.6751),
    "stdlib_labels": Baseline("TF-IDF + logistic regression", "micro_f1", 0.6640),
    "stdlib_pairs": Baseline("number of shared words + logistic regression", "accuracy", 0.8322),
    "stdlib_sizes": Baseline("TF-IDF + ridge regression", "r2", 0.3242),
    "stdlib_similar": Baseline("cosine of word counts", "mrr", 0.2948),
    "stdlib_tags": Baseline("most frequent tag of a word", "entity_f1", 0.4402),
    "stdlib_spans": Baseline("usual labels of a string", "entity_f1", 0.4881),
    "mlm": Baseline("unigram", "perplexity", 432.56),
    "stdlib_causal_lm": Baseline("interpolated bigram", "perplexity", 82.11),
    "digits": Baseline("logistic regression", "accuracy", 0.9620),
    "breast_cancer": Baseline("majority", "accuracy", 0.5789),
    "diabetes": Baseline("ridge regression", "r2", 0.4398),
}
"""The results of `python scripts/baselines.py` on Python 3.11; the docstrings of other versions differ a little."""

NEEDS_FILES = {"mnist"}
NEEDS_LIBRARY = {name for name in BASELINES if name.startswith("stdlib")} | {"mlm"}
"""Experiments that parse the standard library and train a tokenizer first, which takes a few seconds each."""


def train(folder: Path, name: str, *overrides: str) -> dict[str, float]:
    """Train an experiment; return its metrics on the test split."""
    with working_in(folder):
        assert main(["train", f"experiment={name}", f"run.dir={folder}/run", *QUIET, *overrides]) == 0
    (test,) = [event for event in events(folder / "run", "eval") if event["split"] == "test"]
    return test


def test_every_experiment_has_a_baseline() -> None:
    experiments = {file.stem for file in (CONF / "experiment").glob("*.yaml")}
    assert experiments == BASELINES.keys() | NEEDS_FILES


def test_every_experiment_composes_to_a_valid_job(tmp_path: Path) -> None:
    register_defaults()
    for name in (*BASELINES, *NEEDS_FILES):
        files = [f"data.folder={tmp_path}"] * (name in NEEDS_FILES)
        config, choices = compose(CONF, "train", [f"experiment={name}", *files])
        values, unresolved = plain(config)

        assert unresolved == []
        assert job_from_config(values).train.duration == values["train"]["duration"]
        assert choices["experiment"] == name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in NEEDS_LIBRARY)) for name in BASELINES]
)
def test_smoke_run_reaches_its_end(name: str, tmp_path: Path) -> None:
    test = train(tmp_path, name, "debug=smoke")

    assert test[BASELINES[name].metric] == test[BASELINES[name].metric], "not NaN"
    assert test["step"] == 6
    log = (tmp_path / "run" / "trainer.log").read_text(encoding="utf-8")
    doubts = [line for line in log.splitlines() if "WARNING" in line and "trainer.builders.data: " in line]
    assert [line for line in doubts if not any(f"% {name}" in line for name in LIMITS)] == []


def test_smoke_run_on_files_reaches_its_end(tmp_path: Path) -> None:
    write_idx(tmp_path / "idx", 120)
    test = train(tmp_path, "mnist", "debug=smoke", f"data.folder={tmp_path}/idx", f"data.cache_dir={tmp_path}/cache")

    assert test["step"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
def test_experiment_beats_its_baseline(name: str, tmp_path: Path) -> None:
    _, metric, baseline = BASELINES[name]
    score = train(tmp_path, name)[metric]

    assert score < baseline if metric == "perplexity" else score > baseline
