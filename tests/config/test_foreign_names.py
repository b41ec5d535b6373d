"""The names of other trainers: each is answered with what does the same here, and the answer works."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from trainer.config.command import check_command
from trainer.config.foreign_names import foreign_names, foreign_values, foreign_verbs
from trainer.config.jobs import JOBS, TrainJob
from trainer.config.schema import keys
from trainer.errors import ConfigError, DataError

DOCS = Path(__file__).parents[2] / "docs"
NAMES = {name: each for each in foreign_names() for name in each.names.split()}


def messages(*argv: str, verb: str = "train") -> list[str]:
    """Return the errors of a command line; a file of data that does not exist is none."""
    try:
        check_command(verb, argv)
    except DataError:
        return []
    except ConfigError as error:
        return list(error.messages)
    return []


def remedy(*argv: str, verb: str = "train") -> str:
    (message,) = messages(*argv, verb=verb)
    return message.partition(". ")[2] if ", got" not in message else re.sub(r"^.*?, got .*?\. ", "", message)


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["epochs=3"], "Set train.duration=3ep."),
        (["--epochs", "0.5"], "Set train.duration=0.5ep."),
        (["num_train_epochs=3.0"], "Set train.duration=3.0ep."),
        (["trainer.max_epochs=3"], "Set train.duration=3ep."),
        (["train.epochs=3"], "Set train.duration=3ep."),
        (["max_steps=100"], "Set train.duration=100."),
        (["max_time=4h"], "Set train.max_time=4h."),
        (["trainer.max_time=00:12:00:00"], "Set train.max_time, such as train.max_time=4h."),
        (["max_steps=-1"], "Set train.duration, such as train.duration=1000."),
        (["--lr", "1e-3"], "Set optimizer.lr=0.001."),
        (["--learning-rate=3e-5"], "Set optimizer.lr=3e-05."),
        (["warmup_ratio=0.06"], "Set scheduler.warmup=6%."),
        (["warmup_ratio=0.1"], "Set scheduler.warmup=10%."),
        (["fp16=true"], "Set precision=fp16."),
        (["amp_dtype=bfloat16"], "Set precision=bf16."),
        (["rope_scaling=2"], "A model of transformers takes it with model=pretrained in model.config, such as"),
        (["close_mosaic=10"], "There is no such change of images: task.augment has crop, flip,"),
        (["neftune_alpha=5"], "Nothing adds noise to embeddings;"),
        (["box=7.5"], "Boxes are not predicted: the tasks for images are"),
        (["trust_remote_code=true"], "Leave it out: no code of a model folder or of the hub is run."),
        (["--bf16"], "Set precision=bf16."),
        (["--fp16", "seed=3"], "Set precision=fp16."),
        (["adversarial_training=fgm"], "Set perturb=fgm."),
        (["adv_training=true"], "Set perturb=fgm."),
        (["perturb=rdrop"], "Did you mean perturb=r_drop?"),
        (["rdrop_alpha=4"], "Set perturb=r_drop perturb.alpha=4."),
        (["emb_name=word_embeddings"], "Set perturb=fgm perturb.targets=[*word_embeddings*]."),
        (["alpha=1"], "It is a key of a part: loss.alpha of loss=focal, perturb.alpha of"),
        (["multisample_dropout=5"], "Set model.head_dropout=0.5 model.multi_sample_dropout=5."),
        (["loader.sampler=WeightedRandomSampler"], "Set loader.sampler=weighted."),
        (["class_balanced=true"], "Set loader.sampler=balanced."),
        (["StratifiedGroupKFold=patient"], "Set data=files data.split.group=patient."),
        (["GroupShuffleSplit=true"], "Set data.split.group, such as data=files data.split.group=patient."),
        (["use_crf=true"], "Set task=token_classification loss=crf."),
        (["GlobalPointer=true"], "Set task=span_classification loss=global_pointer."),
        (["loss=GlobalPointer"], "Did you mean loss=global_pointer?"),
        (["val_files=[a.csv,b.csv]"], "Several named sets are data.validation={clean: a.csv, noisy: b.csv}"),
        (["accelerator=gpu"], "Set device=cuda."),
        (["precision=16-mixed"], "Set precision=fp16."),
        (["precision=32"], "Set precision=fp32."),
        (["device=gpu"], "Set device=cuda."),
        (["weight_decay=0.1"], "Set optimizer.weight_decay=0.1."),
        (["random_state=42"], "Set seed=42."),
        (["n_jobs=4"], "Set loader.workers=4."),
        (["n_jobs=-1"], "Set loader.workers, such as loader.workers=4."),
        (["output_dir=out"], "Set run.dir=out."),
        (["--opt", "adamw"], "Set optimizer=adamw."),
        (["--opt", "rmsprop"], "Set optimizer, such as optimizer=adamw."),
        (["--sched", "cosine"], "Set scheduler=cosine."),
        (["lr_scheduler_type=reduce_lr_on_plateau"], "Set scheduler=reduce_on_plateau."),
        (["loss=ce"], "Did you mean loss=cross_entropy?"),
        (["-b", "64"], "Set train.batch_size=64."),
        (["early_stopping=true"], "Set train.patience, such as train.patience=3ep."),
        (["early_stopping=false"], "Leave it out: this is the default."),
        (["load_best_model_at_end=true"], "Leave it out: the best checkpoint is kept, scored and exported."),
        (["--seed", "3"], "Write seed=3."),
        (["--optimizer.lr", "0.1"], "Write optimizer.lr=0.1."),
        (["model.name_or_path=x"], ""),
        (["trainer.devices=2"], "Did you mean devices?"),
        (["trainer.optimizer.type=adam"], "Did you mean optimizer?"),
        (["model.learning_rate=0.1"], "Set optimizer.lr=0.1."),
        (["model.lr=0.1"], "Set optimizer.lr=0.1."),
        (["data.num_workers=2"], "Set loader.workers=2."),
        (["trainer.callbacks=[EarlyStopping]"], "train.patience stops early, checkpoint.every"),
        (["loss=sparse_categorical_crossentropy"], "Did you mean loss=cross_entropy?"),
        (["loss=CrossEntropyLoss"], "Did you mean loss=cross_entropy?"),
        (["monitor=val_loss"], "Set checkpoint.monitor=loss."),
        (["scoring=roc_auc"], "Set checkpoint.monitor, such as checkpoint.monitor=loss."),
        (["monitor=val_rmse"], "Set checkpoint.monitor=rmse."),
        (["scoring=neg_mean_squared_error"], "Set checkpoint.monitor, such as checkpoint.monitor=loss."),
        (["dataset=./my.csv"], "Set data.path, such as data=hub data.path=stanfordnlp/imdb. For a file of your own: "),
        (["dataset=data/my.csv"], "Set data.path, such as data=hub data.path=stanfordnlp/imdb. For a file of your "),
        (["--metric_for_best_model", "f1"], "Set checkpoint.monitor=macro_f1."),
        (["--push_to_hub"], "Leave it out: training sends nothing to the hub; afterwards"),
        (["model_type=llm"], "Set model, such as model=text_encoder."),
        (["dataset=my.csv"], "Set data.path, such as data=hub data.path=stanfordnlp/imdb. For a file of your own: "),
        (["dataset=owner/name"], "Set data=hub data.path=owner/name. For a file of your own: trainer init my.csv."),
        (["--img-size", "224"], "Set task=image_classification task.size=224."),
        (["--hflip", "0.5"], "Set task=image_classification task.augment.flip=0.5."),
        (["--drop-path", "0.1"], "No model leaves out layers at random; model.dropout is there."),
        (["resume=true"], "Set resume=auto run.name=mine."),
        (["packing=true"], "Leave it out: this is the default."),
        (["finetuning_type=lora"], "Set model.lora={}."),
        (["hidden_layer_sizes=[64]"], "Set model=mlp model.hidden=[64]."),
        (["num_labels=3"], "Leave it out: the classes are those of the training data."),
        (["optimizer.betas2=1"], "Did you mean optimizer.betas?"),
        (["--batchsize", "3"], "Did you mean train.batch_size?"),
        (["--no_such_key", "3", "seed=1"], "Known: "),
        (["--multirn"], "Did you mean --multirun?"),
        (["sedd=1"], "Did you mean seed?"),
    ],
)
def test_the_key_here_is_named_with_the_value(argv: list[str], advice: str) -> None:
    found = remedy(*argv)
    assert found.startswith(advice) if advice else "Set model=pretrained" not in found


def test_a_model_is_named_with_dashes_and_as_it_is_elsewhere() -> None:
    (message,) = messages("--model", "decoder")
    assert message == "--model: a key is written without dashes. Write model=decoder."
    assert remedy("--model_name_or_path", "owner/name") == "Set model=pretrained model.path=owner/name."


def test_other_verbs_name_only_keys_that_they_have() -> None:
    assert remedy("accelerator=gpu", verb="eval") == "Set device=cuda."
    assert "train.duration" not in remedy("epochs=3", verb="eval")
    assert "devices" not in remedy("gpus=2", verb="diff")


def advice_of(name: str) -> list[str]:
    """Return the overrides that every kind of answer about a name contains."""
    each = NAMES[name]
    values = [None, "true", *each.values, each.sample]
    remedies = [each.remedy(value) for value in values]
    texts = [re.match(r"Set (?:.*such as )?(.*?)(?:\. [A-Z].*)?$", text) for text in remedies]
    return [text[1] for text in texts if text and "=" in text[1]]


CONTEXT = {
    "data=files": "data.train=train.csv",
    "loss=binary_cross_entropy": "task=multilabel_classification",
    "perturb=r_drop": "task=text_classification",
    "loss=crf": "task=token_classification",
    "loss=global_pointer": "task=span_classification data=stdlib_spans",
    "task=span_classification": "data=stdlib_spans",
    "loader.sampler=weighted": "loader.weights=weight",
    "loader.sampler=balanced": "task=text_classification",
    "checkpoint.monitor=micro_f1": "task=multilabel_classification loss=binary_cross_entropy",
    **dict.fromkeys(
        ("checkpoint.monitor=mae", "checkpoint.monitor=rmse", "checkpoint.monitor=r2"), "task=regression loss=mse"
    ),
    "loss=mse": "task=regression",
    "loss=mae": "task=regression",
    "loss=huber": "task=regression",
    "loss=info_nce": "task=sentence_embedding",
    "data=imagefolder": "task=image_classification model=convnet",
    "model=mlp": "task=tabular_classification data=breast_cancer loss=cross_entropy perturb=awp",
    **dict.fromkeys(
        ("model=convnet", "model=resnet", "model=vit"),
        "task=image_classification data=digits loss=cross_entropy perturb=awp",
    ),
    "task=image_classification": "model=convnet data=digits loss=cross_entropy perturb=awp",
}
"""The overrides that a job needs in addition before it accepts the advice."""

EXCLUSIVE = ("model", "data", "loss", "optimizer", "scheduler", "task", "perturb")
"""Groups of which a command line tries one advice at a time."""


def batches(texts: Sequence[str]) -> list[list[str]]:
    """Put overrides into as few command lines as possible: each key, and each group, once in a line."""
    lines: list[dict[str, list[str]]] = []
    for text in dict.fromkeys(texts):
        overrides = [text] if text.startswith("model.lora") else text.split()
        contexts = [CONTEXT[item] for item in overrides if item in CONTEXT and CONTEXT[item][:10] not in text]
        overrides += [item for context in contexts for item in context.split()]
        names = {item.partition("=")[0] for item in overrides}
        subjects = {name.partition(".")[0] if name.partition(".")[0] in EXCLUSIVE else name for name in names}
        subjects = {"run" if name in ("run.dir", "run.name", "resume") else name for name in subjects}
        line = next((each for each in lines if not subjects & each.keys()), None)
        if line is None:
            lines.append(line := {})
        line |= {key: [] for key in subjects}
        line[next(iter(subjects))] = overrides
    return [[item for items in line.values() for item in items] for line in lines]


def test_every_advice_can_be_carried_out() -> None:
    for name in ("train.csv", "dev.csv", "test.csv", "model.safetensors", "tokenizer"):
        Path(name).touch()
    Path("images").mkdir()
    texts = [text for name in NAMES for text in advice_of(name)]
    texts += [f"{key}={value}" for key, values in foreign_values().items() for value in values.values()]
    # Trackers are extras, and no run is there to resume.
    texts = [text for text in texts if "trackers" not in text and "resume=runs" not in text]
    assert len({*texts}) > 100
    lines = batches(texts)
    assert [(line, found) for line in lines if (found := messages(*line))] == []


def test_no_name_is_a_key_here_or_in_two_rows() -> None:
    assert len(NAMES) == sum(len(each.names.split()) for each in foreign_names())
    assert not {*NAMES} & {*keys(TrainJob)}


def test_the_verbs_of_other_trainers_name_verbs_here() -> None:
    assert not {*foreign_verbs()} & {*JOBS}
    assert {text.partition(" ")[0] for text in foreign_verbs().values()} <= {*JOBS, "--help", "--version"}


def test_the_page_about_transformers_names_the_same_keys() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", (DOCS / "from-transformers.md").read_text(), re.MULTILINE)
    assert len(rows) > 30
    unknown = []
    for names, text in rows:
        for name in re.findall(r"`(\w+)`", names):
            known = NAMES.get(name)
            if known is None:
                unknown += [] if name in keys(TrainJob) or name[0].isupper() else [name]
            elif known.override and known.override.split()[0].partition("=")[0] not in text:
                unknown.append(f"{name}: {known.override}")
    assert unknown == []
