"""What a part refuses of a number, the check of the configuration has told before the part is made."""

from collections.abc import Iterator
from math import inf, nan
from typing import Any

import pytest
import torch

from trainer.builders.instantiate import instantiate, locate, parameters
from trainer.config import rules
from trainer.config.catalogue import Catalogue, own_folder
from trainer.config.parts import value_faults
from trainer.config.signatures import read
from trainer.errors import ConfigError

CATALOGUE = Catalogue((own_folder(),))
NOT_MADE = {"pretrained", "pretrained_image"}
OPTIONS = [
    (group, option)
    for group in ("task", "model", "loss", "optimizer", "scheduler", "prune")
    for option in CATALOGUE.options(group)
    if option not in NOT_MADE
]
NUMBERS = (-1, 0, 1, 2, 0.5, nan, inf)
FACTS: dict[str, Any] = {
    "num_outputs": 3,
    "class_counts": [4, 3, 2],
    "num_train": 9,
    "vocab_size": 50,
    "max_length": 8,
    "pad_id": 0,
    "num_features": 4,
    "image_channels": 1,
    "image_size": (32, 32),
    "seed": 0,
    "total_steps": 100,
    "hidden": frozenset({"a"}),
    "teacher_model": torch.nn.Identity(),
}
REFUSED_WITH_THE_JOB = {("loss", key) for key in ("ignore_index", "weight", "pos_weight", "alpha")}
"""Keys that a loss by itself takes values of that leave nothing to be learnt."""


def part_of(group: str, option: str) -> dict[str, Any]:
    """The part as its YAML gives it, its durations as steps, and values where there is no default."""
    content = CATALOGUE.content(group, option)
    part = dict(content.get(group, content))
    part.pop("targets", None)
    part |= {key: "there" for key, value in part.items() if value == "???"}
    names = parameters(locate(group, part))
    found = {f"{key}_steps" if f"{key}_steps" in names else key: value for key, value in part.items()}
    found |= {name: 5 for name in found if name.endswith("_steps")}
    return found | {"tokenizer": None} if "tokenizer" in found else found


def numbers_of(part: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys of a part and the values to try: each number where one may stand, alone or all in a list."""
    signature = read(part["_target_"])
    assert signature is not None
    for key, value in part.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", number) for name in value for number in NUMBERS)
            continue
        annotation = signature.annotations.get(key, "None")
        length = len(value) if isinstance(value, list) else 3
        for tried in [choice for number in NUMBERS for choice in (number, [number] * length)]:
            if not key.endswith("_steps") and annotation != "Any" and not value_faults(key, tried, annotation):
                yield key, tried


def is_refused(group: str, part: dict[str, Any]) -> bool:
    """Whether the part refuses a value itself, as soon as it is made and used."""
    try:
        if group == "optimizer":
            weight = torch.nn.Parameter(torch.zeros(2, 2))
            instantiate(group, part, **FACTS, params=[{"params": [("a", weight)]}])
            return False
        made = instantiate(group, part, **FACTS)
        if group == "scheduler":
            made(0)
        if group == "prune":
            made({"a": torch.arange(4096.0).view(64, 64)})
    except ConfigError:
        return True
    return False


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_what_a_part_refuses_is_told_before_and_nothing_else(group: str, option: str) -> None:
    part = part_of(group, option)
    assert not is_refused(group, part)
    beside = {"model": part_of("model", "text_encoder")} if group == "prune" else {}
    differing = []
    for key, value in numbers_of(part):
        top, _, inner = key.partition(".")
        changed = part | {top: part[top] | {inner: value} if inner else value}
        told, refused = bool(rules.faults({group: changed, **beside})), is_refused(group, changed)
        if refused > told or (told > refused and (group, key) not in REFUSED_WITH_THE_JOB):
            differing.append((key, value, "told" if told else "refused"))
    assert differing == []
