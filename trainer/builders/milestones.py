"""What happens at the milestones of a run: its weights are scored, saved, or looked at where they diverged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import nn

from trainer.capture import capture
from trainer.checkpoint.store import Snapshot
from trainer.divergence import DivergenceReport, examine, not_finite_parameters
from trainer.errors import DivergedError
from trainer.evaluate import evaluate, score
from trainer.loop import MetricSchedule, Run
from trainer.protocols import Batch, Loss, Task
from trainer.state import Score, TrainState

_SHOWN = 3


def scoring(
    monitor: str, higher_is_better: bool, task: Task, validation: Iterable[Batch]
) -> Callable[[Run, TrainState], Score]:
    """Evaluates the raw and the averaged weights of a run on the validation split, and logs both."""

    def score_step(run: Run, state: TrainState) -> Score:
        def measure(model: nn.Module, loss: Loss) -> dict[str, float]:
            return evaluate(model, loss, validation, task.metrics(), precision=run.precision, device=run.device)

        def log(values: Mapping[str, float | str]) -> None:
            run.report.log("eval", step=state.step, epoch=state.step / run.steps_per_epoch, values=values)

        models = {"raw": (run.model, run.loss)}
        if run.ema is not None:
            models["ema"] = (run.ema.module, run.ema.loss or run.loss)
        found = score(models, monitor, higher_is_better, measure, log)
        if isinstance(run.schedule, MetricSchedule) and state.step % run.schedule.every_steps == 0:
            run.schedule.observe(found.value, higher_is_better)
        return found

    return score_step


def saving(
    submit: Callable[[Snapshot], None],
    keep_findings: Callable[[DivergenceReport], str],
    documents: Mapping[str, str],
    data: str,
) -> Callable[[Run, TrainState], None]:
    """Takes checkpoints of a run.

    Args:
        submit: Writes them.
        keep_findings: Keeps what is known of weights that cannot be saved; says where.
        documents: Their further files.
        data: The fingerprint of the encoded data.
    """

    def save(run: Run, state: TrainState) -> None:
        # A checkpoint that nothing can go on from must not take the place of a good one.
        if names := not_finite_parameters(run):
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            shown = ", ".join(names[:_SHOWN]) + more
            problem = f"step {state.step}: the run diverged: {shown} not finite; no checkpoint was taken."
            remedy = "  Lower optimizer.lr, lengthen scheduler.warmup or set train.max_grad_norm, and start a new run."
            raise DivergedError(problem, remedy, keep_findings(examine(run, state.step, None, None, [])))
        submit(capture(run, state, documents=documents, data=data))
        values = {"best": state.best_step == state.step}
        run.report.log("checkpoint", step=state.step, epoch=state.step / run.steps_per_epoch, values=values)

    return save


def looking(keep_findings: Callable[[DivergenceReport], str]) -> Callable[[Run, int, float, float, list[Batch]], str]:
    """Keeps what is known of a step that diverged; says where."""
    return lambda run, step, loss, grad_norm, group: keep_findings(examine(run, step, loss, grad_norm, group))
