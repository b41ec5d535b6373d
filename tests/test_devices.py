"""Several devices, here a process each on the CPU, train what one device trains."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import trainer
from tests.support.jobs import (
    TINY,
    TWO_FILES,
    TWO_SETS,
    checkpoint_files,
    checkpoint_steps,
    events,
    stop_at,
    train,
    without_clock,
    working_in,
    write_data,
    write_roles,
)
from tests.support.launched import start_launched
from tests.support.processes import PATIENCE
from tests.support.ranks import run_ranks
from tests.support.sources import ON_SOURCES, write_job_sources
from tests.test_observers import observers
from trainer.checkpoint.rng_state import capture_rng_state
from trainer.checkpoint.snapshot import load_folder, write_snapshot
from trainer.cli import main
from trainer.data.batch_plan import BatchPlan

STEPS = 12
JOB = [f"train.duration={STEPS}", "train.eval_every=4", "checkpoint.every=4"]
"""With dropout, averaged weights and, in each epoch of 8 steps, a smaller last batch."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("devices")
    with working_in(folder):
        yield [*TINY, *JOB, *write_data(folder)]


def train_on(devices: int, run_dir: Path, *arguments: str) -> Path:
    """Train in as many processes as there are devices; return the run folder."""
    line = ["train", *arguments, f"run.dir={run_dir}"]
    assert run_ranks(line, devices, run_dir.with_suffix(".output")) == [0] * devices
    return run_dir


@pytest.fixture(scope="module")
def two_devices(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "two"
    return train_on(2, folder, *job, observers(folder))


def test_two_devices_equal_two_micro_batches_to_the_byte(two_devices: Path, job: list[str], tmp_path: Path) -> None:
    one = tmp_path / "one"
    assert train(one, *job, "train.accumulate=2") == 0
    for step in (8, STEPS):
        assert checkpoint_files(two_devices, step) == checkpoint_files(one, step)
    assert without_clock(events(two_devices)) == without_clock(events(one))


def test_only_the_first_process_tells_its_observers(two_devices: Path) -> None:
    lines = (two_devices.parent / "events.jsonl").read_text(encoding="utf-8").splitlines()
    received = [json.loads(line) for line in lines]
    assert len({event["pid"] for event in received}) == 1
    assert [event["event"] for event in received].count("train") == STEPS
    assert received[-1]["event"] == "close"


@pytest.mark.parametrize("is_forked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_tools_own_launch_trains_the_same_bytes(
    is_forked: bool, two_devices: Path, job: list[str], tmp_path: Path
) -> None:
    run_dir, screen = tmp_path / "run", tmp_path / "screen"
    line = ["train", *job, f"run.dir={run_dir}", "devices=2"]
    if is_forked:  # all but the start of the interpreters
        launched = start_launched(line, screen)
        launched.join(PATIENCE)
        code = launched.exitcode
    else:
        with screen.open("w") as file:
            command = [sys.executable, "-m", "trainer", *line]
            code = subprocess.run(command, stdout=file, stderr=file, timeout=PATIENCE, check=False).returncode
    assert (code, screen.read_text(encoding="utf-8")) == (0, "")
    assert checkpoint_files(run_dir, STEPS) == checkpoint_files(two_devices, STEPS)
    assert without_clock(events(run_dir)) == without_clock(events(two_devices))
    assert not (run_dir / "logs").exists()


TEXT = TINY[:6]
"""The options of a small text encoder."""

ON_TEXT = {
    "adam": ["optimizer=adam"],
    "sgd": ["optimizer=sgd"],
    "lion": ["optimizer=lion"],
    "lamb": ["optimizer=lamb"],
    "muon": ["optimizer=muon", "model.depth=2"],
    "adafactor": ["optimizer=adafactor"],
    "bf16": ["precision=bf16"],
    "fp16": ["precision=fp16"],
    "unfreeze": ["model.depth=3", "model.freeze=[blocks.0,{match: blocks.1, until: 5}]"],
    "lora": ["model.lora={}"],
    "prune": ["prune=l1"],
    "fgm": ["perturb=fgm", "precision=fp16"],
    "pgd": ["perturb=pgd", "perturb.start=3"],
    "awp": ["perturb=awp"],
    "pgd_in_bf16": ["perturb=pgd", "precision=bf16", "model.noisy_tune=0.15"],
    "head_masks": ["model.head_dropout=0.5", "model.multi_sample_dropout=3"],
    "r_drop": ["perturb=r_drop", "task=masked_lm"],
    "features": ["model.features=[blocks.0]"],
    "adaptive_softmax": ["loss=adaptive_softmax"],
    "hierarchical_softmax": ["loss=hierarchical_softmax"],
    "reduce_on_plateau": ["scheduler=reduce_on_plateau"],
    "patience": ["train.patience=4"],
    "range_test": ["optimizer.lr=auto"],
    "greedy": ["scheduler=greedy", "scheduler.every=2"],
    "scored_pairs": ["task=sentence_embedding", "task.supervision=scored", "loss=cosine_embedding"],
    "workers": ["loader.workers=1"],
    "balanced": ["loader.sampler=balanced"],
    "weighted": ["loader.sampler=weighted", "loader.weights=value", "perturb=fgm"],
    "values_of_a_column": ["loader.sampler=balanced", "loader.sampler_column=score", "loader.batching=bucketed"],
    "files_in_shares": [*TWO_FILES, "data.mix={train.jsonl:1,test.jsonl:2}", "loader.sampler=balanced", "perturb=awp"],
    "named_sets": [*TWO_SETS, "checkpoint.monitor=two/accuracy", "perturb=r_drop"],
    "padded": ["loader.batching=padded"],
    "bucketed": ["loader.batching=bucketed"],
    "fixed": ["loader.batching=fixed"],
    "multilabel": ["task=multilabel_classification"],
    "pairs": ["task=pair_classification"],
    "regression": ["task=regression"],
    "mae": ["task=regression", "loss=mae"],
    "huber": ["task=regression", "loss=huber"],
    "focal": ["loss=focal", "loss.alpha=auto"],
    "poly": ["loss=poly", "loss.weight=auto"],
    "cross_entropy": ["loss=cross_entropy", "loss.weight=effective_number", "loss.label_smoothing=0.1"],
    "asymmetric": ["task=multilabel_classification", "loss=asymmetric"],
    "binary_cross_entropy": ["task=multilabel_classification", "loss=binary_cross_entropy", "loss.pos_weight=auto"],
    "kl_distillation": ["loss=kl_distillation", "loss.teacher=teacher"],
    "gradient_checkpointing": ["model=pretrained", "model.path=bert", "model.gradient_checkpointing=true"],
    "tags": ["task=token_classification"],
    "crf": ["task=token_classification", "loss=crf"],
    "crf_of_padded_tags": ["task=token_classification", "loss=crf", "loader.batching=padded"],
    "spans": ["task=span_classification", "loss=global_pointer", "loss.head_size=8"],
    "masked_lm": ["task=masked_lm"],
    "causal_lm": ["task=causal_lm", "model=decoder", "model.tie_embeddings=false"],
    "tied_embeddings": ["task=causal_lm", "model=decoder", "model.tie_embeddings=true"],
    "together": ["task=multilabel_classification", "optimizer=adafactor", "precision=fp16"],
}
"""Jobs on the data of `write_roles` whose loss is a sum over samples or targets."""

ON_TABLES_AND_IMAGES = {
    "images": ["task=image_classification", "data=digits"],
    "vit": ["task=image_classification", "data=digits", "model=vit", *TINY[:4], "model.patch=4"],
    "mixup": ["task=image_classification", "data=digits", "task.augment.mixup=0.2"],
    "cutmix": ["task=image_classification", "data=digits", "task.augment.cutmix=1.0"],
    "tabular_classification": ["task=tabular_classification", "data=breast_cancer"],
    "tabular_regression": ["task=tabular_regression", "data=diabetes"],
}

TINY_DROPOUT = "model.dropout=1e-9"
"""Drops nothing in such small jobs. The two views of a text must differ by dropout, so 0 is refused."""

STATISTICS = {
    "dice": ["loss=dice"],
    "dice_of_padded_tags": ["task=token_classification", "loss=dice", "loader.batching=padded"],
    "mse_correlation": ["task=regression", "loss=mse_correlation"],
    "info_nce": ["task=sentence_embedding", "task.supervision=pairs"],
    "triplets": ["task=sentence_embedding", "task.supervision=triplets"],
    "views": ["task=sentence_embedding", "task.supervision=none", TINY_DROPOUT],
}
"""Jobs whose loss is a statistic of the whole batch."""

RANKED = {"recall_at_1", "recall_at_5", "mrr"}
"""Metrics that jump when rounding changes the order of two scores."""

IN_MAKE_TEST = ("together",)
"""Jobs that `make test` trains: three parts, each of which is the only one that finds some mistake. The others are slow
tests."""


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("roles")
    with working_in(folder):
        yield write_roles(folder)


@pytest.fixture(scope="module")
def teacher(roles: list[str]) -> Path:
    """Train the teacher of `kl_distillation`."""
    return train_alone(Path("teacher"), *TINY, *roles, "train.duration=4")


@pytest.fixture(scope="module")
def bert(roles: list[str]) -> Path:
    """Save a tiny BERT with dropout."""
    from tests.support.pretrained_folders import save  # imports transformers

    return save("bert", Path("bert"), hidden_dropout_prob=0.1)


@pytest.fixture(scope="module")
def other_sources(roles: list[str]) -> None:
    """Write the data of the jobs that bring their own."""
    write_job_sources(Path())


NEEDED = {"kl_distillation": "teacher", "gradient_checkpointing": "bert", **dict.fromkeys(ON_SOURCES, "other_sources")}
"""Jobs that need the folder of a fixture."""


def line_of(name: str, roles: list[str]) -> list[str]:
    """Return the arguments of a job of the tables above."""
    common = [*TINY[6:], "train.duration=9", "train.eval_every=4", "checkpoint.every=4", "loader.eval_batch_size=8"]
    if name in ON_TABLES_AND_IMAGES:
        return [*common, "loader.limit=61", *ON_TABLES_AND_IMAGES[name]]
    if name in ON_SOURCES:
        return [*common, *ON_SOURCES[name]]
    job = (ON_TEXT | STATISTICS)[name]
    text = TEXT if "model=pretrained" not in job else TEXT[4:]  # its size is that of its folder
    return [*common, *text, *roles, *job]


def train_alone(run_dir: Path, *arguments: str) -> Path:
    """Train on one device; return the run folder."""
    assert main(["train", *arguments, f"run.dir={run_dir}"]) == 0
    return run_dir


@pytest.mark.parametrize(
    "name",
    [
        name if name in IN_MAKE_TEST else pytest.param(name, marks=pytest.mark.slow)
        for name in (*ON_TEXT, *ON_TABLES_AND_IMAGES, *ON_SOURCES)
    ],
)
def test_every_part_trains_the_same_bytes_on_two_devices(
    name: str,
    roles: list[str],
    tmp_path: Path,
    figure: Callable[[str, int, int], None],
    request: pytest.FixtureRequest,
) -> None:
    if name in NEEDED:
        request.getfixturevalue(NEEDED[name])
    line = line_of(name, roles)
    two = train_on(2, tmp_path / "two", *line)
    one = train_alone(tmp_path / "one", *line, "train.accumulate=2")
    steps = checkpoint_steps(one)
    assert checkpoint_steps(two) == steps
    for step in steps:
        assert checkpoint_files(two, step) == checkpoint_files(one, step)
    assert without_clock(events(two)) == without_clock(events(one))
    figure("jobs equal to the byte on one and on two devices", 1, 1)


def test_the_jobs_have_every_loss() -> None:
    lines = [*ON_TEXT.values(), *ON_TABLES_AND_IMAGES.values(), *STATISTICS.values()]
    named = {argument.removeprefix("loss=") for line in lines for argument in line if argument.startswith("loss=")}
    conf = Path(trainer.__file__).parents[1] / "conf/loss"
    # The default losses of regression and of sentence embeddings need no argument.
    assert named | {"mse", "info_nce"} == {file.stem for file in conf.glob("*.yaml")}


@pytest.mark.slow
def test_batch_normalization_averages_the_statistics_of_the_devices(roles: list[str], tmp_path: Path) -> None:
    line = [*line_of("images", roles), "model=resnet", "model.depth=8", "model.width=4"]
    line += ["checkpoint.every=1", "checkpoint.keep=9"]
    two = train_on(2, tmp_path / "two", *line)
    halves = train_alone(tmp_path / "halves", *line, "train.accumulate=2")
    whole = train_alone(tmp_path / "whole", *line)
    # Training normalizes a piece as it does a micro-batch.
    actual, expected = (weights(run, 9) for run in (two, halves))
    assert {name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)} == {
        name for name in expected if ".running_" in name or name.endswith(".num_batches_tracked")
    }
    # The mean of the means over the halves of a batch is the mean over the batch, in the first layer that normalizes.
    first, expected_first = (weights(run, 1)["norm.running_mean"] for run in (two, whole))
    assert expected_first.any()
    torch.testing.assert_close(first, expected_first)


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return dict(load_folder(run / "checkpoints" / f"step-{step:08d}").tensors["model"])


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("dice_of_padded_tags", 2),
        *(
            pytest.param(name, devices, marks=pytest.mark.slow)
            for name in STATISTICS
            for devices in (2, 3)
            if (name, devices) != ("dice_of_padded_tags", 2)
        ),
    ],
)
def test_a_statistic_of_the_batch_sees_the_samples_of_all_devices(
    name: str, devices: int, roles: list[str], tmp_path: Path
) -> None:
    # Plain SGD: Adam would turn the rounding of a gradient near 0 into a step of full length.
    line = ["model.dropout=0.0", *line_of(name, roles), "optimizer=sgd", "optimizer.lr=0.1"]
    # And of all micro-batches.
    several = train_on(devices, tmp_path / "several", *line, "train.accumulate=2")
    one = train_alone(tmp_path / "one", *line)
    assert_close(several, one, 1e-6)


@pytest.mark.parametrize(
    "name",
    ["regression", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tags", "spans", "masked_lm", "images"))],
)
def test_three_devices_share_what_does_not_divide(name: str, roles: list[str], tmp_path: Path) -> None:
    # 61 samples, 12 in a step: the last batch of an epoch is one sample, and a split of 20 has fewer batches than
    # there are devices.
    line = [*line_of(name, roles), "train.batch_size=12", "optimizer=sgd", "optimizer.lr=0.1"]
    line += ["loader.eval_batch_size=16", "train.duration=7", *(["model.dropout=0.0"] if name != "images" else [])]
    several = train_on(3, tmp_path / "several", *line)
    one = train_alone(tmp_path / "one", *line)
    assert_close(several, one, 1e-6)


def assert_close(run: Path, expected: Path, tolerance: float) -> None:
    """Check that weights, averages, losses and metrics of two runs differ only by rounding."""
    step = checkpoint_steps(expected)[-1]
    actual, wanted = (load_folder(each / "checkpoints" / f"step-{step:08d}").tensors for each in (run, expected))
    for file in ("model", "ema"):
        for name, tensor in wanted[file].items():
            torch.testing.assert_close(actual[file][name], tensor, rtol=tolerance, atol=tolerance)
    assert len(events(run)) == len(events(expected))
    for event, other in zip(without_clock(events(run)), without_clock(events(expected)), strict=True):
        assert event.keys() == other.keys()
        for key, value in other.items():
            if key not in RANKED:
                assert event[key] == (pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value)


def test_a_run_moves_from_two_devices_to_one_and_to_three(job: list[str], tmp_path: Path) -> None:
    line = [*job, "train.duration=8", "checkpoint.every=2", "checkpoint.keep=9", "model.dropout=0.0", "resume=auto"]
    # Plain SGD, as above: AdamW differs by 1e-4 after these steps.
    line += ["optimizer=sgd", "optimizer.lr=0.1"]
    whole = train_alone(tmp_path / "whole", *line)
    moved = tmp_path / "moved"
    for devices, end in ((2, 2), (1, 4), (3, 8)):
        train_on(devices, moved, *line)
        stop_at(moved, end)
    actual, expected = (load_folder(run / "checkpoints" / "step-00000008").tensors["model"] for run in (moved, whole))
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=1e-6)


def test_a_run_of_an_earlier_version_resumes_on_one_device_only(job: list[str], tmp_path: Path) -> None:
    run = train_alone(tmp_path / "run", *job, "train.duration=4")
    folder = run / "checkpoints" / "step-00000004"
    snapshot = load_folder(folder)
    state = json.loads(snapshot.documents["state.json"])
    state["generators"] |= capture_rng_state()  # in sequence, as earlier versions drew them
    documents = {**snapshot.documents, "state.json": json.dumps(state)}
    shutil.rmtree(folder)
    write_snapshot(folder, replace(snapshot, documents=documents), 1)
    line = ["train", f"resume={run}", "train.duration=6"]
    output = tmp_path / "output"
    assert 2 in run_ranks(line, 2, output)
    assert "devices: an earlier version started this run" in "".join(file.read_text() for file in output.iterdir())
    assert main(line) == 0


@given(
    num_samples=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    accumulate=st.integers(1, 5),
    size=st.integers(1, 5),
)
def test_the_devices_share_each_micro_batch(num_samples: int, batch_size: int, accumulate: int, size: int) -> None:
    plan = BatchPlan(num_samples, batch_size, seed=1)
    for step in range(plan.steps_per_epoch + 1):
        alone = plan.micro_batches(step, accumulate)
        shares = [plan.micro_batches(step, accumulate, rank, size) for rank in range(size)]
        filled = [plan.micro_batches(step, accumulate, rank, size, fill=True) for rank in range(size)]
        # Together they have the samples of one device, in its order; a filler repeats a sample and counts for nothing.
        in_order = sorted((batch for share in shares for batch in share), key=lambda batch: batch.piece)
        assert [id for batch in in_order for id in batch.ids] == [id for batch in alone for id in batch.ids]
        assert len({batch.piece for batch in in_order}) == len(in_order)
        assert {len(share) for share in filled} == {len(alone)}
        assert [[batch for batch in share if not batch.is_filler] for share in filled] == shares
        # The pieces of several devices are the micro-batches of one, if the samples suffice for all of them.
        if len(plan.batch(step).ids) % (accumulate * size) == 0:
            assert in_order == plan.micro_batches(step, accumulate * size)


def test_a_step_with_fewer_samples_than_devices_warns_and_is_logged(job: list[str], tmp_path: Path) -> None:
    run = train_on(3, tmp_path / "run", *job, "train.batch_size=2", "train.duration=2")
    log = (run / "trainer.log").read_text(encoding="utf-8")
    assert "step: 2 samples = 1 micro-batch of 2; " in log
    assert "; 3 x cpu, fp32, " in log
    assert log.count("train.batch_size: a micro-batch has 2 samples, so 1 of 3 devices has none") == 1
    assert [file.read_text() for file in (run / "logs").glob("*")] == []


@pytest.mark.slow
def test_all_devices_stop_together_when_the_time_has_passed(two_devices: Path, job: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = ["train", *job, f"run.dir={run}", "resume=auto"]
    for step in (1, 2):
        assert run_ranks([*line, "train.max_time=0.001s"], 2, tmp_path / f"output-{step}") == [75, 75]
        assert events(run, "stop")[-1]["step"] == step
    assert run_ranks(line, 2, tmp_path / "output") == [0, 0]
    assert checkpoint_files(run, STEPS) == checkpoint_files(two_devices, STEPS)
