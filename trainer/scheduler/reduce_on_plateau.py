"""Learning rate that decreases when the monitored metric has stopped improving."""

from dataclasses import dataclass

from trainer.scheduler.metric_based import MetricBased, MetricState


@dataclass
class _State(MetricState):
    """State of `ReduceOnPlateau`; the names are keys of checkpoints.

    Attributes:
        bad_looks: Consecutive observations without an improvement.
        cooldown_left: Observations for which bad scores are still not counted.
    """

    bad_looks: int = 0
    cooldown_left: int = 0


class ReduceOnPlateau(MetricBased):
    """Linear warmup from 0 to 1; then each plateau multiplies the factor on the base learning rate by `factor`.

    A plateau is more than `patience` consecutive observations that do not beat the best score. It is torch's
    ReduceLROnPlateau with learning rates relative to the base learning rate (and without its `eps`); "divide the rate
    by 10 when the error plateaus" is the schedule of He et al. 2016, https://arxiv.org/abs/1512.03385.

    Args:
        warmup_steps: Steps of the linear warmup; the metric is observed during the warmup too.
        every_steps: Steps between observations, at least 1.
        factor: Factor on the learning rate at a plateau, in (0, 1).
        patience: Consecutive observations without improvement that change nothing, at least 0.
        threshold: Margin by which an observation must beat the best score, at least 0.
        threshold_mode: `rel`: `threshold` is a share of the best score; `abs`: it is in the metric's unit.
        min_factor: Lower bound of the factor, in [0, 1].
        cooldown: Observations after a reduction that do not count towards a plateau, at least 0.

    Attributes:
        every_steps: Steps between observations.

    Raises:
        ConfigError: Values are out of range.
    """

    state_type = _State
    _state: _State

    def observe(self, value: float, higher_is_better: bool) -> None:
        """Observe a score; a score that is not finite is no improvement."""
        state = self._state
        if self._is_improvement(value, state.best, higher_is_better=higher_is_better):
            state.best = float(value)
            state.bad_looks = 0
        else:
            state.bad_looks += 1
        if state.cooldown_left:
            state.cooldown_left -= 1
            state.bad_looks = 0
        if state.bad_looks > self._patience:
            state.scale = max(state.scale * self._factor, self._min_factor)
            state.cooldown_left = self._cooldown
            state.bad_looks = 0
