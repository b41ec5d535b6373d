"""Early stopping: a run ends if its score has not improved for `train.patience`."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import assert_resumes, checkpoint_files, checkpoint_steps, events, train, working_in, write_data
from tests.test_loop import make_run, scripted_validation
from trainer.cli import main
from trainer.errors import Interrupted
from trainer.loop import fit
from trainer.run import StepCounts, Validation
from trainer.state import TrainState
from trainer.validation_sets import VALIDATION

NAN = math.nan


def steps(patience: int | None, **changes: int) -> StepCounts:
    intervals: dict[str, Any] = {"log_every": 9, "eval_every": 2, "save_every": 100}
    return StepCounts(20, 1, patience=patience, **(intervals | changes))


def fit_scripted(
    scores: dict[int, float], counts: StepCounts, state: TrainState | None = None, stop_at: int | None = None
) -> tuple[TrainState, list[int]]:
    """Fit a run with scripted scores; return its final state and the steps it saved."""
    saved: list[int] = []
    state = TrainState() if state is None else state
    run = make_run(
        steps=counts,
        validation=scripted_validation(lambda: scores[state.step]),
        save=lambda snapshot: saved.append(snapshot.step),
    )
    fit(run, state, lambda: stop_at is not None and state.step >= stop_at)
    return state, saved


@pytest.mark.parametrize(
    ("values", "patience", "end"),
    [
        ([0.5] + [0.4] * 9, 6, 8),
        # One step more than two evaluations: the third evaluation notices it.
        ([0.5] + [0.4] * 9, 5, 8),
        ([0.5, 0.4] + [0.6] * 8, 6, 12),
        ([0.5, 0.4, 0.6, 0.5, 0.7, 0.6, 0.8, 0.7, 0.9, 0.8], 4, 20),
        ([NAN] * 10, 6, 6),
        ([NAN, NAN, 0.1] + [NAN] * 7, 7, 14),
        ([0.5] * 10, None, 20),
        ([0.5] * 10, 100, 20),
    ],
)
def test_a_run_ends_at_the_first_evaluation_after_its_patience(
    values: list[float], patience: int | None, end: int
) -> None:
    scores = {2 * (place + 1): value for place, value in enumerate(values)}
    state, saved = fit_scripted(scores, steps(patience))

    assert state.step == end
    assert saved[-1] == end


@pytest.mark.parametrize(
    ("bounds", "patience", "end"), [((0.0, 1.0), 4, 8), ((0.0, 9.0), 4, 20), ((0.0, 1.0), None, 20)]
)
def test_a_smaller_loss_does_not_prolong_a_run_whose_metric_cannot_improve(
    bounds: tuple[float, float], patience: int | None, end: int
) -> None:
    run = make_run(
        steps=steps(patience),
        validation=Validation(
            {VALIDATION: lambda model, loss: {"accuracy": float(state.step > 3), "loss": 1 / state.step}},
            VALIDATION,
            "accuracy",
            lambda: True,
            bounds,
        ),
    )
    state = TrainState()
    fit(run, state, lambda: False)

    assert (state.step, state.best_step) == (end, end)


def test_evaluations_for_a_schedule_count_too() -> None:
    scores = {3: 0.5, 4: 0.4, 6: 0.4, 8: 0.4}
    state, _ = fit_scripted(scores, steps(3, eval_every=4, schedule_eval_every=3))

    assert state.step == 6


def test_a_finished_run_continues_only_with_more_patience() -> None:
    scores = dict.fromkeys(range(2, 21, 2), 0.5)
    state, _ = fit_scripted(scores, steps(4))
    again = TrainState()
    again.load_state_dict(state.state_dict())

    assert fit_scripted(scores, steps(4), again)[1] == []
    assert again == state
    assert fit_scripted(scores, steps(8), again)[0].step == 10
    assert fit_scripted(scores, steps(None), again)[0].step == 20


def test_a_stop_at_the_end_of_patience_is_no_interruption() -> None:
    scores = dict.fromkeys(range(2, 21, 2), 0.5)

    with pytest.raises(Interrupted):
        fit_scripted(scores, steps(4), stop_at=5)
    assert fit_scripted(scores, steps(4), stop_at=6)[0].step == 6


# The weights hardly move, so no score is better than the first.
STILL = ["train.duration=20", "optimizer.lr=1e-12", "train.eval_every=2", "checkpoint.every=1", "checkpoint.keep=20"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("patience")
    with working_in(folder):
        yield [*write_data(folder), *STILL]


def test_a_run_that_ends_early_is_evaluated_and_exported(
    job: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    assert train(run, *job, "train.patience=4", "export.formats=[torchscript]") == 0

    assert [event["step"] for event in events(run, "eval") if event["split"] == "validation"] == [2, 2, 4, 4, 6, 6]
    (end,) = events(run, "early_end")
    assert (end["step"], end["best_step"], end["reason"]) == (6, 2, "no better accuracy for train.patience")
    assert [(event["step"], event["formats"]) for event in events(run, "end")] == [(6, ["torchscript"])]
    assert (run / "eval" / "test.json").is_file()
    assert (run / "model" / "model.safetensors").is_file()
    assert any(message.startswith("train.patience: ") for message in caplog.messages)


def test_a_finished_run_resumes_only_with_more_patience(job: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "whole", *job) == 0
    assert train(tmp_path / "run", *job, "train.patience=4") == 0
    ended = checkpoint_files(tmp_path / "run", 6)
    assert ended == checkpoint_files(tmp_path / "whole", 6)

    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    assert checkpoint_files(tmp_path / "run", 6) == ended
    assert not (tmp_path / "run" / "checkpoints" / "step-00000007").exists()
    assert main(["train", f"resume={tmp_path / 'run'}", "train.patience=10"]) == 0
    assert max((tmp_path / "run" / "checkpoints").iterdir()).name == "step-00000012"
    assert main(["train", f"resume={tmp_path / 'run'}", "train.patience=null"]) == 0
    assert checkpoint_files(tmp_path / "run", 20) == checkpoint_files(tmp_path / "whole", 20)


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_resumed_run_ends_at_the_same_step_in_the_same_bytes(stop: int, job: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "whole", *job, "train.patience=0.5ep") == 0

    assert checkpoint_steps(tmp_path / "whole")[-1] == 6
    assert_resumes(tmp_path / "whole", stop)


def test_verify_replays_the_early_end(job: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "run", *job, "train.patience=4") == 0

    assert main(["verify", f"run={tmp_path / 'run'}"]) == 0


def test_patience_must_be_a_positive_duration(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("0", "abc", "-3"):
        assert train(tmp_path / "run", *job, f"train.patience={value}") == 2
        assert capsys.readouterr().err.startswith("train.patience: must ")
