import subprocess
import sys
from pathlib import Path

import trainer.scheduler


def test_schedules_do_without_torch():
    modules = sorted(path.stem for path in Path(trainer.scheduler.__path__[0]).glob("*.py") if path.stem != "__init__")
    program = "; ".join(["import sys", *(f"import trainer.scheduler.{name}" for name in modules)])
    program += "; sys.exit('torch' in sys.modules)"
    assert len(modules) >= 13
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(trainer.scheduler.__path__[0]).parents[1])
