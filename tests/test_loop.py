"""The training loop: the arithmetic of a step, and what happens after which step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.jobs import Recorded
from tests.support.token_batches import packed, padded, samples
from trainer.checkpoint.snapshot import Snapshot
from trainer.distributed.ranks import Ranks
from trainer.documents import MEASURED_VALUES
from trainer.ema import Ema
from trainer.errors import DivergedError, Interrupted
from trainer.loop import compute_gradients, evaluate_weights, fit, save_checkpoint, update_weights
from trainer.loss.cross_entropy import CrossEntropy
from trainer.model.text_encoder import TextEncoder
from trainer.precision import Precision
from trainer.protocols import Batch, Loss
from trainer.prune.masks import Masks
from trainer.run import Run, RunOutputs, StepCounts, Validation
from trainer.state import TrainState
from trainer.step_rng import StepRng
from trainer.validation_sets import VALIDATION

CPU = torch.device("cpu")
IGNORED = -100


class Tokens(nn.Module):
    """Logits for each token, so that samples have different numbers of targets."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)
        return output


class RepeatedSteps:
    """A loader that repeats the same steps."""

    requested = accumulate = 1
    tokens = None

    def __init__(self, steps: Sequence[list[Batch]]) -> None:
        self._steps = steps

    def load(self, step: int) -> list[Batch]:
        return self._steps[step % len(self._steps)]

    load_largest = fewer_tokens = None

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        return iter([self._steps[step % len(self._steps)] for step in range(start, stop)])


def make_batch(x: Tensor, target: Tensor, first_id: int = 0) -> Batch:
    return Batch({"x": x}, target, len(x), tuple(range(first_id, first_id + len(x))))


def random_batches(sizes: list[int], ignored: list[int], dtype: torch.dtype = torch.float64) -> list[Batch]:
    torch.manual_seed(sum(sizes))
    batches = []
    for size, count in zip(sizes, ignored, strict=True):
        target = torch.randint(3, (size,))
        target[: min(count, size)] = IGNORED
        batches.append(make_batch(torch.randn(size, 4, dtype=dtype), target))
    return batches


def concatenate(batches: list[Batch]) -> Batch:
    targets = [batch.target for batch in batches if batch.target is not None]
    return make_batch(torch.cat([batch.inputs["x"] for batch in batches]), torch.cat(targets))


def scripted_validation(values: Callable[[], float] = lambda: 0.5) -> Validation:
    """A validation that returns scripted values of the metric instead of evaluating."""
    return Validation({VALIDATION: lambda model, loss: {"accuracy": values()}}, VALIDATION, "accuracy", lambda: True)


def make_run(
    micro_batches: Sequence[list[Batch]] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    steps: StepCounts | None = None,
    save: Callable[[Snapshot], None] = lambda snapshot: None,
    save_divergence: Callable[[Any], str] = lambda divergence: "",
    **changes: Any,
) -> Run:
    """A run of six steps on a tiny model; its report is a `Recorded`."""
    micro_batches = [random_batches([4], [0], dtype)] if micro_batches is None else micro_batches
    torch.manual_seed(0)
    model = Tokens().to(dtype)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    run = Run(
        model=model,
        loss=CrossEntropy(weight=None, label_smoothing=0.1, ignore_index=IGNORED),
        optimizer=optimizer,
        schedule=lambda step: 1.0,
        unfreeze=lambda step: None,
        precision=Precision("fp32", CPU),
        ema=None,
        masks=Masks(model, {}),
        loader=RepeatedSteps(micro_batches),  # type: ignore[arg-type]
        batch_size=sum(batch.num_samples for batch in micro_batches[0]),
        ranks=Ranks(),
        rng=StepRng(0, CPU),
        device=CPU,
        max_grad_norm=None,
        steps=steps or StepCounts(6, len(micro_batches), log_every=1, eval_every=3, save_every=4),
        validation=scripted_validation(),
        outputs=RunOutputs(Recorded(), save, save_divergence),
        documents={},
        data_fingerprint="",
    )
    return replace(run, **changes)


def events(run: Run, name: str) -> list[tuple[int, dict[str, Any]]]:
    assert isinstance(run.outputs.report, Recorded)
    return [(step, values) for event, step, values in run.outputs.report.events if event == name]


def gradients_of(micro_batches: list[Batch], **changes: Any) -> dict[str, Tensor]:
    run = make_run([micro_batches], dtype=torch.float64, **changes)
    compute_gradients(run, 0, micro_batches)
    return {name: value.grad.clone() for name, value in run.model.named_parameters() if value.grad is not None}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_micro_batches_have_the_gradient_of_one_large_batch(shape: list[tuple[int, int]]) -> None:
    batches = random_batches([size for size, _ in shape], [ignored for _, ignored in shape])
    accumulated, at_once = gradients_of(batches), gradients_of([concatenate(batches)])

    for name, gradient in at_once.items():
        torch.testing.assert_close(accumulated[name], gradient, rtol=0, atol=1e-14)


def test_loss_of_a_step_is_the_mean_over_all_its_targets() -> None:
    batches = random_batches([5, 1, 4], [3, 1, 0])
    run = make_run([batches], dtype=torch.float64)
    loss, norm = compute_gradients(run, 0, batches).tolist()
    whole = concatenate(batches)
    assert whole.target is not None
    expected = nn.functional.cross_entropy(
        run.model(whole.inputs["x"]), whole.target, ignore_index=IGNORED, label_smoothing=0.1
    )

    assert loss == pytest.approx(expected.item(), abs=1e-7)
    total = torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None]).norm()
    assert norm == pytest.approx(total.item(), rel=1e-6)


def test_a_step_without_any_target_has_zero_gradients() -> None:
    gradients = gradients_of(random_batches([3, 2], [3, 2]))

    assert all((gradient == 0).all() for gradient in gradients.values())


def test_clipping_keeps_the_direction_and_the_norm_is_the_one_before() -> None:
    batches = random_batches([8], [0])
    unclipped, clipped = gradients_of(batches), gradients_of(batches, max_grad_norm=0.01)
    _, norm = compute_gradients(make_run([batches], dtype=torch.float64, max_grad_norm=0.01), 0, batches).tolist()

    assert norm > 0.01
    for name, gradient in unclipped.items():
        # PyTorch adds 1e-6 to the norm that it divides by.
        torch.testing.assert_close(clipped[name], gradient * 0.01 / norm, rtol=1e-5, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_pruned_weights_have_no_gradient_and_do_not_count_in_the_norm(precision: Any) -> None:
    batches = random_batches([8, 3], [0, 1], torch.float32)
    kept = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    run = make_run([batches], max_grad_norm=0.01, precision=Precision(precision, CPU))
    run = replace(run, masks=Masks(run.model, {"layer.weight": kept}))
    unmasked = make_run([batches])
    unmasked.model.load_state_dict(run.model.state_dict())
    compute_gradients(unmasked, 0, batches)
    _, norm = compute_gradients(run, 0, batches).tolist()
    weight, bias = (unmasked.model.get_parameter(f"layer.{name}").grad for name in ("weight", "bias"))
    gradient = run.model.get_parameter("layer.weight").grad
    assert weight is not None
    assert bias is not None
    assert gradient is not None

    expected = torch.cat([weight[kept], bias]).norm().item()
    rel = 1e-6 if precision == "fp32" else 1e-2  # float16 rounds the forward pass
    assert norm == pytest.approx(expected, rel=rel)
    assert norm < torch.cat([weight.flatten(), bias]).norm().item() * 0.95
    assert (gradient[~kept] == 0).all()
    torch.testing.assert_close(gradient[kept], weight[kept] * 0.01 / expected, rtol=1e-4, atol=0.01 * rel)


@pytest.mark.parametrize(("precision", "bad"), [("fp32", "nan"), ("bf16", "inf"), ("fp16", "nan")])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(precision: Any, bad: str) -> None:
    good, poisoned = random_batches([4, 4], [0, 0], torch.float32)
    poisoned = make_batch(poisoned.inputs["x"].fill_(float(bad)), torch.tensor([0, 1, 2, 0]), first_id=70)
    saved: list[dict[str, Tensor]] = []
    run = make_run(
        [[good], [good], [poisoned]],
        precision=Precision(precision, CPU),
        steps=StepCounts(6, 3, log_every=1, eval_every=100, save_every=1),
        save=lambda snapshot: saved.append({name: value.clone() for name, value in snapshot.tensors["model"].items()}),
    )
    run = replace(run, ema=Ema(run.model, 0.9))
    state = TrainState()

    with pytest.raises(DivergedError, match=r"step 3: the run diverged.*\n.*70, 71, 72, 73"):
        fit(run, state, lambda: False)
    assert state.step == 2
    assert run.ema is not None
    assert run.ema.updates == 2
    assert all(torch.equal(saved[-1][name], value) for name, value in run.model.state_dict().items())


def test_weights_that_are_not_finite_are_not_saved() -> None:
    saved: list[Snapshot] = []
    run = make_run(save=saved.append, save_divergence=lambda divergence: f"diagnosis of step {divergence.step}")
    with torch.no_grad():
        run.model.get_parameter("layer.bias").fill_(float("inf"))

    with pytest.raises(DivergedError, match=r"step 5: the run diverged: model\.layer\.bias is not finite") as caught:
        save_checkpoint(run, TrainState(step=5))
    assert caught.value.messages[-1] == "diagnosis of step 5"
    assert saved == []


def test_a_gradient_that_overflows_float16_is_computed_again_with_a_smaller_scale() -> None:
    batches = random_batches([4], [0], torch.float32)
    run = make_run([batches], precision=Precision("fp16", CPU))
    run.precision.load_state_dict(run.precision.state_dict() | {"scale": 2.0**40})
    loss, norm = update_weights(run, 0, batches).read()
    reference = make_run([batches])
    expected, expected_norm = update_weights(reference, 0, batches).read()

    assert run.precision.scale < 2.0**40
    assert loss == pytest.approx(expected, rel=1e-2)
    assert norm == pytest.approx(expected_norm, rel=1e-2)
    torch.testing.assert_close(run.model.state_dict(), reference.model.state_dict(), rtol=0, atol=1e-3)


FUSED = {
    "sgd": lambda model: torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9, fused=True),
    "adam": lambda model: torch.optim.Adam(model.named_parameters(), lr=0.1, fused=True),
    "adamw": lambda model: torch.optim.AdamW(model.named_parameters(), lr=0.1, fused=True),
}


def fused_run(name: str, micro_batches: Sequence[list[Batch]], **changes: Any) -> Run:
    run = make_run(micro_batches, steps=StepCounts(6, 6, log_every=4, eval_every=5, save_every=6))
    optimizer = FUSED[name](run.model)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return replace(run, optimizer=optimizer, max_grad_norm=1.0, **changes)


@pytest.mark.parametrize("name", FUSED)
def test_checking_late_changes_no_bit(name: str) -> None:
    batches = [random_batches([4 + step], [1], torch.float32) for step in range(6)]
    early, late = fused_run(name, batches), fused_run(name, batches, checks_late=True)
    for run in (early, late):
        fit(run, TrainState(), lambda: False)

    without_rate = [
        [(step, {key: value for key, value in values.items() if key not in MEASURED_VALUES}) for step, values in logged]
        for logged in (events(early, "train"), events(late, "train"))
    ]
    assert without_rate[0] == without_rate[1]
    for one, other in zip(early.model.state_dict().values(), late.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    states = early.optimizer.state_dict()["state"], late.optimizer.state_dict()["state"]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("bad_step", range(6))
@pytest.mark.parametrize("name", FUSED)
def test_a_late_check_finds_the_same_step_and_protects_the_weights(name: str, bad_step: int) -> None:
    batches = [random_batches([4 + step], [1], torch.float32) for step in range(6)]
    batches[bad_step] = [make_batch(torch.full((2, 4), float("inf")), torch.tensor([0, 1]), 70)]
    runs, reports = [], []
    for checks_late in (False, True):
        run = fused_run(name, batches, checks_late=checks_late)
        saved: list[Any] = []
        outputs = replace(run.outputs, save_divergence=lambda divergence, saved=saved: saved.append(divergence) or "")
        run = replace(run, outputs=outputs)
        with pytest.raises(DivergedError, match=f"step {bad_step + 1}: the run diverged"):
            fit(run, TrainState(), lambda: False)
        runs.append(run)
        reports.append(saved[0].report)

    assert reports[0] == reports[1]
    for one, other in zip(*(run.model.state_dict().values() for run in runs), strict=True):
        assert torch.equal(one, other)


def test_logging_evaluating_and_saving_happen_at_their_intervals_and_at_the_end() -> None:
    values, saved = iter([0.5, 0.4]), list[int]()
    run = make_run(
        steps=StepCounts(6, 1, log_every=4, eval_every=3, save_every=5),
        save=lambda snapshot: saved.append(snapshot.step),
        validation=scripted_validation(lambda: next(values)),
    )
    state = TrainState()
    fit(run, state, lambda: False)

    assert [step for step, _ in events(run, "train")] == [4, 6]
    assert [(step, logged["accuracy"]) for step, logged in events(run, "eval")] == [(3, 0.5), (6, 0.4)]
    # Step 3 has the best score, 5 is a multiple of the interval, 6 is the last one.
    assert [(step, logged["best"]) for step, logged in events(run, "checkpoint")] == [(3, True), (5, False), (6, False)]
    assert saved == [3, 5, 6]
    assert (state.step, state.best_step) == (6, 3)


@pytest.mark.parametrize("intervals", [(1, 1, 1, 1), (3, 2, 1, 1), (2, 3, 4, 3), (6, 1, None, None)])
def test_rates_leave_out_reports_evaluations_and_saving(
    intervals: tuple[int | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0

    def take(duration: float) -> float:
        nonlocal seconds
        seconds += duration
        return 0.5

    monkeypatch.setattr("trainer.loop.time", SimpleNamespace(perf_counter=lambda: seconds))
    log_every, histograms_every, eval_every, save_every = intervals
    report = Recorded()
    log = report.log
    monkeypatch.setattr(report, "log", lambda *event, **values: (take(3.0), log(*event, **values)))
    run = make_run(
        steps=StepCounts(6, 1, log_every, eval_every, save_every, histograms_every=histograms_every),
        unfreeze=lambda step: take(2.0),
        validation=scripted_validation(lambda: take(100.0)),
    )
    outputs = RunOutputs(report, lambda snapshot: take(1000.0), add_histogram=lambda *histogram: take(10.0))
    fit(replace(run, outputs=outputs), TrainState(), lambda: False)

    rates = [values["samples_per_second"] for _, values in events(replace(run, outputs=outputs), "train")]
    assert rates == [4 / 2.0] * len(rates)
    assert seconds > 6 * 2.0 + 10.0


def test_an_interval_of_none_is_never() -> None:
    saved: list[Snapshot] = []
    run = make_run(steps=StepCounts(6, 1, log_every=1, eval_every=None, save_every=None), save=saved.append)
    fit(run, TrainState(), lambda: False)

    assert (saved, events(run, "eval")) == ([], [])
    assert len(events(run, "train")) == 6


class Watcher:
    """A schedule that follows the metric and remembers what it has seen."""

    every_steps = 2

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, step: int, /) -> float:
        return 1.0 - 0.1 * len(self.seen)

    def observe(self, value: float, higher_is_better: bool) -> None:
        self.seen.append(value)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def test_a_metric_schedule_observes_only_its_own_steps() -> None:
    values, schedule = iter([0.2, 0.3, 0.4, 0.6]), Watcher()
    steps = StepCounts(6, 1, log_every=1, eval_every=3, save_every=9, schedule_eval_every=schedule.every_steps)
    run = make_run(steps=steps, schedule=schedule, validation=scripted_validation(lambda: next(values)))
    fit(run, TrainState(), lambda: False)

    assert [step for step, _ in events(run, "eval")] == [2, 3, 4, 6]
    assert schedule.seen == [0.2, 0.4, 0.6]
    # An observation acts on the next step, not on the step that was evaluated.
    assert [logged["lr"] for _, logged in events(run, "train")] == pytest.approx([0.1, 0.1, 0.09, 0.09, 0.08, 0.08])


def test_schedule_and_unfreeze_are_called_with_the_number_of_completed_steps() -> None:
    unfrozen: list[int] = []
    run = make_run(schedule=lambda step: step / 10, unfreeze=unfrozen.append)
    fit(run, TrainState(), lambda: False)

    assert [values["lr"] for _, values in events(run, "train")] == pytest.approx([0.0, 0.01, 0.02, 0.03, 0.04, 0.05])
    assert unfrozen == [0, 1, 2, 3, 4, 5]


def test_a_stop_saves_a_checkpoint_and_interrupts_after_the_step() -> None:
    saved: list[int] = []
    run = make_run(steps=StepCounts(6, 1, 1, 100, 100), save=lambda snapshot: saved.append(snapshot.step))
    state = TrainState()

    with pytest.raises(Interrupted, match="stopped after step 2 of 6"):
        fit(run, state, lambda: state.step >= 2)
    assert saved == [2]


def test_a_stop_at_the_last_step_is_no_interruption() -> None:
    state = TrainState()
    fit(make_run(), state, lambda: state.step >= 6)

    assert state.step == 6


@pytest.mark.parametrize(
    ("raw", "ema", "higher_is_better", "better"),
    [(0.5, 0.6, True, "ema"), (0.5, 0.6, False, "raw"), (1.0, 1.0, True, "raw")],
)
def test_the_better_weights_score_and_both_are_logged(
    raw: float, ema: float, higher_is_better: bool, better: str
) -> None:
    run = make_run()
    average = Ema(run.model, 0.9)
    values = {id(run.model): raw, id(average.module): ema}

    def evaluate(model: nn.Module, loss: Loss) -> dict[str, float]:
        return {"accuracy": values[id(model)]}

    run = replace(
        run,
        ema=average,
        validation=Validation({VALIDATION: evaluate}, VALIDATION, "accuracy", lambda: higher_is_better),
    )
    score = evaluate_weights(run, TrainState(step=3))

    assert (score.weights, score.value) == (better, {"raw": raw, "ema": ema}[better])
    assert (score.name, score.higher_is_better) == ("accuracy", higher_is_better)
    assert events(run, "eval") == [
        (3, {"split": "validation", "weights": "raw", "accuracy": raw}),
        (3, {"split": "validation", "weights": "ema", "accuracy": ema}),
    ]


@pytest.mark.parametrize("mask", ["attention_mask", "sequence_ids"])
def test_tokens_that_are_not_padding_are_counted_without_fillers(mask: str) -> None:
    batch = Batch({"input_ids": torch.ones(2, 4), mask: torch.tensor([[1, 1, 2, 0], [1, 0, 0, 0]])}, None, 2, (0, 1))

    assert batch.num_tokens == 4
    assert replace(batch, num_samples=0, ids=()).num_tokens == 0
    assert random_batches([4], [0])[0].num_tokens == 0


class Operators(TorchDispatchMode):
    """Counts the operators that run: forward, backward and update."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operators_of(step: Callable[[], object]) -> int:
    """Count the operators of a step; the step before it makes the state of the optimizer."""
    step()
    with Operators() as operators:
        step()
    return operators.count


def test_a_step_runs_few_operators_more_than_a_hand_written_one() -> None:
    torch.manual_seed(0)
    model = TextEncoder(50, 4, 64, dim=8, depth=1, heads=2, hidden=8, dropout=0.1, pooling="mean").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    target = torch.arange(8) % 4
    mixed, equal = samples(8), [sample[:5] for sample in samples(20) if len(sample) >= 5][:8]
    rows = padded(mixed)
    average = [parameter.detach().clone() for parameter in model.parameters()]

    def by_hand(averages: bool = False) -> None:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(**rows), target)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if averages:
            with torch.no_grad():
                torch._foreach_lerp_(average, list(model.parameters()), 0.001)
        assert loss.item() > 0

    def counted(inputs: dict[str, Tensor], **changes: Any) -> int:
        run = make_run(model=model, optimizer=optimizer, max_grad_norm=1.0, **changes)
        run = replace(run, loss=CrossEntropy(None, 0.0, IGNORED, num_outputs=4))
        batches = [Batch(inputs, target, 8, tuple(range(8)))]

        def step() -> None:
            update_weights(run, 0, batches).read()
            if run.ema is not None:
                run.ema.update(run.model, run.loss)

        return operators_of(step)

    expected = operators_of(by_hand)
    more = {
        "padded": counted(rows) - expected,
        "packed, one length": counted(packed(equal)) - expected,
        "packed": counted(packed(mixed)) - expected,
        "average": counted(rows, ema=Ema(model, 0.999)) - operators_of(lambda: by_hand(averages=True)),
    }
    # Of about 180: the targets are checked and counted, and a norm that is not finite is kept from the gradients.
    assert max(more.values()) <= 25, more
