import math
from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from trainer.optimizer.parameter_groups import find_override, find_override_problems

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
def test_the_last_match_wins_for_each_value(entries):
    for name in NAMES:
        expected = {}
        for key in ("lr", "weight_decay"):
            for entry in reversed(entries):
                if key in entry and fnmatchcase(name.removeprefix("model."), entry["match"]):
                    expected[key] = entry[key]
                    break
        assert find_override(name, entries) == expected


def test_an_integer_becomes_a_float():
    values = find_override("model.head.weight", [{"match": "head.*", "lr": 1, "weight_decay": 0}])
    assert values == {"lr": 1.0, "weight_decay": 0.0}
    assert all(isinstance(value, float) for value in values.values())


def test_valid_entries_have_no_problem():
    entries = [{"match": "*.bias", "lr": 0.1}, {"match": "loss.t", "weight_decay": 0}, {"match": "head.*", "lr": 2}]
    assert find_override_problems(entries, TRAINABLE) == []
    assert find_override_problems([], TRAINABLE) == []


ENTRIES_WITH_PROBLEMS = [
    ("head.*", "overrides: entry 1: must be a mapping, got 'head.*'. Write {match: <pattern of names>, "),
    ({"match": "head.*"}, "overrides: entry 1: sets no value. Write {match: "),
    (
        {"match": "head.*", "rate": 1},
        "overrides: entry 1: has an unknown key, got 'rate'. Known: lr, match, weight",
    ),
    ({"match": "head.*", "weightdecay": 1}, "got 'weightdecay'. Did you mean weight_decay?"),
    ({"match": "head.*", "lr": 0.0}, "overrides: entry 1, lr: must be greater than 0, got 0.0."),
    ({"match": "head.*", "lr": math.nan}, "overrides: entry 1, lr: must be finite and greater than 0, got nan."),
    ({"match": "head.*", "lr": None}, "overrides: entry 1, lr: must be a number, got null."),
    ({"match": "head.*", "lr": "1e-3"}, "overrides: entry 1, lr: must be a number, got '1e-3'."),
    ({"match": "head.*", "lr": True}, "overrides: entry 1, lr: must be a number, got true."),
    ({"match": "head.*", "weight_decay": -1}, "entry 1, weight_decay: must be at least 0, got -1."),
    ({"lr": 0.1}, "overrides: entry 1, match: must be a pattern of parameter names, got null. Use blocks.0.*"),
    ({"match": "", "lr": 0.1}, "overrides: entry 1, match: must be a pattern of parameter names, got ''."),
    (
        {"match": "heads.*", "lr": 0.1},
        "entry 1, match: matches no parameter, got 'heads.*'. Similar names: head.weight.",
    ),
    ({"match": "model.head.weight", "lr": 0.1}, "got 'model.head.weight'. Similar names: head.weight"),
    ({"match": "zzz", "lr": 0.1}, "The names are embedding.weight, blocks.0.norm.bias, blocks.1.norm.bias and 2 more."),
]


def test_problems_are_reported():
    for entry, message in ENTRIES_WITH_PROBLEMS:
        (problem,) = find_override_problems([entry], TRAINABLE)
        assert message in problem


def test_all_problems_are_reported_together():
    entries = [{"match": "head.*", "lr": 1}, {"match": "x", "lr": -1, "weight_decay": -1, "decay": 1}, 3]
    problems = find_override_problems(entries, TRAINABLE)
    assert [problem.split(": ")[1] for problem in problems] == [
        "entry 2",
        "entry 2, lr",
        "entry 2, weight_decay",
        "entry 2, match",
        "entry 3",
    ]


def test_a_pattern_must_match_a_trainable_parameter():
    trainable = {"model.head.weight": False, "model.head.bias": False, "model.body.bias": True}
    (problem,) = find_override_problems([{"match": "head.*", "lr": 0.1}], trainable)
    assert problem == "overrides: entry 1, match: matches only frozen parameters, got 'head.*'."
    assert find_override_problems([{"match": "*.bias", "lr": 0.1}], trainable) == []
