"""The arithmetic of a step: sums over the whole accumulation group, clipped, finite or not taken."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.jobs import Recorded
from trainer.ema import Ema
from trainer.errors import DivergedError, Interrupted
from trainer.loop import Cadence, Run, fit, gradients, update
from trainer.loss.cross_entropy import CrossEntropy
from trainer.precision import Precision
from trainer.protocols import Batch
from trainer.prune.masks import Masks
from trainer.state import Score, TrainState

CPU = torch.device("cpu")
IGNORED = -100


class Tokens(nn.Module):
    """Logits for each token: ragged samples have different numbers of targets."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)
        return output


class Groups:
    """The same groups of micro-batches, one a step."""

    def __init__(self, made: list[list[Batch]]) -> None:
        self.made = made

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        return iter([self.made[step % len(self.made)] for step in range(start, stop)])


def batch(x: Tensor, target: Tensor, first_id: int = 0) -> Batch:
    return Batch({"x": x}, target, len(x), tuple(range(first_id, first_id + len(x))))


def data(sizes: list[int], ignored: list[int], dtype: torch.dtype = torch.float64) -> list[Batch]:
    torch.manual_seed(sum(sizes))
    made = []
    for size, without in zip(sizes, ignored, strict=True):
        target = torch.randint(3, (size,))
        target[: min(without, size)] = IGNORED
        made.append(batch(torch.randn(size, 4, dtype=dtype), target))
    return made


def merged(parts: list[Batch]) -> Batch:
    x, target = (
        torch.cat([part.inputs["x"] for part in parts]),
        torch.cat([p.target for p in parts if p.target is not None]),
    )
    return batch(x, target)


def a_run(groups: list[list[Batch]], *, dtype: torch.dtype = torch.float32, **changes: Any) -> Run:
    torch.manual_seed(0)
    model = Tokens().to(dtype)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    for entry in optimizer.param_groups:
        entry["initial_lr"] = entry["lr"]
    run = Run(
        model=model,
        loss=CrossEntropy(weight=None, label_smoothing=0.1, ignore_index=IGNORED),
        optimizer=optimizer,
        schedule=lambda step: 1.0,
        precision=Precision("fp32", CPU),
        ema=None,
        masks=Masks(model, {}),
        loader=Groups(groups),
        device=CPU,
        max_grad_norm=None,
        total_steps=6,
        steps_per_epoch=len(groups),
        cadence=Cadence(log=1, evaluate=3, save=4),
        thaw=lambda step: None,
        score=lambda run, state: Score("accuracy", 0.0, True, "raw"),
        save=lambda run, state: None,
        autopsy=lambda run, step, loss, grad_norm, group: "",
        report=Recorded(),
    )
    return replace(run, **changes)


def gradient_of(group: list[Batch], **changes: Any) -> dict[str, Tensor]:
    run = a_run([group], dtype=torch.float64, **changes)
    gradients(run, group)
    return {name: value.grad.clone() for name, value in run.model.named_parameters() if value.grad is not None}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_micro_batches_have_the_gradient_of_one_large_batch(shape: list[tuple[int, int]]) -> None:
    parts = data([size for size, _ in shape], [ignored for _, ignored in shape])
    apart, together = gradient_of(parts), gradient_of([merged(parts)])

    for name, gradient in together.items():
        torch.testing.assert_close(apart[name], gradient, rtol=0, atol=1e-14)


def test_the_loss_of_a_step_is_the_mean_over_all_its_targets() -> None:
    parts = data([5, 1, 4], [3, 1, 0])
    run = a_run([parts], dtype=torch.float64)
    loss, norm = gradients(run, parts)
    whole = merged(parts)
    assert whole.target is not None
    expected = nn.functional.cross_entropy(
        run.model(whole.inputs["x"]), whole.target, ignore_index=IGNORED, label_smoothing=0.1
    )

    assert loss == pytest.approx(expected.item(), abs=1e-7)
    total = torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None]).norm()
    assert norm == pytest.approx(total.item(), rel=1e-6)


def test_a_step_without_any_target_has_no_gradient() -> None:
    parts = data([3, 2], [3, 2])

    assert all((gradient == 0).all() for gradient in gradient_of(parts).values())


def test_clipping_keeps_the_direction_and_reports_the_norm_before_it() -> None:
    parts = data([8], [0])
    free, clipped = gradient_of(parts), gradient_of(parts, max_grad_norm=0.01)
    run = a_run([parts], dtype=torch.float64, max_grad_norm=0.01)
    _, norm = gradients(run, parts)
    scale = 0.01 / norm

    assert norm > 0.01
    for name, gradient in free.items():
        # torch adds 1e-6 to the norm it divides by.
        torch.testing.assert_close(clipped[name], gradient * scale, rtol=1e-5, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_pruned_has_no_gradient_and_is_in_no_norm(precision: Any) -> None:
    parts = data([8, 3], [0, 1], torch.float32)
    plain = a_run([parts])
    kept = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    run = a_run([parts], max_grad_norm=0.01, precision=Precision(precision, CPU))
    run = replace(run, masks=Masks(run.model, {"layer.weight": kept}))
    plain.model.load_state_dict(run.model.state_dict())
    gradients(plain, parts)
    _, norm = gradients(run, parts)
    weight, bias = (plain.model.get_parameter(f"layer.{name}").grad for name in ("weight", "bias"))
    assert weight is not None
    assert bias is not None

    expected = torch.cat([weight[kept], bias]).norm().item()
    # float16 rounds what goes through the model.
    rel = 1e-6 if precision == "fp32" else 1e-2
    assert norm == pytest.approx(expected, rel=rel)
    assert norm < torch.cat([weight.flatten(), bias]).norm().item() * 0.95
    found = run.model.get_parameter("layer.weight").grad
    assert found is not None
    assert (found[~kept] == 0).all()
    torch.testing.assert_close(found[kept], weight[kept] * 0.01 / expected, rtol=1e-4, atol=0.01 * rel)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_loss_that_is_not_finite_stops_before_the_update(bad: float, precision: Any) -> None:
    good, poisoned = data([4, 4], [0, 0], torch.float32)
    poisoned = batch(poisoned.inputs["x"].fill_(bad), torch.tensor([0, 1, 2, 0]), first_id=70)
    run = a_run([[good], [good], [poisoned]], precision=Precision(precision, CPU))
    run = replace(run, ema=Ema(run.model, 0.9))
    states: list[dict[str, Tensor]] = []
    run = replace(run, save=lambda run, state: states.append({n: v.clone() for n, v in run.model.state_dict().items()}))
    run = replace(run, cadence=Cadence(log=1, evaluate=100, save=1))
    state = TrainState()

    with pytest.raises(DivergedError, match=r"step 3: the run diverged.*\n.*70, 71, 72, 73"):
        fit(run, state, lambda: False)
    assert state.step == 2
    assert run.ema is not None
    assert run.ema.updates == 2
    assert all(torch.equal(states[-1][name], value) for name, value in run.model.state_dict().items())


def test_a_gradient_that_overflows_float16_is_tried_again_with_a_smaller_scale() -> None:
    parts = data([4], [0], torch.float32)
    run = a_run([parts], precision=Precision("fp16", CPU))
    run.precision.load_state_dict(run.precision.state_dict() | {"scale": 2.0**40})
    loss, norm = update(run, 0, parts)
    reference = a_run([parts])
    expected, expected_norm = update(reference, 0, parts)

    assert run.precision.scale < 2.0**40
    assert loss == pytest.approx(expected, rel=1e-2)
    assert norm == pytest.approx(expected_norm, rel=1e-2)
    torch.testing.assert_close(run.model.state_dict(), reference.model.state_dict(), rtol=0, atol=1e-3)


def test_what_is_due_when() -> None:
    report, saved, scored = Recorded(), [], []

    def score(run: Run, state: TrainState) -> Score:
        scored.append(state.step)
        return Score("accuracy", {3: 0.5, 6: 0.4}[state.step], True, "raw")

    run = a_run(
        [data([4], [0], torch.float32)],
        report=report,
        save=lambda run, state: saved.append(state.step),
        score=score,
        cadence=Cadence(log=4, evaluate=3, save=5),
    )
    state = TrainState()
    fit(run, state, lambda: False)

    assert [step for event, step, _ in report.events] == [4, 6]
    assert scored == [3, 6]
    # 3: the best so far; 5: its turn; 6: the end.
    assert saved == [3, 5, 6]
    assert (state.step, state.best_step) == (6, 3)


def test_a_schedule_that_watches_is_evaluated_for_at_its_own_steps() -> None:
    scored: list[int] = []

    def score(run: Run, state: TrainState) -> Score:
        scored.append(state.step)
        return Score("accuracy", 0.5, True, "raw")

    run = a_run([data([4], [0], torch.float32)], score=score, cadence=Cadence(log=9, evaluate=3, save=9, look=2))
    fit(run, TrainState(), lambda: False)

    assert scored == [2, 3, 4, 6]


def test_the_schedule_is_asked_for_the_updates_done() -> None:
    report = Recorded()
    fit(
        a_run([data([4], [0], torch.float32)], report=report, schedule=lambda step: step / 10),
        TrainState(),
        lambda: False,
    )

    assert [values["lr"] for event, _, values in report.events if event == "train"] == pytest.approx(
        [0.0, 0.01, 0.02, 0.03, 0.04, 0.05]
    )


def test_a_request_to_stop_ends_after_the_step_with_a_checkpoint() -> None:
    saved: list[int] = []
    run = a_run(
        [data([4], [0], torch.float32)], save=lambda run, state: saved.append(state.step), cadence=Cadence(1, 100, 100)
    )
    state = TrainState()

    with pytest.raises(Interrupted, match="stopped after step 2 of 6"):
        fit(run, state, lambda: state.step >= 2)
    assert saved == [2]


def test_a_request_at_the_last_step_comes_too_late_to_stop_anything() -> None:
    state = TrainState()
    fit(a_run([data([4], [0], torch.float32)]), state, lambda: state.step >= 6)

    assert state.step == 6
