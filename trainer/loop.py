"""The training loop. It owns no state: everything that changes is in a part of the `Run` or in the `TrainState`."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.accumulation import (
    accumulate_more,
    backward_through_statistic,
    can_accumulate_more,
    merges_statistic,
)
from trainer.capture import capture
from trainer.distributed.ranks import Ranks
from trainer.distributed.sharding import gather_shards, is_sharded
from trainer.divergence import diverged_step_error, diverged_weights_error, non_finite_parameters
from trainer.errors import Interrupted
from trainer.protocols import Batch, IgnoresTargets, Loss, MetricSchedule
from trainer.run import Run
from trainer.state import Score, TrainState
from trainer.targets import compute_scores, compute_shared_loss, count_targets


def fit(run: Run, state: TrainState, should_stop: Callable[[], bool]) -> None:
    """Train from `state.step` to the last step, or to the evaluation at which patience runs out.

    Args:
        run: The parts.
        state: The position and scores to start from; updated in place.
        should_stop: Called after each step; if it returns True, a checkpoint is saved and the run stops. It must return
            the same in all processes; `Ranks.share_flag` shares the flag of one process with all.

    Raises:
        Interrupted: `should_stop` stopped the run between two steps; a checkpoint was saved.
        DivergedError: The loss or a gradient is not finite (the weights were not updated), or weights are not finite
            when they should be saved.
    """
    steps = run.steps
    if out_of_patience(run, state):
        return
    run.model.train()
    update: Update | None = None
    throughput = Throughput()
    for micro_batches in run.loader.steps(state.step, steps.total):
        run.unfreeze(state.step)
        lr = set_learning_rate(run.optimizer, run.schedule(state.step))
        earlier, update = update, update_weights(run, state.step, micro_batches)
        if run.ema is not None:
            run.ema.update(run.model, run.loss)
        state.advance()
        throughput.count(micro_batches, run.passes_at(state.step - 1))
        if earlier is not None:
            check_update(run, earlier)  # one step late: its loss has arrived by now, so nothing waits for the device

        improved = False
        if steps.reports_at(state.step):
            loss, grad_norm = check_update(run, update)
            with throughput.paused():
                if steps.is_due(steps.log_every, state.step):
                    log_step(run, state, loss, lr, grad_norm, throughput.read(run.ranks))
                if steps.is_due(steps.histograms_every, state.step):
                    log_histograms(run, state)
                if steps.evaluates_at(state.step):
                    improved = evaluate_and_record(run, state)
        stop = should_stop()
        finished = out_of_patience(run, state)
        if improved or stop or finished or steps.is_due(steps.save_every, state.step):
            check_update(run, update)
            with throughput.paused():
                save_checkpoint(run, state)
        if finished:
            return
        if stop and state.step < steps.total:
            raise Interrupted(f"stopped after step {state.step} of {steps.total}")


class Rates(NamedTuple):
    """The throughput of all devices.

    Attributes:
        samples: Samples per second of training.
        tokens: Tokens per second of training; 0 if the samples are no texts.
        passes: Forward and backward passes through a sample.
    """

    samples: float
    tokens: float
    passes: float


class Throughput:
    """The samples and tokens that were trained since the last reading, their passes, and the time that these took."""

    def __init__(self) -> None:
        self._samples = self._tokens = self._passes = 0
        self._seconds = 0.0
        self._resumed = time.perf_counter()

    def count(self, micro_batches: list[Batch], passes: int = 1) -> None:
        """Add the micro-batches of a step of this process, and the forward and backward passes through each."""
        samples = sum(batch.num_samples for batch in micro_batches)
        self._samples += samples
        self._passes += samples * passes
        self._tokens += sum(batch.num_tokens for batch in micro_batches)  # still on the host

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out: it reports, evaluates or saves, and does not train."""
        self._seconds += time.perf_counter() - self._resumed
        yield
        self._resumed = time.perf_counter()

    def read(self, ranks: Ranks) -> Rates:
        """Return the rates since the last reading, and start counting anew. Only in a pause."""
        samples, tokens, passes = ranks.sum(self._samples, self._tokens, self._passes)
        rates = Rates(samples / self._seconds, tokens / self._seconds, passes / samples)
        self._samples = self._tokens = self._passes = 0
        self._seconds = 0.0
        return rates


class Update:
    """An update of the weights, with values that may still be on their way from the device.

    Attributes:
        step: The step, counted from 0.
        micro_batches: The micro-batches of this process.
    """

    def __init__(self, step: int, micro_batches: list[Batch], values: Tensor) -> None:
        self.step = step
        self.micro_batches = micro_batches
        self._values = values
        if values.device.type != "cpu":
            self._values = values.new_empty(2, device="cpu", pin_memory=values.is_cuda).copy_(values, non_blocking=True)
        self._arrived = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def read(self) -> tuple[float, float]:
        """Return the mean loss and the 2-norm of its gradient before clipping; wait for the device if needed."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, grad_norm = self._values.tolist()
        return loss, grad_norm


def update_weights(run: Run, step: int, micro_batches: list[Batch]) -> Update:
    """Update the weights from the micro-batches of one step, unless its loss or its gradient is not finite.

    In float16, an update whose gradients overflow is repeated with a smaller loss scale, so no step is skipped. If
    memory runs out, the step is repeated with smaller micro-batches, and the later steps have them too.
    """
    while True:
        try:
            values = compute_gradients(run, step, micro_batches)
        except (RuntimeError, MemoryError) as error:
            if not can_accumulate_more(run, error):
                raise
            values = None
        if values is None:  # outside of the handler, which keeps the tensors of the failed step
            micro_batches = []
            run.log("out_of_memory", step, {"accumulate": accumulate_more(run)})
            micro_batches = run.loader.load(step)
            continue
        update = Update(step, micro_batches, values)
        if run.checks_late:
            # The kernel of the optimizer skips an update that has `found_inf`, and from then on every update, so that
            # `check_update` finds unchanged weights a step later: nothing waits for the device.
            bad = 1.0 - values.isfinite().all().float()
            earlier = getattr(run.optimizer, "found_inf", None)
            run.optimizer.found_inf = bad if earlier is None else torch.maximum(earlier, bad)  # type: ignore[attr-defined]
        else:
            check_update(run, update)
        if run.precision.step(run.optimizer):
            run.masks.zero_weights()
            run.ranks.average_batch_norm(run.model, sum(batch.num_samples for batch in micro_batches))
            return update


def check_update(run: Run, update: Update) -> tuple[float, float]:
    """Return the mean loss of a step and the 2-norm of its gradient before clipping.

    Raises:
        DivergedError: One is not finite. In float16, a norm may be infinite while the loss scale can still be lowered.
    """
    loss, grad_norm = update.read()
    if not isfinite(loss) or not (isfinite(grad_norm) or run.precision.can_lower_scale):
        if run.checks_late:  # By now, the gradients may belong to the next step; the weights are the same.
            set_learning_rate(run.optimizer, run.schedule(update.step))
            compute_gradients(run, update.step, update.micro_batches)
        raise diverged_step_error(run, update.step + 1, loss, grad_norm, update.micro_batches)
    return loss, grad_norm


def compute_gradients(run: Run, step: int, micro_batches: list[Batch]) -> Tensor:
    """Set the gradients of the mean loss over all targets of a step, clipped.

    The loss of each micro-batch is a sum, divided by the number of targets of the whole step on all devices. So k
    micro-batches equal one batch that is k times as large, however the targets and the samples are distributed.
    Weights are moved along the gradients of the whole step, and the gradients at the moved weights are added.

    Returns:
        The mean loss (at weights that are not moved) and the 2-norm of the gradient before clipping, on the device,
        shape (2,).
    """
    run.optimizer.zero_grad(set_to_none=True)
    # Counted on the host, before the batches are copied: nothing has to wait for the device.
    # The counts are exchanged during the first forward pass.
    num_targets = run.ranks.start_sum(sum(count_targets(run.loss, batch) for batch in micro_batches))
    compute = partial(add_gradients, run, step, micro_batches, num_targets)
    mean_loss = compute()
    if run.moved_weights is not None and run.moved_weights.starts_at(step):
        run.moved_weights.add_gradients(trained_parameters(run.optimizer), compute, run.precision.scale)
    run.precision.unscale(run.optimizer)
    grad_norm = clip_gradients(run.optimizer, run.max_grad_norm)
    return torch.stack([mean_loss, grad_norm.float()])


def add_gradients(run: Run, step: int, micro_batches: list[Batch], num_targets: Callable[[], float]) -> Tensor:
    """Add the gradients of the mean loss of a step, summed over all devices; return the loss, shape ()."""
    backward = backward_through_statistic if merges_statistic(run, micro_batches) else backward_through_sums
    mean_loss = backward(run, step, micro_batches, num_targets)
    # The gradients of sharded parameters are summed already, by their backward pass.
    unsummed = (parameter for parameter in trained_parameters(run.optimizer) if not is_sharded(parameter))
    run.ranks.sum_gradients(unsummed, mean_loss)
    run.masks.zero_gradients()
    return mean_loss


def backward_through_sums(run: Run, step: int, micro_batches: list[Batch], num_targets: Callable[[], float]) -> Tensor:
    """Add the gradients of each micro-batch's share of the mean loss; return the share of this process, shape ()."""
    mean_loss: Tensor | None = None
    for host_batch in micro_batches:
        batch = host_batch.to(run.device)
        total, counts = compute_share(run, step, batch)
        loss = total / max(1.0, num_targets())
        run.precision.backward(loss)
        if counts:
            mean_loss = loss.detach().float() if mean_loss is None else mean_loss + loss.detach().float()
    return torch.zeros((), device=run.device) if mean_loss is None else mean_loss


def compute_share(run: Run, step: int, batch: Batch) -> tuple[Tensor, bool]:
    """Return this process's share of the sum of a micro-batch's losses, and whether its value counts.

    With several dropout masks of the head, it is the mean of their losses. With a consistency, it is the mean over two
    passes with different dropout masks, and what their outputs differ in.
    """
    output = run.forward(step, batch)
    if run.head_masks > 1:
        shares = [compute_shared_loss(run.loss, each, batch, run.ranks) for each in output.unbind()]
        return torch.stack([total for total, _ in shares]).mean(), shares[0][1]
    total, counts = compute_shared_loss(run.loss, output, batch, run.ranks)
    if run.consistency is None or step < run.consistency.start_steps:
        return total, counts
    second = run.forward(step, batch, stream=1)  # other random numbers, so other dropout masks
    other, _ = compute_shared_loss(run.loss, second, batch, run.ranks)
    assert batch.target is not None
    ignore_index = run.loss.ignore_index if isinstance(run.loss, IgnoresTargets) else None
    first_scores, second_scores = (compute_scores(run.loss, each) for each in (output, second))
    difference = run.consistency(first_scores, second_scores, batch.target, ignore_index)
    # A filler has a gradient, and the gradient is 0.
    return (total + other) / 2 + (difference if batch.num_samples else difference * 0.0), counts


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters of an optimizer, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
    """Scale the gradients down to a 2-norm of at most `max_norm`; return the norm before, shape ()."""
    parameters = trained_parameters(optimizer)
    norm = gather_shards(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if max_norm is not None:
        # A norm that is not finite must not spread to finite gradients: the diagnosis lists the gradients that are not.
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm.nan_to_num(0.0, 0.0))
    return norm


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set each group's learning rate to `factor` times its base learning rate; return the largest one."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)


def log_step(run: Run, state: TrainState, loss: float, lr: float, grad_norm: float, rates: Rates) -> None:
    """Log a training step; `learning_rates` are by base learning rate if there are several.

    The MFU counts all passes of a step (`perturb`). In float16, the loss scale is logged too.
    """
    values: dict[str, Any] = {"loss": loss, "lr": lr, "grad_norm": grad_norm, "samples_per_second": rates.samples}
    if rates.tokens:
        values["tokens_per_second"] = rates.tokens
    if run.utilization is not None:
        values["mfu"] = rates.passes * run.utilization.mfu(rates.samples, rates.tokens)
    values["memory"] = read_peak_memory(run.device)
    by_base = {f"{group['initial_lr']:g}": float(group["lr"]) for group in run.optimizer.param_groups}
    if len(by_base) > 1:
        values["learning_rates"] = by_base
    if run.precision.name == "fp16":
        values["scale"] = run.precision.scale
    run.log("train", state.step, values)


def log_histograms(run: Run, state: TrainState) -> None:
    """Report the distribution of every trained parameter and of its gradient; with shards, all processes take part."""
    for name, module in run.modules().items():
        for path, parameter in module.named_parameters(prefix=name):
            if parameter.grad is not None:
                run.outputs.add_histogram(f"parameters/{path}", gather_shards(parameter.detach()), state.step)
                run.outputs.add_histogram(f"gradients/{path}", gather_shards(parameter.grad), state.step)


def read_peak_memory(device: torch.device) -> int:
    """Return the most bytes of tensors on a GPU since the last call, else the largest size of this process so far."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def evaluate_weights(run: Run, state: TrainState) -> Score:
    """Evaluate the raw and the averaged weights on each validation set, log all, and return the better score."""
    validation = run.validation
    candidates: dict[str, tuple[nn.Module, Loss]] = {"raw": (run.model, run.loss)}
    if run.ema is not None:
        candidates["ema"] = (run.ema.module, run.ema.loss or run.loss)
    best: Score | None = None
    for weights, (model, loss) in candidates.items():
        values = {}
        for split, evaluate in validation.evaluators.items():
            values[split] = evaluate(model, loss)
            run.log("eval", state.step, {"split": split, "weights": weights, **values[split]})
        score = validation.score(values[validation.split], weights)
        if best is None or score.is_better_than(best):
            best = score
    assert best is not None
    return best


def evaluate_and_record(run: Run, state: TrainState) -> bool:
    """Evaluate, and show the score to the schedule; return whether it is the best score so far."""
    score = evaluate_weights(run, state)
    improved = state.record(score, run.validation.best_possible if run.steps.patience is not None else None)
    observe_score(run, state, score)
    return improved


def observe_score(run: Run, state: TrainState, score: Score) -> None:
    """Show the score to a schedule that follows the metric, at the steps that the schedule requests."""
    if isinstance(run.schedule, MetricSchedule) and state.step % run.schedule.every_steps == 0:
        run.schedule.observe(score.value, score.higher_is_better)


def out_of_patience(run: Run, state: TrainState) -> bool:
    """Return whether this step was evaluated and the last improvement is too old."""
    patience = run.steps.patience
    return patience is not None and state.score is not None and state.steps_since_improvement() >= patience


def save_checkpoint(run: Run, state: TrainState) -> None:
    """Save a checkpoint, unless its weights are not finite: such a checkpoint must not replace a good one.

    Raises:
        DivergedError: A weight is not finite.
    """
    if names := non_finite_parameters(run):
        raise diverged_weights_error(run, state.step, names)
    run.outputs.save(capture(run, state))
    run.outputs.when_saved(partial(run.log, "checkpoint", state.step, {"best": state.best_step == state.step}))
