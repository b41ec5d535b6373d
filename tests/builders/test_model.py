"""The keys of every model: weights, freezing, features, noise, adapters, channels_last; mostly through whole runs."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support.jobs import (
    TINY,
    assert_resumes,
    events,
    train,
    working_in,
    write_csv,
    write_data,
)
from tests.support.sources import write_sources
from tests.test_conf import job_of
from trainer.builders.data import build_encoded, build_task
from trainer.builders.model import build_model, check_model, to_device
from trainer.checkpoint.snapshot import load_folder
from trainer.cli import main
from trainer.config.jobs import TrainJob
from trainer.data.batches import Batches
from trainer.ema import Ema
from trainer.errors import ConfigError
from trainer.model.convnet import ConvNet
from trainer.model.lenet import LeNet
from trainer.model.resnet import ResNet
from trainer.model.vit import ViT

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("models")
    with working_in(folder):
        yield [*write_data(folder), f"train.duration={STEPS}", "checkpoint.every=1", f"checkpoint.keep={STEPS}"]


def weights(run: Path, step: int, file: str = "model") -> dict[str, Tensor]:
    return dict(load_folder(run / f"checkpoints/step-{step:08d}").named_tensors(file))


def changed(run: Path, first: int, last: int) -> set[str]:
    """Return the names of the weights that differ between two checkpoints of a run."""
    before, after = weights(run, first), weights(run, last)
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_initial_weights_come_from_a_file_that_resuming_does_not_need(data: list[str], tmp_path: Path) -> None:
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
    assert_resumes(tmp_path / "run", 5)
    assert main(["eval", f"run={tmp_path / 'run'}"]) == 0
    assert main(["train", *data, *keys, frozen]) == 2


def test_weights_of_a_run_come_with_its_tokenizer(
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
    log = (run / "trainer.log").read_text("utf-8")
    assert "the classes of head.* have other names (fruit is metal here)" in log
    assert f"task.tokenizer={first / 'model'}: the tokenizer that model.weights were trained with" in log
    assert "different here" not in log

    assert train(anew, *other, "task.vocab_size=120", "task.tokenizer=null") == 0
    assert "tokens are different here, and token_embedding.weight" in (anew / "trainer.log").read_text("utf-8")
    shutil.rmtree(first)
    assert_resumes(run, 5)


def _tokenizer(run: Path) -> object:
    return json.loads((run / "model" / "tokenizer.json").read_text("utf-8"))["model"]


def test_mismatched_weights_are_listed(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "first", *data) == 0
    capsys.readouterr()
    assert train(tmp_path / "run", *data, f"model.weights={tmp_path / 'first'}", "model.dim=8") == 2
    errors = capsys.readouterr().err
    assert "\nmodel.weights: " in errors
    assert "head.weight" in errors
    assert "model.weights_ignore" in errors


def test_layers_unfreeze_at_their_steps_also_after_a_resume(data: list[str], tmp_path: Path) -> None:
    freeze = "model.freeze=['*embedding*',{match:'blocks.*',until:4},{match:'norm.*',until:50%}]"
    assert train(tmp_path / "run", *data, freeze) == 0
    run = tmp_path / "run"

    assert changed(run, 1, 4) == {"head.weight", "head.bias"}
    assert {"blocks.0.query_key_value.weight"} <= changed(run, 4, 5)
    assert not {"norm.weight", "norm.bias"} & changed(run, 1, 6)
    assert {"norm.weight", "norm.bias"} <= changed(run, 6, 7)
    assert not {name for name in changed(run, 1, STEPS) if "embedding" in name}
    assert_resumes(run, 5)


def test_a_head_on_inner_features_is_trained_and_resumed(data: list[str], tmp_path: Path) -> None:
    features = "model.features=[blocks.0,norm]"
    assert train(tmp_path / "run", *data, features, "export.formats=[torchscript]") == 0

    assert weights(tmp_path / "run", STEPS)["head.weight"].shape == (3, 2 * 16)
    assert_resumes(tmp_path / "run", 5)


def test_only_adapters_and_the_head_are_trained_and_artifacts_are_merged(data: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *data, "model.lora={rank:2,targets:[query_key_value]}", "export.formats=[torchscript]") == 0

    assert {name.split(".")[-2] for name in changed(run, 1, STEPS)} >= {"default", "head"}
    assert all("lora" in name or name.startswith("head") for name in changed(run, 1, STEPS))
    published = load_file(run / "model/model.safetensors")
    assert not [name for name in published if "lora" in name]
    assert_resumes(run, 5)


def test_noisy_tune_depends_on_the_seed_and_happens_once(data: list[str], tmp_path: Path) -> None:
    for name, options in {"plain": [], "one": ["model.noisy_tune=0.15"], "two": ["model.noisy_tune=0.15"]}.items():
        assert train(tmp_path / name, *data, *options) == 0
    plain, one, two = (weights(tmp_path / name, 1) for name in ("plain", "one", "two"))

    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(plain["head.weight"], one["head.weight"])
    losses = [events(tmp_path / name, "train")[0]["loss"] for name in ("plain", "one")]
    assert losses[0] != losses[1]
    shutil.copytree(tmp_path / "one", tmp_path / "run")
    assert_resumes(tmp_path / "run", 5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.lora={rnk:2}", "model.lora.rnk: "),
        ("model.freeze=[nothing]", "model.freeze: "),
        ("model.freeze=[{match:x}]", "model.freeze: "),
        ("model.freeze=['[bte]*','pos*',norm,head]", "model.freeze: leaves nothing to train"),
        ("model.features=[blocks.7]", "model.features: "),
        ("model.weights=nowhere.pth", "model.weights: "),
        ("model.noisy_tune=-1", "model.noisy_tune: "),
        ("model.freeze=[{match:'*',until:1}]", "model.freeze: nothing would be trained at the start"),
        ("model.freeze=[head,{match:'[!h]*',until:1}]", "model.freeze: nothing would be trained at the start"),
    ],
)
def test_errors_name_the_key(
    option: str, message: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *data, option) == 2
    assert capsys.readouterr().err.startswith(message)


def test_a_loss_with_weights_is_never_frozen(data: list[str], tmp_path: Path) -> None:
    run, late = tmp_path / "run", "model.freeze=[{match:'*',until:3}]"
    assert train(run, *data, "loss=hierarchical_softmax", late) == 0

    first, third = weights(run, 1, "loss"), weights(run, 3, "loss")
    assert not any(torch.equal(tensor, third[name]) for name, tensor in first.items())
    assert changed(run, 1, 3) == set()
    assert changed(run, 3, 4)


def test_a_model_that_does_not_accept_the_batches_is_an_error(data: list[str]) -> None:
    job = job_of(*data, *TINY)
    task = build_task(job)
    encoded = build_encoded(job, task, fitted=False)
    job = replace(job, model={"_target_": "torch.nn.Embedding", "num_embeddings": 9, "embedding_dim": 2})
    model = build_model(job, task, None, None)

    batches = Batches(encoded.splits["train"], task, "packed", job.seed)
    with pytest.raises(ConfigError, match=r"loader\.batching: torch\.nn\.Embedding does not accept this batch.*padded"):
        check_model(job, model, batches)


def test_a_model_without_a_cache_cannot_be_exported_with_one(data: list[str]) -> None:
    job = job_of(*data, *TINY)
    task = build_task(job)
    encoded = build_encoded(job, task, fitted=False)
    job = replace(job, export=job.export | {"formats": ["onnx", "onnx_cache"]})
    batches = Batches(encoded.splits["train"], task, "packed", job.seed)
    with pytest.raises(ConfigError, match=r"export\.formats: this model cannot decode token by token.*or name a GPT-2"):
        check_model(job, build_model(job, task, None, None), batches)


CPU = torch.device("cpu")
JOB = TrainJob(model={"channels_last": True})
MODELS: dict[str, Callable[[], nn.Module]] = {
    "convnet": lambda: ConvNet(5, 3, (12, 12), channels=(4, 6), hidden=[8]),
    "lenet": lambda: LeNet(5, 3, (12, 12), activation="tanh"),
    "resnet": lambda: ResNet(5, 3, (12, 12), depth=8, width=4, shortcut="identity"),
    "resnet, projection": lambda: ResNet(5, 3, (12, 12), depth=8, width=4, shortcut="projection"),
    "vit": lambda: ViT(5, 3, (12, 12), patch=4, dim=8, depth=1, heads=2, hidden=8, dropout=0.0, pooling="mean"),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().double()


def is_channels_last(weight: torch.Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", MODELS)
def test_channels_last_outputs_gradients_and_updates_are_equal_up_to_rounding(name: str) -> None:
    plain, other = made(name), to_device(JOB, made(name), CPU)
    x = torch.randn(6, 3, 12, 12, dtype=torch.float64)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in (plain, other)]
    for _ in range(3):
        for model, optimizer in zip((plain, other), optimizers, strict=True):
            optimizer.zero_grad()
            model(pixel_values=x).square().sum().backward()
        for ours, theirs in zip(other.parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(other(pixel_values=x), plain(pixel_values=x), rtol=0, atol=1e-9)
    assert [key for key, _ in other.named_parameters()] == [key for key, _ in plain.named_parameters()]


def test_channels_last_is_the_layout_of_weights_average_and_activations() -> None:
    model = to_device(JOB, made("resnet"), CPU)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    seen: list[bool] = []
    for module in convolutions:
        module.register_forward_hook(lambda module, inputs, output: seen.append(is_channels_last(output)))
    model(pixel_values=torch.randn(2, 3, 12, 12, dtype=torch.float64))

    assert seen == [True] * len(convolutions)
    assert all(is_channels_last(module.weight) for module in convolutions)
    average = Ema(model, 0.9).module
    assert all(is_channels_last(value) for value in average.parameters() if value.ndim == 4)
    assert not is_channels_last(to_device(TrainJob(model={}), made("resnet"), CPU).get_parameter("stem.weight"))


def test_channels_last_needs_a_convolution() -> None:
    with pytest.raises(ConfigError, match=r"model\.channels_last: this model has no 2-d convolution, got true"):
        to_device(JOB, nn.Linear(2, 2), CPU)


@pytest.fixture(scope="module")
def image_job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("channels")
    with working_in(folder):
        write_sources(folder)
        lengths = ["train.duration=6", "train.eval_every=3", "checkpoint.every=1", "checkpoint.keep=6"]
        model = ["model=convnet", "model.channels=[4,6]", "model.hidden=[8]", "train.batch_size=8", "train.log_every=1"]
        quiet = ["logger.console=none", "logger.tensorboard=false", "device=cpu", "export.formats=[torchscript]"]
        source = ["data=idx", f"data.folder={folder}/idx", f"data.cache_dir={folder}/cache"]
        yield ["train", "task=image_classification", *source, *model, *lengths, *quiet]


def test_a_channels_last_run_learns_the_same_and_resumes(image_job: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*image_job, f"run.dir={tmp_path / 'plain'}"]) == 0
    assert main([*image_job, "model.channels_last=true", f"run.dir={run}"]) == 0
    logged, expected = (events(folder, "train") for folder in (run, tmp_path / "plain"))
    for ours, theirs in zip(logged, expected, strict=True):
        assert (ours["loss"], ours["grad_norm"]) == pytest.approx((theirs["loss"], theirs["grad_norm"]), rel=1e-5)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, tmp_path / "plain"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert_resumes(run, 2)
