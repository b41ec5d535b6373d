import re

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


def advice(model: nn.Module, tensors: dict[str, Tensor], rename: list[list[str]], ignore: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        fit_weights(model, tensors, rename, ignore)
    assert len(str(caught.value).splitlines()) <= 24
    return str(caught.value)


def follow(
    model: nn.Module, tensors: dict[str, Tensor], rename: list[list[str]] | None = None, ignore: list[str] | None = None
) -> tuple[list[list[str]], list[str]]:
    """Takes the keys out of the message as a shell and Hydra do, loads with them, and returns them."""
    message = advice(model, tensors, rename or [], ignore or [])
    keys = dict(re.findall(r"model\.(\w+)='([^']*)'", message))
    parsed = {
        override.key_or_group: override.value()
        for override in OverridesParser.create().parse_overrides([f"{key}={text}" for key, text in keys.items()])
    }
    found = parsed.get("weights_rename", rename or []), parsed.get("weights_ignore", ignore or [])
    fit_weights(model, tensors, *found)
    return found


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("old", ["", "bert.", "a-b.(c).", "blocks.0."])
@pytest.mark.parametrize("new", ["", "model.encoder.", "embedding.", "blocks."])
def test_a_common_prefix_is_found(old: str, new: str) -> None:
    model: nn.Module = Encoder()
    for part in reversed(new.split(".")[:-1]):
        outer = nn.Module()
        outer.add_module(part, model)
        model = outer
    tensors = prefixed(Encoder().state_dict(), old)
    if old == new:
        fit_weights(model, tensors, [], [])
    else:
        assert follow(model, tensors)[1] == []
    assert all(torch.equal(model.state_dict()[new + name.removeprefix(old)], tensors[name]) for name in tensors)


def test_the_prefix_is_exactly_what_is_proposed() -> None:
    tensors = prefixed(Encoder().state_dict(), "bert.")
    assert advice(Encoder(), tensors, [], []).endswith('\n  All fit with model.weights_rename=\'[["^bert[.]",""]]\'.')
    assert follow(Encoder(), tensors) == ([["^bert[.]", ""]], [])


def test_a_prefix_and_another_head() -> None:
    backbone = Encoder()
    found = follow(Wrapper(classes=7), {**backbone.state_dict(), "pooler.weight": torch.ones(4, 4)})
    assert found == ([["^", "bert."]], ["classifier.*", "bert.pooler.*"])


def test_a_task_model_into_its_backbone() -> None:
    assert follow(Encoder(), Wrapper().state_dict()) == ([["^bert[.]", ""]], ["classifier.*"])


def test_another_number_of_classes() -> None:
    assert follow(Encoder(classes=7), Encoder(classes=3).state_dict()) == ([], ["head.*"])


def test_fewer_layers() -> None:
    assert follow(Encoder(depth=2), Encoder(depth=4).state_dict()) == ([], ["blocks.2.*", "blocks.3.*"])


def test_keys_given_before_stay() -> None:
    tensors = prefixed(Wrapper().state_dict(), "student.")
    found = follow(Encoder(classes=7), tensors, [["^student[.]", "net."]], ["net.classifier.*"])
    assert found == ([["^student[.]", "net."], ["^net[.]bert[.]", ""]], ["net.classifier.*", "head.*"])


def test_another_model() -> None:
    message = advice(Encoder(), {"conv.weight": torch.ones(3, 3, 7, 7), "conv.bias": torch.ones(77)}, [], [])
    assert message.endswith(
        "None of its names is one of the model's: it is of another model, or needs model.weights_rename."
    )


def test_the_whole_message() -> None:
    tensors = Encoder(classes=7).state_dict()
    tensors["norms.weight"] = torch.ones(5)
    del tensors["norm.weight"]
    assert advice(Encoder(), tensors, [], []) == (
        "weights: 4 of 18 names do not fit.\n"
        "    name          in the file  in the model\n"
        "    norm.weight   -            (4,)          near norms.weight\n"
        "    head.weight   (7, 4)       (3, 4)\n"
        "    norms.weight  (5,)         -             near norm.weight\n"
        "    head.bias     (7,)         (3,)\n"
        '  What fits is loaded with model.weights_ignore=\'["norm.weight","head.*","norms.*"]\'; '
        "what is ignored keeps its initial values, or is not used."
    )


def test_a_part_of_another_name() -> None:
    tensors = Encoder(classes=7).state_dict()
    tensors = {name.replace("norm.", "last.norm."): tensor for name, tensor in tensors.items()}
    assert follow(Encoder(), tensors) == ([["^last[.]", ""]], ["head.*"])


def test_a_long_table_shows_both_sides() -> None:
    misfits = [Mismatch(f"ours.{number}", None, "(2,)") for number in range(30)]
    misfits += [Mismatch(f"theirs.{number}", "(2,)", None) for number in range(30)]
    lines = format_table(misfits).splitlines()

    assert len(lines) == 22
    assert sum("ours." in line.split()[0] for line in lines) == 10
    assert lines[-1] == "    and 40 more"


def test_shapes() -> None:
    assert shape_of(torch.ones(2, 3)) == "(2, 3)"
    assert shape_of(torch.tensor(3)) == "() int64"
