"""The message for weights that do not fit: following its remedy loads them."""

import re
from itertools import product

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.model.weights import Mismatch, fit_weights, format_table, shape_of


class Encoder(nn.Module):
    def __init__(self, classes: int = 3, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4)) for _ in range(depth))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, classes)


class Wrapper(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.bert = Encoder()
        self.classifier = nn.Linear(4, classes)


def error_of(model: nn.Module, tensors: dict[str, Tensor], rename: list[list[str]], ignore: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        fit_weights(model, tensors, rename, ignore)
    assert len(str(caught.value).splitlines()) <= 24
    return str(caught.value)


def follow(
    model: nn.Module, tensors: dict[str, Tensor], rename: list[list[str]] | None = None, ignore: list[str] | None = None
) -> tuple[list[list[str]], list[str]]:
    """Parse the keys of the message as a shell and Hydra would, load with them, and return them."""
    message = error_of(model, tensors, rename or [], ignore or [])
    keys = dict(re.findall(r"model\.(\w+)='([^']*)'", message))
    parsed = {
        override.key_or_group: override.value()
        for override in OverridesParser.create().parse_overrides([f"{key}={text}" for key, text in keys.items()])
    }
    values = parsed.get("weights_rename", rename or []), parsed.get("weights_ignore", ignore or [])
    fit_weights(model, tensors, *values)
    return values


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def test_a_common_prefix_is_replaced() -> None:
    for old, new in product(("", "bert.", "a-b.(c).", "blocks.0."), ("", "model.encoder.", "embedding.", "blocks.")):
        model: nn.Module = Encoder()
        for name in reversed(new.split(".")[:-1]):
            outer = nn.Module()
            outer.add_module(name, model)
            model = outer
        tensors = prefixed(Encoder().state_dict(), old)
        if old == new:
            fit_weights(model, tensors, [], [])
        else:
            assert follow(model, tensors)[1] == []
        assert all(torch.equal(model.state_dict()[new + name.removeprefix(old)], tensors[name]) for name in tensors)


def test_the_suggested_prefix_is_minimal() -> None:
    tensors = prefixed(Encoder().state_dict(), "bert.")
    assert """model.weights_rename='[["^bert[.]",""]]'""" in error_of(Encoder(), tensors, [], [])
    assert follow(Encoder(), tensors) == ([["^bert[.]", ""]], [])


def test_prefix_and_other_head() -> None:
    backbone = Encoder()
    keys = follow(Wrapper(classes=7), {**backbone.state_dict(), "pooler.weight": torch.ones(4, 4)})
    assert keys == ([["^", "bert."]], ["classifier.*", "bert.pooler.*"])


def test_task_model_into_its_backbone() -> None:
    assert follow(Encoder(), Wrapper().state_dict()) == ([["^bert[.]", ""]], ["classifier.*"])


def test_other_number_of_classes() -> None:
    assert follow(Encoder(classes=7), Encoder(classes=3).state_dict()) == ([], ["head.*"])


def test_fewer_layers() -> None:
    assert follow(Encoder(depth=2), Encoder(depth=4).state_dict()) == ([], ["blocks.2.*", "blocks.3.*"])


def test_current_keys_are_kept() -> None:
    tensors = prefixed(Wrapper().state_dict(), "student.")
    keys = follow(Encoder(classes=7), tensors, [["^student[.]", "net."]], ["net.classifier.*"])
    assert keys == ([["^student[.]", "net."], ["^net[.]bert[.]", ""]], ["net.classifier.*", "head.*"])


def test_weights_of_another_model() -> None:
    message = error_of(Encoder(), {"conv.weight": torch.ones(3, 3, 7, 7), "conv.bias": torch.ones(77)}, [], [])
    assert "the weights are of another model, or need model.weights_rename" in message


def test_whole_message() -> None:
    tensors = Encoder(classes=7).state_dict()
    tensors["norms.weight"] = torch.ones(5)
    del tensors["norm.weight"]
    *lines, remedy = error_of(Encoder(), tensors, [], []).splitlines()
    assert lines == [
        "weights: 4 of 18 names do not fit.",
        "    name          in the file  in the model",
        "    norm.weight   -            (4,)          similar to norms.weight",
        "    head.weight   (7, 4)       (3, 4)",
        "    norms.weight  (5,)         -             similar to norm.weight",
        "    head.bias     (7,)         (3,)",
    ]
    assert """model.weights_ignore='["norm.weight","head.*","norms.*"]'""" in remedy


def test_renamed_module() -> None:
    tensors = Encoder(classes=7).state_dict()
    tensors = {name.replace("norm.", "last.norm."): tensor for name, tensor in tensors.items()}
    assert follow(Encoder(), tensors) == ([["^last[.]", ""]], ["head.*"])


def test_long_table_shows_both_sides() -> None:
    mismatches = [Mismatch(f"ours.{number}", None, "(2,)") for number in range(30)]
    mismatches += [Mismatch(f"theirs.{number}", "(2,)", None) for number in range(30)]
    lines = format_table(mismatches).splitlines()

    assert len(lines) == 22
    assert sum("ours." in line.split()[0] for line in lines) == 10
    assert lines[-1] == "    and 40 more"


def test_shape_of() -> None:
    assert shape_of(torch.ones(2, 3)) == "(2, 3)"
    assert shape_of(torch.tensor(3)) == "() int64"
