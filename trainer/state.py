"""What a run knows beyond its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """How good the weights of one step are, by the monitored metric.

    Attributes:
        name: The metric.
        value: Its value on the validation split.
        higher_is_better: Its direction.
        weights: Which weights reached it, `raw` or `ema`.
    """

    name: str
    value: float
    higher_is_better: bool
    weights: str

    def beats(self, other: Score | None) -> bool:
        """Whether it is strictly better; NaN beats nothing."""
        if other is None:
            return self.value == self.value
        return self.value > other.value if self.higher_is_better else self.value < other.value


@dataclass
class TrainState:
    """Where a run stands, between two steps.

    Attributes:
        step: Optimizer updates done; also the position in the data and the schedule.
        score: The score of this very step; None where it was not evaluated.
        best: The best score so far.
        best_step: The step that reached it.
    """

    step: int = 0
    score: Score | None = None
    best: Score | None = None
    best_step: int | None = None

    def advance(self) -> None:
        self.step += 1
        self.score = None

    def take(self, score: Score) -> bool:
        """Records this step's score; True where it is the best so far."""
        self.score = score
        if not score.beats(self.best):
            return False
        self.best, self.best_step = score, self.step
        return True

    def steps_since_best(self) -> int:
        """Updates since the best score; since the start where there is none."""
        return self.step - (self.best_step or 0)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])
        self.best_step = state["best_step"]
        self.score, self.best = (None if entry is None else Score(**entry) for entry in (state["score"], state["best"]))
