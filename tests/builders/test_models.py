"""The keys that every model has: weights, freezing, features, noise, adapters; through whole runs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.jobs import checkpoint_files, events, train, working_in, write_csv, write_data
from trainer.cli import main

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("models")
    with working_in(folder):
        yield [*write_data(folder), f"train.duration={STEPS}", "checkpoint.every=1", f"checkpoint.keep={STEPS}"]


def weights(run: Path, step: int, file: str = "model") -> dict[str, Tensor]:
    return load_file(run / f"checkpoints/step-{step:08d}/{file}.safetensors")


def changed(run: Path, first: int, last: int) -> set[str]:
    """The names of the weights that two checkpoints of a run differ in."""
    before, after = weights(run, first), weights(run, last)
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def assert_resumes(run: Path, step: int = 5) -> None:
    resumed = run.with_name("resumed")
    shutil.copytree(run, resumed)
    for path in (resumed / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    assert main(["train", f"resume={resumed}"]) == 0
    assert checkpoint_files(resumed, STEPS) == checkpoint_files(run, STEPS)


def test_a_run_starts_from_the_weights_of_a_file_that_may_go_afterwards(data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "first", *data) == 0
    learnt = load_file(tmp_path / "first/model/model.safetensors")
    file = tmp_path / "other.safetensors"
    save_file({f"encoder.{name}": tensor for name, tensor in learnt.items() if "head" not in name}, file)
    keys = [f"model.weights={file}", 'model.weights_rename=[["^encoder[.]",""]]', "model.weights_ignore=[head.*]"]
    frozen = "model.freeze=['*']"

    assert train(tmp_path / "run", *data, *keys, "model.freeze=[blocks,'*embedding*',norm]") == 0
    started = weights(tmp_path / "run", 1)
    assert all(torch.equal(started[name], learnt[name]) for name in learnt if "head" not in name)
    assert changed(tmp_path / "run", 1, STEPS) == {"head.weight", "head.bias"}
    file.unlink()
    assert_resumes(tmp_path / "run")
    assert main(["eval", f"run={tmp_path / 'run'}"]) == 0
    assert main(["train", *data, *keys, frozen]) == 2


def test_weights_of_a_run_bring_their_tokenizer(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where words and a class are others, and as many: every shape fits."""
    first, run, anew = tmp_path / "first", tmp_path / "run", tmp_path / "anew"
    header, _, text = write_csv(tmp_path / "other.csv").read_text("utf-8").partition("\n")
    (tmp_path / "other.csv").write_text(f"{header}\n{text.replace('e', 'zq').replace('fruit', 'metal')}", "utf-8")
    other = [
        "data=files",
        "data.text=text",
        f"data.train={tmp_path / 'other.csv'}",
        *data[-3:],
        f"model.weights={first}",
    ]
    assert train(first, *data, "task.vocab_size=120") == 0
    capsys.readouterr()

    assert train(run, *other) == 0
    assert f"note: task.tokenizer={first / 'model'}: " in capsys.readouterr().err
    assert _tokenizer(run) == _tokenizer(first)
    told = (run / "trainer.log").read_text("utf-8")
    assert "the classes of head.* have other names (fruit is metal here)" in told
    assert f"task.tokenizer={first / 'model'}: the tokenizer that model.weights were trained with" in told
    assert "tokens are different here" not in told

    assert train(anew, *other, "task.vocab_size=120", "task.tokenizer=null") == 0
    assert "tokens are different here, and token_embedding.weight" in (anew / "trainer.log").read_text("utf-8")
    shutil.rmtree(first)
    assert_resumes(run)


def _tokenizer(run: Path) -> object:
    return json.loads((run / "model" / "tokenizer.json").read_text("utf-8"))["model"]


def test_weights_that_do_not_fit_are_shown(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "first", *data) == 0
    capsys.readouterr()
    assert train(tmp_path / "run", *data, f"model.weights={tmp_path / 'first'}", "model.dim=8") == 2
    told = capsys.readouterr().err
    assert "\nmodel.weights: " in told
    assert "head.weight" in told
    assert "model.weights_ignore" in told


def test_layers_thaw_at_their_steps_and_a_resumed_run_does_the_same(data: list[str], tmp_path: Path) -> None:
    freeze = "model.freeze=['*embedding*',{match:'blocks.*',until:4},{match:'norm.*',until:50%}]"
    assert train(tmp_path / "run", *data, freeze) == 0
    run = tmp_path / "run"

    assert changed(run, 1, 4) == {"head.weight", "head.bias"}
    assert {"blocks.0.query_key_value.weight"} <= changed(run, 4, 5)
    assert not {"norm.weight", "norm.bias"} & changed(run, 1, 6)
    assert {"norm.weight", "norm.bias"} <= changed(run, 6, 7)
    assert not {name for name in changed(run, 1, STEPS) if "embedding" in name}
    assert_resumes(run)


def test_features_of_layers_feed_a_head(data: list[str], tmp_path: Path) -> None:
    features = "model.features=[blocks.0,norm]"
    assert train(tmp_path / "run", *data, features, "export.formats=[torchscript]") == 0

    assert weights(tmp_path / "run", STEPS)["head.weight"].shape == (3, 2 * 16)
    assert_resumes(tmp_path / "run")


def test_adapters_are_trained_alone_and_artifacts_have_none(data: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *data, "model.lora={rank:2,targets:[query_key_value]}", "export.formats=[torchscript]") == 0

    assert {name.split(".")[-2] for name in changed(run, 1, STEPS)} >= {"default", "head"}
    assert all("lora" in name or name.startswith("head") for name in changed(run, 1, STEPS))
    published = load_file(run / "model/model.safetensors")
    assert not [name for name in published if "lora" in name]
    assert_resumes(run)


def test_noise_is_the_seeds_and_only_at_the_start(data: list[str], tmp_path: Path) -> None:
    for name, options in {"plain": [], "one": ["model.noisy_tune=0.15"], "two": ["model.noisy_tune=0.15"]}.items():
        assert train(tmp_path / name, *data, *options) == 0
    plain, one, two = (weights(tmp_path / name, 1) for name in ("plain", "one", "two"))

    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(plain["head.weight"], one["head.weight"])
    losses = [events(tmp_path / name, "train")[0]["loss"] for name in ("plain", "one")]
    assert losses[0] != losses[1]
    shutil.copytree(tmp_path / "one", tmp_path / "run")
    assert_resumes(tmp_path / "run")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.lora={rnk:2}", "model.lora.rnk: there is no such key, got 2. Did you mean rank."),
        ("model.freeze=[nothing]", "model.freeze: "),
        ("model.freeze=[{match:x}]", "model.freeze: entry 1: must have match and until, got {"),
        ("model.freeze=['[bte]*','pos*',norm,head]", "model.freeze: leaves nothing to train, got ['[bte]*'"),
        ("model.features=[blocks.7]", "model.features: "),
        ("model.weights=nowhere.pth", "model.weights: "),
        ("model.noisy_tune=-1", "model.noisy_tune: "),
        ("model.freeze=[{match:'*',until:1}]", "model.freeze: nothing would be trained at the start, got [{"),
        ("model.freeze=[head,{match:'[!h]*',until:1}]", "model.freeze: nothing would be trained at the start, got [{"),
    ],
)
def test_what_is_wrong_names_its_key(
    option: str, message: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *data, option) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_loss_with_weights_of_its_own_is_trained_before_the_model_is(data: list[str], tmp_path: Path) -> None:
    run, late = tmp_path / "run", "model.freeze=[{match:'*',until:3}]"
    assert train(run, *data, "loss=hierarchical_softmax", late) == 0

    first, third = weights(run, 1, "loss"), weights(run, 3, "loss")
    assert not any(torch.equal(tensor, third[name]) for name, tensor in first.items())
    assert changed(run, 1, 3) == set()
    assert changed(run, 3, 4)
