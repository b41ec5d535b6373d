import copy
from typing import Any

import pytest

from trainer.config import jobs, schema, sections
from trainer.config.resume import NOTES, resume_config
from trainer.config.stored import MAY_CHANGE, config_text, parse_stored_config
from trainer.errors import ConfigError

STORED: dict[str, Any] = schema.defaults(jobs.TrainJob) | {
    "loss": {"_target_": "trainer.loss.focal.Focal", "gamma": 2.0, "betas": [0.9, 0.99]},
    "model": {"_target_": "trainer.model.text_encoder.TextEncoder", "dim": 128},
    "export": {"_target_": "trainer.export.artifacts.publish", "formats": ["onnx"]},
}


def changed(**changes: Any) -> dict[str, Any]:
    config = copy.deepcopy(STORED)
    for path, value in changes.items():
        *sections, key = path.split("__")
        target = config
        for section in sections:
            target = target[section]
        target[key] = value
    return config


def test_equal_config_resumes() -> None:
    assert resume_config(STORED, copy.deepcopy(STORED)) == (STORED, [])
    assert resume_config(STORED, changed(loss__gamma=2, loss__betas=(0.9, 0.99)))[1] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "cuda"},
        {"devices": 4, "shard": 2, "launch": {"grace": 1.0, "timeout": 2.0}},
        {"resume": "auto", "trust": ["mine"]},
        {"run": {"name": "x", "dir": None}},
        {"train__accumulate": 4, "train__log_every": 1, "train__eval_every": "2ep"},
        {"loader__workers": 4, "loader__prefetch": 8, "loader__pin_memory": True, "loader__eval_batch_size": 1},
        {"checkpoint": {"every": 1, "keep": 9, "monitor": "loss"}},
        {"logger": {"console": "none", "tensorboard": False}},
        {"export__formats": ["torchscript"], "export__tolerance": 1.0},
    ],
)
def test_execution_may_change(changes: dict[str, Any]) -> None:
    current = changed(**changes)
    assert resume_config(STORED, current) == (current, [])


def test_a_run_from_before_several_devices_resumes_on_several() -> None:
    old = {key: value for key, value in STORED.items() if key not in ("devices", "shard", "launch")}
    parts = {group: {"_target_": f"trainer.{group}"} for group in ("task", "data", "optimizer")}
    stored = parse_stored_config(config_text(old | parts))
    assert [stored[key] for key in ("devices", "shard")] == [1, False]
    current = stored | {"devices": 2, "shard": True}
    assert resume_config(stored, current) == (current, [])


def test_a_new_duration_is_explained() -> None:
    _, (note,) = resume_config(STORED, changed(train__duration="8ep"))
    assert note.startswith("train.duration: '4ep' -> '8ep'; ")
    assert "schedule" in note


def test_all_other_differences_are_errors_together() -> None:
    current = changed(seed=1, loss__gamma=3.0, model__dim=64, train__batch_size=8, loader__workers=3, ema__decay=None)
    current["loss"]["extra"] = 1
    with pytest.raises(ConfigError) as caught:
        resume_config(STORED, current)
    assert {message.split(". Keep")[0] for message in caught.value.messages} == {
        "seed: cannot change when a run is resumed: 0 -> 1",
        "train.batch_size: cannot change when a run is resumed: 32 -> 8",
        "ema.decay: cannot change when a run is resumed: 0.999 -> null",
        "loss.gamma: cannot change when a run is resumed: 2.0 -> 3.0",
        "loss.extra: cannot change when a run is resumed: (absent) -> 1",
        "model.dim: cannot change when a run is resumed: 128 -> 64",
    }


def test_another_part_is_one_difference() -> None:
    loss = {"_target_": "trainer.loss.cross_entropy.CrossEntropy", "weight": None}
    with pytest.raises(ConfigError) as caught:
        resume_config(STORED, changed(loss=loss))
    (message,) = caught.value.messages
    assert message.startswith("loss: cannot change when a run is resumed: focal -> cross")


def test_remedy_names_the_weights_if_the_model_takes_them() -> None:
    stored = changed(model__weights=None)
    with pytest.raises(
        ConfigError, match=r"model\.weights=<checkpoint> starts the new run from the weights of this one"
    ):
        resume_config(stored, stored | {"seed": 1})


def test_false_is_not_zero() -> None:
    with pytest.raises(ConfigError, match=r"loss\.clamp: "):
        resume_config(changed(loss__clamp=False), changed(loss__clamp=0))


def test_list_names_existing_keys() -> None:
    types = schema.sections(jobs.TrainJob) | {"data": sections.DataKeys, "model": sections.ModelKeys}
    for path in {*MAY_CHANGE, *NOTES} - {"data.cache_dir"}:
        section, _, key = path.partition(".")
        assert section in schema.keys(jobs.TrainJob)
        assert key in ("", "*") or key in schema.keys(types[section])
