"""Whole runs with models of transformers on Chinese texts: fine-tuning, masking, resuming without the model folder."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.support.jobs import TINY, checkpoint_files, events, working_in
from trainer.cli import main
from trainer.task.tokenization import train_wordpiece

CLASSES = {"水果": "苹果香蕉葡萄柠檬桃子李子", "工具": "斧头锤子钳子扳手锯子钻头", "动物": "狐狸山羊老鹰獾猫狗马"}
STEPS = 8
QUICK = tuple(option for option in TINY if not option.startswith(("model.", "task.vocab", "export")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a working directory with `bert/`, a tiny BERT with its own vocabulary, and Chinese texts in CSV files."""
    from transformers import BertConfig, BertModel

    directory = tmp_path_factory.mktemp("pretrained")
    random = np.random.default_rng(0)
    texts = []
    for name, count in (("训练", 48), ("验证", 16), ("测试", 16)):
        lines = ["内容,类别"]
        for number in range(count):
            label = [*CLASSES][number % 3]
            text = "".join(random.choice([*CLASSES[label]], size=8)) + f"第{number}号"
            texts.append(text)
            lines.append(f"{text},{label}")
        (directory / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = train_wordpiece([texts], vocab_size=200, lowercase=True)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(directory / "bert")
    tokenizer.save(str(directory / "bert/tokenizer.json"))
    with working_in(directory):
        yield directory


def job(folder: Path, model: Path, run: Path, *options: str) -> list[str]:
    files = ["data=files", "data.train=训练.csv", "data.validation=验证.csv", "data.test=测试.csv", "data.text=内容"]
    lengths = [f"train.duration={STEPS}", "checkpoint.every=1", f"checkpoint.keep={STEPS}"]
    rest = ["data.label=类别", "model=pretrained", f"model.path={model}", f"run.dir={run}", *lengths]
    return [*files, *rest, *QUICK, *options]


@pytest.mark.parametrize("task", ["text_classification", pytest.param("masked_lm", marks=pytest.mark.slow)])
def test_checkpoint_works_without_the_model_folder(task: str, folder: Path, tmp_path: Path) -> None:
    model, run = tmp_path / "bert", tmp_path / "run"
    shutil.copytree(folder / "bert", model)
    options = [f"task={task}", "export.formats=[]", "model.config.hidden_dropout_prob=0.0", "optimizer.lr=5e-3"]
    assert main(["train", *job(folder, model, run, *options)]) == 0

    assert "0.0% of tokens unknown" in (run / "trainer.log").read_text(encoding="utf-8")
    first, *_, last = (event["loss"] for event in events(run, "train"))
    assert last < first
    shutil.rmtree(model)
    resumed = tmp_path / "resumed"
    shutil.copytree(run, resumed)
    for path in (resumed / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > 3:
            shutil.rmtree(path)
    assert main(["train", f"resume={resumed}", "export.formats=[onnx]"]) == 0
    assert checkpoint_files(resumed, STEPS) == checkpoint_files(run, STEPS)
    assert (resumed / "export/model.onnx").exists()
    assert main(["eval", f"run={run}"]) == 0


def test_labels_of_the_artifact_are_chinese(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", *job(folder, folder / "bert", run, "export.formats=[torchscript]")]) == 0

    assert json.loads((run / "export/labels.json").read_text(encoding="utf-8")) == sorted(CLASSES)


def test_unknown_key_of_the_model_config_is_an_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *job(folder, folder / "bert", tmp_path / "run", "model.config.hiden_dropout_prob=0.2")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("model.config.hiden_dropout_prob: ")
    assert "hidden_dropout_prob" in message


def test_missing_model_is_reported_under_its_own_key(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The path is also the default of task.tokenizer, which is loaded first."""
    assert main(["train", *job(folder, Path("nobody/nothing"), tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("model.path: is neither a folder nor a model that the hub provides")


def test_causality_must_fit_the_language_task(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = job(folder, folder / "bert", tmp_path / "run", "task=causal_lm", "export.formats=[]")
    assert main(["train", *wrong]) == 2
    assert capsys.readouterr().err.startswith("model.path: sees the tokens")
    assert main(["train", *wrong, "+model.config.is_decoder=true", "train.duration=1"]) == 0
    capsys.readouterr()
    bidirectional = job(folder, folder / "bert", tmp_path / "blind", "task=masked_lm", "+model.config.is_decoder=true")
    assert main(["train", *bidirectional]) == 2
    assert capsys.readouterr().err.startswith("model.path: does not see")


@pytest.mark.parametrize(
    ("task", "model_class"), [("text_classification", "BertModel"), ("masked_lm", "BertForMaskedLM")]
)
def test_saved_model_loads_in_its_own_library(task: str, model_class: str, folder: Path, tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    options = [f"task={task}", "export.formats=[]", "ema.decay=null", "optimizer.lr=5e-3"]
    assert main(["train", *job(folder, folder / "bert", run, *options)]) == 0

    whole = getattr(transformers, model_class).from_pretrained(run / "model").state_dict()
    best = json.loads((run / "eval/test.json").read_text(encoding="utf-8"))["step"]
    trained = load_file(run / f"checkpoints/step-{best:08d}/model.safetensors")
    prefix = "" if model_class == "BertModel" else "bert."
    based = {name: tensor for name, tensor in trained.items() if name.startswith("base.")}
    assert based
    assert all(torch.equal(tensor, whole[prefix + name.removeprefix("base.")]) for name, tensor in based.items())
    assert (run / "model/trainer.json").is_file()

    # Nothing changes at such a learning rate, so the second run ends with its initial weights.
    weights = [f"model.weights={run}", "train.duration=1", "optimizer.lr=1e-30"]
    assert main(["train", *job(folder, folder / "bert", again, *options, *weights)]) == 0
    initial = load_file(again / "checkpoints/step-00000001/model.safetensors")
    assert initial.keys() == trained.keys()
    assert all(torch.equal(initial[name], trained[name]) for name in trained)
