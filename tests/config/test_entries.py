from typing import Any

import pytest

from trainer.config import entries
from trainer.config.entries import faults


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model": {"freeze": [1]}}, "model.freeze: entry 1: must be a pattern of names, got 1. An entry is a pattern"),
        ({"model": {"freeze": ["a", ""]}}, "model.freeze: entry 2: must be a pattern of names, got ''."),
        ({"model": {"freeze": [{"match": "a"}]}}, "model.freeze: entry 1: must have match and until, got {"),
        ({"model": {"freeze": [{"match": "", "until": 1}]}}, "model.freeze: entry 1: must be a pattern of names"),
        (
            {"model": {"freeze": [{"match": "a", "until": "3epp"}]}},
            "model.freeze: entry 1, until: must be a duration, got '3epp'. An integer (optimizer steps)",
        ),
        (
            {"model": {"freeze": ["*"]}, "loss": {"_target_": "trainer.loss.mse.Mse"}},
            "model.freeze: leaves nothing to train, got ['*']. Spare something, such as the head.",
        ),
        ({"model": {"lora": {"rnk": 2}}}, "model.lora.rnk: there is no such key, got 2. Did you mean rank."),
        ({"model": {"lora": {"rank": "a"}}}, "model.lora.rank: must be an integer, got 'a'."),
        ({"model": {"lora": {"targets": "query"}}}, "model.lora.targets: must be a list of texts or all-linear, got"),
        ({"model": {"lora": {"targets": []}}}, "model.lora.targets: names no module, got []."),
        ({"model": {"weights_rename": [["a"]]}}, "model.weights_rename: entry 1: must be [regular expression, "),
        ({"model": {"weights_rename": [["a", "b"], ["(", ""]]}}, "model.weights_rename: entry 2: is no regular"),
        ({"model": {"weights_rename": [["a", r"\1"]]}}, "model.weights_rename: entry 1: is no regular expression (inv"),
        ({"optimizer": {"overrides": [{"match": "a", "lr": 0}]}}, "optimizer.overrides: entry 1, lr: must be greater"),
        ({"optimizer": {"overrides": [{"lr": 1}]}}, "optimizer.overrides: entry 1, match: must be a pattern of par"),
    ],
)
def test_each_fault_alone(config: dict[str, Any], told: str) -> None:
    (fault,) = faults(config)
    assert fault.startswith(told)


MSE = {"_target_": "trainer.loss.mse.Mse"}


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"freeze": ["a*", {"match": "*", "until": "10%"}], "weights_rename": [["a(.)", r"\1"]]}, "loss": MSE},
        {"model": {"freeze": ["*"], "lora": {}}, "loss": MSE},
        {"model": {"freeze": ["*"], "features": ["norm"]}, "loss": MSE},
        {"model": {"freeze": ["*"]}, "loss": {"_target_": "trainer.loss.adaptive_softmax.A", "in_features": 8}},
        {"model": {"freeze": ["*"]}, "loss": {"_target_": "mine.Loss"}},
        {"model": {"lora": {"rank": 2, "alpha": 4, "targets": ["query"]}}},
        {"model": {"freeze": 1, "lora": 1, "weights_rename": 1}, "optimizer": {"overrides": ["a"]}},
    ],
)
def test_what_is_allowed_or_told_by_its_type(config: dict[str, Any]) -> None:
    assert list(faults(config)) == []


def test_adapters_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "find_spec", lambda name: None)
    assert list(faults({"model": {"lora": {}}})) == [
        "model.lora: needs the package peft, which is not there. pip install trainer[lora]."
    ]
