"""Command lines against the config that is shipped."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.commands.init_parts import PARTS, write_part
from trainer.config.command import check_command
from trainer.config.jobs import EvalJob, ExportJob, TrainJob, stored_sections
from trainer.config.schema import keys
from trainer.config.stored import config_text
from trainer.errors import CheckpointError, ConfigError, DataError, TrainerError
from trainer.weights_folder import AFTER_PADDING

LOSSES = sorted(file.stem for file in (Path(__file__).parents[2] / "conf/loss").glob("*.yaml"))
Composed = Callable[..., tuple[Any, dict[str, Any]]]


def errors_of(verb: str, *argv: str) -> list[str]:
    """Return the messages of a command line, which must have an error."""
    with pytest.raises(ConfigError) as caught:
        check_command(verb, argv)
    return list(caught.value.messages)


def test_three_typos_are_reported_together() -> None:
    assert errors_of("train", "lss=focal", "optimizer.lrr=1", "+loss.gama=2") == [
        "lss: unknown key, got 'focal'. Did you mean loss?",
        "optimizer.lrr: unknown key, got 1. Did you mean optimizer.lr?",
        "loss.gama: unknown key, got 2. loss=focal has loss.gamma. "
        "Known: loss.weight, loss.label_smoothing, loss.ignore_index.",
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        # keys
        (["foo.bar=1"], "foo: unknown key. Known: seed, "),
        (["sed=1"], "sed: unknown key, got 1. Did you mean seed?"),
        (["train.bach_size=1"], "train.bach_size: unknown key, got 1. Did you mean train.batch_size?"),
        (["+train.foo=1"], "train.foo: unknown key, got 1. Known: train.duration, train.batch_size, "),
        (["lr=1"], "lr: unknown key, got 1. Set optimizer.lr=1."),
        (["train.lr=1"], "train.lr: unknown key, got 1. Set optimizer.lr=1."),
        (["seed.x=1"], "seed.x: seed is a value and has no keys, got 1."),
        (["train={batch_siz: 4}"], "train.batch_siz: unknown key, got 4. Did you mean train.batch_size?"),
        (["loss=focal", "+loss.gama=2"], "loss.gama: unknown key, got 2. Did you mean loss.gamma?"),
        (["loss=focal", "loss.gama=2"], "loss.gama: unknown key, got 2. Did you mean loss.gamma?"),
        (["+seed=3"], "seed: already exists. Leave out the +: seed=3."),
        (["~loss.wight"], "loss.wight: unknown key. Did you mean loss.weight?"),
        (["~train.duration"], "train.duration: cannot be deleted. "),
        (["~ema"], "ema: cannot be deleted. "),
        (["loss=focal", "~loss.gamma"], "loss.gamma: is missing. loss=focal sets 2.0."),
        # options
        (["loss=focall"], "loss: unknown option, got 'focall'. Did you mean loss=focal?"),
        (["loss=xyz"], "loss: unknown option, got 'xyz'. Known: adaptive_softmax, "),
        (["data=a b.csv"], "data: unknown option, got 'a b.csv'. Let trainer write the job for a file or folder: tra"),
        (["data=/photos"], "data: unknown option, got '/photos'. Let trainer write the job for a file or folder: tra"),
        (
            ["model=bert-base-uncased"],
            "model: unknown option, got 'bert-base-uncased'. For a folder or a hub name of transformers, set model=pre",
        ),
        (["loss=null"], "loss: must be the name of an option, got null. Choose one of adaptive_softmax, "),
        (["~loss"], "loss: cannot be deleted. Choose one of adaptive_softmax, "),
        (
            ["export=null"],
            "export: must be the name of an option, got null. To write no artifacts, set export.formats=[].",
        ),
        (["+loss=focal"], "loss: already exists. Leave out the +: loss=focal."),
        (
            ["experiment=stdlib_focl"],
            "experiment: unknown option, got 'stdlib_focl'. Did you mean experiment=stdl",
        ),
        (["experiment=null"], "experiment: must be the name of an option, got null. Delete it with ~experiment."),
        # values
        (["device=1"], "device: must be text, got 1. Set device=cuda:1 for one GPU, or devices=N for several."),
        (["optimizer.lr=abc"], "optimizer.lr: must be a number or auto, got 'abc'."),
        (
            ["train.duration=3x"],
            "train.duration: must be a duration, got '3x'. Use optimizer steps (500 or 500st) or epochs (3",
        ),
        (
            ["loss=mse"],
            "loss: takes numbers as targets, but the targets of the task are classes, got 'mse'. Use one of ",
        ),
        (
            ["experiment=stdlib_spans", "loss=crf"],
            "loss: takes classes as targets, but the targets of the task are spans of a text, got 'crf'. "
            "Use loss=global_pointer.",
        ),
        (["model=resnet"], "model: reads images, but the inputs of the task are tokens, got 'resnet'. Use one of "),
        (["train.batch_size=3.5"], "train.batch_size: must be an integer, got 3.5."),
        (["train.batch_size=true"], "train.batch_size: must be an integer, got true."),
        (["compile=1"], "compile: must be true, false or graphs, got 1."),
        (["precision=fp31"], "precision: must be one of fp32, tf32, bf16, fp16, got 'fp31'. Did you mean fp32?"),
        (["model.pooling=men"], "model.pooling: must be one of "),
        (["export.formats=[onnx,torchscrpt]"], "export.formats: must be a list in which each item is one of onnx, "),
        (["task=image_classification", "task.augment.mixup=abc"], "task.augment.mixup: must be a number, got 'abc'."),
        (
            ["task=image_classification", "+task.augment.mixp=1"],
            "task.augment.mixp: unknown key, got 1. Did",
        ),
        (
            ["model.lora.rank=4"],
            "model.lora.rank: model.lora is null and has no keys, got 4. Set model.lora={rank: 4}.",
        ),
        (["model.freeze=head"], "model.freeze: must be a list, got 'head'. Write model.freeze=[head]."),
        (["optimizer.betas=[0.9]"], "optimizer.betas: must be a list of 2 numbers, got [0.9]."),
        (
            ["loss=focal", "loss.alpha=[a]"],
            "loss.alpha: must be a number, a list of numbers, a mapping to numbers, auto, effective_number or null, "
            "got ['a'].",
        ),
        (["train.duration=3epp"], "train.duration: must be a duration, got '3epp'. Use optimizer steps"),
        (["scheduler.warmup=x"], "scheduler.warmup: must be a duration, got 'x'."),
        (["logger=wandb"], "logger: must be a section, got 'wandb'. Set logger.trackers=[wandb]."),
        (["logger=none"], "logger: must be a section, got 'none'. Set logger.console=none."),
        (["train=5"], "train: must be a section, got 5. Its keys are duration, batch_size"),
        (["model.dim=???"], "model.dim: needs a value. Set model.dim=<an integer>."),
        (["data=files"], "data.train: needs a value. Set data.train=<"),
        (["ema.decay=1"], "ema.decay: must be at least 0 and less than 1, got 1."),
        (["run.name=${sed}"], "run.name: the interpolation has no value, got '${sed}'. Interpolation key 'sed' not"),
        (
            ["run.name=${oc.env:NOT_SET}"],
            "run.name: the interpolation has no value, got '${oc.env:NOT_SET}'. Environment variable 'NOT_SET' not",
        ),
        (["optimizer.betas=[${a.b},0.9]"], "optimizer.betas.0: the interpolation has no value, got '${a.b}'."),
        ([r"run.name=a\${b}"], "run.name: must not contain ${, because no run with such a config can be used, got"),
        # targets
        (
            ["loss._target_=trainer.loss.focal.Focl"],
            "loss._target_: there is no Focl in trainer.loss.focal, got 'trainer.loss.focal.Focl'. Did you mean Focal?",
        ),
        (["loss._target_=no_such_package.Loss"], "loss._target_: there is no package no_such_package, got "),
        (["loss._target_=Loss"], "loss._target_: must be the dotted name"),
        (["loss._target_=trainer.loss.focal.Focal"], "loss.gamma: is missing. loss=focal sets 2.0."),
        # the command line itself
        (["foo"], "foo: is neither an override nor a flag. "),
        (["=3"], "=3: is neither an override nor a flag. "),
        (["--cgf=job"], "--cgf=job: unknown flag. Did you mean --cfg?"),
        (["--info", "foo"], "Argument --info/-i: invalid choice: 'foo'"),
        (["--config-dir", "nowhere"], "--config-dir: no such folder, got 'nowhere'."),
        (["loss=focal,cross_entropy"], "loss: several values need a sweep, got 'focal,cross_entropy'. "),
        (["hydra/launcher=foo"], "hydra/launcher: must be the name of an option, got 'foo'. Known: basic."),
        (
            ["hydra/job_logging=defualt"],
            "hydra/job_logging: must be the name of an option, got 'defualt'. Did you mean",
        ),
        (
            ["hydra/launcher=basic"],
            "hydra/launcher: has no effect without a sweep, got 'basic'. Add --multirun (-m), or",
        ),
        (
            ["hydra.sweep.dir=jobs"],
            "hydra.sweep.dir: has no effect without a sweep, got 'jobs'. Add --multirun (-m), or",
        ),
    ],
)
def test_one_error(argv: list[str], message: str) -> None:
    messages = errors_of("train", *argv)
    assert messages[0].startswith(message)
    if "._target_=" not in argv[0]:
        assert len(messages) == 1


@pytest.mark.parametrize(
    ("verb", "value", "remedy"),
    [
        ("eval", "validation", "Set split=validation."),
        ("eval", "last", "This verb takes run without a name, once."),
        ("verify", "test", "This verb takes run without a name, once."),
    ],
)
def test_a_value_without_a_key_too_many(verb: str, value: str, remedy: str) -> None:
    with pytest.raises(TrainerError) as caught:
        check_command(verb, ["nowhere", value])
    assert f"{value}: one value too many. {remedy}" in caught.value.messages


def test_no_unknown_key_is_the_remedy_of_another() -> None:
    assert not any("Did you mean" in message for message in errors_of("train", "+train.zz=1", "++model.zz=2"))


def test_position_of_a_syntax_error_is_marked() -> None:
    assert errors_of("train", "model.dim=[1", "run.name=a b!c", "seed=(1")[0].splitlines()[1:] == [
        "    model.dim=[1",
        "                ^",
    ]


def test_errors_of_every_kind_are_reported_together() -> None:
    messages = errors_of(
        "train",
        *("x=[1", "--cgf", "loss=focall", "modl.dim=3", "~data.foo", "optimizer.lr=abc", "train.accumulate=64"),
        *("checkpoint.keep=1", "run.name=${sed}", "seed=-1"),
    )
    assert {message.split(":")[0] for message in messages} == {
        *("--cgf", "x=[1", "loss", "modl", "data.foo", "run.name", "optimizer.lr", "seed", "checkpoint.keep"),
        "train.accumulate",
    }


def test_a_folder_or_a_run_that_cannot_be_used_is_reported_with_the_other_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    taken, missing = f"run.dir={tmp_path}/file", f"data.train={tmp_path}/no.csv"
    cases: dict[tuple[str, ...], tuple[type[TrainerError], list[str]]] = {
        (taken, "optimizer.lr=-1"): (ConfigError, ["optimizer.lr", "run.dir"]),
        (taken, "data=files", missing): (DataError, ["data.train", "run.dir"]),
        (f"resume={tmp_path}/no", "train.duraton=3", "loss=x"): (CheckpointError, ["resume", "loss", "train.duraton"]),
    }
    for argv, (error_type, expected) in cases.items():
        with pytest.raises(error_type) as caught:
            check_command("train", argv)
        assert [message.partition(":")[0] for message in caught.value.messages] == expected


def test_numbers_in_scientific_notation(composed: Composed) -> None:
    job, values = composed("train", "optimizer.lr=1e-3", "optimizer.eps=2e-9")
    assert isinstance(job, TrainJob)
    assert (job.optimizer["lr"], values["optimizer"]["eps"]) == (0.001, 2e-9)


def test_job_and_plain_values_are_equal(composed: Composed) -> None:
    job, values = composed(
        "train", "train.duration=100", "run.name=${hydra:runtime.choices.loss}", "train.max_grad_norm=2"
    )
    assert (job.train.duration, job.run.name, job.train.max_grad_norm) == (100, "cross_entropy", 2)
    assert list(values) == list(TrainJob.__dataclass_fields__)
    assert values["run"]["name"] == "cross_entropy"


@pytest.mark.parametrize("choice", ["debug=smoke", "experiment=stdlib_focal", "loss=focal", "optimizer=sgd"])
def test_options_compose(composed: Composed, choice: str) -> None:
    composed("train", choice)
    assert check_command("train", [choice]).notes == ()


class TestReplacedTarget:
    """`<group>._target_=...`: the option's other keys belong to the old target."""

    def test_only_keys_of_the_command_line_are_kept(self, composed: Composed) -> None:
        job, _ = composed("train", "loss=focal", "loss._target_=json.Loss", "loss.gamma=3", "+loss.mine=4")
        assert job.loss == {"_target_": "json.Loss", "gamma": 3, "mine": 4}
        (note,) = check_command("train", ["loss=focal", "loss._target_=json.Loss"]).notes
        assert note.startswith("left out loss.gamma, loss.alpha, loss.label_smoothing, loss.ignore_index")

    def test_keys_of_a_mapping_are_kept(self, composed: Composed) -> None:
        job, _ = composed("train", "loss={_target_: json.Loss, label_smoothing: 0.5}")
        assert job.loss == {"_target_": "json.Loss", "label_smoothing": 0.5}

    def test_partial_application_is_kept(self, composed: Composed) -> None:
        job, _ = composed("train", "scheduler._target_=json.wave")
        assert job.scheduler == {"_target_": "json.wave", "_partial_": True}

    def test_keys_of_an_experiment_are_kept(self, composed: Composed, elsewhere: Path) -> None:
        (elsewhere / "conf" / "experiment").mkdir(parents=True)
        (elsewhere / "conf" / "experiment" / "mine.yaml").write_text(
            "# @package _global_\nloss:\n  _target_: json.Loss\n  label_smoothing: 0.0\n  mine: 1\n"
        )
        job, _ = composed("train", "experiment=mine")
        assert job.loss == {"_target_": "json.Loss", "label_smoothing": 0.0, "mine": 1}

    def test_keys_of_an_experiment_for_another_option_get_a_remedy_that_works(self, elsewhere: Path) -> None:
        (elsewhere / "conf" / "experiment").mkdir(parents=True)
        (elsewhere / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel: {depth: 1}\n")
        (message,) = errors_of("train", "experiment=mine", "model=linear")
        assert message.startswith("model.depth: unknown key, got 1. model=decoder, model=resnet, ")
        remedy = "It is set in conf/experiment/mine.yaml: add '~model.depth' to leave it out."
        assert message.endswith(remedy)
        check_command("train", ["experiment=mine", "model=linear", "~model.depth"])
        (elsewhere / "conf" / "experiment" / "other.yaml").write_text("# @package _global_\nmodel: {dephts: 1}\n")
        (message,) = errors_of("train", "experiment=other")
        assert "Did you mean model.depth? It is set in" in message

    def test_a_file_in_the_place_of_an_override_gets_a_remedy(self, elsewhere: Path) -> None:
        (elsewhere / "my.csv").write_text("text,label\n")
        (message,) = errors_of("train", "my.csv")
        assert message.endswith("To train on your data, write its job first: trainer init my.csv.")

    def test_the_same_target_replaces_nothing(self, composed: Composed) -> None:
        job, _ = composed("train", "loss=focal", "loss._target_=trainer.loss.focal.Focal")
        assert job.loss["gamma"] == 2.0

    def test_new_keys_need_a_plus(self) -> None:
        (message,) = errors_of("train", "loss._target_=json.Loss", "loss.mine=4")
        assert message.startswith("loss.mine: unknown key, got 4.")


class TestFolders:
    """Folders with options."""

    @pytest.fixture
    def mine(self, tmp_path: Path) -> Path:
        folder = tmp_path / "elsewhere" / "loss"
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_text("_target_: json.Loss\nmine: 1\n")
        return folder.parent

    def test_the_working_directory(self, composed: Composed, mine: Path, elsewhere: Path) -> None:
        mine.rename(elsewhere / "conf")
        job, _ = composed("train", "loss=mine", "loss.mine=2")
        assert job.loss == {"_target_": "json.Loss", "mine": 2}
        assert errors_of("train", "loss=mne") == ["loss: unknown option, got 'mne'. Did you mean loss=mine?"]

    def test_a_folder_by_flag(self, mine: Path) -> None:
        checked = check_command("train", ["loss=mine", "--config-dir", str(mine)])
        assert "mine" in checked.line.groups.options("loss")
        assert errors_of("train", "loss=mine")[0].startswith("loss: unknown option, got 'mine'.")

    def test_hydras_search_path(self, composed: Composed, mine: Path, elsewhere: Path) -> None:
        (elsewhere / "conf" / "loss").mkdir(parents=True)
        (elsewhere / "conf" / "loss" / "here.yaml").write_text("_target_: json.Here\n")
        entry = f"hydra.searchpath=['file://{mine}']"
        assert composed("train", entry, "loss=mine")[0].loss["mine"] == 1
        assert composed("train", entry, "loss=here")[0].loss == {"_target_": "json.Here"}


class TestSweeps:
    """`--multirun`: each value is checked, with the first of the others."""

    def test_every_value_and_every_option(self) -> None:
        argv = ["-m", "loss=focal,cross", "optimizer.lr=1e-3,abc,0", "seed=1,2", "model.dim=choice(64,wide)"]
        assert errors_of("train", *argv) == [
            f"loss: unknown option, got 'cross'. Known: {', '.join(LOSSES)}.",
            "optimizer.lr: must be a number or auto, got 'abc'.",
            "optimizer.lr: must be greater than 0, got 0.",
            "model.dim: must be an integer, got 'wide'.",
        ]

    def test_key_must_exist_in_every_option(self) -> None:
        (message,) = errors_of("train", "-m", "loss=focal,cross_entropy", "loss.gamma=1,2")
        assert message.startswith("loss.gamma: unknown key, got '1,2'. loss=focal has loss.gamma.")

    def test_values_that_cannot_be_listed_are_checked_by_their_key(self) -> None:
        check_command("train", ["-m", "seed=range(1,4)", "optimizer.lr=interval(0,1)", "optimizer=glob(a*)"])
        messages = errors_of("train", "-m", "sed=range(1,4)", "model=glob(x*)")
        assert messages[0].startswith("model: matches no option, got 'glob(x*)'. Known: ")
        assert messages[1] == "sed: unknown key, got 'range(1,4)'. Did you mean seed?"


class TestStoredRuns:
    """`resume=PATH`, `eval` and `export` start from the config of a run."""

    @pytest.fixture
    def run(self, composed: Composed, elsewhere: Path) -> Path:
        (elsewhere / "a.csv").touch()
        _, values = composed("train", "data=files", "data.train=a.csv", "loss=focal", "trust=[json]")
        checkpoint = elsewhere / "runs" / "a" / "checkpoints" / "step-00000003"
        checkpoint.mkdir(parents=True)
        for folder in (checkpoint, elsewhere / "runs" / "a"):
            (folder / "config.yaml").write_text(config_text(values), encoding="utf-8")
        return checkpoint

    def test_a_resumed_run_needs_nothing_else(self, composed: Composed, run: Path) -> None:
        for path in ("runs/a", str(run)):
            job, values = composed("train", f"resume={path}")
            assert (job.data["train"], job.loss["gamma"], job.resume) == ("a.csv", 2.0, path)
            assert values["trust"] == []

    def test_safe_changes_and_the_same_choice_are_accepted(self, composed: Composed, run: Path) -> None:
        argv = ["resume=runs/a", "train.duration=8ep", "loss=focal", "loader.workers=2"]
        job, _ = composed("train", *argv)
        assert (job.train.duration, job.loader.workers) == ("8ep", 2)
        assert check_command("train", argv).notes[0].startswith("train.duration: '4ep' -> '8ep'; ")

    def test_other_changes_and_errors_are_reported_together(self, run: Path) -> None:
        messages = errors_of(
            "train", "resume=runs/a", "seed=4", "loss=cross_entropy", "model.dmi=3", "debug=smoke", "-m"
        )
        assert {message.split(":")[0] for message in messages} == {
            "seed",
            "loss",
            "model.dmi",
            "debug",
            "resume",
        }

    def test_trust_comes_only_from_the_command_line(self, composed: Composed, run: Path) -> None:
        file = run / "config.yaml"
        file.write_text(file.read_text().replace("trainer.loss.focal.Focal", "json.Loss"))
        for argv in (["train", f"resume={run}"], ["eval", f"run={run}"], ["export", f"run={run}"]):
            with pytest.raises(CheckpointError, match=r"^loss\._target_: .* trust=\[json\]\.$"):
                check_command(argv[0], argv[1:])
            check_command(argv[0], [*argv[1:], "trust=[json]"])
        for verb in ("report", "card", "push"):  # which read a run, but run no code of it
            check_command(verb, [f"run={run}"])

    def test_missing_run(self) -> None:
        for verb, key in (("train", "resume"), ("eval", "run"), ("export", "run")):
            with pytest.raises(CheckpointError, match=f"^{key}: no such folder, got 'nowhere'"):
                check_command(verb, [f"{key}=nowhere"])

    def test_a_missing_run_hides_no_other_error(self, elsewhere: Path) -> None:
        argv = ["train.batch_size=-1", "data.train=no.csv", "optimizer.lr=-2", "optimizer.momentum=-1", "modl=x"]
        argv += ["device=gpu", "data.trian=x", "task.max_length=-3", "model.nothing=3", "loss=focal"]
        argv += ["loss.gamma=-1", "loss.gama=1", "run={dir: 1}", "scheduler=cosin", "run.name=a/b"]
        with pytest.raises(CheckpointError) as caught:
            check_command("train", ["resume=nowhere", *argv])
        keys = [message.partition(":")[0] for message in caught.value.messages]
        assert keys[:2] == ["resume", "scheduler"]
        wrong = [each.partition("=")[0] for each in argv if each not in ("loss=focal", "scheduler=cosin")]
        assert sorted(keys[2:]) == sorted("run.dir" if key == "run" else key for key in wrong)

    def test_a_missing_run_adds_no_error_to_a_right_command(self, elsewhere: Path) -> None:
        # Each is right for the run only if that has another option than the default one.
        argv = [
            "optimizer.momentum=0.5",
            "model.depth=20",
            "loss.gamma=1",
            "data.folder=.",
            "task.mask_share=0.2",
            "+model.own=1",
            "++loader.weights.a=1",
            "data.train=[${oc.env:HOME}/a.csv]",
        ]
        with pytest.raises(CheckpointError) as caught:
            check_command("train", ["resume=nowhere", "train.accumulate=500", "~model.dropout", *argv])
        assert len(caught.value.messages) == 1
        (elsewhere / "a.csv").touch()
        with pytest.raises(CheckpointError) as caught:
            check_command("train", ["resume=nowhere", "data.train=[a.csv]"])  # a mapping in data=idx
        assert len(caught.value.messages) == 1

    def test_a_run_of_a_name_is_found(self, run: Path, elsewhere: Path) -> None:
        for name in ("2026-01-31_12-00-00_mine", "2026-01-30_12-00-00_mine"):
            (elsewhere / "runs" / name).mkdir()
            (elsewhere / "runs" / name / "config.yaml").touch()
        (elsewhere / "runs" / "other_mine").mkdir()  # no run
        for path, found in {
            "mine": "runs/2026-01-31_12-00-00_mine",
            "runs/mine": "runs/2026-01-31_12-00-00_mine",
            "2026-01-30_12-00-00_min": "runs/2026-01-30_12-00-00_mine",
        }.items():
            with pytest.raises(CheckpointError, match=f"no such folder, got '{path}'. Did you mean {found}"):
                check_command("eval", [f"run={path}"])

    def test_errors_of_a_run_and_of_its_overrides_are_reported_together(self, run: Path, elsewhere: Path) -> None:
        overrides = ["data.tst=a.csv", "data.separator=3", "data.test=no.csv", "loader.workers=-1"]
        keys = ["loader.workers", "data.tst", "data.separator", "data.test"]
        assert [each.partition(":")[0] for each in errors_of("eval", "runs/a", *overrides)] == keys
        assert [each.partition(":")[0] for each in errors_of("eval", "b", "split=x", *overrides[3:])] == [
            "split",
            "loader.workers",
            "run",
        ]
        for file in (run / "config.yaml", elsewhere / "runs" / "a" / "config.yaml"):
            file.write_text(file.read_text().replace("trainer.loss.focal.Focal", "json.Loss"))
        with pytest.raises(CheckpointError) as caught:
            check_command("eval", ["runs/a", *overrides[:3]])
        assert [each.partition(":")[0] for each in caught.value.messages] == ["loss._target_", *keys[1:]]
        with pytest.raises(DataError, match=r"^data\.test: no such file"):
            check_command("eval", ["runs/a", "trust=[json]", "data.test=no.csv"])
        assert check_command("eval", ["runs/a", "trust=[json]", "data.test=a.csv"]).single

    def test_changes_for_an_evaluation_are_not_held_against_keys_of_training(
        self, composed: Composed, run: Path, elsewhere: Path
    ) -> None:
        for name in ("b.csv", "c.csv"):
            (elsewhere / name).touch()
        sets = ["data.train=a.csv", "data.validation={mine: b.csv}", "checkpoint.monitor=mine/loss"]
        _, values = composed("train", "data=files", *sets, "train.accumulate=4")
        (elsewhere / "runs" / "a" / "config.yaml").write_text(config_text(values), encoding="utf-8")
        assert check_command("eval", ["runs/a", "data.validation=c.csv"]).single
        assert check_command("eval", ["runs/a", "loader.tokens=128"]).single

    def test_a_change_that_does_not_fit_the_value_in_its_place_is_reported(self, run: Path, elsewhere: Path) -> None:
        (elsewhere / "runs" / "a" / "config.yaml").write_text(
            (run / "config.yaml").read_text().replace("  train: a.csv", "  train: {images: a.csv}")
        )
        messages = errors_of("eval", "runs/a", "data.train=[a.csv]", "loader.batching=x")
        assert [each.partition(":")[0] for each in messages] == ["loader.batching", "data.train"]
        assert "cannot be set" in messages[1]

    def test_values_that_parts_of_earlier_runs_took_are_no_errors(self, run: Path, elsewhere: Path) -> None:
        (elsewhere / "mine.py").write_text(
            "class Loss:\n    def __init__(self, gamma: int): ...\nclass Score(Loss): ...\n"
        )
        assert errors_of("train", "loss._target_=mine.Loss", "+loss.gamma=1.5") == [
            "loss.gamma: must be an integer, got 1.5."
        ]
        for file in (run / "config.yaml", elsewhere / "runs" / "a" / "config.yaml"):
            config = yaml.safe_load(file.read_text())
            config["loss"] = {"_target_": "mine.Loss", "gamma": 1.5}
            config["metrics"] = [{"_target_": "mine.Score", "gamma": 1.5}]
            file.write_text(yaml.safe_dump(config))
        assert check_command("eval", ["runs/a", "trust=[mine]", "loader.workers=0"]).single
        assert check_command("train", ["resume=runs/a", "trust=[mine]"]).single

    def test_files_that_a_resumed_run_lacks_are_reported(self, run: Path) -> None:
        with pytest.raises(DataError, match=r"^data\.train: no such file"):
            check_command("train", ["resume=runs/a", "data.train=no.csv"])
        messages = errors_of("train", "resume=runs/a", "data.train=no.csv", "train.log_every=-1")
        assert [message.partition(":")[0] for message in messages] == ["train.log_every", "data.train"]

    def test_eval_passes_on_the_overrides_of_the_run(self, composed: Composed, run: Path, elsewhere: Path) -> None:
        (elsewhere / "b.csv").touch()
        job, _ = composed("eval", "run=runs/a", "split=validation", "data.test=b.csv", "loader.workers=2")
        assert isinstance(job, EvalJob)
        assert job.stored_overrides == (("data.test", "b.csv"), ("loader.workers", 2))
        assert job.split == "validation"
        assert errors_of("eval", "run=runs/a", "data.tests=b.csv") == [
            "data.tests: unknown key, got 'b.csv'. Did you mean data.test?"
        ]

    def test_errors_of_eval_and_export(self) -> None:
        known = ", ".join([*keys(EvalJob), *stored_sections(EvalJob)])
        assert errors_of("eval", "lodaer.workers=1", "loader.worker=1", "loader.workers=x", "split=tst", "lr=1") == [
            "lodaer: unknown key. Did you mean loader?",
            f"lr: unknown key, got 1. Known: {known}.",
            "split: must be train, test, validation or validation/<name>, got 'tst'.",
            "loader.worker: unknown key, got 1. Did you mean loader.workers?",
            "loader.workers: must be an integer, got 'x'.",
        ]
        assert errors_of("export", "export.formts=[onnx]", "loss=focal")[0].startswith(
            "export.formts: unknown key, got ['onnx']. Did you mean export.formats?"
        )

    def test_export(self, composed: Composed) -> None:
        job, _ = composed("export", "export.formats=[onnx]", "checkpoint=step-3")
        assert isinstance(job, ExportJob)
        assert (job.export["formats"], job.checkpoint) == (["onnx"], "step-3")


def test_config_is_shown_even_if_values_are_missing() -> None:
    check_command("train", ["data=files", "--cfg", "job"])
    assert errors_of("train", "data=files", "lr=1", "--cfg", "job")[0].startswith("lr: unknown key")


@pytest.mark.parametrize("name", ["a" * 300, f"{'a' * 200}/{'b' * 300}", "[" * 200 + "]" * 200, "a/" * 3000])
def test_config_is_shown_with_paths_that_no_file_can_have(name: str) -> None:
    """The values are not checked, so nothing may read a file by their name."""
    keys = ("data.cache_dir", "model.weights", "task.tokenizer", "run.dir", "run.cwd")
    for verb in ("train", "plan"):
        check_command(verb, ["data=files", *(f"{key}='{name}'" for key in keys), "--cfg", "job"])
    for verb in ("eval", "export", "verify"):
        check_command(verb, [f"run='{name}'", "--cfg", "job"])


def test_declarations_of_parts_are_read_from_their_sources(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(elsewhere)
    (elsewhere / "mine.py").write_text(
        "from trainer.constraints import Count, Positive, Rule, validated\n"
        "@validated(Rule('low <= high', key='low', problem='must not be greater than high ({high})'))\n"
        "def loss(scale: Positive, low: Count, high: Count): raise SystemExit('imported')\n"
    )
    arguments = ["optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0", "optimizer.lr=-1"]
    with pytest.raises(ConfigError) as caught:
        check_command("train", [*arguments, "loss._target_=mine.loss", "+loss.scale=0", "+loss.low=3", "+loss.high=2"])
    assert sorted(caught.value.messages) == [
        "loss.low: must not be greater than high (2), got 3.",
        "loss.scale: must be greater than 0, got 0.",
        "optimizer.lr: must be greater than 0, got -1.",
        "optimizer.nesterov: needs momentum greater than 0, got true.",
    ]


def test_required_parameters_of_own_parts_are_checked_before_the_import(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(elsewhere)
    (elsewhere / "mine.py").write_text(
        "raise SystemExit('imported')\n"
        "def ramp(step, *, warmup_steps, total_steps): ...\n"
        "class Ramp:\n"
        "    def __init__(self, warmup_steps, total_steps): ...\n"
        "class Loss:\n"
        "    def __init__(self, power, class_counts, other=1): ...\n"
        "def sgd(params, lr, momentum): ...\n"
        "@unknown\n"
        "def wrapped(set_by_the_decorator): ...\n"
    )
    parts = ["loss._target_=mine.Loss", "optimizer._target_=mine.sgd", "scheduler._target_=mine.Ramp"]
    with pytest.raises(ConfigError) as caught:
        check_command("train", parts)

    keys = [message.partition(":")[0] for message in caught.value.messages]
    assert sorted(keys) == ["loss.power", "optimizer.lr", "optimizer.momentum", "scheduler.warmup"]
    for message in caught.value.messages:
        remedy = message.partition("Set ")[2].partition(",")[0].replace("<value>", "1")
        parts.append(remedy)
    assert check_command("train", parts).single is not None

    assert errors_of("train", "scheduler._target_=mine.ramp")[0].startswith("scheduler.warmup: is missing")
    assert check_command("train", ["scheduler=greedy", "scheduler._target_=mine.ramp", "scheduler.warmup=1"]).single
    assert check_command("train", ["loss._target_=mine.wrapped"]).single


@pytest.mark.parametrize("kind", PARTS)
def test_keys_of_a_part_of_your_own_are_checked_before_the_import(kind: str, elsewhere: Path) -> None:
    write_part(kind, "mine", force=False)
    module = elsewhere / "mine.py"
    module.write_text(f"raise SystemExit('imported')\n{module.read_text()}".replace("def __init__(self)", USER_INIT))
    if kind == "metric":
        assert errors_of("train", "metrics=[{_target_: mine.Mine, topp: 3}]") == [
            "metrics.0.topp: mine.Mine has no such parameter, got 3. Did you mean top?"
        ]
        assert errors_of("train", "metrics=[{_target_: mine.Mine, top: x}]") == [
            "metrics.0.top: must be an integer, got 'x'."
        ]
        assert check_command("train", ["metrics=[{_target_: mine.Mine, top: 3}]"]).single
        return
    assert check_command("train", [f"{kind}=mine"]).single
    (message,) = errors_of("train", f"{kind}=mine", f"+{kind}.nothing=3")
    assert message.startswith(f"{kind}.nothing: mine.")
    assert "has no such parameter, got 3. Its parameters are " in message
    assert message.endswith(f"Leave it out, with '~{kind}.nothing' if a file sets it.")


USER_INIT = "def __init__(self, top: int = 1)"

PLAIN = """
raise SystemExit('imported')
from dataclasses import KW_ONLY, dataclass
from torch import nn

class Net(nn.Module):
    def __init__(self, num_outputs: int, width: int = 8, deep: bool = None, sizes: "list[int]" = None, net=1): ...

class Child(Net): ...

class Made(type): ...

class Other(metaclass=Made):
    def __init__(self, width: int): ...

class New:
    def __new__(cls, width: int): ...
    def __init__(self, depth: int): ...

class Mixin: ...

class Mixed(Mixin, Net): ...

class Diamond(Child, Other): ...

class Conditional(Net):
    if nn:
        def __init__(self, size: int): ...

class Assigned(Net):
    __init__ = unknown

@dataclass
class Keywords:
    width: int
    _: KW_ONLY
    stride: int = 1

@unknown
class Wrapped(Net): ...

class WithWrapped:
    @unknown
    def __init__(self, width: int): ...
"""


@pytest.mark.parametrize(
    ("keys", "problems"),
    [
        ("Net +model.width=x +model.sizes=3", ["width: must be an integer, got 'x'", "sizes: must be a list of"]),
        ("Child +model.width=1.5", ["width: must be an integer, got 1.5"]),
        ("Child +model.widht=1", ["widht: plain.Child has no such parameter, got 1. Did you mean width?"]),
        ("Net model.width=1", ["width: unknown key, got 1. Write +model.width, as plain.Net has this parameter and"]),
        ("Net model.widht=1", ["widht: unknown key, got 1. Did you mean +model.width?"]),
        ("New +model.size=1", ["size: plain.New has no such parameter", "width: is missing"]),
        ("Net +model.width=2 +model.deep=null +model.sizes=[1] +model.net=x", []),
        ("Mixed +model.widht=1", ["widht: plain.Mixed has no such parameter, got 1. Did you mean width?"]),
        ("Mixed +model.width=2", []),
        ("Net +model.width={_target_:plain.Net} +model.sizes=[{_target_:plain.Net}]", []),
        ("Keywords +model.width=2 +model.stride=2", []),
        ("Diamond +model.size=1", []),
        ("Conditional +model.size=1", []),
        ("Assigned +model.size=1", []),
        ("Other +model.size=1", []),
        ("Wrapped +model.size=1", []),
        ("WithWrapped +model.size=1", []),
    ],
)
def test_plain_types_of_a_part_of_your_own_are_checked(keys: str, problems: list[str], elsewhere: Path) -> None:
    (elsewhere / "plain.py").write_text(PLAIN)
    name, *overrides = keys.split()
    argv = [f"model._target_=plain.{name}", *overrides]
    if not problems:
        assert check_command("train", argv).single
        return
    messages = errors_of("train", *argv)
    assert len(messages) == len(problems)
    for message, problem in zip(messages, problems, strict=True):
        assert message.startswith(f"model.{problem}")


def test_a_part_of_your_own_is_read_from_a_folder_with_or_without_init(elsewhere: Path) -> None:
    (elsewhere / "parts").mkdir()
    (elsewhere / "parts" / "plain.py").write_text(PLAIN)
    (elsewhere / "parts.py").write_text("")  # Python takes a folder with __init__.py before it, and it before others
    assert errors_of("train", "model._target_=parts.plain.Net")[0].startswith("model._target_: there is no plain in")
    (elsewhere / "parts.py").unlink()
    for init in (False, True):
        if init:
            (elsewhere / "parts" / "__init__.py").touch()
            (elsewhere / "parts.py").write_text("")
        (message,) = errors_of("train", "model._target_=parts.plain.Net", "+model.size=1")
        assert message.startswith("model.size: parts.plain.Net has no such parameter")
    (elsewhere / "parts" / "__init__.py").unlink()
    (elsewhere / "parts.py").unlink()
    (message,) = errors_of("train", "model._target_=parts.plian.Net")
    assert message == "model._target_: there is no module plian in parts, got 'parts.plian.Net'. Did you mean plain?"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("optimizer._target_=torch.optim.SGD +optimizer.momentumm=0.9", "Did you mean momentum?"),
        ("optimizer._target_=torch.optim.SGD optimizer.momentum=0.9", "Write +optimizer.momentum, as torch.optim.SGD"),
        ("metrics=[{_target_:torchmetrics.AUROC,avrage:macro}]", "metrics.0.avrage: torchmetrics.AUROC has no such"),
        ("metrics=[{_target_:torchmetrics.AUROC,sync_on_comput:true}]", "Did you mean sync_on_compute?"),
    ],
)
def test_keys_of_installed_parts_are_checked_before_the_import(argv: str, message: str) -> None:
    (problem,) = errors_of("train", *argv.split())
    assert message in problem


def test_keys_of_installed_parts_are_accepted() -> None:
    metric = "{_target_: torchmetrics.AUROC, average: macro, sync_on_compute: true, name: mine}"
    parts = ["optimizer._target_=torch.optim.SGD", "+optimizer.momentum=0.9", f"metrics=[{metric}]"]
    assert check_command("train", parts).single


def test_every_option_with_an_unknown_key_is_named() -> None:
    (message,) = errors_of("train", "data.train=photos")
    assert "data=conll, data=files, data=idx and data=lines have data.train." in message


def test_a_file_of_rows_names_its_source() -> None:
    assert errors_of("train", "data.train=my.csv", "data=hub", "data.path=owner/name") == [
        "data.train: unknown key, got 'my.csv'. Set data=files data.train=my.csv."
    ]


def test_a_remote_value_is_no_suggestion() -> None:
    assert errors_of("train", "precision=fp8") == ["precision: must be one of fp32, tf32, bf16, fp16, got 'fp8'."]
    assert errors_of("train", "precision=fp23")[0].endswith("Did you mean fp32?")


@pytest.mark.parametrize("changes", ["model.config.hidden_size=32", "model.config={hidden_size: 32}"])
def test_changes_of_the_config_of_a_model_are_keys_or_a_mapping(changes: str) -> None:
    single = check_command("train", ["model=pretrained", "model.path=folder", changes]).single
    assert single is not None
    assert single.config["model"]["config"] == {"hidden_size": 32}


def test_a_file_in_a_closed_folder_is_not_reported_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, stat = tmp_path / "closed", os.stat
    closed.mkdir()

    def of_another_user(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if isinstance(path, str | Path) and closed in Path(path).parents:  # root may enter every folder
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", of_another_user)
    with pytest.raises(DataError) as caught:
        check_command("train", ["data=files", f"data.train={closed}/a.csv"])
    assert caught.value.messages == (
        f"data.train: cannot be read, as the folder {closed} is closed to this user, got '{closed}/a.csv'. "
        "Allow this user to enter the folder, or use a copy.",
    )


def test_a_named_set_of_images_gets_a_form_that_works() -> None:
    idx = ["task=image_classification", "model=lenet", "data=idx", "data.train.images=i", "data.train.labels=l"]
    for name in ("i", "l", "j", "m"):
        Path(name).touch()
    for override in ("data.validation.a=i", "data.validation.a.images=i"):
        (message,) = errors_of("train", *idx, override)
        form = message.partition("write ")[2].removesuffix(".").replace("images: <file>", "images: j")
        assert check_command("train", [*idx, form.replace("<file>", "m")]).single
    (message,) = errors_of("train", "data=imagefolder", "data.root=.", "data.validation.a={x: 1}")
    assert message.endswith("Set data.validation={a: ...}.")


@pytest.mark.parametrize(
    ("config", "changes", "limit"),
    [
        ({"model_type": "bert", "max_position_embeddings": 40}, "{}", 40),
        ({"model_type": "gpt2", "n_positions": 40}, "{}", 40),
        ({"model_type": "roberta", "max_position_embeddings": 42, "pad_token_id": 1}, "{}", 40),
        ({"model_type": "roberta", "max_position_embeddings": 42}, "{max_position_embeddings: 22}", 20),
        ({"model_type": "t5"}, "{}", None),
    ],
)
def test_samples_longer_than_a_model_are_refused(
    config: dict[str, object], changes: str, limit: int | None, elsewhere: Path
) -> None:
    (elsewhere / "folder").mkdir()
    (elsewhere / "folder" / "config.json").write_text(json.dumps(config))
    (elsewhere / "tokenizer.json").touch()
    argv = ["model=pretrained", "model.path=folder", "task.tokenizer=tokenizer.json", f"model.config={changes}"]
    if limit is None:
        assert check_command("train", [*argv, "task.max_length=9000"]).single
        return
    assert check_command("train", [*argv, f"task.max_length={limit}"]).single
    (message,) = errors_of("train", *argv, f"task.max_length={limit + 1}")
    assert message.startswith(f"task.max_length: must be at most {limit}, the number of positions of the model")


def test_first_positions_are_counted_as_in_the_model() -> None:
    from trainer.model.pretrained_attention import FAMILIES

    assert sorted(AFTER_PADDING) == [name for name, family in FAMILIES.items() if family.after_padding]


def test_micro_batches_larger_than_a_step_are_noted() -> None:
    step = ["task.max_length=32", "train.batch_size=4"]
    assert check_command("train", [*step, "loader.tokens=128"]).notes == ()
    assert check_command("train", [*step, "loader.tokens=129"]).notes == (
        "loader.tokens=129: a step has at most 128 (train.batch_size=4, task.max_length=32), so the rest is padding; "
        "set loader.tokens=128 or less",
    )
