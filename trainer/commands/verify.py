"""`trainer verify`: whether what lies in a run folder is what was written, and what training writes again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from trainer.checkpoint.listing import find_step_folders, list_newest_first
from trainer.checkpoint.manifest import find_faults
from trainer.commands.folders import existing_run_folder
from trainer.config.jobs import VerifyJob
from trainer.errors import CheckpointError, format_error
from trainer.layout import CHECKPOINTS, DIVERGED, DIVERGENCE_REPORT, export_folders, step_name
from trainer.report.console import open_console, table

if TYPE_CHECKING:
    from trainer.commands.reproduction import Check


@dataclass(frozen=True)
class Intact:
    """The intact checkpoints of a run.

    Attributes:
        folders: Step to folder, ascending.
        newest: Their steps, the one saved last first.
    """

    folders: dict[int, Path]
    newest: tuple[int, ...]

    def before(self, step: int) -> int | None:
        """The one saved last of those below a step."""
        return next((found for found in self.newest if found < step), None)


def run(job: VerifyJob, config: dict[str, Any]) -> None:
    """Verifies, prints a table of each kind of thing, and writes nothing.

    Args:
        job: The checked config.
        config: The same as plain data; not needed.

    Raises:
        CheckpointError: Whatever does not hold, a message each.
    """
    folder = existing_run_folder(job.run)
    console = open_console("auto")
    intact, wrong = _checkpoints(folder / CHECKPOINTS, console)
    for artifacts in export_folders(folder):
        wrong += _artifacts(artifacts, console)
    wrong += _stretch(job, folder, intact, console)
    wrong += _divergence(job, folder, intact, console)
    if wrong:
        raise CheckpointError(*wrong)


def _checkpoints(root: Path, console: Console) -> tuple[Intact, list[str]]:
    faults = {step: _faults(folder) for step, folder in find_step_folders(root).items()}
    rows = [[step_name(step), "; ".join(found) or "intact"] for step, found in faults.items()]
    if rows:
        table(console, str(root), ["checkpoint", "found"], rows)
    wrong = [f"{root / step_name(step)}: {fault}." for step, found in faults.items() for fault in found]
    intact = {step: folder for step, folder in find_step_folders(root).items() if not faults[step]}
    return Intact(intact, tuple(one.step for one in list_newest_first(root) if one.step in intact)), wrong


def _faults(folder: Path) -> list[str]:
    try:
        return find_faults(folder)
    except CheckpointError as error:
        return [message.removesuffix(".") for message in error.messages]


def _artifacts(folder: Path, console: Console) -> list[str]:
    from trainer.export.folder import verify as verify_export

    found = verify_export(folder)
    if found:
        table(console, str(folder), ["file", "found"], [[name, fault or "intact"] for name, fault in found.items()])
    return [f"{folder / name}: {fault}." for name, fault in found.items() if fault]


def _stretch(job: VerifyJob, folder: Path, intact: Intact, console: Console) -> list[str]:
    bounds = _bounds(job.start, intact)
    if bounds is None:
        remedy = "start=step-0 replays from the start" if intact.folders else "The run has none"
        console.out(f"not replayed: it takes two intact checkpoints. {remedy}.", highlight=False)
        return []
    from trainer.commands.reproduction import check_stretch

    start, stop = bounds
    checks = check_stretch(job, folder, intact.folders.get(start), intact.folders[stop])
    origin = step_name(start) if start in intact.folders else "the start"
    return _show(console, folder, f"replay of {origin} to {step_name(stop)}", checks)


def _bounds(start: str | None, intact: Intact) -> tuple[int, int] | None:
    """The steps that a replay starts from and is compared with; step 0 needs no checkpoint."""
    if start is None:
        stop = next(iter(intact.newest), None)
        before = None if stop is None else intact.before(stop)
        return None if stop is None or before is None else (before, stop)
    first = int(start.removeprefix("step-"))
    known = f"Intact are {', '.join(map(str, intact.folders)) or 'none'}"
    if first and first not in intact.folders:
        raise CheckpointError(format_error("start", "there is no intact checkpoint of this step", known, value=start))
    after = [step for step in intact.folders if step > first]
    if not after:
        raise CheckpointError(
            format_error("start", "there is no intact checkpoint after this step", known, value=start)
        )
    return first, after[0]


def _divergence(job: VerifyJob, folder: Path, intact: Intact, console: Console) -> list[str]:
    bundles = [path.parent for path in sorted((folder / DIVERGED).glob(f"step-*/{DIVERGENCE_REPORT}"))]
    if not bundles:
        return []
    from trainer.commands.reproduction import check_divergence

    bundle = bundles[-1]
    before = intact.before(int(bundle.name.removeprefix("step-")))
    checks = check_divergence(job, bundle, None if before is None else intact.folders[before])
    return _show(console, bundle, f"replay of the divergence of {bundle.name}", checks)


def _show(console: Console, about: Path, title: str, checks: Sequence[Check]) -> list[str]:
    table(console, title, ["compared", "found"], [[check.what, check.fault or check.found] for check in checks])
    return [f"{about}: {title}: {check.what}: {check.fault}." for check in checks if check.fault]
