"""The position and the scores of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from trainer.protocols import StateDict
from trainer.validation_sets import VALIDATION


@dataclass(frozen=True)
class Score:
    """The monitored metric of the weights of one step.

    Attributes:
        name: The metric.
        value: Its value on the validation split `split`.
        higher_is_better: Its direction.
        weights: The weights with this value, `raw` or `ema`.
        loss: Their validation loss, which decides between equal values; None in checkpoints of earlier versions.
        split: `validation`, or the monitored one of several validation sets.
    """

    name: str
    value: float
    higher_is_better: bool
    weights: str
    loss: float | None = None
    split: str = VALIDATION

    def is_better_than(self, other: Score | None) -> bool:
        """Return whether the score is strictly better, by its loss if the values are equal; NaN is never better."""
        if other is None:
            return self.value == self.value
        if self.value == other.value and self.loss is not None and other.loss is not None:
            return self.loss < other.loss
        return self.value > other.value if self.higher_is_better else self.value < other.value


@dataclass
class TrainState:
    """The position of a run between two steps, and its scores.

    Attributes:
        step: Completed optimizer updates; also the position in the data and in the schedule.
        score: The score of this very step; None if it was not evaluated.
        best: The best score so far.
        best_step: The step of the best score.
        improved_step: The step of the last improvement, for early stopping: a smaller loss is none once the metric has
            its best possible value.
    """

    step: int = 0
    score: Score | None = None
    best: Score | None = None
    best_step: int | None = None
    improved_step: int | None = None

    def advance(self) -> None:
        """Move to the next step, which has no score yet."""
        self.step += 1
        self.score = None

    def record(self, score: Score, best_possible: float | None = None) -> bool:
        """Record this step's score; return True if it is the best so far.

        Args:
            score: The score.
            best_possible: The best value that the metric can have, if a smaller loss at this value is no improvement.
        """
        self.score = score
        if not score.is_better_than(self.best):
            return False
        if self.best is None or score.value != self.best.value or score.value != best_possible:
            self.improved_step = self.step
        self.best, self.best_step = score, self.step
        return True

    def steps_since_improvement(self) -> int:
        """Return the updates since the last improvement of the score, or since the start if there is none."""
        return self.step - (self.improved_step or 0)

    def state_dict(self) -> StateDict:
        """Return the state as JSON; the split of a score only if there are several validation sets.

        The step of the last improvement is left out if it is the step of the best score.
        """
        state = asdict(self)
        if self.improved_step == self.best_step:
            del state["improved_step"]
        for score in filter(None, (state["score"], state["best"])):
            if score["split"] == VALIDATION:
                del score["split"]
        return state

    def load_state_dict(self, state: StateDict) -> None:
        """Restore what `state_dict` returned."""
        self.step = int(state["step"])
        self.best_step = state["best_step"]
        self.improved_step = state.get("improved_step", self.best_step)
        self.score, self.best = (None if entry is None else Score(**entry) for entry in (state["score"], state["best"]))
