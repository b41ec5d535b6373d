"""`trainer plan`: what it says is what a run does."""

import json
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.profiler import profile

from tests.support.jobs import TINY, Recorded, events, train, working_in, write_data, write_roles
from tests.test_conf import job_of
from trainer.builders import memory
from trainer.builders.dry_run import dry_run
from trainer.builders.training import build_training
from trainer.cli import main
from trainer.commands.plan import sparkline
from trainer.config.jobs import TrainJob
from trainer.loop import update_weights
from trainer.run import RunOutputs

LENGTHS = ["train.duration=2ep", "train.accumulate=3", "checkpoint.every=3", "checkpoint.keep=20"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("plan")
    with working_in(made):
        write_data(made)
        yield made


def plan(capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, Any]:
    assert main(["plan", *TINY, "json=true", *overrides]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_run_matches_its_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(folder)
    before = {path.name for path in folder.iterdir()}
    planned = plan(capsys, *data, *LENGTHS)
    assert {path.name for path in folder.iterdir()} - before <= {"cache", "encoded-cache"}

    assert train(folder / "run", *data, *LENGTHS) == 0
    logged, steps = events(folder / "run", "train"), planned["steps"]
    saved = sorted((folder / "run" / "checkpoints").iterdir())
    assert (steps["steps_per_epoch"], steps["total_steps"], steps["micro_batch"]) == (8, 16, 3)
    assert (steps["last_batch_of_epoch"], steps["samples"]) == (5, 122)
    assert len(logged) == steps["times"]["log"] == 16
    assert len({event["step"] for event in events(folder / "run", "eval")}) == steps["times"]["evaluate"] == 2
    assert {point["step"]: point["lr"] for point in planned["schedule"]["points"]} == {
        event["step"] - 1: event["lr"] for event in logged
    }
    # Every file has the planned size, except the files whose contents depend on the position.
    sizes = {file.name: file.stat().st_size for file in saved[-1].iterdir()}
    same = sizes.keys() - {"MANIFEST.json", "state.json", "config.yaml"}
    assert {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "task.json"} <= same
    assert {name: planned["checkpoint"]["files"][name] for name in same} == {name: sizes[name] for name in same}


def test_memory_and_parameters_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan(capsys, *write_data(folder), "loss=cross_entropy", "model.freeze=[token_embedding*]")
    model, memory = planned["model"], planned["memory"]

    assert model["parameters"] == sum(row["parameters"] for row in model["modules"])
    frozen = sum(row["parameters"] for row in model["modules"] if row["name"] == "token_embedding")
    assert model["parameters"] - model["trainable"] == frozen > 0
    assert memory["weights"] == memory["ema"] == 4 * model["parameters"]
    assert memory["gradients"] == 4 * model["trainable"]
    assert 2 * memory["gradients"] <= memory["optimizer"] <= 2 * memory["gradients"] + 1000
    assert memory["total"] == sum(value for name, value in memory.items() if name != "total")
    assert sum(group["parameters"] for group in planned["optimizer"]["groups"]) == model["trainable"]
    assert model["modules"][0]["output"] == [8, 3]


def test_peak_of_tensors_that_exist_at_the_same_time() -> None:
    weight = torch.ones(1000, requires_grad=True)
    with memory.LiveTensors(lambda: [weight]) as live:
        doubled = weight * 2  # kept for the backward pass by the product below
        powers = doubled.exp()
        total = (powers * doubled).sum()
        assert live.peak == pytest.approx(3 * 4000, rel=0.01)
        del powers
        total.backward()
    # Both factors of the product, the gradients of both, and that of the exponent.
    assert live.peak == pytest.approx(5 * 4000, rel=0.01)


@pytest.mark.parametrize(
    "keys",
    [
        ["model.dim=64", "model.hidden=256"],
        ["task=span_classification", "loss.head_size=16", "train.batch_size=32"],
        pytest.param(["task=span_classification", "train.accumulate=2"], marks=pytest.mark.slow),
        pytest.param(["task=token_classification", "loss=crf"], marks=pytest.mark.slow),
        pytest.param(["task=causal_lm", "model=decoder"], marks=pytest.mark.slow),
        pytest.param(["task=masked_lm"], marks=pytest.mark.slow),
        pytest.param(["perturb=awp"], marks=pytest.mark.slow),
    ],
)
def test_memory_of_a_step_is_what_it_allocates(keys: list[str], tmp_path: Path) -> None:
    with working_in(tmp_path):
        job = job_of(*TINY, *write_roles(tmp_path), *keys)
        planned = dry_run(job, "", trial=True, depth=1)["memory"]
        allocated = measure_allocations(job)
    estimate = sum(planned.get(part, 0) for part in ("activations", "gradients", "moved"))
    assert estimate == pytest.approx(allocated, rel=0.02)


def measure_allocations(job: TrainJob) -> int:
    """Return the most bytes that a step of a job has allocated at a time, as torch's allocator counts them."""
    with ExitStack() as closing:
        run = build_training(job, "", RunOutputs(Recorded()), None, closing).run
        run.model.train()
        batches = run.loader.load(0)
        update_weights(run, run.steps.total - 1, batches)  # makes the state of the optimizer
        run.optimizer.zero_grad(set_to_none=True)
        with profile(profile_memory=True) as recorded:
            update_weights(run, run.steps.total - 1, batches)
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def test_memory_includes_weights_that_are_unfrozen_later(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = plan(capsys, *write_data(folder))
    unfreezing = plan(capsys, *write_data(folder), "model.freeze=[{match:'token_embedding*',until:1ep}]")

    assert unfreezing["memory"] == plain["memory"]
    assert unfreezing["model"]["trainable"] == plain["model"]["parameters"]


def test_activations_grow_with_the_micro_batch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = plan(capsys, *write_data(folder), "train.batch_size=32")
    cut = plan(capsys, *write_data(folder), "train.batch_size=32", "train.accumulate=4")

    assert cut["memory"]["weights"] == whole["memory"]["weights"]
    assert 2.5 < whole["memory"]["activations"] / cut["memory"]["activations"] < 6


def test_share_of_each_device(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(folder)
    one = plan(capsys, *data, "train.accumulate=2")
    three = plan(capsys, *data, "train.accumulate=2", "devices=3")
    # 8 samples are two micro-batches of 4, of which the first device has 2; the last batch has 5: 3 and 2.
    assert three["devices"] == {
        "count": 3,
        "shards": 1,
        "copies": 3,
        "micro_batches": [2, 2, 2],
        "piece": [1, 2],
        "samples": {"step": [4, 2, 2], "last_step_of_epoch": [2, 2, 1]},
    }
    assert one["devices"]["samples"] == {"step": [8], "last_step_of_epoch": [5]}
    assert three["steps"] == one["steps"]
    assert three["checkpoint"] == one["checkpoint"]
    assert 0.3 < three["memory"]["activations"] / one["memory"]["activations"] < 0.8
    assert three["memory"]["exchange"] == three["memory"]["gradients"]


def test_shards_divide_the_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(folder)
    complete, sharded = (plan(capsys, *data, "devices=4", f"shard={shard}") for shard in ("false", "2"))
    assert (sharded["devices"]["shards"], sharded["devices"]["copies"]) == (2, 2)
    for name in ("weights", "gradients", "optimizer", "ema"):
        assert complete["memory"][name] / 2 <= sharded["memory"][name] < complete["memory"][name] * 0.55
    assert sharded["memory"]["activations"] == complete["memory"]["activations"]
    memory = sharded["memory"]
    assert memory["total"] == sum(value for name, value in memory.items() if name != "total")
    assert 0 < memory["gathered"] <= 2 * complete["memory"]["weights"]


def test_tables_of_several_devices(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["plan", *TINY, *write_data(folder), "devices=12", "shard=4"]
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert "3 x 4 shards" in shown
    assert "0 to 1 samples on each device" in shown
    assert "4 devices never have a sample: raise train.batch_size" in shown
    assert "memory of one step on each device" in shown
    assert not caplog.messages

    for changes, remedy in (
        (["shard=false"], "Set shard=true"),
        (["shard=4"], "Set shard=true"),
        (["shard=true"], "Use more devices"),
        (["devices=1", "shard=false"], "Set devices=N shard=true"),
    ):
        limit = plan(capsys, *line[1:], *changes)["memory"]["total"] - 1
        with monkeypatch.context() as patch:
            patch.setattr("trainer.builders.dry_run.available_memory", lambda name, devices, limit=limit: limit)
            caplog.clear()
            assert main([*line, *changes]) == 0
        capsys.readouterr()
        (warning,) = caplog.messages
        assert warning.startswith("memory: a step needs ")
        assert warning.endswith(f". {remedy}, raise train.accumulate, or lower task.max_length")


def test_job_that_cannot_fit_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [*write_data(folder), "trial=false", "device=cpu", "ema.decay=0.9"]
    needed = {}
    for name, changes in {
        "complete": (),
        "shard=true": ("shard=true",),
        "optimizer=sgd": ("optimizer=sgd",),
        "ema.decay=null": ("ema.decay=null",),
    }.items():
        memory = plan(capsys, *data, "devices=2", *changes)["memory"]
        needed[name] = sum(memory[part] for part in ("weights", "gradients", "optimizer", "ema", "saving"))
    complete = needed.pop("complete")
    # One byte less than needed is refused; each remedy that the message names fits.
    monkeypatch.setattr("trainer.builders.dry_run.available_memory", lambda name, devices: complete - 1)
    assert main(["plan", *TINY, *data, "devices=2"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("shard: a device needs ")
    for remedy, smaller in needed.items():
        assert remedy in message
        assert smaller < complete
        assert plan(capsys, *data, "devices=2", remedy)["steps"]


def test_limit_of_a_process_is_its_own_and_the_machine_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"]
    monkeypatch.setattr(memory, "_group_limits", lambda: files)
    whole = memory.host_limit(1)
    assert memory.host_limit(2) == whole // 2
    files[0].write_text("max\n")
    files[1].write_text("6000000\n")
    assert (memory.host_limit(1), memory.host_limit(3)) == (6000000, 2000000)
    limits = {resource.RLIMIT_DATA: 5000, resource.RLIMIT_AS: 4000}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], -1))
    monkeypatch.setattr(memory, "_used_bytes", {"VmData": 3000, "VmSize": 1000}.__getitem__)
    assert (memory.host_limit(1), memory.host_limit(3)) == (2000, 2000)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("0::/", ["memory.max"]),
        ("0::/jobs/mine", ["jobs/mine/memory.max", "jobs/memory.max", "memory.max"]),
        (
            "9:name=systemd:/\n4:memory:/jobs\n1:cpu:/jobs/cpu\n0::/",
            ["memory/jobs/memory.limit_in_bytes", "memory/memory.limit_in_bytes", "memory.max"],
        ),
    ],
)
def test_limits_of_all_groups_that_contain_the_process_count(groups: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(f"{groups}\n")
    assert memory._group_limits(tmp_path / "cgroup", tmp_path) == [tmp_path / name for name in expected]
    assert memory._group_limits(tmp_path / "missing", tmp_path) == []


def test_a_device_that_is_not_here_is_reported(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert plan(capsys, *write_data(folder), "device=cuda:97", "trial=false")["steps"]
    (warning,) = caplog.messages
    assert warning.startswith("device: is not available on this machine, got 'cuda:97'")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("full", "contains files that are not from a run"),
        ("full/file", "is a file"),
        ("full/file/run", "is inside a file"),
    ],
)
def test_a_folder_that_the_run_cannot_use_is_refused(
    name: str, problem: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()

    assert main(["plan", *TINY, *write_data(folder), f"run.dir={tmp_path / name}"]) == 3
    assert capsys.readouterr().err.startswith(f"run.dir: {problem}, got '{tmp_path / name}'")


def test_padding_is_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = [*write_data(folder), "task.max_length=40", "train.batch_size=32"]
    packed, padded = (plan(capsys, *wide, f"loader.batching={way}") for way in ("packed", "padded"))
    tokens = packed["data"]["tokens"]

    assert tokens["shortest"] <= tokens["median"] <= tokens["p95"] <= tokens["longest"] <= 40
    assert 0 <= tokens["empty_share"] < padded["data"]["tokens"]["empty_share"] < 1


def test_without_a_trial_measured_values_are_null(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan(capsys, *write_data(folder), "trial=false", "optimizer.lr=auto", "scheduler=reduce_on_plateau")

    assert (planned["memory"]["activations"], planned["memory"]["total"]) == (None, None)
    assert planned["memory"]["optimizer"] > planned["memory"]["gradients"]
    assert planned["checkpoint"] == {"files": None, "bytes": None, "kept": 3}
    assert planned["schedule"]["lr"] == "auto"
    assert planned["schedule"]["follows_scores"]
    assert {point["lr"] for point in planned["schedule"]["points"]} == {None}


def test_tables_and_depth(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TINY, *write_data(folder), "depth=1", "run.name=mine", "export.formats=[onnx]"]) == 0
    shown = capsys.readouterr().out

    assert "8 samples = 1 x 8" in shown
    assert "token_embedding" in shown
    assert "query_key_value" not in shown
    assert "runs/<date>_<time>_mine/export/" in shown
    assert "learning rate: trainer.scheduler.linear.linear, base 1.000e-03" in shown
    assert not (folder / "runs").exists()


def test_micro_batches_of_different_sizes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    uneven = [*write_data(folder), "train.accumulate=3", "train.duration=1"]
    assert main(["plan", *TINY, *uneven, "trial=false"]) == 0
    assert "8 samples = 3 x at most 3" in capfd.readouterr().out
    assert train(folder / "uneven", *uneven) == 0
    message = "step: 8 samples = 3 micro-batches of at most 3;"
    assert message in (folder / "uneven/trainer.log").read_text(encoding="utf-8")


def test_plan_of_images_has_no_tokens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["train.duration=2", "loader.limit=40", "task.augment.mixup=0.2", "device=cpu"]
    assert main(["plan", "experiment=digits", "json=true", *lengths]) == 0
    planned = json.loads(capsys.readouterr().out)

    assert "tokens" not in planned["data"]
    assert planned["model"]["inputs"]["pixel_values"] == [32, 1, 8, 8]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["resume=elsewhere"], "resume: plan cannot start from a checkpoint, got 'elsewhere'. Leave it out."),
        (["depth=-1"], "depth: must be at least 0, got -1."),
        (["train.batch_sise=3"], "Did you mean train.batch_size?"),
        (["model.heads=3"], "model.heads: must divide dim (16), got 3"),
    ],
)
def test_errors(overrides: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TINY, *write_data(folder), *overrides]) == 2
    assert message in capsys.readouterr().err


def test_sparkline() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([]) == ""
