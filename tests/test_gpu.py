"""Guarantees that hold on a CUDA device: `pytest -m gpu` on a machine that has one.

The same tests run on the CPU among the slow ones, except those of memory, kernels and devices of CUDA alone.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.jobs import (
    TINY,
    Recorded,
    assert_resumes,
    assert_same_end,
    checkpoint_files,
    events,
    train,
    working_in,
    write_data,
    write_roles,
)
from tests.support.pretrained_folders import FACTS, KEYS, save
from tests.support.token_batches import packed, samples
from tests.test_conf import job_of
from tests.test_resume import KEEP_ALL, MID_EPOCH, STEPS, STOPS, Figure, check_resumes
from trainer.builders.training import build_training
from trainer.cli import main
from trainer.model import attention
from trainer.model.decoder import Decoder
from trainer.model.flops import find_peak
from trainer.model.pretrained import Pretrained
from trainer.model.text_encoder import TextEncoder
from trainer.run import RunOutputs

SHORT = [f"train.duration={STEPS}", "train.eval_every=4", "checkpoint.every=1"]
PLAIN = ["train.duration=12", "train.eval_every=100", "checkpoint.every=100", "model.dropout=0.0", "ema.decay=null"]
SGD = [*PLAIN, "optimizer=sgd", "optimizer.lr=0.1"]
"""A job whose weights follow its gradients, so that a difference by rounding stays one."""

CUDA = "device=cuda"
MODES = ("none", "selective", "blocks")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), pytest.param("cpu", marks=pytest.mark.slow)])
def device(request: pytest.FixtureRequest) -> str:
    return f"device={request.param}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("gpu")
    with working_in(folder):
        yield write_data(folder)


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides of data for every task with texts."""
    return write_roles(tmp_path_factory.mktemp("roles"))


def final_weights(run_dir: Path, file: str = "model") -> dict[str, torch.Tensor]:
    newest = max((run_dir / "checkpoints").glob("step-*"))
    weights: dict[str, torch.Tensor] = load_file(newest / f"{file}.safetensors")
    return weights


def assert_close(run: Path, other: Path, file: str = "model") -> None:
    torch.testing.assert_close(final_weights(run, file), final_weights(other, file), rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("batching", ["packed", "padded"])
@pytest.mark.gpu
def test_resumed_run_is_bitwise_equal(
    precision: str, batching: str, data: list[str], tmp_path: Path, figure: Figure
) -> None:
    options = [CUDA, f"precision={precision}", f"loader.batching={batching}"]
    check_resumes([*data, *SHORT], options, tmp_path, STOPS, figure)


@pytest.mark.parametrize(
    "options",
    [
        ["loader.tokens=32", "loader.workers=1"],
        ["train.accumulate=3", "model.gradient_checkpointing=selective"],
        ["optimizer=adam", "precision=bf16"],
        ["optimizer=sgd", "optimizer.momentum=0.9"],
        ["task=masked_lm", "precision=bf16"],
        ["task=causal_lm", "model=decoder", "loader.tokens=32", "precision=bf16"],
    ],
    ids=["tokens", "accumulation and checkpointing", "adam", "sgd", "masked", "decoder"],
)
def test_other_jobs_resume_to_the_same_bytes(
    options: list[str], device: str, roles: list[str], tmp_path: Path, figure: Figure
) -> None:
    check_resumes([*roles, *SHORT], [device, *options], tmp_path, (MID_EPOCH,), figure)


def test_a_run_on_images_resumes_to_the_same_bytes(device: str, tmp_path: Path) -> None:
    job = ["task=image_classification", "data=digits", "model=convnet", "model.channels_last=true", "precision=bf16"]
    job += [*SHORT, KEEP_ALL, "loader.limit=64", "train.batch_size=8", "export.formats=[]", "logger.tensorboard=false"]
    with working_in(tmp_path):
        assert main(["train", *job, device, f"run.dir={tmp_path / 'run'}", "train.log_every=1"]) == 0
        assert_resumes(tmp_path / "run", MID_EPOCH)


def is_saved(metrics: Path, step: int) -> bool:
    return metrics.exists() and f'{{"event": "checkpoint", "step": {step},' in metrics.read_text(encoding="utf-8")


def test_a_killed_run_ends_in_the_same_bytes(device: str, data: list[str], tmp_path: Path) -> None:
    job = [*data, *SHORT, KEEP_ALL, device]
    assert train(tmp_path / "whole", *job) == 0
    killed = tmp_path / "killed"
    metrics = killed / "metrics.jsonl"
    # A new interpreter: a forked process cannot use a device that its parent may have looked at.
    command = [sys.executable, "-m", "trainer", "train", f"run.dir={killed}", *TINY, *job]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not is_saved(metrics, 5):
            time.sleep(0.002)
        process.kill()
    assert is_saved(metrics, 5)

    assert main(["train", f"resume={killed}"]) == 0
    assert checkpoint_files(killed, STEPS) == checkpoint_files(tmp_path / "whole", STEPS)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_loss_is_close_to_the_loss_on_the_cpu(precision: str, data: list[str], tmp_path: Path) -> None:
    job = [*data, "train.duration=60", "model.dropout=0.0", "loss=focal"]
    assert train(tmp_path / "cpu", *job) == 0
    assert train(tmp_path / "cuda", *job, CUDA, f"precision={precision}") == 0
    cpu, gpu = (events(tmp_path / name, "train")[-1]["loss"] for name in ("cpu", "cuda"))

    assert gpu == pytest.approx(cpu, rel={"fp32": 1e-3, "tf32": 1e-2}.get(precision, 0.05))


@pytest.mark.gpu
def test_weights_and_their_average_are_close_to_those_of_the_cpu(data: list[str], tmp_path: Path) -> None:
    job = [*data, *SGD, "ema.decay=0.9"]
    assert train(tmp_path / "cpu", *job) == 0
    assert train(tmp_path / "cuda", *job, CUDA, "devices=1") == 0

    assert_close(tmp_path / "cuda", tmp_path / "cpu")
    assert_close(tmp_path / "cuda", tmp_path / "cpu", file="ema")


def test_replay_between_checkpoints_is_bitwise_equal(device: str, data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, *SHORT, device, "precision=bf16") == 0

    assert main(["verify", f"run={tmp_path / 'run'}"]) == 0


@pytest.mark.parametrize(
    "task", [["task=text_classification"], ["task=masked_lm"], ["task=causal_lm", "model=decoder"]], ids=lambda t: t[0]
)
def test_layouts_of_a_batch_learn_the_same_to_rounding(
    task: list[str], device: str, roles: list[str], tmp_path: Path
) -> None:
    job = [*roles, *SGD, *task, device]
    assert train(tmp_path / "packed", *job) == 0
    assert train(tmp_path / "padded", *job, "loader.batching=padded") == 0
    assert train(tmp_path / "tokens", *job, "loader.tokens=32") == 0

    assert_close(tmp_path / "padded", tmp_path / "packed")
    assert_close(tmp_path / "tokens", tmp_path / "packed")


def test_accumulation_learns_the_same_to_rounding(device: str, data: list[str], tmp_path: Path) -> None:
    job = [*data, *SGD, device]
    assert train(tmp_path / "one", *job) == 0
    assert train(tmp_path / "four", *job, "train.accumulate=4") == 0

    assert_close(tmp_path / "four", tmp_path / "one")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradient_checkpointing_changes_no_bit(precision: str, device: str, data: list[str], tmp_path: Path) -> None:
    job = [*data, *SHORT, device, f"precision={precision}"]
    for mode in MODES:
        assert train(tmp_path / mode, *job, f"model.gradient_checkpointing={mode}") == 0

    for mode in MODES[1:]:
        assert checkpoint_files(tmp_path / mode, STEPS) == checkpoint_files(tmp_path / MODES[0], STEPS)


def test_evaluation_changes_no_bit_of_training(device: str, data: list[str], tmp_path: Path) -> None:
    job = [*data, *SHORT, device, "checkpoint.monitor=loss"]
    for name, interval in (("often", 1), ("seldom", STEPS)):
        assert train(tmp_path / name, *job, f"train.eval_every={interval}") == 0
    often, seldom = (checkpoint_files(tmp_path / name, STEPS) for name in ("often", "seldom"))

    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert often[file] == seldom[file]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch.compile
def test_compiled_run_is_close_and_resumes_to_the_same_bytes(data: list[str], tmp_path: Path) -> None:
    job = [*data, *SGD, CUDA, "checkpoint.every=4", "loader.tokens=64", KEEP_ALL]
    assert train(tmp_path / "plain", *job) == 0
    assert train(tmp_path / "compiled", *job, "compile=true") == 0

    assert_close(tmp_path / "compiled", tmp_path / "plain")
    assert_resumes(tmp_path / "compiled", 8)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch.compile
def test_replayed_graphs_have_the_bits_of_compiled_blocks(data: list[str], tmp_path: Path) -> None:
    """The gradients of several micro-batches are added up, and dropout draws new numbers in each replay."""
    job = [*data, *SHORT, CUDA, KEEP_ALL, "loader.batching=fixed", "train.accumulate=4", "model.dropout=0.2"]
    for setting in ("true", "graphs"):
        assert train(tmp_path / setting, *job, f"compile={setting}", "model.depth=2") == 0

    assert_same_end(tmp_path / "graphs", tmp_path / "true", 1)
    assert_resumes(tmp_path / "graphs", MID_EPOCH)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_a_step_that_diverges_is_found_and_replayed(
    optimizer: str, device: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["scheduler=constant", "train.max_grad_norm=null", "optimizer.lr=1e30", f"optimizer={optimizer}"]
    assert train(run, *data, *SHORT, *options, device) == 5
    assert "step 2: the run diverged: loss nan" in capsys.readouterr().err

    assert all(weight.isfinite().all() for weight in final_weights(run).values())
    assert main(["verify", f"run={run}"]) == 0
    assert "from step 1  diverged again" in capsys.readouterr().out


@pytest.mark.gpu
def test_fused_optimizers_are_checked_one_step_later(data: list[str]) -> None:
    for precision, optimizer, late in (
        ("fp32", "adamw", True),
        ("tf32", "sgd", True),
        ("bf16", "adam", True),
        ("fp16", "adamw", False),
        ("bf16", "lion", False),
    ):
        with ExitStack() as closing:
            job = job_of(*data, *TINY, CUDA, f"precision={precision}", f"optimizer={optimizer}")
            assert build_training(job, "", RunOutputs(Recorded()), None, closing).run.checks_late is late


@pytest.mark.gpu
def test_an_operation_that_is_not_deterministic_is_named_with_its_remedy(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = [*data, *SHORT, CUDA, "model._target_=tests.support.toys.PuttingEncoder", "model.pooling=mean"]
    assert train(tmp_path / "refused", *job) == 2
    message = capsys.readouterr().err
    assert "deterministic: must be false for an operation that is not deterministic" in message
    assert "(put_ of PyTorch). Set deterministic=false." in message

    assert train(tmp_path / "allowed", *job, "deterministic=false") == 0


@pytest.mark.parametrize(
    "job",
    [
        ["task=text_classification", "export.formats=[onnx,torchscript,pt2]"],
        ["task=causal_lm", "model=decoder", "export.formats=[onnx]"],
    ],
    ids=["classes", "decoder"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_trained_model_is_exported_and_predicts_the_same(
    job: list[str], device: str, roles: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(run, *roles, *SGD, *job, device) == 0
    answers = {}
    for name, options in {
        "device": [device],
        "cpu": ["device=cpu"],
        "onnx": ["device=cpu", "backend=onnx"],
    }.items():
        output = tmp_path / f"{name}.jsonl"
        assert main(["predict", f"run={run}", "input=apple saw fox", f"output={output}", *options]) == 0
        answers[name] = list(leaves(json.loads(output.read_text(encoding="utf-8"))))

    for name in ("cpu", "onnx"):
        for value, other in zip(answers[name], answers["device"], strict=True):
            assert value == (pytest.approx(other, rel=1e-3, abs=1e-4) if isinstance(other, float) else other)


def leaves(value: Any) -> Iterator[Any]:
    """Yield the values in a JSON document, depth first."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if parts is None:
        yield value
    for part in parts or ():
        yield from leaves(part)


def test_eval_and_generate_use_the_device(device: str, roles: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *roles, *SGD, "task=causal_lm", "model=decoder", device) == 0
    assert main(["eval", f"run={run}", device]) == 0
    assert main(["generate", f"run={run}", "prompt=apple saw", "decode=beam", "decode.max_new_tokens=4", device]) == 0


def test_events_contain_the_share_of_the_peak_if_it_is_known(device: str, data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, *PLAIN, device, "precision=bf16") == 0
    name = torch.cuda.get_device_name() if device == "device=cuda" else "cpu"
    known = find_peak(name, "bf16") is not None

    for event in events(tmp_path / "run", "train"):
        assert ("mfu" in event) == known
        assert 0 < event.get("mfu", 0.5) < 1


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=False)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["text_encoder", "decoder", "bert", "gpt2", "modernbert"])
@pytest.mark.usefixtures("deterministic")
def test_variable_length_attention_is_deterministic_and_close_to_a_mask(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    shape = {"dim": 256, "depth": 2, "heads": 4, "hidden": 256, "dropout": 0.0, "pooling": "mean"}
    model: torch.nn.Module
    if name == "text_encoder":
        model = TextEncoder(**FACTS, **shape).cuda()
    elif name == "decoder":
        model = Decoder(**FACTS, **shape, tie_embeddings=False).cuda()
    else:
        model = Pretrained(**FACTS, **(KEYS | {"path": str(save(name, tmp_path / name))})).cuda().eval()
    inputs = {key: value.cuda() for key, value in packed(samples(40)).items()}

    def run() -> torch.Tensor:
        """Return the outputs and all gradients as one vector."""
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            output = model(**inputs).float()
        output.square().sum().backward()
        gradients = [value.grad.flatten() for value in model.parameters() if value.grad is not None]
        return torch.cat([output.detach().flatten(), *gradients])

    assert attention.find_kernel("cuda") is not None, "this GPU has no flash attention"
    kernel, again = run(), run()
    monkeypatch.setitem(attention.KERNELS, "cuda", None)
    masked = run()

    assert torch.isfinite(kernel).all()
    assert torch.equal(kernel, again)
    assert not torch.equal(kernel, masked)
    # bfloat16 has 8 bits of mantissa.
    assert (kernel - masked).norm() <= 0.02 * masked.norm()
