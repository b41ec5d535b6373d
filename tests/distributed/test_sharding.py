"""Several devices that store the weights in shards train what devices with complete weights train."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

import trainer
from tests.support.jobs import (
    TINY,
    assert_same_end,
    checkpoint_files,
    events,
    stop_at,
    without_clock,
    working_in,
    write_data,
    write_roles,
)
from tests.support.launched import ranks_of, start_launched
from tests.support.processes import PATIENCE, start, wait_until
from tests.support.ranks import run_ranks
from trainer.checkpoint.snapshot import Snapshot, load_folder
from trainer.checkpoint.tensors import tensor_differences
from trainer.cli import main
from trainer.config.devices import _SHARDABLE_OPTIMIZERS
from trainer.data.batches import EvaluationBatches, LoaderOptions
from trainer.distributed.ranks import Ranks
from trainer.distributed.sharding import find_blocks

STEPS = 12
JOB = [f"train.duration={STEPS}", "train.eval_every=1", "checkpoint.every=4", "checkpoint.keep=9"]
"""With dropout, averaged weights, evaluations of three batches and, in each epoch of 8 steps, a smaller last batch."""

WIDTH = ["model.dim=32", "model.hidden=32"]
"""A shard of a bias has 16 values: kernels may round the values after their last whole vector differently."""

UNCLIPPED = "train.max_grad_norm=null"
"""The norm of a sharded gradient is summed in another order, so clipping agrees only up to rounding."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("sharding")
    with working_in(folder):
        yield [*TINY, *JOB, *WIDTH, "loader.eval_batch_size=8", *write_data(folder)]


def train_on(devices: int, run_dir: Path, *arguments: str) -> Path:
    """Train in as many processes as there are devices; return the run folder."""
    output = run_dir.with_suffix(".output")
    codes = run_ranks(["train", *arguments, f"run.dir={run_dir}"], devices, output)
    assert codes == [0] * devices, [file.read_text() for file in output.iterdir()]
    return run_dir


def snapshot(run_dir: Path, step: int) -> Snapshot:
    """Return the complete state in a checkpoint."""
    return load_folder(run_dir / "checkpoints" / f"step-{step:08d}")


def assert_same_state(left: Path, right: Path, step: int) -> None:
    """Check that two runs have the same checkpoint, one of them perhaps in shards."""
    one, other = snapshot(left, step), snapshot(right, step)
    assert list(tensor_differences(one.tensors, other.tensors)) == []
    assert one.documents["state.json"] == other.documents["state.json"]
    assert one.documents["task.json"] == other.documents["task.json"]


def largest_difference(left: Path, right: Path, step: int) -> float:
    """Return the largest difference of a weight in two checkpoints."""
    one, other = snapshot(left, step).tensors["model"], snapshot(right, step).tensors["model"]
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def sharded(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on(2, tmp_path_factory.mktemp("runs") / "sharded", *job, UNCLIPPED, "shard=true")


def test_shards_equal_complete_weights_to_the_byte(sharded: Path, job: list[str], tmp_path: Path) -> None:
    complete = train_on(2, tmp_path / "complete", *job, UNCLIPPED)
    for step in (8, STEPS):
        assert_same_state(sharded, complete, step)
    logged, expected = without_clock(events(sharded)), without_clock(events(complete))
    norms = [[event.pop("grad_norm", 0.0) for event in run] for run in (logged, expected)]
    assert logged == expected
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_blocks_are_the_entries_of_the_outermost_lists() -> None:
    layers = nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.ReLU(), nn.Linear(2, 2)])
    model = nn.ModuleDict({"layers": layers, "head": nn.Linear(2, 2)})
    assert find_blocks(model) == [layers[0], layers[2]]


def test_block_with_tied_weights_stays_with_the_rest() -> None:
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    head = nn.Linear(2, 2)
    head.weight = layers[0].weight
    assert find_blocks(nn.ModuleDict({"layers": layers, "head": head})) == [layers[1]]


def test_all_devices_evaluate_as_many_batches(job: list[str]) -> None:
    class Rows:
        rows = range(20)

    options = LoaderOptions("padded", 0, 2, pin_memory=False, persistent_workers=False)
    for devices in (1, 2, 3, 4, 7):
        loaders = [
            EvaluationBatches(Rows(), 8, options, Ranks(rank, devices), fill=True)  # type: ignore[arg-type]
            for rank in range(devices)
        ]
        shares = [list(loader._loader.sampler) for loader in loaders]  # type: ignore[union-attr]
        assert len({len(share) for share in shares}) == 1
        ids = [sample for share in shares for batch in share if not batch.is_filler for sample in batch.ids]
        assert ids == list(range(20))


def test_each_device_writes_its_rows(sharded: Path) -> None:
    names = set(checkpoint_files(sharded, STEPS))
    shards = {f"{name}-0000{k}-of-00002.safetensors" for name in ("model", "ema", "optimizer") for k in (1, 2)}
    assert names == {*shards, "state.json", "task.json"}
    manifest = json.loads((sharded / "checkpoints" / f"step-{STEPS:08d}" / "MANIFEST.json").read_text())
    assert manifest["format"] == 2


def test_resumed_shards_continue_with_the_same_bytes(sharded: Path, job: list[str], tmp_path: Path) -> None:
    resumed = tmp_path / "resumed"
    shutil.copytree(sharded, resumed)
    stop_at(resumed, 8)
    output = tmp_path / "output"
    codes = run_ranks(["train", f"resume={resumed}", "checkpoint.every=1", "checkpoint.keep=9"], 2, output)
    assert codes == [0, 0], [file.read_text() for file in output.iterdir()]
    assert checkpoint_files(resumed, STEPS) == checkpoint_files(sharded, STEPS)


def test_eval_takes_shards(sharded: Path) -> None:
    quiet = ["device=cpu", f"run={sharded}"]
    assert main(["eval", *quiet, "split=validation"]) == 0
    values = json.loads((sharded / "eval" / "validation.json").read_text())
    best = max(event["accuracy"] for event in events(sharded, "eval") if event["split"] == "validation")
    assert values["accuracy"] == best


def test_predict_export_and_teachers_take_shards(sharded: Path, job: list[str], tmp_path: Path) -> None:
    quiet = ["device=cpu", f"run={sharded}"]
    assert main(["export", f"run={sharded}", "export.formats=[safetensors]"]) == 0
    (tmp_path / "rows.csv").write_text("text\napple pear\n")
    assert main(["predict", *quiet, f"input={tmp_path}/rows.csv", f"output={tmp_path}/out.csv"]) == 0
    assert (tmp_path / "out.csv").read_text().count("\n") == 2
    student = ["loss=kl_distillation", f"loss.teacher={sharded}", "train.duration=1"]
    assert main(["train", *job, *student, f"run.dir={tmp_path}/student"]) == 0
    weights = sharded / "checkpoints" / f"step-{STEPS:08d}"
    assert main(["train", *job, f"model.weights={weights}", "train.duration=1", f"run.dir={tmp_path}/tuned"]) == 0


@pytest.mark.slow
def test_every_other_verb_takes_shards(
    sharded: Path, job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = shutil.copytree(sharded, tmp_path / "run")
    assert main(["diff", str(run_dir), str(sharded)]) == 0
    assert f"bitwise equal at all {STEPS} steps" in capsys.readouterr().out
    assert main(["report", f"run={run_dir}"]) == 0
    assert (run_dir / "report.html").stat().st_size > 1000
    assert main(["verify", f"run={run_dir}", "steps=1"]) == 0
    assert capsys.readouterr().out.count("intact") >= STEPS // 4
    language = ["task=causal_lm", "model=decoder", "train.duration=2", "shard=true"]
    spoken = train_on(2, tmp_path / "language", *job, *language)
    assert main(["generate", f"run={spoken}", "prompt=apple", "decode=greedy"]) == 0
    assert capsys.readouterr().out.startswith("apple")


def test_flipped_bit_in_a_shard_falls_back_to_the_checkpoint_before(sharded: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(sharded, damaged)
    shard = damaged / "checkpoints" / f"step-{STEPS:08d}" / "optimizer-00002-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    codes = run_ranks(["train", f"resume={damaged}"], 2, tmp_path / "output")
    assert codes == [0, 0]
    assert checkpoint_files(damaged, STEPS) == checkpoint_files(sharded, STEPS)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["optimizer=muon", "model.depth=2"], "optimizer"),
        (["optimizer=adafactor"], "optimizer"),
        (["prune=l1"], "prune"),
        (["compile=true"], "compile"),
        (["model.channels_last=true"], "model.channels_last"),
    ],
)
def test_unproved_parts_are_refused_by_name(arguments: list[str], key: str, job: list[str], tmp_path: Path) -> None:
    line = ["train", *job, *arguments, "shard=true", f"run.dir={tmp_path}/run"]
    assert run_ranks(line, 2, tmp_path / "output") == [2, 2]
    printed = "".join(file.read_text() for file in (tmp_path / "output").iterdir())
    assert f"{key}: does not support shard" in printed
    assert not (tmp_path / "run").exists()


def test_shard_must_divide_the_devices(job: list[str], tmp_path: Path) -> None:
    line = ["train", *job, "shard=3", f"run.dir={tmp_path}/run"]
    assert run_ranks(line, 2, tmp_path / "output") == [2, 2]


@pytest.mark.parametrize("devices", ["1", "auto"])
def test_shards_need_several_devices(devices: str, job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", *job, f"devices={devices}", "trial=false"]
    assert main([*line, "shard=true"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("shard: needs several devices, but devices")
    remedy = {"1": "devices=2", "auto": "shard=false"}[devices]
    assert (remedy.replace("2", "N") in message, main([*line, "shard=true", remedy])) == (True, 0)


def test_no_run_folder_is_logged_that_is_then_removed(
    job: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["train", *job, "logger.console=rich", f"run.dir={tmp_path}/run"]
    assert main([*line, "data.text=missing"]) == 6
    assert not (tmp_path / "run").exists()
    assert "run folder" not in "".join(capfd.readouterr())


OPTIMIZERS = {"adam": 0.0, "lion": 0.0, "sgd": 1e-6, "lamb": 1e-5}
"""The largest difference of a weight after 12 steps; AdamW's is tested above. Muon and Adafactor are refused."""


def test_every_optimizer_is_proved_or_refused() -> None:
    options = {file.stem for file in Path(trainer.__file__).parents[1].joinpath("conf/optimizer").glob("*.yaml")}
    assert options == {*OPTIMIZERS, "adamw", "muon", "adafactor"}
    assert {*OPTIMIZERS, "adamw"} == {*_SHARDABLE_OPTIMIZERS}


ALTERNATIVES = {
    **{name: ([f"optimizer={name}"], tolerance) for name, tolerance in OPTIMIZERS.items()},
    "clipped": (["train.max_grad_norm=0.1", "optimizer=sgd", "optimizer.lr=0.1"], 1e-6),
    "accumulated": (["train.accumulate=2", "optimizer=sgd", "optimizer.lr=0.1"], 1e-6),
    "token budget": (["loader.tokens=32", "optimizer=sgd", "optimizer.lr=0.1"], 1e-6),
    "fp16": (["precision=fp16"], 0.0),
    "bf16": (["precision=bf16"], 0.0),
    "one sample in the last batch": (["train.batch_size=10"], 0.0),
    "frozen": (["model.depth=3", "model.freeze=[blocks.0,{match: blocks.1, until: 5}]"], 0.0),
    "adapters": (["model.lora={}"], 0.0),
    "loss with clusters": (["loss=adaptive_softmax"], 0.0),
    "loss with a tree": (["loss=hierarchical_softmax"], 0.0),
    "language model": (["task=causal_lm", "model=decoder"], 0.0),
    "features": (["model.features=[blocks.0]"], 0.0),
    "blocks that run again": (["model.gradient_checkpointing=selective", "model.depth=2", "model.dropout=0.1"], 0.0),
    "learning rate from a range test": (["optimizer.lr=auto"], 0.0),
    "embeddings that move": (["perturb=pgd", "perturb.moves=2", "optimizer=sgd", "optimizer.lr=0.1"], 1e-6),
    # AdamW makes steps of the size of its learning rate from gradients that are 0 but for rounding, as those of the
    # biases of keys are, unless eps is larger.
    "embeddings that move, AdamW": (["perturb=fgm", "optimizer.eps=1e-3"], 1e-6),
    "matrices that move": (["perturb=awp", "perturb.start=3", "optimizer=sgd", "optimizer.lr=0.1"], 1e-6),
    "masks of the head": (
        ["model.head_dropout=0.5", "model.multi_sample_dropout=3", "optimizer=sgd", "optimizer.lr=0.1"],
        1e-6,
    ),
    "two dropout masks": (["perturb=r_drop", "model.dropout=0.3"], 0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALTERNATIVES)
def test_shards_equal_complete_weights(name: str, job: list[str], tmp_path: Path) -> None:
    arguments, tolerance = ALTERNATIVES[name]
    line = [*job, UNCLIPPED, *arguments]
    shards = train_on(2, tmp_path / "shards", *line, "shard=true")
    complete = train_on(2, tmp_path / "complete", *line)
    assert largest_difference(shards, complete, STEPS) <= tolerance


@pytest.mark.slow
def test_transitions_in_shards_equal_complete_ones(tmp_path: Path) -> None:
    with working_in(tmp_path):
        line = [*TINY, *JOB, *WIDTH, *write_roles(tmp_path), "task=token_classification", "loss=crf", UNCLIPPED]
        shards = train_on(2, tmp_path / "shards", *line, "shard=true")
        complete = train_on(2, tmp_path / "complete", *line)
    assert largest_difference(shards, complete, STEPS) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "arguments"),
    [
        *((devices, ["shard=false"]) for devices in (2, 3, 4)),
        *((devices, ["shard=true"]) for devices in (3, 4)),
        (4, ["shard=2"]),
        (4, ["shard=2", "perturb=pgd"]),
        (2, ["shard=true", "perturb=r_drop"]),
    ],
)
def test_resume_on_as_many_devices_is_bitwise_equal(
    devices: int, arguments: list[str], job: list[str], tmp_path: Path
) -> None:
    whole = train_on(devices, tmp_path / "whole", *job, *arguments)
    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    stop_at(resumed, 8)
    output = tmp_path / "output"
    assert run_ranks(["train", f"resume={resumed}"], devices, output) == [0] * devices
    assert_same_end(resumed, whole, 8)


@pytest.mark.slow
def test_frozen_rows_have_files_of_their_own(job: list[str], tmp_path: Path) -> None:
    run = train_on(2, tmp_path / "run", *job, "shard=true", "model.lora={rank: 2}")
    files = sorted(run.glob("checkpoints/*/frozen-00001-of-00002.safetensors"))
    assert max(file.stat().st_nlink for file in files) > 1
    resumed = Path(shutil.copytree(run, tmp_path / "resumed"))
    stop_at(resumed, 8)
    assert run_ranks(["train", f"resume={resumed}"], 2, tmp_path / "output") == [0, 0]
    assert_same_end(resumed, run, 8)


@pytest.mark.slow
def test_run_goes_on_with_another_number_of_shards(job: list[str], tmp_path: Path) -> None:
    length = ["train.duration=20", "checkpoint.every=1", "checkpoint.keep=20"]
    # Dropout is drawn for each device's piece of a batch.
    line = [*job, *length, "model.dropout=0", "optimizer=sgd", "optimizer.lr=0.1"]
    run_dir, one = tmp_path / "run", tmp_path / "one"
    train_on(2, run_dir, *line, "shard=true")
    for step, devices, shard in ((7, 1, "false"), (14, 3, "true")):
        stop_at(run_dir, step)
        resume = ["train", f"resume={run_dir}", f"devices={devices}", f"shard={shard}"]
        assert run_ranks(resume, devices, tmp_path / f"output-{devices}") == [0] * devices
    assert len(list((run_dir / "checkpoints" / "step-00000020").glob("model-*"))) == 3
    assert train_on(1, one, *line) == one
    assert largest_difference(run_dir, one, 20) <= 1e-5


BIG = [
    "model.dim=384",
    "model.depth=24",
    "model.heads=4",
    "model.hidden=1536",
    "train.duration=3",
    "checkpoint.every=2",
]
"""170 MB of weights: with gradients, AdamW's state, the average and the copies to be saved, 1.5 GB."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process by RLIMIT_DATA")
def test_model_that_fits_no_device_trains_in_shards(job: list[str], tmp_path: Path) -> None:
    limit = 1150 * 2**20
    line = ["train", *job, *BIG]
    in_shards = [*line, "shard=true", f"run.dir={tmp_path}/shards"]
    assert run_ranks(in_shards, 2, tmp_path / "output", memory=limit) == [0, 0]
    complete = run_ranks([*line, f"run.dir={tmp_path}/complete"], 2, tmp_path / "complete-output", memory=limit)
    assert 0 not in complete
    output = (tmp_path / "complete-output" / "rank-0.txt").read_text()
    assert "out of memory: the job does not fit." in output or "can't allocate memory" in output
    for shard, code in (("true", 0), ("false", 2)):
        output = tmp_path / f"plan-{shard}"
        planning = start(["plan", *job, *BIG, "devices=2", f"shard={shard}"], output, memory=limit)
        planning.join(PATIENCE)
        assert planning.exitcode == code, output.read_text()
    assert "shard: a device needs " in output.read_text()


def test_lost_device_is_named(job: list[str], tmp_path: Path) -> None:
    run_dir, screen = tmp_path / "run", tmp_path / "screen"
    line = ["train", *job, "shard=true", "train.duration=100000", "checkpoint.every=4", f"run.dir={run_dir}"]
    process = start_launched([*line, "devices=2"], screen)
    wait_until(lambda: len(list((run_dir / "checkpoints").glob("step-*"))) > 1, process)
    assert process.pid is not None
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    process.join(PATIENCE)
    # The other process takes the error of torch's exchange for a consequence.
    assert process.exitcode == 128 + signal.SIGKILL
    assert screen.read_text().startswith("rank 1 was killed by SIGKILL")
    assert "Traceback" not in screen.read_text()
