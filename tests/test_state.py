import json

from trainer.state import Score, TrainState


def score(value: float, *, higher_is_better: bool = True, weights: str = "raw") -> Score:
    return Score("accuracy", value, higher_is_better, weights)


def test_better_is_strict_and_follows_the_metrics_direction() -> None:
    assert score(0.6).beats(score(0.5))
    assert not score(0.5).beats(score(0.5))
    assert score(0.5, higher_is_better=False).beats(score(0.6, higher_is_better=False))
    assert score(0.1).beats(None)


def test_nan_beats_nothing_and_is_beaten_by_nothing_it_should_not_be() -> None:
    assert not score(float("nan")).beats(None)
    assert not score(float("nan")).beats(score(0.0))


def test_the_best_step_is_the_first_of_equals() -> None:
    state = TrainState()
    taken = []
    for value in (0.5, 0.7, 0.7, 0.6):
        state.advance()
        taken.append(state.take(score(value)))

    assert taken == [True, True, False, False]
    assert state.best_step == 2
    assert state.score == score(0.6)


def test_a_score_belongs_to_its_step() -> None:
    state = TrainState()
    state.advance()
    state.take(score(0.5))
    state.advance()

    assert state.score is None
    assert state.best == score(0.5)


def test_survives_json() -> None:
    state = TrainState()
    for _ in range(3):
        state.advance()
    state.take(score(0.5, weights="ema"))
    copy = TrainState()
    copy.load_state_dict(json.loads(json.dumps(state.state_dict())))

    assert copy == state
