"""Checks of the contracts of `trainer.protocols`, for the tests of your own parts; this project's parts pass them too.

Each function raises an AssertionError that says what the part does wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from trainer.builders.contracts import check_contract
from trainer.data.batch_plan import BatchIndices
from trainer.data.batches import Batches
from trainer.protocols import Batching, EndsWithHead, Inputs, Loss, MetricSchedule, Schedule, Source, Task


def _assert_close(first: Tensor, second: Tensor, message: str) -> None:
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5, msg=message)


def _name(part: object) -> str:
    return type(part).__name__


def check_loss(loss: Loss, output: Tensor, target: Tensor) -> None:
    """Check a loss: a finite sum over the samples, with right gradients, whatever the order of the samples.

    Args:
        loss: The loss.
        output: Outputs of a model for at least two samples, float32; several rows in a row may belong to a sample.
        target: Their targets, with a sample in each row.
    """
    check_contract("loss", _name(loss), loss)
    before = output.clone(), target.clone()
    value, count = loss(output, target), loss.num_targets(target)
    assert torch.equal(before[0], output), "the loss changes the output that it is given"
    assert torch.equal(before[1], target), "the loss changes the target that it is given"
    assert value.shape == (), f"the loss must return a sum of shape (), not {tuple(value.shape)}"
    assert value.dtype == torch.float32, f"the loss of float32 outputs must be float32, not {value.dtype}"
    assert count.shape == (), f"num_targets must return a tensor of shape (), not {tuple(count.shape)}"
    assert count.dtype == torch.int64, f"num_targets must return an int64 tensor, not {count.dtype}"
    assert value.isfinite(), f"the loss is {value.item()}"
    half, doubled = loss(output.bfloat16(), target), loss(output.double(), target)
    assert half.dtype == torch.float32, f"the loss of bfloat16 outputs must be float32, not {half.dtype}"
    assert doubled.dtype == torch.float64, f"the loss of float64 outputs must be float64, not {doubled.dtype}"
    _check_sum(loss, output, target)
    leaf = output.double().detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, target), leaf)
    assert gradient.isfinite().all(), "a gradient is not finite"
    assert torch.autograd.gradcheck(lambda each: loss(each, target), (leaf,), raise_exception=False), (
        "the gradient differs from differences of the loss"
    )


def _check_sum(loss: Loss, output: Tensor, target: Tensor) -> None:
    """Check that order does not matter and, except for statistics of a batch, that parts of a batch add up."""
    samples, rows = len(target), len(output) // len(target)
    order = torch.arange(samples).flip(0)
    permuted = output.view(samples, rows, *output.shape[1:])[order].reshape(output.shape)
    if not getattr(loss, "is_batch_statistic", False):
        value = loss(output, target)
        _assert_close(loss(permuted, target[order]), value, "the loss depends on the order of the samples")
        parts = [slice(0, 1), slice(1, samples)]
        sums = [loss(output[part.start * rows : part.stop * rows], target[part]) for part in parts]
        message = "the loss of a batch must be the sum of the losses of its samples, without a mean"
        _assert_close(sums[0] + sums[1], value, message)
        counts = [loss.num_targets(target[part]) for part in parts]
        assert counts[0] + counts[1] == loss.num_targets(target), "num_targets of parts of a batch must add up"


def check_model(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Check a model: finite outputs and gradients, samples that do not mix, and a complete state.

    Args:
        model: The model.
        inputs: The inputs of a batch of at least two samples, with a sample in each row of every tensor.
    """
    check_contract("model", _name(model), model)
    model.train()
    output = model(**inputs)
    samples = len(next(iter(inputs.values())))
    assert isinstance(output, Tensor), f"the model must return a tensor, not {type(output).__name__}"
    assert output.isfinite().all(), "an output is not finite"
    model.zero_grad()
    output.float().square().sum().backward()  # type: ignore[no-untyped-call]
    trained = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    unused = [name for name, gradient in trained.items() if gradient is None]
    assert not unused, f"parameters without a gradient: {', '.join(unused)}"
    assert all(each is not None and each.isfinite().all() for each in trained.values()), "a gradient is not finite"
    model.zero_grad()
    model.eval()
    with torch.no_grad():
        whole = model(**inputs)
        assert torch.equal(whole, model(**inputs)), "in eval mode, equal inputs must have equal outputs"
        single = torch.cat([model(**{name: each[i : i + 1] for name, each in inputs.items()}) for i in range(samples)])
        message = "in eval mode, the output of a sample depends on the other samples"
        _assert_close(single, whole, message)
        clone = copy.deepcopy(model)
        for parameter in clone.parameters():
            parameter.zero_()
        clone.load_state_dict(model.state_dict())
        assert torch.equal(clone(**inputs), whole), "the state of the model does not determine its outputs"
        _check_head(model, inputs, whole)


_INPUTS: Mapping[str, Inputs] = {"input_ids": "tokens", "pixel_values": "images", "features": "features"}


def _check_head(model: nn.Module, inputs: Mapping[str, Tensor], outputs: Tensor) -> None:
    """Check that a model's layer `head` makes its outputs, if it declares so."""
    head = getattr(model, "head", None)
    declared = model.ends_with_head if isinstance(model, EndsWithHead) else ()
    if not isinstance(head, nn.Module) or not any(_INPUTS.get(name) in declared for name in inputs):
        return
    calls: list[Tensor] = []
    with head.register_forward_hook(lambda module, arguments, output: calls.append(output)):
        model(**inputs)
    assert len(calls) == 1, f"ends_with_head: a forward pass calls the layer head {len(calls)} times instead of once"
    assert torch.equal(calls[0], outputs), "ends_with_head: the layer head does not make the outputs"


def check_schedule(schedule: Schedule, total_steps: int) -> None:
    """Check a schedule: a finite factor of at least 0 for each step, which depends on nothing but the step.

    Args:
        schedule: The function of the step, or an object that is called with it.
        total_steps: The length of the run that it was made for.
    """
    check_contract("scheduler", _name(schedule), schedule)
    factors = [float(schedule(step)) for step in range(total_steps + 1)]
    for step, factor in enumerate(factors):
        assert 0 <= factor < float("inf"), f"the factor at step {step} must be finite and at least 0, got {factor}"
    assert max(factors) > 0, "the factor is 0 at every step, so nothing is learned"
    again = [float(schedule(step)) for step in reversed(range(total_steps + 1))]
    assert factors == again[::-1], "the factor of a step depends on earlier calls"
    if isinstance(schedule, MetricSchedule):
        state = schedule.state_dict()
        schedule.load_state_dict(copy.deepcopy(state))
        assert schedule.state_dict() == state, "load_state_dict does not restore the state"


def check_optimizer(make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]) -> None:
    """Check an optimizer: it lowers a simple loss, and its state is complete.

    Args:
        make: Makes the optimizer from its parameter groups.
    """

    def start(values: Tensor) -> tuple[nn.Parameter, torch.optim.Optimizer]:
        parameter = nn.Parameter(values.clone())
        return parameter, make([{"params": [("weight", parameter)]}])

    def step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    parameter, optimizer = start(torch.linspace(-1, 1, 12).view(3, 4))
    check_contract("optimizer", _name(optimizer), optimizer)
    losses = [step(parameter, optimizer) for _ in range(20)]
    assert losses[-1] < losses[0], f"20 steps on a square raise the loss from {losses[0]} to {losses[-1]}"
    other, resumed = start(parameter.detach())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(parameter, optimizer)
    step(other, resumed)
    assert torch.equal(parameter, other), "the state of the optimizer does not determine its next step"


def check_metric(metric: Any, output: Tensor, target: Tensor) -> None:
    """Check a metric: one finite number that does not depend on how the rows form batches.

    Args:
        metric: A torchmetrics `Metric`.
        output: What it is updated with for at least two rows.
        target: Their targets.
    """
    metric.reset()
    metric.update(output, target)
    whole = metric.compute()
    assert isinstance(whole, Tensor), f"compute must return a tensor, not {type(whole).__name__}"
    assert whole.numel() == 1, f"compute must return one number, not a tensor of shape {tuple(whole.shape)}"
    assert whole.isfinite(), f"the metric is {whole.item()}"
    metric.reset()
    for row in range(len(output)):
        metric.update(output[row : row + 1], target[row : row + 1])
    message = "the metric depends on how the rows form batches"
    _assert_close(metric.compute(), whole, message)
    metric.reset()


def check_source(make: Callable[[], Source], roles: Sequence[str]) -> None:
    """Check a data source: splits with the columns of the roles, the same each time, and names for messages.

    Args:
        make: Makes the source.
        roles: The roles that it is asked for, such as `text` and `label`.
    """
    source, again = make(), make()
    check_contract("data", _name(source), source)
    assert source.fingerprint == again.fingerprint, "the fingerprint differs between two sources of the same data"
    splits, others = source.load(roles), again.load(roles)
    missing = {"train", "validation"} - {split.partition("/")[0] for split in splits}
    assert not missing, f"the source has no split {', '.join(sorted(missing))}"
    for split, rows in splits.items():
        lacking = [name for name in (*roles, "row") if name not in rows.column_names]
        assert not lacking, f"the split {split} lacks the columns {', '.join(lacking)}"
        assert len(rows) > 0, f"the split {split} has no rows"
        assert rows[:] == others[split][:], f"the split {split} differs when it is loaded again"
        assert source.describe_row(split, rows[0]["row"]), "describe_row must name a row for messages"
    assert all(source.describe_role(role) for role in roles), "describe_role must name a column for messages"


def check_task(make: Callable[[], Task], columns: Mapping[str, Sequence[Any]]) -> None:
    """Check a task: encoding that the state determines, batches in every layout, and metrics.

    Args:
        make: Makes the task, not fitted.
        columns: The columns of some rows that it can be fitted on.
    """
    task, restored = make(), make()
    check_contract("task", _name(task), task)
    assert task.fingerprint() == restored.fingerprint(), (
        "the fingerprint differs between two tasks with the same arguments"
    )
    lacking = [name for name in task.columns() if name not in columns]
    assert not lacking, f"the task reads the columns {', '.join(lacking)}, which the rows lack"
    rows = Dataset.from_dict({name: list(columns[name]) for name in task.columns()})
    task.fit(rows)
    restored.load_state_dict(copy.deepcopy(dict(task.state_dict())))
    encoded = task.encode(rows[:])
    _assert_equal(encoded, restored.encode(rows[:]), "a task with the same state encodes rows differently")
    assert task.info() == restored.info(), "a task with the same state has another info"
    table = Dataset.from_dict({name: list(map(_plain, values)) for name, values in encoded.items()})
    layouts: tuple[Batching, ...] = ("packed", "padded") if task.inputs == "tokens" else ("padded",)
    for batching in layouts:
        indices = BatchIndices(0, range(len(rows)))
        batch = Batches(table, task, batching, 0)[indices]
        assert batch.num_samples == len(rows), f"a batch of {len(rows)} rows says {batch.num_samples}"
        assert batch.inputs, "a batch has no inputs"
        assert all(isinstance(each, Tensor) for each in batch.inputs.values()), "the inputs of a batch must be tensors"
    assert task.monitor in {*task.metrics(), "loss"}, f"no metric has the name of the monitor {task.monitor!r}"


def _assert_equal(first: Mapping[str, Any], second: Mapping[str, Any], message: str) -> None:
    assert first.keys() == second.keys(), message
    for name in first:
        assert list(map(_plain, first[name])) == list(map(_plain, second[name])), message


def _plain(value: Any) -> object:
    return value.tolist() if hasattr(value, "tolist") else value
