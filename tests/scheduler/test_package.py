import subprocess
import sys
from pathlib import Path

from transformers.trainer_utils import SchedulerType

import trainer.scheduler

PACKAGE = Path(trainer.scheduler.__path__[0])
CONF = PACKAGE.parents[1] / "conf" / "scheduler"
RENAMED = {"reduce_lr_on_plateau": "reduce_on_plateau"}
"""The names of transformers that differ here."""


def test_schedules_do_not_import_torch():
    modules = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
    program = "; ".join(["import sys", *(f"import trainer.scheduler.{name}" for name in modules)])
    program += "; sys.exit('torch' in sys.modules)"
    assert len(modules) >= 13
    subprocess.run([sys.executable, "-c", program], check=True, cwd=PACKAGE.parents[1])


def test_every_schedule_of_transformers_is_an_option():
    names = {RENAMED.get(name.value, name.value) for name in SchedulerType}
    assert names <= {path.stem for path in CONF.glob("*.yaml")}
    for theirs, ours in RENAMED.items():
        assert theirs in (CONF / f"{ours}.yaml").read_text(encoding="utf-8")
