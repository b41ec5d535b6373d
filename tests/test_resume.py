"""A run that was stopped and resumed ends in the same bytes as a run that never stopped."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.jobs import (
    TINY,
    TWO_FILES,
    TWO_SETS,
    assert_resumes,
    assert_same_end,
    checkpoint_files,
    events,
    stop_at,
    train,
    working_in,
    write_data,
    write_roles,
)
from tests.support.sources import ON_SOURCES, write_job_sources, write_sources
from tests.support.toys import AUGMENTED
from tests.support.typical import typical
from trainer.cli import main

CONF = Path(__file__).parent.parent / "conf"

# 29 samples in batches of 8: 4 steps per epoch, the last one of 5 samples; two and a half epochs.
STEPS = 10
KEEP_ALL = f"checkpoint.keep={STEPS}"
MID_EPOCH, LAST_BATCH, EPOCH_END, NEXT_EPOCH = STOPS = (2, 3, 4, 5)
Figure = Callable[[str, int, int], None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("resume")
    with working_in(folder):
        length = ["loader.limit=29", f"train.duration={STEPS}", "train.eval_every=2", "checkpoint.every=1"]
        yield [*write_data(folder), *length]


@pytest.fixture(scope="module")
def whole(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the plain job that never stopped, with all its checkpoints."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(run, *data, KEEP_ALL) == 0
    return run


@pytest.fixture
def resumable(whole: Path, tmp_path: Path) -> Path:
    """A copy of the whole run to stop and resume."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


OPTIONS: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "fp32": ([], STOPS),
    "bf16": (["precision=bf16"], (EPOCH_END,)),
    "fp16": (["precision=fp16"], (MID_EPOCH,)),
    "no EMA": (["ema.decay=null"], (MID_EPOCH,)),
    "accumulation": (["train.accumulate=3"], (LAST_BATCH,)),
    "workers": (["loader.workers=2"], (MID_EPOCH,)),
    "padded": (["loader.batching=padded"], (NEXT_EPOCH,)),
    "bucketed": (["loader.batching=bucketed"], (EPOCH_END,)),
    "balanced": (["loader.sampler=balanced", "loader.workers=1"], (NEXT_EPOCH,)),
    "token budget": (["loader.tokens=32", "loader.workers=1"], (LAST_BATCH,)),
    "sgd": (
        ["optimizer=sgd", "optimizer.momentum=0.9", "scheduler=cosine", "loss=focal", "loss.alpha=auto"],
        (LAST_BATCH,),
    ),
    "no clipping": (["train.max_grad_norm=null"], (MID_EPOCH,)),
    "stratified": (["data.validation=null", "data.test=null", "data.split.stratify=label"], (MID_EPOCH,)),
    "augmentation and batch norm": ([*AUGMENTED, "train.accumulate=2"], (MID_EPOCH, EPOCH_END)),
}
"""The options of a job, and where it stops in `make test`; in `make test-all` it stops at each of `STOPS`."""

COMBINATIONS = {
    f"{name}, {precision}, EMA {decay}, accumulate {accumulate}, workers {workers}": [
        *parts,
        f"precision={precision}",
        f"ema.decay={decay}",
        f"train.accumulate={accumulate}",
        f"loader.workers={workers}",
    ]
    for (name, parts), precision, decay, accumulate, workers in itertools.product(
        {"plain": (), "augmentation and batch norm": AUGMENTED}.items(),
        ("fp32", "bf16", "fp16"),
        ("null", "0.99"),
        (1, 3),
        (0, 2),
    )
}


def check_resumes(data: list[str], options: list[str], folder: Path, stops: tuple[int, ...], figure: Figure) -> None:
    """Train a whole run, and check that it resumes from each of the stops."""
    assert train(folder / "run", *data, *options, KEEP_ALL) == 0
    for step in stops:
        assert_resumes(folder / "run", step, "trust=[tests]")
    figure("resumed runs equal to the byte", len(stops), len(stops))


LESS_TYPICAL = {"no EMA", "padded", "no clipping"}
"""Options that leave out a part of other jobs here, or change only the layout of a batch."""


@pytest.mark.parametrize("name", typical(OPTIONS, *OPTIONS.keys() - LESS_TYPICAL))
def test_resumed_run_is_bitwise_equal(name: str, data: list[str], tmp_path: Path, figure: Figure) -> None:
    options, stops = OPTIONS[name]
    check_resumes(data, options, tmp_path, stops, figure)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_every_stop_is_bitwise_equal(name: str, data: list[str], tmp_path: Path, figure: Figure) -> None:
    check_resumes(data, OPTIONS[name][0], tmp_path, STOPS, figure)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_combination_is_bitwise_equal(name: str, data: list[str], tmp_path: Path, figure: Figure) -> None:
    check_resumes(data, COMBINATIONS[name], tmp_path, STOPS, figure)


def test_checking_each_step_late_changes_no_bit(
    data: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.builders.training._checks_late", lambda *parts: True)
    assert train(tmp_path / "run", *data, KEEP_ALL) == 0

    assert_same_end(tmp_path / "run", whole, 1)
    assert_resumes(tmp_path / "run", MID_EPOCH)


def test_resume_with_other_workers_is_bitwise_equal(data: list[str], whole: Path, tmp_path: Path) -> None:
    assert_resumes(shutil.copytree(whole, tmp_path / "plain"), 3, "loader.workers=2", "loader.prefetch=3")
    # Augmentations are drawn per sample, not per worker.
    assert train(tmp_path / "augmented", *data, *AUGMENTED, KEEP_ALL) == 0
    assert_resumes(tmp_path / "augmented", 3, "trust=[tests]", "loader.workers=1")


def test_resume_of_a_resumed_run_is_bitwise_equal(whole: Path, resumable: Path) -> None:
    for step in (7, 5, 2):
        stop_at(resumable, step)
        assert main(["train", f"resume={resumable}"]) == 0
        assert_same_end(resumable, whole, step)


def test_resume_auto_starts_a_run_and_continues_it(data: list[str], whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "auto"
    assert train(run, *data, KEEP_ALL, "resume=auto") == 0
    assert checkpoint_files(run, STEPS) == checkpoint_files(whole, STEPS)

    stop_at(run, 3)
    assert train(run, *data, KEEP_ALL, "resume=auto") == 0
    assert_same_end(run, whole, 3)


def test_starts_of_limited_time_end_in_the_bytes_of_one_start(
    data: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    limited = [*data, KEEP_ALL, "resume=auto", "train.max_time=0.001s"]  # passes before each first step
    for step in (1, 2):
        assert train(run, *limited) == 75
        assert [(event["step"], event["reason"]) for event in events(run, "stop")][-1] == (step, "train.max_time")
        first, last = capsys.readouterr().err.splitlines()
        assert (
            first == f"train.max_time: stopped after step {step} of {STEPS}, because the time of this start has passed"
        )
        assert last == f"Resume with: trainer train resume={run}"
    # The evaluation at step 2 is complete.
    assert {event["weights"] for event in events(run, "eval") if event["step"] == 2} == {"raw", "ema"}

    assert train(run, *data, KEEP_ALL, "resume=auto") == 0
    assert_same_end(run, whole, 2)
    assert train(run, *data, KEEP_ALL, "resume=auto", "train.max_time=0.001s") == 0  # nothing is left to train


def test_a_start_ends_with_the_first_step_past_its_time(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 10)  # seconds; it is read once at the start and after each step
    monkeypatch.setattr("trainer.signals.time.monotonic", lambda: next(clock))
    assert train(tmp_path / "run", *data, "train.max_time=0.5m") == 75
    assert [event["step"] for event in events(tmp_path / "run", "stop")] == [3]


def test_a_damaged_newest_checkpoint_is_skipped(whole: Path, resumable: Path, caplog: pytest.LogCaptureFixture) -> None:
    stop_at(resumable, 6)
    weights = resumable / "checkpoints/step-00000006/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)

    assert main(["train", f"resume={resumable}"]) == 0
    assert_same_end(resumable, whole, 5)
    assert any("step-00000006" in record.message for record in caplog.records if record.levelname == "WARNING")


@pytest.mark.parametrize("content", [None, "{{{"])
def test_a_run_without_its_config_resumes_from_its_checkpoints(
    content: str | None, whole: Path, resumable: Path
) -> None:
    stop_at(resumable, 5)
    (resumable / "config.yaml").unlink()
    if content is not None:
        (resumable / "config.yaml").write_text(content)

    assert main(["train", f"resume={resumable}"]) == 0
    assert_same_end(resumable, whole, 5)


def test_a_resumed_run_may_not_change_what_it_learns(resumable: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {
        "optimizer.lr": "optimizer.lr=0.5",
        "train.batch_size": "train.batch_size=4",
        "loss": "loss=focal",
    }
    for key, change in changes.items():
        assert main(["train", f"resume={resumable}", change]) == 2
        assert f"{key}: " in capsys.readouterr().err


def test_a_run_does_not_resume_on_changed_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(tmp_path):
        data = write_data(tmp_path)
        assert train(tmp_path / "run", *data, "train.duration=2") == 0
        with (tmp_path / "train.csv").open("a", encoding="utf-8") as file:
            file.write("one more pear,fruit\n")

        assert main(["train", f"resume={tmp_path / 'run'}", "train.duration=4"]) == 3
    assert "data: the data has changed" in capsys.readouterr().err


# Every optimizer, schedule, task, and loss with a state of its own.
PART_STEPS, PART_STOP = 12, 5
SHORT = [
    f"train.duration={PART_STEPS}",
    "train.eval_every=4",
    "checkpoint.every=1",
    f"checkpoint.keep={PART_STEPS}",
]
RUN_OPTIONS = [option for option in TINY if not option.startswith(("model.", "task."))]
TEXT_OPTIONS = [option for option in TINY if option.startswith("task.")]
SMALL_MODEL = [option for option in TINY if option.startswith("model.")]

STATEFUL_PARTS = {
    "muon, layer decay, overrides": [
        "optimizer=muon",
        "optimizer.layer_decay=0.8",
        'optimizer.overrides=[{match:"head*",lr:0.01}]',
    ],
    "reduce_on_plateau": ["optimizer=adam", "scheduler=reduce_on_plateau", "scheduler.every=2", "scheduler.patience=0"],
    "pruned": ["prune=random", "prune.amount=0.5", "optimizer=muon", "train.accumulate=2", "ema.decay=0.9"],
    "two passes": ["perturb=r_drop", "perturb.start=3", "task=masked_lm", "loss=focal", "train.accumulate=2"],
    "moved weights": ["perturb=pgd", "perturb.start=3", "precision=fp16", "train.accumulate=2", "ema.decay=0.9"],
    "hierarchical_softmax": ["loss=hierarchical_softmax", "loss.in_features=16", "ema.decay=0.9"],
    "crf": ["task=token_classification", "loss=crf", "loss.constraints=true", "optimizer=muon", "ema.decay=0.9"],
}
ALL_PARTS = {
    **{file.stem: [f"optimizer={file.stem}"] for file in sorted((CONF / "optimizer").glob("*.yaml"))},
    **{file.stem: [f"perturb={file.stem}"] for file in sorted((CONF / "perturb").glob("*.yaml"))},
    **{
        f"{file.stem} in bf16": [f"perturb={file.stem}", "precision=bf16", "train.accumulate=2"]
        for file in sorted((CONF / "perturb").glob("*.yaml"))
    },
    "noise at the start": ["model.noisy_tune=0.15", "optimizer.lr=auto"],
    "masks of the head": ["model.head_dropout=0.5", "model.multi_sample_dropout=3", "perturb=awp"],
    "NAdam": ["optimizer._target_=torch.optim.NAdam", "optimizer.lr=1e-3"],
    "greedy": ["scheduler=greedy", "scheduler.every=2"],
    "adaptive_softmax": ["loss=adaptive_softmax", "loss.in_features=16", "loss.cutoffs=[1]"],
    **{
        task: [f"task={task}"]
        for task in (
            "multilabel_classification",
            "pair_classification",
            "regression",
            "token_classification",
            "span_classification",
            "masked_lm",
            "causal_lm",
        )
    },
    "sentence_embedding": ["task=sentence_embedding", "task.supervision=triplets"],
}


SAMPLES = {
    "weighted": ["loader.sampler=weighted", "loader.weights=value", "perturb=awp", "loader.workers=1"],
    "values of a column": ["loader.sampler=balanced", "loader.sampler_column=score", "loader.batching=bucketed"],
    "files in shares": [*TWO_FILES, "data.mix={train.jsonl:1,test.jsonl:2}", "loader.sampler=balanced", "perturb=fgm"],
    "named sets": [*TWO_SETS, "checkpoint.monitor=two/accuracy", "perturb=r_drop"],
    "a fold of groups": [
        "data.validation=null",
        "data.split={group: value, validation: 0.3}",
        "data.folds=2",
        "perturb=pgd",
    ],
    "the newest rows": ["data.validation=null", "data.test=null", "data.split.time=value", "train.accumulate=2"],
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("resume-parts")
    with working_in(folder):
        write_sources(folder)
        yield folder


def check_part_resumes(run: Path, options: list[str], figure: Figure) -> None:
    assert main(["train", *options, *RUN_OPTIONS, *SHORT, f"run.dir={run}"]) == 0
    assert_resumes(run, PART_STOP)
    figure("resumed runs of every part equal to the byte", 1, 1)


@pytest.mark.parametrize("name", STATEFUL_PARTS)
def test_parts_with_state_are_bitwise_equal(name: str, sources: Path, tmp_path: Path, figure: Figure) -> None:
    options = [*write_roles(sources), *SMALL_MODEL, *TEXT_OPTIONS, *STATEFUL_PARTS[name]]
    check_part_resumes(tmp_path / "run", options, figure)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_PARTS)
def test_every_part_is_bitwise_equal(name: str, sources: Path, tmp_path: Path, figure: Figure) -> None:
    options = [*ALL_PARTS[name], *write_roles(sources), *SMALL_MODEL, *TEXT_OPTIONS]
    check_part_resumes(tmp_path / "run", options, figure)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_every_choice_of_samples_is_bitwise_equal(name: str, sources: Path, tmp_path: Path, figure: Figure) -> None:
    with working_in(sources):
        options = [*SMALL_MODEL, *TEXT_OPTIONS, *write_roles(sources), *SAMPLES[name]]
        check_part_resumes(tmp_path / "run", options, figure)


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_SOURCES)
def test_every_source_is_bitwise_equal(name: str, tmp_path: Path, figure: Figure) -> None:
    with working_in(tmp_path):
        write_job_sources(tmp_path)
        check_part_resumes(tmp_path / "run", [*ON_SOURCES[name], "train.accumulate=2"], figure)


AUGMENT = "task.augment={crop:1,flip:0.5,rotate:10,cutout:3}"
MIX = "task.augment={crop:1,mixup:0.2,cutmix:1.0,mix_prob:0.8}"
IMAGE_JOBS = {
    "convnet": ["model=convnet", AUGMENT],
    "resnet, workers, accumulation": ["model=resnet", AUGMENT, "loader.workers=2", "train.accumulate=2"],
    "vit": ["model=vit", *SMALL_MODEL, "model.patch=7", AUGMENT],
    "resnet, channels last, pruned": ["model=resnet", "model.channels_last=true", "prune=ln", AUGMENT],
    "mixed": ["model=convnet", MIX, "loss=cross_entropy", "loader.workers=2", "train.accumulate=2"],
    "mixed, focal": ["model=convnet", MIX, "loss=focal", "loader.workers=2", "train.accumulate=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_JOBS)
def test_augmented_images_are_bitwise_equal(name: str, sources: Path, tmp_path: Path, figure: Figure) -> None:
    source = ["task=image_classification", "data=idx", f"data.folder={sources}/idx", f"data.cache_dir={sources}/cache"]
    check_part_resumes(tmp_path / "run", [*source, *IMAGE_JOBS[name]], figure)
