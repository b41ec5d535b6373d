"""Wrong keys of command lines, as parts, sections and pairs of parts declare them."""

import shlex

import pytest

from trainer.config.command import check_command
from trainer.errors import ConfigError, DataError

CASES = [
    ("prune=ln prune.dim=2 'prune.targets=[]' 'model.lora={}'", "prune prune.dim prune.targets"),
    ("task=sentence_embedding data=stdlib_pairs loss=info_nce task.supervision=none model.dropout=0", "model.dropout"),
    ("task=sentence_embedding loss=info_nce model=linear task.supervision=none", "model"),
    ("task=sentence_embedding loss=info_nce task.supervision=none task.threshold=0.5", "task.threshold"),
    ("task=sentence_embedding loss=info_nce task.supervision=pairs task.evaluate_pairs=true", "task.evaluate_pairs"),
    (
        "task=image_classification data=digits model=resnet model.depth=21 task.channels=auto 'task.mean=[0.5]'",
        "model.depth task.mean",
    ),
    (
        "task=image_classification data=digits model=lenet task.channels=3 'task.std=[0.5]' 'task.size=[28]' task.augment.crop=0.5 task.augment.flip=2 task.augment.rotate=200 task.augment.mix_prob=3 task.augment.mixup=-1",  # noqa: E501
        "task.augment.crop task.augment.flip task.augment.mix_prob task.augment.mixup task.augment.rotate task.size task.std",  # noqa: E501
    ),
    ("'loss.weight=[]'", "loss.weight"),
    ("'loss.weight=[0,0]' loss.ignore_index=1", "loss.ignore_index loss.weight"),
    ("loss=focal 'loss.alpha=[0,0.0]' loss.ignore_index=0", "loss.alpha loss.ignore_index"),
    ("model.dim=128 model.heads=3", "model.heads"),
    ("model=mlp task=tabular_classification data=breast_cancer 'model.hidden=[]'", "model.hidden"),
    ("loss=adaptive_softmax task=causal_lm model=decoder 'loss.cutoffs=[3,2]'", "loss.cutoffs"),
    ("loss=adaptive_softmax task=causal_lm model=decoder 'loss.cutoffs=[]'", "loss.cutoffs"),
    (
        "loss=adaptive_softmax task=causal_lm model=decoder loss.cutoffs=null loss.in_features=4 loss.div_value=8",
        "loss.div_value",
    ),
    ("optimizer.lr=auto 'optimizer.overrides=[{match:*,lr:0.1}]'", "optimizer.lr"),
    ("data=files data.train=a.csv 'data.columns.words=[a,b]'", "data.columns.* data.train"),
    (
        "data=files data.train=a.csv 'data.columns.value=[a,a]' 'data.columns.features=[]'",
        "data.columns.features data.train",
    ),
    ("data=hub data.path=a/b data.columns.text= data.splits.train=null", "data.columns.text data.splits.train"),
    (
        "data=conll task=token_classification data.train=a.conll data.tag=0 'data.comment=a\\n' data.separator=",
        "data.separator data.tag data.train",
    ),
    ("data=idx task=image_classification data.folder=null", "data.folder"),
    (
        "data=idx task=image_classification data.folder=a 'data.train={images:a,labels:b}'",
        "data.folder data.train.images data.train.labels",
    ),
    (
        "data=idx task=image_classification data.folder=null 'data.train={images:a,labels:b}' 'data.test={labels:a}'",
        "data.test data.test.labels data.train.images data.train.labels",
    ),
    ("data=files data.train=a.csv data.validation= 'data.test=[]'", "data.test data.train data.validation"),
    ("data=files data.train=a.csv data.split.validation=1.5", "data.split.validation data.train"),
    ("data=files data.train=a.csv data.split.validation=0.5 data.split.test=0.5", "data.split data.train"),
    ("data=files data.train=a.csv data.split.validation=0", "data.split.validation data.train"),
    ("scheduler=warmup_stable_decay scheduler.warmup=2ep scheduler.decay=60%", "scheduler"),
    ("scheduler=onecycle scheduler.three_phase=true scheduler.warmup=60%", "scheduler.warmup"),
    ("scheduler=reduce_on_plateau scheduler.every=0", "scheduler.every"),
    ("scheduler=greedy scheduler.factor=1 scheduler.patience=-1", "scheduler.factor scheduler.patience"),
    ("model=pretrained model.path= task.tokenizer= model.weights=", "model.path model.weights task.tokenizer"),
    (
        "loss=kl_distillation loss.teacher= loss.weight=2 loss.temperature=0",
        "loss.teacher loss.temperature loss.weight",
    ),
    ("loss=asymmetric task=multilabel_classification task.threshold=1", "task.threshold"),
    ("task=pair_classification task.max_length=4", "task.max_length"),
    ("'model.lora={rnk:2}'", "model.lora.rnk"),
    ("'model.lora={rank:a,targets:[]}'", "model.lora.rank model.lora.targets"),
    ("'model.lora={rank:0,alpha:0,dropout:1}'", "model.lora.alpha model.lora.dropout model.lora.rank"),
    ("'model.freeze=[1]'", "model.freeze"),
    ("'model.freeze=[a,{match:a,until:3epp}]'", "model.freeze"),
    (
        "'model.weights_rename=[[a]]' 'optimizer.overrides=[{match:a,lr:0},{lr:1},{match:a},{matc:a,lr:1}]'",
        "model.weights_rename optimizer.overrides",
    ),
]


@pytest.mark.parametrize(("line", "keys"), CASES)
def test_wrong_keys_are_reported(line: str, keys: str) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        check_command("train", shlex.split(line))
    assert {message.partition(":")[0] for message in caught.value.messages} == {*keys.split()}
