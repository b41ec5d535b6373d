import math
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.optimizer.overrides import overridden, override_faults

NAMES = [
    "model.embedding.weight",
    "model.blocks.0.norm.bias",
    "model.blocks.1.norm.bias",
    "model.head.weight",
    "loss.t",
]
TRAINABLE = dict.fromkeys(NAMES, True)

PATTERNS = ["*", "*.bias", "blocks.*", "blocks.[01].norm.bias", "head.weight", "loss.*", "*.weight", "model.*"]
VALUES = st.dictionaries(st.sampled_from(["lr", "weight_decay"]), st.floats(0.001, 1.0), min_size=1)
ENTRIES = st.lists(st.builds(lambda match, values: {"match": match, **values}, st.sampled_from(PATTERNS), VALUES))


@given(ENTRIES)
def test_the_last_match_holds_for_each_value_by_itself(entries):
    for name in NAMES:
        expected = {}
        for key in ("lr", "weight_decay"):
            for entry in reversed(entries):
                if key in entry and fnmatchcase(name.removeprefix("model."), entry["match"]):
                    expected[key] = entry[key]
                    break
        assert overridden(name, entries) == expected


def test_a_whole_number_is_a_number():
    values = overridden("model.head.weight", [{"match": "head.*", "lr": 1, "weight_decay": 0}])
    assert values == {"lr": 1.0, "weight_decay": 0.0}
    assert all(isinstance(value, float) for value in values.values())


def test_what_fits_has_no_fault():
    entries = [{"match": "*.bias", "lr": 0.1}, {"match": "loss.t", "weight_decay": 0}, {"match": "head.*", "lr": 2}]
    assert override_faults(entries, TRAINABLE) == []
    assert override_faults([], TRAINABLE) == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("head.*", "overrides: entry 1: must be a mapping, got 'head.*'. An entry is {match: <pattern of names>, "),
        ({"match": "head.*"}, "overrides: entry 1: sets nothing. An entry is {match: "),
        (
            {"match": "head.*", "rate": 1},
            "overrides: entry 1: has an unknown key, got 'rate'. Known: lr, match, weight",
        ),
        ({"match": "head.*", "weightdecay": 1}, "got 'weightdecay'. Did you mean weight_decay."),
        ({"match": "head.*", "lr": 0.0}, "overrides: entry 1, lr: must be finite and above 0, got 0.0."),
        ({"match": "head.*", "lr": math.nan}, "overrides: entry 1, lr: must be finite and above 0, got nan."),
        ({"match": "head.*", "lr": None}, "overrides: entry 1, lr: must be a number, got None."),
        ({"match": "head.*", "lr": "1e-3"}, "overrides: entry 1, lr: must be a number, got '1e-3'."),
        ({"match": "head.*", "lr": True}, "overrides: entry 1, lr: must be a number, got True."),
        ({"match": "head.*", "weight_decay": -1}, "entry 1, weight_decay: must be finite and not negative, got -1."),
        ({"lr": 0.1}, "overrides: entry 1, match: must be a pattern of parameter names, got None. blocks.0.*"),
        ({"match": "", "lr": 0.1}, "overrides: entry 1, match: must be a pattern of parameter names, got ''."),
        ({"match": "heads.*", "lr": 0.1}, "entry 1, match: fits no parameter, got 'heads.*'. Near it: head.weight."),
        ({"match": "model.head.weight", "lr": 0.1}, "got 'model.head.weight'. Near it: head.weight"),
        ({"match": "zzz", "lr": 0.1}, "There are embedding.weight, blocks.0.norm.bias, blocks.1.norm.bias and 2 more."),
    ],
)
def test_a_fault_is_told(entry, message):
    (fault,) = override_faults([entry], TRAINABLE)
    assert message in fault


def test_all_faults_come_together():
    entries = [{"match": "head.*", "lr": 1}, {"match": "x", "lr": -1, "weight_decay": -1, "decay": 1}, 3]
    faults = override_faults(entries, TRAINABLE)
    assert [fault.split(": ")[1] for fault in faults] == [
        "entry 2",
        "entry 2, lr",
        "entry 2, weight_decay",
        "entry 2, match",
        "entry 3",
    ]


def test_frozen_parameters_alone_are_no_match():
    trainable = {"model.head.weight": False, "model.head.bias": False, "model.body.bias": True}
    (fault,) = override_faults([{"match": "head.*", "lr": 0.1}], trainable)
    assert fault == "overrides: entry 1, match: fits frozen parameters only, got 'head.*'."
    assert override_faults([{"match": "*.bias", "lr": 0.1}], trainable) == []
