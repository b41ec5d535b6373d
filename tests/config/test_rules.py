from typing import Any

import pytest

from trainer.config import jobs, schema
from trainer.config.bounds import RANGES
from trainer.config.rules import faults


def config_with(**changes: Any) -> dict[str, Any]:
    """A sound configuration with changes by key, `section__key` for nested ones."""
    config: dict[str, Any] = schema.defaults(jobs.TrainJob) | {
        "optimizer": {"lr": 1e-3, "weight_decay": 0.0},
        "scheduler": {"warmup": "10%", "decay": "20%"},
        "data": {"validation": None, "test": None, "split": {"validation": 0.1, "test": 0.1}},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            config[section] = config[section] | {key: value}
        else:
            config[section] = value
    return config


def test_a_sound_configuration_has_no_fault() -> None:
    assert faults(config_with()) == []


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"seed": -1}, "seed: must be at least 0 and below 2 ** 64, got -1"),
        ({"seed": 1 << 64}, "seed: must be at least 0 and below 2 ** 64, got 18446744073709551616"),
        ({"train__batch_size": 0}, "train.batch_size: must be at least 1, got 0"),
        ({"train__accumulate": 33}, "train.accumulate: must not be larger than train.batch_size (32)"),
        ({"train__max_grad_norm": 0.0}, "train.max_grad_norm: must be finite and above 0, got 0.0"),
        ({"train__max_grad_norm": float("nan")}, "train.max_grad_norm: must be finite and above 0, got nan"),
        ({"checkpoint__keep": 1}, "checkpoint.keep: must be at least 2"),
        ({"ema__decay": 1.0}, "ema.decay: must be at least 0 and below 1, got 1.0"),
        ({"ema__decay": -0.1}, "ema.decay: must be at least 0 and below 1, got -0.1"),
        ({"optimizer__lr": 0}, "optimizer.lr: must be finite and above 0, got 0"),
        ({"task": {"max_length": 2}}, "task.max_length: must be at least 3"),
        ({"model": {"dim": 128, "heads": 3}}, "model.heads: must divide model.dim (128), got 3"),
        ({"optimizer": {"lr": 1e-3, "betas": [0.9, 1.5]}}, "optimizer.betas: must be at least 0 and below 1, got 1.5"),
        ({"loss": {"weight": [1, -1]}}, "loss.weight: must be finite and not negative, got -1"),
        ({"loss": {"alpha": [0, 0.0]}}, "loss.alpha: must not all be 0: nothing would be learnt, got [0, 0.0]"),
        ({"optimizer__lr": float("inf")}, "optimizer.lr: must be finite and above 0, got inf"),
        ({"loader__limit": 0}, "loader.limit: must be at least 1, got 0"),
        ({"device": "cuda0"}, "device: must be auto, cpu, cuda, cuda:N or mps, got 'cuda0'"),
        ({"train__duration": "50%"}, "train.duration: a percentage has nothing to refer to"),
        ({"train__duration": 0}, "train.duration: must not be zero, got 0"),
        ({"train__log_every": "0ep"}, "train.log_every: must not be zero, got '0ep'"),
        ({"checkpoint__every": 0}, "checkpoint.every: must not be zero"),
        ({"scheduler__warmup": "5ep"}, "scheduler.warmup: must not be longer than the run (train.duration is 4ep)"),
        ({"scheduler__warmup": 200, "train__duration": "100st"}, "scheduler.warmup: must not be longer"),
        ({"scheduler__warmup": "2ep", "scheduler__decay": "60%"}, "scheduler: warmup and decay together"),
        ({"scheduler": {"warmup": "60%", "three_phase": True}}, "scheduler.warmup: must be half of the run at most"),
        ({"resume": "auto"}, "resume: auto needs a run that has a fixed place"),
        ({"run__name": "a/b"}, "run.name: must be the name of a folder, got 'a/b'"),
        ({"checkpoint": "newest"}, "checkpoint: must be best, last or step-N, got 'newest'"),
        ({"run__dir": ""}, "run.dir: must not be empty, got ''."),
        ({"split": "tst"}, "split: must be one of train, validation, test, got 'tst'"),
        (
            {"data": {"validation": None, "test": None, "split": {"validation": 0.5, "test": 0.5}}},
            "data.split: the shares leave nothing",
        ),
        (
            {"data": {"validation": {"images": None}, "split": {"validation": 0}}},
            "data.split.validation: a run needs a validation split",
        ),
        ({"data": {"split": {"validation": 1.5}}}, "data.split.validation: must be at least 0 and below 1"),
    ],
)
def test_each_fault_alone(changes: dict[str, Any], start: str) -> None:
    (fault,) = faults(config_with(**changes))
    assert fault.startswith(start)


@pytest.mark.parametrize(
    "changes",
    [
        {"train__accumulate": 32},
        {"train__max_grad_norm": None, "ema__decay": None, "loader__limit": None},
        {"ema__decay": 0.0},
        {"scheduler__warmup": "4ep", "scheduler__decay": 0},
        {"scheduler__warmup": 10**9},  # steps beside epochs: not known before the data is
        {"resume": "auto", "run__name": "a"},
        {"resume": "auto", "run__dir": "a/b"},
        {"device": "cuda:3"},
        {"data": {"validation": "v.csv", "split": {"validation": 0.9, "test": 0.2}}},
        {"data": {"splits": {"validation": "dev", "test": None}, "split": {"validation": 0, "test": 0.2}}},
    ],
)
def test_what_is_allowed(changes: dict[str, Any]) -> None:
    assert faults(config_with(**changes)) == []


@pytest.mark.parametrize("value", ["x", None, {}, True, ["x", None]])
def test_a_wrong_type_is_left_to_the_check_of_types(value: Any) -> None:
    told = []
    # The keys of a mapping that we own are checked with their entries.
    for key in (key for key in RANGES if not key.startswith("model.lora.")):
        *sections, name = key.split(".")
        config = {name: value}
        for section in reversed(sections):
            config = {section: config}
        told += [fault for fault in faults(config) if fault.startswith(f"{key}:")]
    assert told == []
