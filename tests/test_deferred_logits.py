"""Losses of logits that are computed in chunks equal the losses of all logits."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.jobs import TINY, assert_resumes, assert_same_end, events, stop_at, train, write_data
from tests.support.pretrained_folders import CONFIGS, LANGUAGE, Folders, layouts, model_of
from trainer import deferred_logits
from trainer.cli import main
from trainer.deferred_logits import DeferredLogits, defer_logits, deferral, sum_in_chunks
from trainer.loss.cross_entropy import CrossEntropy
from trainer.loss.focal import Focal
from trainer.loss.poly import Poly

N, D, V = 23, 8, 11
WEIGHTS = [0.5 + 0.1 * number for number in range(V)]
LOSSES = {
    "cross_entropy": CrossEntropy(None, 0.0, -100),
    "weighted, smoothed cross_entropy": CrossEntropy(WEIGHTS, 0.1, -100, num_outputs=V),
    "focal": Focal(2.0, None, 0.1, -100, num_outputs=V),
    "poly": Poly(1.0, None, 0.1, -100, num_outputs=V),
}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks of 3 rows."""
    monkeypatch.setattr(deferred_logits, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(deferred_logits, "MIN_ROWS", 3)


def output_of(dtype: torch.dtype, *, bias: bool, frozen: str = "") -> tuple[DeferredLogits, Tensor]:
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in ((N, D), (V, D), (V,))
    ]
    output = DeferredLogits(parts[0], parts[1], parts[2] if bias else None)
    for name, tensor in output._asdict().items():
        if tensor is not None:
            tensor.requires_grad_(name != frozen)
    target = torch.randint(V, (N,), generator=generator)
    target[::4] = -100
    return output, target


def gradients(value: Tensor, output: DeferredLogits) -> list[Tensor]:
    return list(torch.autograd.grad(value / 7, [part for part in output if part is not None and part.requires_grad]))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_equal_those_of_all_logits(name: str, bias: bool) -> None:
    loss = LOSSES[name]
    exact, target = output_of(torch.float64, bias=bias)
    reference = loss(exact.compute(), target)
    expected = gradients(reference, exact)
    for dtype in (torch.float64, torch.float32):
        output, _ = output_of(dtype, bias=bias)
        value = sum_in_chunks(loss, output, target)
        digits = torch.finfo(dtype).eps
        torch.testing.assert_close(value.double(), reference, rtol=16 * digits, atol=0)
        for ours, theirs in zip(gradients(value, output), expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=64 * digits, atol=64 * digits)


@pytest.mark.usefixtures("small_chunks")
def test_ignored_rows_frozen_parts_and_no_gradient() -> None:
    loss = LOSSES["cross_entropy"]
    output, target = output_of(torch.float64, bias=True)
    nothing = sum_in_chunks(loss, output, torch.full_like(target, -100))
    assert nothing == 0
    assert not any(gradient.any() for gradient in gradients(nothing, output))

    for frozen in ("features", "weight", "bias"):
        output, target = output_of(torch.float64, bias=True, frozen=frozen)
        ours = gradients(sum_in_chunks(loss, output, target), output)
        torch.testing.assert_close(ours, gradients(loss(output.compute(), target), output))
        assert len(ours) == 2

    with torch.no_grad():
        torch.testing.assert_close(sum_in_chunks(loss, output, target), loss(output.compute(), target))
    logits, targets = (torch.cat(parts) for parts in zip(*output.chunks(target), strict=True))
    torch.testing.assert_close(logits, output.compute())
    assert torch.equal(targets, target)


@pytest.mark.usefixtures("small_chunks")
def test_a_second_backward_pass_is_refused() -> None:
    output, target = output_of(torch.float32, bias=True)
    value = sum_in_chunks(LOSSES["cross_entropy"], output, target)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@pytest.mark.usefixtures("small_chunks")
def test_half_precision() -> None:
    """bfloat16 rounds the logits and their gradient; a float16 gradient needs the loss scale before it is rounded."""
    loss = LOSSES["cross_entropy"]
    exact, target = output_of(torch.float32, bias=True)
    expected = gradients(loss(exact.compute(), target), exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = defer_logits(*exact)
    assert output.features.dtype == torch.bfloat16
    results = gradients(sum_in_chunks(loss, output, target), exact)
    assert [each.dtype for each in results] == [torch.float32] * 3
    torch.testing.assert_close(results, expected, rtol=0.02, atol=0.02)

    with torch.autocast("cpu", dtype=torch.float16):
        output = defer_logits(*exact)
    assert torch.equal(sum_in_chunks(loss, output, target), loss(output.compute(), target))


def test_logits_of_one_chunk_have_the_bits_of_all_logits() -> None:
    output, target = output_of(torch.float32, bias=True)
    chunked, whole = sum_in_chunks(LOSSES["focal"], output, target), LOSSES["focal"](output.compute(), target)
    assert torch.equal(chunked, whole)
    pairs = zip(gradients(chunked, output), gradients(whole, output), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.usefixtures("small_chunks")
def test_no_tensor_has_all_logits() -> None:
    output, target = output_of(torch.float32, bias=True)
    with LargestTensor() as largest:
        gradients(sum_in_chunks(LOSSES["cross_entropy"], output, target), output)
    assert largest.largest == N * D  # the features: with chunks of 3 rows, more than 3 * V and V * D
    with LargestTensor() as largest:
        gradients(LOSSES["cross_entropy"](output.compute(), target), output)
    assert largest.largest == N * V


# Models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory)


def test_every_family_of_transformers_defers_its_logits(folder: Folders) -> None:
    for name in CONFIGS:
        model = model_of(folder(name), **LANGUAGE)
        names = [type(module).__name__ for module in model.modules()]
        for inputs in layouts(4, pooled=False):
            expected = model(**inputs)
            with deferral(model, deferred=True):
                output = model(**inputs)
            assert isinstance(output, DeferredLogits), name
            torch.testing.assert_close(output.compute(), expected)
            assert torch.equal(model(**inputs), expected)
        assert [type(module).__name__ for module in model.modules()] == names


def test_columns_beyond_the_vocabulary_are_left_out(folder: Folders) -> None:
    whole = model_of(folder("bert"), **LANGUAGE)
    model = model_of(
        folder("bert"), **LANGUAGE | {"vocab_size": 40, "num_outputs": 40}, architecture=whole.architecture
    )
    inputs = {"input_ids": torch.arange(12)[None], "attention_mask": torch.ones(1, 12)}
    with deferral(model, deferred=True):
        output = model(**inputs)
    assert output.weight.shape[0] == 40
    torch.testing.assert_close(output.compute(), model(**inputs))


# Jobs

STEPS = 6
PADDED = ["loader.batching=padded"]
TASKS = {
    "causal_lm, tied": (
        ["task=causal_lm", "model=decoder"],
        [[], PADDED, ["train.accumulate=2"], ["train.accumulate=3"], ["loss=focal", "loss.gamma=0"]],
    ),
    "causal_lm": (["task=causal_lm", "model=decoder", "model.tie_embeddings=false"], [[]]),
    "masked_lm": (["task=masked_lm"], [[], PADDED]),
}
"""The overrides of a job, and changes that do not change what it learns."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    every = ["train.eval_every=3", "checkpoint.every=3", "checkpoint.keep=9"]
    return [*write_data(folder), f"train.duration={STEPS}", *every, "model.dropout=0.1"]


def logged(run: Path) -> list[float]:
    values = [event["loss"] for event in events(run, "train")]
    return [*values, *(event[name] for event in events(run, "eval") for name in ("loss", "perplexity", "accuracy"))]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", TASKS)
def test_training_equals_training_with_all_logits(name: str, data: list[str], tmp_path: Path) -> None:
    # Dropout draws by the position in the micro-batch.
    parts, changes = TASKS[name]
    job = [*data, *parts, "model.dropout=0", "optimizer=sgd", "optimizer.lr=0.05"]
    assert train(tmp_path / "whole", *job, "train.fused_head=false") == 0
    expected = logged(tmp_path / "whole")
    for number, change in enumerate(changes):
        run = tmp_path / str(number)
        assert train(run, *job, *change) == 0
        assert logged(run) == pytest.approx(expected, rel=2e-5), change
        weights = f"checkpoints/step-{STEPS:08d}/model.safetensors"
        torch.testing.assert_close(load_file(run / weights), load_file(tmp_path / "whole" / weights), rtol=0, atol=2e-5)
        assert (run / weights).read_bytes() != (tmp_path / "whole" / weights).read_bytes()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_run_and_evaluation_are_bitwise_equal(precision: str, data: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = ["task=causal_lm", "model=decoder", f"precision={precision}", "train.accumulate=2"]
    assert train(run, *data, *job) == 0
    assert_resumes(run, 3)
    assert main(["eval", f"run={run}", "split=validation", "checkpoint=last", "weights=raw", "device=cpu"]) == 0
    if precision == "fp32":
        logged = [event for event in events(run, "eval") if (event["split"], event["weights"]) == ("validation", "raw")]
        assert f'"loss": {logged[-1]["loss"]}' in (run / "eval/validation.json").read_text()


@pytest.mark.usefixtures("small_chunks")
def test_a_run_without_the_key_resumes_with_all_logits(data: list[str], tmp_path: Path) -> None:
    job = ["task=causal_lm", "model=decoder", "train.fused_head=false"]
    assert train(tmp_path / "run", *data, *job) == 0
    old = Path(shutil.copytree(tmp_path / "run", tmp_path / "old"))
    stop_at(old, 3)
    lines = (old / "config.yaml").read_text().splitlines(keepends=True)
    (old / "config.yaml").write_text("".join(line for line in lines if "fused_head" not in line))
    assert main(["train", f"resume={old}"]) == 0
    assert_same_end(old, tmp_path / "run", 3)


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        (["task=masked_lm", "loss=kl_distillation"], "KlDistillation does not declare that it sums over rows"),
        (
            ["task=causal_lm", "model=decoder", "model.tie_embeddings=false", "model.lora={targets: [head]}"],
            "Decoder does not end with a plain linear layer",
        ),
    ],
)
def test_a_debug_line_says_why_all_logits_are_computed(
    changes: list[str], obstacle: str, data: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if "loss=kl_distillation" in changes:
        assert train(tmp_path / "teacher", *data, *changes[:1]) == 0
        changes = [*changes, f"loss.teacher={tmp_path / 'teacher'}"]
    with caplog.at_level(logging.DEBUG, "trainer"):
        assert train(tmp_path / "run", *data, *changes) == 0
    assert f"train.fused_head: the logits of a batch are computed at once, because {obstacle}" in caplog.text


def test_a_plan_shows_the_logits_and_what_checkpointing_saves(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = []
    for setting in ("none", "selective", "blocks"):
        job = [*TINY, *data, "task=causal_lm", "model=decoder", f"model.gradient_checkpointing={setting}"]
        assert main(["plan", *job, "json=true", f"run.dir={tmp_path}"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert plans[0]["model"]["modules"][0]["output"][-1] == plans[0]["model"]["modules"][1]["parameters"] // 16
    none, selective, blocks = (plan["memory"]["activations"] for plan in plans)
    assert none > selective > blocks
