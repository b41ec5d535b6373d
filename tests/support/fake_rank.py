"""A process of a job that runs a line of Python instead of a verb, without torch: for tests of the launcher."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from trainer.distributed.environment import note_joined, note_run_folder
from trainer.distributed.launch import run_rank
from trainer.errors import ConfigError, DataError, Interrupted, LostRankError, ReportedError
from trainer.signals import StopSignals

NAMES = {
    each.__name__: each
    for each in (ConfigError, DataError, Interrupted, LostRankError, ReportedError, StopSignals, Path)
} | {"note_joined": note_joined, "note_run_folder": note_run_folder, "os": os, "signal": signal, "time": time}

BOOTSTRAP = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
    "from tests.support.fake_rank import main; sys.exit(main(sys.argv[3]))"
)
"""Takes the place of the launcher's own."""


def main(path: str) -> int:
    """Run the line of this process's rank in the config of a job."""

    def start(_: str, config: dict[str, object], __: list[object]) -> None:
        rank = int(os.environ["RANK"])
        exec(str(config[str(rank)]), {**NAMES, "rank": rank})

    return run_rank(Path(path), start)


class Clock:
    """The module `time` for the process that watches: it stands still until some processes have ended."""

    def __init__(self, launch: Any, ended: int) -> None:
        self._ended, self._now, self._start = ended, 0.0, launch._start
        self._processes: list[Any] = []
        self.sleep = time.sleep
        launch._start = self._record
        launch.time = self

    def _record(self, *arguments: Any) -> Any:
        self._processes.append(self._start(*arguments))
        return self._processes[-1]

    def monotonic(self) -> float:
        if sum(process.returncode is not None for process in self._processes) >= self._ended:
            self._now += 0.1
        return self._now


# The process that watches: the lines of all ranks, the seconds of grace, and how many end before time passes.
if __name__ == "__main__":
    from trainer.distributed import launch
    from trainer.errors import TrainerError

    launch._BOOTSTRAP = BOOTSTRAP  # type: ignore[misc]
    *lines, grace, ended = sys.argv[1:]
    if int(ended):
        Clock(launch, int(ended))
    try:
        config = {str(rank): line for rank, line in enumerate(lines)}
        launch.launch("train", config, (), len(lines), float(grace), lambda folder: [f"advice about {folder}"])
    except TrainerError as error:
        print(*error.messages, sep="\n", file=sys.stderr)
        print(*getattr(error, "__notes__", ()), sep="\n")
        sys.exit(error.exit_code)
    finally:
        assert "torch" not in sys.modules
