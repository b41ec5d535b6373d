import json
import math

import pytest

from trainer.state import Score, TrainState


def score(value: float, *, higher_is_better: bool = True, weights: str = "raw", loss: float | None = None) -> Score:
    return Score("accuracy", value, higher_is_better, weights, loss)


def test_better_is_strict_and_follows_the_direction_of_the_metric() -> None:
    assert score(0.6).is_better_than(score(0.5))
    assert not score(0.5).is_better_than(score(0.5))
    assert score(0.5, higher_is_better=False).is_better_than(score(0.6, higher_is_better=False))
    assert score(0.1).is_better_than(None)


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_loss_decides_between_equal_values(higher_is_better: bool) -> None:
    low, high, nan, old = (
        score(0.5, higher_is_better=higher_is_better, loss=loss) for loss in (1.0, 2.0, math.nan, None)
    )
    assert low.is_better_than(high)
    assert not any(one.is_better_than(other) for one in (high, nan, old) for other in (low, old))
    assert not low.is_better_than(low)
    assert score(0.6, loss=2.0).is_better_than(score(0.5, loss=1.0))


def test_nan_is_never_better() -> None:
    assert not score(math.nan).is_better_than(None)
    assert not score(math.nan).is_better_than(score(0.0))


def test_the_first_of_equal_scores_is_the_best_one() -> None:
    state = TrainState()
    improved = []
    for value in (0.5, 0.7, 0.7, 0.6):
        state.advance()
        improved.append(state.record(score(value)))

    assert improved == [True, True, False, False]
    assert (state.best_step, state.steps_since_improvement()) == (2, 2)
    assert state.score == score(0.6)


def test_a_new_step_has_no_score_but_keeps_the_best_one() -> None:
    state = TrainState()
    state.advance()
    state.record(score(0.5))
    state.advance()

    assert state.score is None
    assert state.best == score(0.5)


def test_state_survives_json() -> None:
    state = TrainState()
    for _ in range(3):
        state.advance()
    state.record(score(0.5, weights="ema", loss=1.5))
    copy = TrainState()
    copy.load_state_dict(json.loads(json.dumps(state.state_dict())))

    assert copy == state


def test_a_smaller_loss_is_no_improvement_at_the_best_possible_value() -> None:
    state = TrainState()
    for value, loss in ((0.5, 2.0), (0.5, 1.5), (1.0, 1.0), (1.0, 0.5), (1.0, 0.4)):
        state.advance()
        assert state.record(score(value, loss=loss), best_possible=1.0)
    assert (state.best_step, state.improved_step, state.steps_since_improvement()) == (5, 3, 2)

    copy = TrainState()
    copy.load_state_dict(json.loads(json.dumps(state.state_dict())))
    assert copy == state
