from typing import Any

import pytest

from trainer.builders.model import prune_model
from trainer.config.part_rules import faults
from trainer.errors import ConfigError
from trainer.model.text_encoder import TextEncoder

ENCODER = {"_target_": "trainer.model.text_encoder.TextEncoder", "dim": 8, "heads": 2, "hidden": 12, "dropout": 0.1}
L1 = {"_target_": "trainer.prune.l1.l1", "_partial_": True, "amount": 0.3, "targets": None}
LN = L1 | {"_target_": "trainer.prune.ln.ln", "n": 2, "dim": 0}
TOGETHER = L1 | {"_target_": "trainer.prune.global_magnitude.global_magnitude"}
UNSUPERVISED = {"supervision": "none", "evaluate_pairs": False, "threshold": None}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"prune": LN | {"dim": 2}, "model": ENCODER}, "prune.dim: there is no such axis in weights of 2, got 2."),
        ({"prune": LN | {"dim": -5}}, "prune.dim: there is no such axis in weights of 4, got -5."),
        ({"prune": L1 | {"targets": []}}, "prune.targets: names nothing to prune, got []."),
        ({"prune": L1 | {"targets": ["head", ""]}}, "prune.targets: holds a pattern that is empty, got ['head', '']."),
        ({"prune": L1, "model": {"lora": {}}}, "prune: the adapters of model.lora would fill in what is pruned"),
        (
            {"task": UNSUPERVISED, "model": ENCODER | {"dropout": 0.0}},
            "model.dropout: without dropout the two views of a text are equal, and task.supervision=none has no others",
        ),
        (
            {"task": UNSUPERVISED, "model": {"_target_": "trainer.model.linear.Linear"}},
            "model: without dropout the two views of a text are equal",
        ),
        ({"task": UNSUPERVISED | {"threshold": 0.5}}, "task.threshold: is for task.supervision=scored"),
        ({"task": {"supervision": "pairs", "evaluate_pairs": True}}, "task.evaluate_pairs: is for task.supervision"),
        ({"task": {"channels": "auto", "mean": [0.5]}}, "task.mean: needs a number of channels beside it"),
        ({"task": {"channels": 3, "std": [0.5]}}, "task.std: must be auto, or one number for each of the 3 channels"),
        ({"task": {"size": [28]}}, "task.size: must be auto, pixels, or a list of height and width"),
        ({"loss": {"weight": []}}, "loss.weight: must not be empty, got []."),
        ({"loss": {"ignore_index": 1}}, "loss.ignore_index: is a target that means something, got 1. Use a negative"),
    ],
)
def test_each_fault_alone(config: dict[str, Any], told: str) -> None:
    (fault,) = faults(config)
    assert fault.startswith(told)


@pytest.mark.parametrize(
    "config",
    [
        {"prune": LN | {"dim": -2}, "model": ENCODER},
        {"prune": LN | {"dim": 3}, "model": {"_target_": "trainer.model.resnet.ResNet"}},
        {"prune": L1 | {"amount": 10**6, "targets": ["head"]}, "model": ENCODER},
        {
            "prune": L1 | {"_target_": "trainer.prune.global_magnitude.global_magnitude", "amount": 100},
            "model": ENCODER,
        },
        {"task": UNSUPERVISED, "model": ENCODER},
        {"task": UNSUPERVISED, "model": ENCODER | {"dropout": 0.0, "lora": {"dropout": 0.1}}},
        {"task": UNSUPERVISED, "model": {"_target_": "trainer.model.pretrained.Pretrained", "path": "a/b"}},
        {"task": UNSUPERVISED, "model": {"_target_": "mine.Model"}},
        {"task": UNSUPERVISED | {"supervision": "pairs"}, "model": ENCODER | {"dropout": 0.0}},
    ],
)
def test_what_is_allowed(config: dict[str, Any]) -> None:
    assert list(faults(config)) == []


@pytest.mark.parametrize("part", [L1, LN, LN | {"dim": 1}, L1 | {"_target_": "trainer.prune.random.random"}])
def test_a_count_is_told_where_the_model_would_refuse_it(part: dict[str, Any]) -> None:
    def refused(amount: int) -> bool:
        model = TextEncoder(**keys, depth=1, pooling="mean", vocab_size=5, max_length=4, num_outputs=2)
        try:
            prune_model(part | {"amount": amount}, model, seed=0)
        except ConfigError:
            return True
        return False

    keys: dict[str, Any] = {key: value for key, value in ENCODER.items() if key != "_target_"}
    smallest = 8 if "dim" in part else 64
    assert [refused(smallest - 1), refused(smallest)] == [False, True]
    assert list(faults({"prune": part | {"amount": smallest - 1}, "model": ENCODER})) == []
    (fault,) = faults({"prune": part | {"amount": smallest}, "model": ENCODER})
    assert fault.startswith(
        f"prune.amount: leaves nothing of the smallest weights of this model, which have {smallest}"
    )
