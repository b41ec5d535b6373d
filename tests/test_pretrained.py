"""Models of transformers in whole runs, on Chinese texts: fine-tuned, masked, and without their folder afterwards."""

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

KINDS = {"水果": "苹果香蕉葡萄柠檬桃子李子", "工具": "斧头锤子钳子扳手锯子钻头", "动物": "狐狸山羊老鹰獾猫狗马"}
STEPS = 8
QUICK = tuple(option for option in TINY if not option.startswith(("model.", "task.vocab", "export")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with `bert/`, a tiny BERT with a vocabulary of its own, and Chinese texts in CSV files."""
    from transformers import BertConfig, BertModel

    made = tmp_path_factory.mktemp("pretrained")
    random = np.random.default_rng(0)
    texts = []
    for name, count in (("训练", 48), ("验证", 16), ("测试", 16)):
        lines = ["内容,类别"]
        for number in range(count):
            kind = [*KINDS][number % 3]
            text = "".join(random.choice([*KINDS[kind]], size=8)) + f"第{number}号"
            texts.append(text)
            lines.append(f"{text},{kind}")
        (made / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = train_wordpiece([texts], vocab_size=200, lowercase=True)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(made / "bert")
    tokenizer.save(str(made / "bert/tokenizer.json"))
    with working_in(made):
        yield made


def job(folder: Path, model: Path, run: Path, *options: str) -> list[str]:
    files = ["data=files", "data.train=训练.csv", "data.validation=验证.csv", "data.test=测试.csv", "data.text=内容"]
    lengths = [f"train.duration={STEPS}", "checkpoint.every=1", f"checkpoint.keep={STEPS}"]
    rest = ["data.label=类别", "model=pretrained", f"model.path={model}", f"run.dir={run}", *lengths]
    return [*files, *rest, *QUICK, *options]


@pytest.mark.parametrize("task", ["text_classification", "masked_lm"])
def test_a_checkpoint_does_without_the_folder(task: str, folder: Path, tmp_path: Path) -> None:
    model, run = tmp_path / "bert", tmp_path / "run"
    shutil.copytree(folder / "bert", model)
    options = [f"task={task}", "export.formats=[onnx]", "model.config.hidden_dropout_prob=0.0", "optimizer.lr=5e-3"]
    assert main(["train", *job(folder, model, run, *options)]) == 0

    assert "0.0 % of tokens unknown" in (run / "trainer.log").read_text(encoding="utf-8")
    first, *_, last = (event["loss"] for event in events(run, "train"))
    assert last < first
    assert (run / "export/model.onnx").exists()
    shutil.rmtree(model)
    resumed = tmp_path / "resumed"
    shutil.copytree(run, resumed)
    for path in (resumed / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > 3:
            shutil.rmtree(path)
    assert main(["train", f"resume={resumed}"]) == 0
    assert checkpoint_files(resumed, STEPS) == checkpoint_files(run, STEPS)
    assert main(["eval", f"run={run}"]) == 0


def test_its_labels_are_chinese(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", *job(folder, folder / "bert", run, "export.formats=[torchscript]")]) == 0

    assert json.loads((run / "export/labels.json").read_text(encoding="utf-8")) == sorted(KINDS)


def test_a_key_that_its_config_does_not_have(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *job(folder, folder / "bert", tmp_path / "run", "model.config.hiden_dropout_prob=0.2")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("model.config.hiden_dropout_prob: ")
    assert "hidden_dropout_prob" in told


def test_a_language_model_that_sees_what_it_is_to_predict(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = job(folder, folder / "bert", tmp_path / "run", "task=causal_lm", "export.formats=[]")
    assert main(["train", *wrong]) == 2
    assert capsys.readouterr().err.startswith("model.path: sees the tokens that it is to predict. Name a GPT-2")
    assert main(["train", *wrong, "+model.config.is_decoder=true", "train.duration=1"]) == 0
    capsys.readouterr()
    blind = job(folder, folder / "bert", tmp_path / "blind", "task=masked_lm", "+model.config.is_decoder=true")
    assert main(["train", *blind]) == 2
    assert capsys.readouterr().err.startswith("model.path: does not see what comes behind a masked token. Name a BERT")


@pytest.mark.parametrize(("task", "made"), [("text_classification", "BertModel"), ("masked_lm", "BertForMaskedLM")])
def test_what_a_run_leaves_is_its_librarys_own(task: str, made: str, folder: Path, tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    options = [f"task={task}", "export.formats=[]", "ema.decay=null", "optimizer.lr=5e-3"]
    assert main(["train", *job(folder, folder / "bert", run, *options)]) == 0

    whole = getattr(transformers, made).from_pretrained(run / "model").state_dict()
    best = json.loads((run / "eval/test.json").read_text(encoding="utf-8"))["step"]
    learnt = load_file(run / f"checkpoints/step-{best:08d}/model.safetensors")
    prefix = "" if made == "BertModel" else "bert."
    based = {name: tensor for name, tensor in learnt.items() if name.startswith("base.")}
    assert based
    assert all(torch.equal(tensor, whole[prefix + name.removeprefix("base.")]) for name, tensor in based.items())
    assert (run / "model/trainer.json").is_file()

    # Nothing is learnt at such a rate: what the second run ends with is what it began with.
    weights = [f"model.weights={run}", "train.duration=1", "optimizer.lr=1e-30"]
    assert main(["train", *job(folder, folder / "bert", again, *options, *weights)]) == 0
    begun = load_file(again / "checkpoints/step-00000001/model.safetensors")
    assert begun.keys() == learnt.keys()
    assert all(torch.equal(begun[name], learnt[name]) for name in learnt)
