"""The log of a training run: the outputs that it opens, and what it says at the start and the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from trainer.config.jobs import TrainJob
from trainer.config.stored import parse_stored_config
from trainer.display import counted, masked_config
from trainer.errors import Interrupted
from trainer.layout import EVALUATIONS, LOG, METRICS, RANK_LOGS, STATE, Document
from trainer.predictions import predictions_file, read_about
from trainer.report.console import print_indented
from trainer.report.screen import Course, Display, Lines
from trainer.validation_sets import file_stem

if TYPE_CHECKING:
    from trainer.builders.checkpointed import CheckpointedModel
    from trainer.builders.training import Training
    from trainer.checkpoint.snapshot import Snapshot
    from trainer.distributed.ranks import Ranks
    from trainer.report.events import Sink
    from trainer.report.tensorboard import TensorBoard
    from trainer.run import Run
    from trainer.signals import StopSignals

logger = logging.getLogger(__name__)

_MAX_GROUPS = 3
"""Groups of an epoch's draws that are shown, of the least and of the most drawn ones each."""

_printed: dict[str, str] = {}
"""The lines that introduced the last run of this process."""


def open_logs(
    job: TrainJob, folder: Path, notes: Sequence[str], ranks: Ranks, console: Console, stack: ExitStack
) -> Callable[[], None]:
    """Send log records to the screen and, once the returned function is called, to the run folder.

    That function also logs the folder: until then, an error may remove it.

    Of the processes after the first one only the warnings are kept, in a file each.
    """
    from trainer.report.logs import log_to_file_and_screen, log_warnings_to_file

    if not ranks.is_first:
        stack.enter_context(log_warnings_to_file(folder / RANK_LOGS / f"rank-{ranks.rank}.log"))
        return lambda: None
    quiet = job.logger.console == "none"
    open_log = stack.enter_context(log_to_file_and_screen(folder / LOG, console, quiet=quiet))
    for note in notes:
        logger.info(note)

    def start() -> None:
        open_log()
        logger.info("run folder: %s", folder)

    return start


def open_sinks(folder: Path, board: TensorBoard | None) -> Iterator[Sink | None]:
    """Yield the outputs for events: `metrics.jsonl` and, if requested, TensorBoard."""
    from trainer.report.events import JsonLines

    yield JsonLines(folder / METRICS)
    yield board


def show_start(
    job: TrainJob, notes: Sequence[str], training: Training, folder: Path, console: Console, screen: Display | Lines
) -> None:
    """Print what the run is: a line each for its folder, data, model and steps. Its log says more."""
    run, state, validation = training.run, training.state, training.run.validation
    total, per_epoch, best = run.steps.total, run.steps.per_epoch, (state.best, state.best_step)
    screen.start_training(
        Course(total, total / per_epoch, validation.monitor, validation.score, *best, validation.split)
    )
    duration = f"{run.steps.total} of {_micro_batches(job, run)}; {run.steps.per_epoch} per epoch"
    resumed = f", from step {state.step}" if state.step else ""
    num_parameters = sum(parameter.numel() for parameter in run.model.parameters())
    print_indented(console, f"{'run':<8}", str(folder))
    lines = {
        "resume": "; ".join(notes),
        "data": training.data_report.summary(),
        "model": f"{num_parameters:,} parameters, {job.precision}, {_device_name(run)}",
        "steps": duration + resumed,
        "monitor": f"{validation.monitor} on {validation.split}" if len(validation.evaluators) > 1 else "",
    }
    for name, line in lines.items():
        if line and line != _printed.get(name):  # which it may be in a later job of a sweep
            print_indented(console, f"{name:<8}", line)
    _printed.update(lines)


def _micro_batches(job: TrainJob, run: Run) -> str:
    """Return how the samples of a step are divided: `32 samples = 2 micro-batches of 16`."""
    accumulate = run.loader.accumulate
    size, remainder = divmod(job.train.batch_size, accumulate)
    division = f"{counted(accumulate, 'micro-batch')} of {f'at most {size + 1}' if remainder else size}"
    if run.loader.tokens is not None:
        division = f"micro-batches of {run.loader.tokens} tokens"
    return f"{job.train.batch_size} samples = {division}"


def describe_draws(draws: Document) -> str:
    """Return how often the first epoch draws rows: `160 samples by label: a 0.5 times its 100 rows, ...`."""
    groups = sorted((each for each in draws["groups"] if each["rows"]), key=lambda each: each["draws"] / each["rows"])
    shown = groups if len(groups) <= 2 * _MAX_GROUPS else [*groups[:_MAX_GROUPS], None, *groups[-_MAX_GROUPS:]]
    words = [
        "..."
        if each is None
        else f"{each['value']} {each['draws'] / each['rows']:.2g} times its {counted(each['rows'], 'row')}"
        for each in shown
    ]
    unseen = f"{counted(draws['unseen'], 'row', 'is')} not in the first epoch"
    unseen += f", others up to {draws['most_repeated']} times"
    return f"{draws['draws']} samples by {draws['by']}{': ' if words else ''}{', '.join(words)}; {unseen}"


def log_start(job: TrainJob, training: Training, snapshot: Snapshot | None, is_new: bool) -> None:
    """Log the arithmetic of a step and the device, and report the `start` or `resume` event."""
    from trainer.builders.sampling import measure_draws
    from trainer.capture import current_versions, describe_machine, describe_other_versions
    from trainer.data.batches import TrainLoader

    run, state = training.run, training.state
    size = job.train.batch_size // run.loader.accumulate
    logger.info(
        "step: %s; %d steps per epoch, %d in total; %s, %s, %d parameters",
        _micro_batches(job, run),
        *(run.steps.per_epoch, run.steps.total, _device_name(run), job.precision),
        sum(parameter.numel() for parameter in run.model.parameters()),
    )
    assert isinstance(run.loader, TrainLoader)
    if draws := measure_draws(run.loader.plan.sampler):
        logger.info("an epoch draws %s", describe_draws(draws))
    if run.loader.tokens is None and run.ranks.size > (micro_batch_size := max(1, size)):
        logger.warning(
            "train.batch_size: a micro-batch has %s, so %s none",
            counted(micro_batch_size, "sample"),
            counted(run.ranks.size - micro_batch_size, "device", "has", of=run.ranks.size),
        )
    if job.precision == "fp16" and run.device.type == "cpu":
        logger.warning(
            "precision: fp16 is many times slower than fp32 on a CPU. Use fp32, or a device that supports float16"
        )
    if job.precision == "tf32" and run.device.type != "cuda":
        logger.info("precision: tf32 is fp32 on this device: only CUDA has TF32")
    if snapshot is not None and (other := describe_other_versions(snapshot.json(STATE)["versions"])):
        logger.warning("resume: the last bits may differ from a run that was not stopped (%s)", other)
    # `resume` even without a checkpoint if an earlier process left events: it takes back those after its step.
    event = "start" if is_new else "resume"
    software = {"versions": current_versions(), "total_steps": run.steps.total, "data": training.data_report.measures()}
    machine = {"device": str(run.device), **describe_machine(run.device)}
    run.log(event, state.step, {"seed": job.seed, **machine, **software})
    log_sparsity(training)


def _device_name(run: Run) -> str:
    if run.ranks.size == 1:
        return str(run.device)
    shards = "" if run.sharding is None else f" in groups of {run.sharding.count} shards"
    return f"{run.ranks.size} x {run.device.type}{shards}"


def log_early_stop(training: Training) -> None:
    """Log and report that a run stopped before its last step, if it did."""
    run, state = training.run, training.state
    if state.step == run.steps.total:
        return
    best = "no score was finite" if state.best is None else f"best {state.best.name} at step {state.best_step}"
    if state.best is not None and state.improved_step != state.best_step:
        best += f", as good as it can be since step {state.improved_step}"
    logger.info("train.patience: stopped early after step %d of %d; %s", state.step, run.steps.total, best)
    reason = "no score was finite" if state.best is None else f"no better {state.best.name} for train.patience"
    run.log("early_end", state.step, {"best_step": state.best_step, "reason": reason})


def log_stop(training: Training, signals: StopSignals) -> Interrupted:
    """Report why a run stopped between two steps; return the error that says so."""
    run, state = training.run, training.state
    out_of_time = signals.received is None and signals.is_out_of_time()
    # Another process may have received the signal.
    signal = "signal" if signals.received is None else signals.received.name
    run.log("stop", state.step, {"reason": "train.max_time" if out_of_time else signal})
    where = f"stopped after step {state.step} of {run.steps.total}"
    return Interrupted(f"train.max_time: {where}, because the time of this start has passed" if out_of_time else where)


def log_sparsity(training: Training) -> None:
    """Report the zeros of pruned weights, one event for the raw and one for the averaged weights."""
    from trainer.prune.masks import measure_sparsity, total_sparsity

    run, state = training.run, training.state
    names = run.masks.names()
    models = {"raw": run.model} | ({} if run.ema is None else {"ema": run.ema.module})
    for weights, model in models.items() if names else ():
        layers = measure_sparsity(model, names)
        total = total_sparsity(layers)
        zeros = {"zeros": total.zeros, "share": total.share}
        values = {"weights": weights, **zeros, "layers": {layer.name: layer.share for layer in layers}}
        run.log("sparsity", state.step, values)


def log_result(board: TensorBoard, best: CheckpointedModel, split: str, values: Mapping[str, float], step: int) -> None:
    """Show the result of a run in TensorBoard: scores, confusion and the first samples of its final evaluation."""
    from trainer.report.statistics import count_classes, read_columns
    from trainer.report.tensorboard import MAX_DRAWN, draw_confusion

    board.add_result(masked_config(parse_stored_config(best.config_text)), values)
    file = predictions_file(best.folder / EVALUATIONS / f"{file_stem(split)}.json")
    if not file.is_file():
        return
    about = read_about(file)
    targets, predictions, losses = read_columns(file, "target", "prediction", "loss")
    if about["kind"] in ("class", "tags"):
        names, guesses = (
            column if about["kind"] == "class" else list(chain.from_iterable(row or () for row in column))
            for column in (targets, predictions)
        )
        confusion = count_classes(names, guesses, about["classes"])
        if len(confusion.names) <= MAX_DRAWN:
            board.add_image(f"{split}/confusion", draw_confusion(confusion), step)
    samples = {row["row"]: row for row in best.encoded.samples(split)}
    origins = best.encoded.splits[split].data.column("row")[: len(samples)].to_pylist()
    roles = [role for role in best.task.input_columns() if role != "image"]
    rows = [
        [*(samples[row][role] for role in roles), targets[place], predictions[place], losses[place]]
        for place, row in enumerate(origins)
        if row in samples
    ]
    board.add_table(f"{split}/samples", [*roles, "target", "prediction", "loss"], rows, step)
