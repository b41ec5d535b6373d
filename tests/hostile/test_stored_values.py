"""A checkpoint whose checksums fit but whose values are wrong: the run is at fault, not the command (exit code 3)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.support.hostile_files import reseal
from tests.support.jobs import train, working_in, write_data
from trainer.cli import main

READERS = {
    "predict": ["predict", "run=run", "input=apple", "device=cpu"],
    "eval": ["eval", "run=run", "split=validation", "device=cpu"],
    "export": ["export", "run=run", "export.formats=[]"],
    "verify": ["verify", "run=run", "device=cpu"],
    "resume": ["train", "resume=run", "checkpoint.keep=3"],
}

VALUES: dict[str, tuple[Any, set[str]]] = {
    "model.dim": (-1, set(READERS)),
    "model.heads": (3, set(READERS)),
    "task.max_length": ("x", set(READERS)),
    "loader.eval_batch_size": (0, set(READERS)),
    "data.separator": (7, set(READERS)),
    "loss.label_smoothing": (7, {"eval", "verify", "resume"}),
    "optimizer.lr": (-1, {"verify", "resume"}),
    "scheduler.warmup": ([1], {"verify", "resume"}),
    "train.duration": ("x", {"verify", "resume"}),
    "checkpoint.every": (-1, {"verify", "resume"}),
    "model.freeze": (["nothing"], {"verify", "resume"}),
    "model.weights_rename": ([["(", ""]], {"verify", "resume"}),
}
"""A wrong value of a key, and the verbs that use the key: only they may be stopped by it."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("stored")
    with working_in(folder):
        data = write_data(folder)
        options = ("train.duration=2", "checkpoint.every=1", "train.eval_every=1")
        assert train(folder / "plain", *data, *options) == 0
        assert train(folder / "lora", *data, *options, "model.lora={rank: 2}") == 0
        yield folder


def copy_run(runs: Path, name: str) -> Path:
    run = runs / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(runs / name, run)
    return run


def store(run: Path, key: str, value: Any) -> None:
    """Set a value in every copy of a run's config, inside fitting checksums."""
    for file in (run / "config.yaml", *run.glob("checkpoints/*/config.yaml")):
        config = yaml.safe_load(file.read_text("utf-8"))
        group, name = key.split(".")
        config[group][name] = value
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        reseal(file)


def outcome(verb: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capfd.readouterr()
    code = main(READERS[verb])
    return code, capfd.readouterr().err


@pytest.mark.parametrize("key", VALUES)
def test_stored_values(key: str, runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A wrong value names its file, and stops only the verbs that use it."""
    value, stopped = VALUES[key]
    run = copy_run(runs, "plain")
    store(run, key, value)
    # One verb each is enough for most values, which all pass the same door.
    number = list(VALUES).index(key)
    quick = {sorted(stopped)[number % len(stopped)], "predict"}
    for verb in READERS if key in ("model.freeze", "model.heads") else sorted(quick):
        code, message = outcome(verb, capfd)
        assert code == (3 if verb in stopped else 0), (verb, message)
        if verb in stopped:
            assert "config.yaml: " in message, (verb, message)
            assert f": {key}" in message, (verb, message)


def test_changes_of_the_command_line_stay_errors_of_the_command(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = copy_run(runs, "plain")
    for command in (["eval", "run=run", "loader.limit=-1"], ["train", "resume=run", "checkpoint.every=-1"]):
        assert main(command) == 2
        assert "config.yaml" not in capfd.readouterr().err
    # A wrong stored value that the command replaces does no harm.
    store(run, "loader.eval_batch_size", -1)
    assert main(READERS["predict"]) == 3
    assert main([*READERS["predict"], "loader.eval_batch_size=5"]) == 0
    capfd.readouterr()


@pytest.mark.parametrize(
    ("name", "file", "tensor"),
    [
        ("plain", "model", "head.weight"),
        ("lora", "frozen", "token_embedding.weight"),
        ("lora", "model", "head.weight"),
    ],
)
def test_weights_that_are_no_numbers(
    name: str, file: str, tensor: str, runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = copy_run(runs, name)
    for path in run.glob(f"checkpoints/*/{file}.safetensors"):
        tensors = load_file(path)
        tensors[tensor].view(-1)[3] = torch.nan
        path.unlink()  # another name of the same file may exist
        save_file(tensors, path)
        reseal(path)
    for verb in READERS:
        code, message = outcome(verb, capfd)
        assert code == 3, (verb, message)
        assert f"{file}.safetensors: contains NaN or an infinite number in {tensor}" in message, (verb, message)


def test_the_state_of_an_optimizer_that_no_run_saves(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Training with it would diverge, which is not the fault of the run."""
    run = copy_run(runs, "plain")
    for path in run.glob("checkpoints/*/optimizer.safetensors"):
        tensors = load_file(path)
        (name,) = (name for name in tensors if name.endswith("head.weight/exp_avg_sq"))
        tensors[name].view(-1)[3] = -1e-3
        path.unlink()
        save_file(tensors, path)
        reseal(path)
    code, message = outcome("resume", capfd)
    assert (code, "state.json: optimizer: cannot be restored" in message) == (3, True), message
    assert "the state of model.head.weight turns its weights into NaN or infinity" in message

    for key, value in {"betas": [0.9, 1.0], "eps": -1.0, "weight_decay": -0.1}.items():
        run = copy_run(runs, "plain")
        for path in run.glob("checkpoints/*/state.json"):
            state = json.loads(path.read_text("utf-8"))
            for group in state["optimizer"]["groups"]:
                assert key in group["options"]
                group["options"][key] = value
            path.write_text(json.dumps(state), encoding="utf-8")
            reseal(path)
        code, message = outcome("resume", capfd)
        assert code == 3, (key, message)
        assert "state.json: optimizer: cannot be restored (ValueError: Invalid" in message, (key, message)


def test_initial_weights_that_are_no_numbers(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(runs / "plain/model/model.safetensors")
    tensors["head.bias"][0] = torch.inf
    save_file(tensors, runs / "infinite.safetensors")
    options = [*write_data(runs), f"model.weights={runs}/infinite.safetensors", "train.duration=1"]
    assert train(runs / "new", *options) == 2
    message = capfd.readouterr().err
    assert "model.weights: head.bias contains NaN or an infinite number" in message


def test_damaged_metrics_are_reported_before_a_run_continues(
    runs: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = copy_run(runs, "plain")
    metrics = run / "metrics.jsonl"
    whole = metrics.read_bytes()
    number = len(whole.splitlines()) + 1
    for lines, code in ((whole + b'{"event": "train", "st\n', 0), (whole + b'{"event": "train"}\n', 3)):
        metrics.write_bytes(lines)
        for command in (READERS["resume"], ["report", "run=run", "output=page.html", "force=true"]):
            before = (run / "checkpoints").stat().st_mtime_ns
            metrics.write_bytes(lines)
            caplog.clear()
            capfd.readouterr()
            assert main(command) == code
            assert f"line {number}" in caplog.text + capfd.readouterr().err
            assert code == 0 or (run / "checkpoints").stat().st_mtime_ns == before
