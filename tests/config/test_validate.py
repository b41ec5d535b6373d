"""Wrong values of command lines: all keys are reported, with the limits and the value."""

import inspect
import json
import math
import re
import shlex
import sys
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pytest

from trainer.builders.instantiate import locate
from trainer.config.command import check_command
from trainer.config.groups import groups_in, own_folder
from trainer.config.signatures import read
from trainer.constraints.annotations import is_constrained
from trainer.constraints.declarations import resolve_annotation
from trainer.constraints.values import fits_type, value_problems
from trainer.errors import ConfigError, DataError

CASES: list[tuple[str, str]] = [
    ("prune=ln prune.dim=2 'prune.targets=[]' 'model.lora={}'", "prune.targets; prune; prune.dim 2 2"),
    (
        "task=sentence_embedding data=stdlib_pairs loss=info_nce task.supervision=none model.dropout=0",
        "model.dropout 0",
    ),
    ("task=sentence_embedding loss=info_nce model=linear task.supervision=none", "model"),
    ("task=sentence_embedding loss=info_nce task.supervision=none task.threshold=0.5", "task.threshold 0.5"),
    ("task=sentence_embedding loss=info_nce task.supervision=pairs task.evaluate_pairs=true", "task.evaluate_pairs"),
    (
        "task=image_classification data=digits model=resnet model.depth=21 task.channels=auto 'task.mean=[0.5]'",
        "task.mean 0.5; model.depth 2 21",
    ),
    (
        "task=image_classification data=digits model=lenet task.channels=3 'task.std=[0.5]' 'task.size=[28]' task.augment.crop=0.5 task.augment.flip=2 task.augment.rotate=200 task.augment.mix_prob=3 task.augment.mixup=-1",  # noqa: E501
        "task.size 2 28; task.std 3 0.5; task.augment.crop 0 0.5; task.augment.flip 0 1 2; task.augment.rotate 0 180 200; task.augment.mixup 0 -1; task.augment.mix_prob 0 1 3",  # noqa: E501
    ),
    ("'loss.weight=[0,0]' loss.ignore_index=1", "loss.weight 0 0 0; loss.ignore_index 1"),
    ("loss=focal 'loss.alpha=[0,0.0]' loss.ignore_index=0", "loss.alpha 0 0 0.0; loss.ignore_index 0"),
    ("model.dim=128 model.heads=3", "model.heads 128 3"),
    ("loss=adaptive_softmax task=causal_lm model=decoder 'loss.cutoffs=[3,2]'", "loss.cutoffs 3 2"),
    (
        "loss=adaptive_softmax task=causal_lm model=decoder loss.cutoffs=null loss.in_features=4 loss.div_value=8",
        "loss.div_value 4 8",
    ),
    ("optimizer.lr=auto 'optimizer.overrides=[{match:*,lr:0.1}]'", "optimizer.lr"),
    ("data=files data.train=a.csv 'data.columns.words=[a,b]'", "data.columns.*; data.train"),
    (
        "data=files data.train=a.csv 'data.columns.value=[a,a]' 'data.columns.features=[]'",
        "data.columns.features; data.train",
    ),
    ("data=hub data.path=a/b data.columns.text= data.splits.train=null", "data.columns.text; data.splits.train"),
    (
        "data=conll task=token_classification data.train=a.conll data.tag=0 'data.comment=a\\n' data.separator=",
        "data.separator; data.tag 0; data.train",
    ),
    ("data=idx task=image_classification data.folder=null", "data.folder"),
    (
        "data=idx task=image_classification data.folder=a 'data.train={images:a,labels:b}'",
        "data.folder; data.train.images; data.train.labels",
    ),
    (
        "data=idx task=image_classification data.folder=null 'data.train={images:a,labels:b}' 'data.test={labels:a}'",
        "data.test; data.train.images; data.train.labels; data.test.labels",
    ),
    ("data=files data.train=a.csv data.validation= 'data.test=[]'", "data.validation; data.test; data.train"),
    ("data=files data.train=a.csv data.split.validation=1.5", "data.split.validation 0 1 1.5; data.train"),
    ("data=files data.train=a.csv data.split.validation=0.5 data.split.test=0.5", "data.split 0.5 0.5; data.train"),
    ("data=files data.train=a.csv data.split.validation=0", "data.split.validation 0; data.train"),
    ("scheduler=warmup_stable_decay scheduler.warmup=2ep scheduler.decay=60%", "scheduler"),
    ("scheduler=onecycle scheduler.three_phase=true scheduler.warmup=60%", "scheduler.warmup"),
    ("model=pretrained model.path= task.tokenizer= model.weights=", "task.tokenizer; model.weights; model.path"),
    (
        "loss=kl_distillation loss.teacher= loss.weight=2 loss.temperature=0",
        "loss.teacher; loss.temperature 0 0; loss.weight 0 1 2",
    ),
    ("task=pair_classification task.max_length=4", "task.max_length 5 4"),
    ("'model.lora={rnk:2}'", "model.lora.rnk 2"),
    ("'model.lora={rank:a,targets:[]}'", "model.lora.rank; model.lora.targets"),
    ("'model.lora={rank:0,alpha:0,dropout:1}'", "model.lora.rank 1 0; model.lora.alpha 0 0; model.lora.dropout 0 1 1"),
    ("'model.freeze=[1]'", "model.freeze 1 1"),
    ("'model.freeze=[a,{match:a,until:3epp}]'", "model.freeze 2"),
    ("devices=0", "devices 1 0"),
    ("devices=-1 shard=0", "devices 1 -1; shard 1 0"),
    ("devices=all shard=yes", "devices; shard"),
    ("devices=2 device=cuda:1", "device 2"),
    ("devices=auto device=mps", "device"),
    ("shard=true", "shard 1"),
    ("shard=2", "shard 1 2"),
    ("devices=4 shard=3", "shard 4 3"),
    ("compile=graphs device=cpu", "compile; compile"),
    ("compile=graphs device=mps loader.batching=fixed", "compile"),
    ("compile=graphs device=cuda loader.batching=padded", "compile"),
    ("compile=graphs device=cuda loader.tokens=4096 devices=2 shard=true", "compile"),
    ("compile=graphs device=cuda loader.batching=fixed perturb=r_drop", "compile"),
    ("compile=graphs device=cpu task=image_classification data=idx data.folder=a model=vit", "compile; data.folder"),
    (
        "devices=4 device=mps shard=8 optimizer=muon prune=l1 compile=true train.batch_size=0",
        "device; shard 4 8; optimizer; prune; compile; train.batch_size 1 0",
    ),
    (
        "'model.weights_rename=[[a]]' 'optimizer.overrides=[{match:a,lr:0},{lr:1},{match:a},{matc:a,lr:1}]'",
        "model.weights_rename 1; optimizer.overrides 1 0 0; optimizer.overrides 2; optimizer.overrides 3; optimizer.overrides 4; optimizer.overrides 4",  # noqa: E501
    ),
]
"""A command line, and for each key that it reports the numbers in the message: limits, other arguments, the value."""

_NUMBER = re.compile(r"(?<![\w.'])-?\d+(?:\.\d+)?(?![\w.'%])")


def errors_of(argv: list[str], verb: str = "train") -> tuple[str, ...]:
    with pytest.raises((ConfigError, DataError)) as caught:
        check_command(verb, argv)
    assert isinstance(caught.value, ConfigError | DataError)
    return caught.value.messages


def test_wrong_values_are_reported_with_their_limits() -> None:
    for line, expected in CASES:
        reported = []
        for message in errors_of(shlex.split(line)):
            key, _, problem = message.partition(":")
            reported.append(" ".join([key, *_NUMBER.findall(problem.partition(". ")[0].rstrip("."))]))
        assert sorted(reported) == sorted(expected.split("; ")), line


@dataclass(frozen=True)
class Constraint:
    """A constrained key of an option, with values outside of the constraint."""

    group: str
    option: str
    target: str
    key: str
    parameter: str
    wrong: list[Any]


VALUES: tuple[Any, ...] = (
    -1,
    0,
    math.inf,
    10**30,
    1,
    2,
    -0.5,
    1.5,
    1000,
    "",
    [],
    [-1],
    [10**30],
    [""],
    [0, 0, 0],
    {"a": -1},
    {"a": 2},
    {"a": ""},
)
"""Candidates: at least one of them is outside of each constraint in conf/."""


def constraints() -> list[Constraint]:
    """Return the constraints of all parts in conf/."""
    groups = groups_in([own_folder()])
    constrained = []
    for group in ("task", "data", "model", "loss", "optimizer", "scheduler", "prune", "perturb", "decode", "export"):
        for option in groups.options(group):
            target = groups.content(group, option)["_target_"]
            signature = read(target)
            assert signature is not None, target
            for key in groups.content(group, option):
                parameter = key if key in signature.annotations else f"{key}_steps"
                declared = signature.annotations.get(parameter, Any)
                if not is_constrained(declared):
                    continue
                texts = (declared, signature.annotation(key) or Any)
                wrong = [value for value in VALUES if all(value_problems(key, value, text) for text in texts)]
                in_type = [value for value in wrong if all(fits_type(value, text) for text in texts)]
                constrained.append(Constraint(group, option, target, key, parameter, in_type or wrong))
    assert len(constrained) > 150
    return constrained


def test_constraints_are_the_same_in_the_source_and_at_the_constructor() -> None:
    for item in constraints():
        make = locate(item.group, {"_target_": item.target})
        sources = inspect.getmro(make) if isinstance(make, type) else ()
        owner = next((each for each in sources if item.parameter in inspect.get_annotations(each)), make)
        module = sys.modules[owner.__module__]
        parameter = inspect.signature(make).parameters[item.parameter]
        signature = read(item.target)
        assert signature is not None
        assert signature.annotations[item.parameter] == resolve_annotation(parameter.annotation, vars(module)), item


def override(key: str, value: Any) -> str:
    text = "inf" if value == math.inf else json.dumps(value)
    return f"{key}=" + re.sub(r'"(\w+)":', r"\1:", text)  # Hydra takes no quotes around keys


def test_values_outside_of_each_constraint_are_refused_on_the_command_line() -> None:
    """Each command line chooses one option of every group and sets all its constrained keys."""
    by_option: dict[str, dict[str, list[Constraint]]] = {}
    for item in constraints():
        by_option.setdefault(item.group, {}).setdefault(item.option, []).append(item)
    decode = by_option.pop("decode")
    lines = [("generate", [("decode", option)]) for option in decode]
    columns = [[(group, option) for option in options] for group, options in by_option.items()]
    lines += [("train", [choice for choice in row if choice is not None]) for row in zip_longest(*columns)]
    accepted = []
    for verb, choices in lines:
        items = [item for group, option in choices for item in (by_option | {"decode": decode})[group][option]]
        for end in (0, -1):
            values = {f"{item.group}.{item.key}": item.wrong[end] for item in items}
            argv = [f"{group}={option}" for group, option in choices]
            messages = errors_of([*argv, *(override(key, value) for key, value in values.items())], verb)
            reported = {message.partition(":")[0] for message in messages}
            accepted += [
                (choices, key, value)
                for key, value in values.items()
                if not any(name == key or name.startswith(f"{key}.") for name in reported)
            ]
    assert accepted == []


def test_values_outside_of_each_constraint_are_refused_by_the_constructor() -> None:
    accepted = []
    for item in constraints():
        make = locate(item.group, {"_target_": item.target})
        parameters = inspect.signature(make).parameters.values()
        # The check comes before everything else, so that any value of the other parameters serves.
        absent = {each.name: None for each in parameters if each.default is each.empty}
        positional = [absent.pop(each.name) for each in parameters if each.kind is each.POSITIONAL_ONLY]
        for value in item.wrong:
            try:
                make(*positional, **{**absent, item.parameter: value})
            except ConfigError as error:
                if any(re.match(rf"{item.parameter}[.:]", message) for message in error.messages):
                    continue
            except Exception as error:
                accepted.append((item.target, item.parameter, value, repr(error)))
                continue
            accepted.append((item.target, item.parameter, value, "no error"))
    assert accepted == []
