from pathlib import Path

from transformers.trainer_utils import SchedulerType

CONF = Path(__file__).parents[2] / "conf" / "scheduler"

# transformers' names that are spelt otherwise here.
RENAMED = {"reduce_lr_on_plateau": "reduce_on_plateau"}


def test_every_name_of_transformers_is_an_option():
    names = {RENAMED.get(name.value, name.value) for name in SchedulerType}
    assert names <= {path.stem for path in CONF.glob("*.yaml")}


def test_another_spelling_is_said_in_the_option():
    for theirs, ours in RENAMED.items():
        assert theirs in (CONF / f"{ours}.yaml").read_text(encoding="utf-8")
