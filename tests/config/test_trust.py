"""The closed list of what a stored config may name."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import TINY, working_in, write_data
from trainer.cli import main
from trainer.config.command import check_command
from trainer.config.groups import Groups, make_importable, own_folder
from trainer.config.jobs import TrainJob
from trainer.config.schema import groups
from trainer.config.stored import config_text, job_from_text, parse_stored_config
from trainer.config.trust import named_packages, names_environment, trust_argument, trust_problems
from trainer.errors import CheckpointError, ConfigError


def test_every_option_may_be_stored() -> None:
    own = Groups((own_folder(),))
    parts = [(group, own.content(group, option)) for group in groups(TrainJob) for option in own.options(group)]
    assert len(parts) > 70
    for group, part in parts:
        kept = {key: value for key, value in part.items() if key in ("_target_", "_partial_")}
        assert trust_problems({group: kept}, []) == []


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("model", "torch.nn.Linear"),
        ("model", "torch.nn.modules.linear.Linear"),
        ("loss", "torch.nn.CrossEntropyLoss"),
        ("optimizer", "torch.optim.Adam"),
        ("optimizer", "torch.optim.adam.Adam"),
        ("scheduler", "torch.optim.lr_scheduler.StepLR"),
    ],
)
def test_classes_of_libraries_that_are_of_the_base_of_their_group(group: str, target: str) -> None:
    assert trust_problems({group: {"_target_": target}}, []) == []


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("task", "trainer.cli.main"),
        ("loss", "trainer.files.atomic_io.remove_folder"),
        ("loss", "trainer.model.mlp.MLP"),
        ("loss", "trainer.loss.focal.torch.load"),
        ("loss", "trainer.loss.focal.F"),
        ("optimizer", "torch.nn.Linear"),
        ("model", "torch.optim.Adam"),
        ("data", "torch.nn.Linear"),
        ("model", "os.system"),
        ("model", "torch.load"),
        ("model", "torch.hub.load"),
        ("model", "torch.jit.ScriptModule"),
        ("model", "torch.nn.Parameter"),
        ("optimizer", "torch.optim.adam.torch.load"),
        ("model", "torch.nn.functional.handle_torch_function"),
        ("model", "transformers.utils.hub.Path"),
        ("model", "transformers.utils.import_utils.subprocess.Popen"),
        ("model", "transformers.AutoModel.from_pretrained"),
        ("model", "transformers.AutoModel"),
        ("model", "transformers.models.bert.modeling_bert.BertModel"),
        ("model", "torchmetrics.multimodal.clip_score.CLIPScore"),
        ("loss", "torchmetrics.text.bert.BERTScore"),
        ("loss", "torchmetrics.MeanMetric"),
        ("model", "transformers."),
        ("model", "trainer"),
        ("model", "trainer/../x.Model"),
        ("", "trainer.loss.focal.Focal"),
        ("model.encoder", "trainer.loss.focal.Focal"),
        ("model.encoder", "torch.nn.Linear"),
        ("train", "trainer.loss.focal.Focal"),
    ],
)
def test_everything_else_needs_trust_that_the_message_names(group: str, target: str) -> None:
    config: dict[str, Any] = {"_target_": target}
    for name in reversed(group.split(".") if group else []):
        config = {name: config}
    (message,) = trust_problems(config, [])
    assert message.startswith(f"{group}._target_: ".lstrip("."))
    remedy = message.rpartition("set trust=[")[2].removesuffix("].")
    assert trust_problems(config, [remedy]) == []
    assert trust_argument(config) == f" trust=[{remedy}]"


def test_a_remedy_names_everything_that_needs_trust() -> None:
    config = {
        "task": {"_target_": "my_task.MyTask"},
        "loss": {"_target_": "my_loss.MyLoss"},
        "data": {"train": "${oc.env:DATA}"},
    }
    for trust in ([], ["my_loss"]):
        for message in trust_problems(config, trust):
            remedy = message.rpartition("If you trust them, set trust=[")[2].removesuffix("].").split(",")
            assert trust_problems(config, remedy) == []


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ({"_args_": [1]}, "_args_"),
        ({"_partial_": True}, "_partial_"),
        ({"_convert_": "all"}, "_convert_"),
        ({"_recursive_": False}, "_recursive_"),
        ({"inner": [{"_args_": [1]}]}, "inner.0._args_"),
    ],
)
def test_keys_of_hydra_need_a_trusted_target(part: dict[str, Any], key: str) -> None:
    (message,) = trust_problems({"loss": {"_target_": "trainer.loss.focal.Focal", **part}}, [])
    assert message.startswith(f"loss.{key}: a stored config may not contain this key of Hydra, got ")


def test_environment_is_read_only_if_that_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_READER", "s3cret")
    config = {"data": {"train": "a-${oc.env:SECRET_OF_THE_READER}", "test": ["${oc.env:NOT_SET,x}"]}}
    first, second = trust_problems(config, [])
    assert first.startswith("data.train: a stored config may not read the environment, got 'a-${oc.env:SECRET_OF")
    assert first.endswith("set trust=[oc.env].")
    assert second.startswith("data.test.0: ")
    assert trust_problems(config, ["oc.env"]) == []
    assert trust_problems(config, [], ["data.train"]) == [second]
    assert trust_argument(config) == " trust=[oc.env]"


@pytest.mark.parametrize(
    "text",
    ["${model.path}", "${oc.create:x}", "${oc.env:A}${b}", "${oc.env:${b}}", "${oc.decode:${b}}", "${", "${hydra:x}"],
)
def test_other_interpolations_are_never_allowed(text: str) -> None:
    assert not names_environment(text)
    (message,) = trust_problems({"run": {"name": text}}, ["oc.env", "oc"])
    assert message.startswith("run.name: a stored config may not contain interpolations, got ")


def test_secrets_are_stored_as_references(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_SECRET", "s3cret")
    monkeypatch.setenv("RUN_SEED", "3")
    job = ["run.name='a-${oc.env:RUN_SECRET}'", "run.dir='runs/${run.name}'", "seed='${oc.decode:${oc.env:RUN_SEED}}'"]
    single = check_command("train", [*job, "train.eval_every='${oc.env:RUN_NOT_SET,2ep}'"]).single
    assert single is not None
    assert isinstance(single.job, TrainJob)
    assert (single.job.run.dir, single.job.seed, single.job.train.eval_every) == ("runs/a-s3cret", 3, "2ep")
    text = config_text(single.config)
    assert "s3cret" not in text
    with pytest.raises(CheckpointError, match=r"(?m)^run\.name: .*trust=\[oc\.env\]\.$"):
        job_from_text(text, trust=[])
    for trust in (["oc.env"], None):
        again = job_from_text(text, trust=trust)
        assert (again.run, again.seed, again.train) == (single.job.run, 3, single.job.train)
    monkeypatch.delenv("RUN_SECRET")
    with pytest.raises(ConfigError, match=r"^run\.name: the interpolation has no value, got .*RUN_SECRET"):
        job_from_text(text, trust=["oc.env"])


@pytest.mark.parametrize("artifact", ["safetensors", pytest.param("onnx", marks=pytest.mark.slow)])
def test_no_file_and_no_screen_of_a_run_shows_a_secret(
    artifact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUN_SECRET", "s3cret")
    # The name of a folder and of a column.
    folder = tmp_path / "s3cret"
    folder.mkdir()
    with working_in(tmp_path):
        data = [option.replace("s3cret", "${oc.env:RUN_SECRET}") for option in write_data(folder)]
        for file in folder.glob("*.csv"):
            file.write_text(file.read_text(encoding="utf-8").replace("text,", "s3cret,", 1), encoding="utf-8")
        quoted = ["{}='{}'".format(*option.split("=", 1)) for option in data]
        shown = ["logger.console=plain", "logger.tensorboard=true", f"export.formats=[{artifact}]"]
        options = [*quoted, "data.text='${oc.env:RUN_SECRET}'", "train.duration=2", *shown, "run.dir=runs/a"]
        for command in (["train", "-m", *TINY, *options], ["export", "run=runs/a", "trust=[oc.env]", shown[-1]]):
            assert main(command) == 0
            written = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
            assert {"manifest.json", "config.yaml", "report.html", "trainer.log"} <= {file.name for file in written}
            assert [file for file in written if b"s3cret" in file.read_bytes()] == []
            assert "s3cret" not in "".join(capfd.readouterr())
        if artifact != "onnx":
            return
        (folder / "rows.csv").write_text("s3cret\napple\n", encoding="utf-8")
        artifacts = ["predict", f"input={folder}/rows.csv", "run=runs/a/export"]
        assert main(artifacts) == 3
        assert "set trust=[oc.env]" in capfd.readouterr().err
        assert main([*artifacts, "trust=[oc.env]"]) == 0
        assert '"label"' in capfd.readouterr().out


def test_a_resumed_run_keeps_its_references(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_TEXTS", "a.csv")
    for name in ("a.csv", "b.csv"):
        (elsewhere / name).write_text("text,label\na,b\n", encoding="utf-8")
    first = check_command("train", ["data=files", "data.train='${oc.env:RUN_TEXTS}'"]).single
    assert first is not None
    (elsewhere / "run").mkdir()
    (elsewhere / "run/config.yaml").write_text(config_text(first.config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"^data\.train: .*oc\.env"):
        check_command("train", ["resume=run"])
    resumed = check_command("train", ["resume=run", "trust=[oc.env]"]).single
    assert resumed is not None
    assert (resumed.job.data["train"], resumed.config["data"]) == ("a.csv", first.config["data"])
    resumed = check_command("train", ["resume=run", "data.train=b.csv"]).single
    assert resumed is not None
    assert resumed.job.data["train"] == "b.csv"


def test_stored_trust_and_resume_have_no_effect(composed: Callable[..., Any]) -> None:
    _, config = composed("train", "trust=[pandas]")
    job = job_from_text(config_text({**config, "resume": "inner"}), trust=["mine"])
    assert (job.trust, job.resume) == (["mine"], None)
    assert parse_stored_config(config_text(config))["trust"] == ["pandas"]


def test_only_a_named_part_makes_the_working_directory_importable(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = list(sys.path)
    monkeypatch.setattr(sys, "path", list(installed))
    for name in ("mine", "json", "yaml", "torch"):
        (elsewhere / f"{name}.py").write_text("class Loss: ...\n", encoding="utf-8")
    for name in ("json", "yaml", "torch", "nowhere"):
        make_importable(named_packages({"loss": {"_target_": f"{name}.Loss"}, "trust": [name]}))
    assert sys.path == installed
    make_importable(named_packages({"loss": {"_target_": "mine.Loss"}}))
    assert sys.path == [*installed, str(elsewhere)]
