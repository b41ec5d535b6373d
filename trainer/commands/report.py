"""`trainer report`: one offline page of HTML about a run, or about several side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.commands.results import Results, flat, results
from trainer.config.jobs import ReportJob
from trainer.errors import ConfigError, format_error
from trainer.layout import EXPORT_MANIFEST, LOG, REPORT, export_folders
from trainer.report.curves import Series
from trainer.report.page import Section, page

_NOT_PLOTTED = ("event", "step", "epoch", "split", "weights", "best_step")


def run(job: ReportJob, config: dict[str, Any]) -> None:
    """Writes `report.html` into the run folder, or into `output`, and says where.

    Args:
        job: The checked config.
        config: The same as plain data; not needed.

    Raises:
        CheckpointError: There is no such run.
        ConfigError: The file cannot be written.
    """
    found = [results(job.run), *(results(path, "beside") for path in job.beside)]
    file = found[0].folder / REPORT if job.output is None else Path(job.output)
    try:
        write_page(file, found)
    except OSError as error:
        raise ConfigError(format_error("output", f"cannot be written ({error.strerror})", value=str(file))) from error
    print(file)


def write_page(file: Path, found: Sequence[Results]) -> None:
    """Writes the page about runs, the first of which it is called after.

    Raises:
        OSError: It cannot be written.
    """
    names = _names(found)
    file.write_text(page(" and ".join(names), list(sections(found, names))), encoding="utf-8")


def _names(found: Sequence[Results]) -> list[str]:
    """The folders, without what they have in common."""
    paths = [str(each.folder.absolute()) for each in found]
    if len(paths) == 1:
        return [found[0].folder.name]
    common = os.path.commonpath(paths)
    return [
        os.path.relpath(path, common) if path != common else each.folder.name
        for path, each in zip(paths, found, strict=True)
    ]


def sections(found: Sequence[Results], names: Sequence[str]) -> Iterator[Section]:
    """What the page says of runs, each under its name."""
    runs = list(zip(names, found, strict=True))
    yield Section(
        "runs",
        ["run", "steps", "epochs", "ended with", "best", "of", "weights", "at step"],
        [_run(*pair) for pair in runs],
    )
    yield Section("training", figures=_figures(runs, "train", {}))
    yield Section("validation", figures=_figures(runs, "eval", {"split": "validation"}))
    yield _evaluations(runs)
    yield _artifacts(runs)
    warnings = [f"{name}: {line}" for name, each in runs for line in _warnings(each.folder)]
    yield Section("warnings", text="\n".join(warnings))
    yield _configs(runs)


def _run(name: str, found: Results) -> list[Any]:
    last = found.events[-1] if found.events else {}
    best = found.best or {}
    score = [best.get(key) for key in ("value", "name", "weights", "step")]
    return [name, last.get("step"), last.get("epoch"), last.get("event"), *score]


def _figures(runs: Sequence[tuple[str, Results]], event: str, where: dict[str, Any]) -> Mapping[str, Series]:
    """Curves of every number of an event: by its name, a line for each run and for raw and averaged weights."""
    figures: dict[str, dict[str, dict[int, float]]] = {}
    for name, found in runs:
        chosen = [each for each in found.events if each["event"] == event and where.items() <= each.items()]
        values = dict.fromkeys(key for each in chosen for key in each if _is_plotted(key, each[key]))
        for weights in dict.fromkeys(each.get("weights") for each in chosen):
            line = " ".join(filter(None, (name if len(runs) > 1 else "", weights))) or name
            picked = where | ({"weights": weights} if weights else {})
            for value in values:
                figures.setdefault(value, {})[line] = found.series(event, value, **picked)
    return figures


def _is_plotted(key: str, value: Any) -> bool:
    return key not in _NOT_PLOTTED and isinstance(value, int | float) and not isinstance(value, bool)


def _evaluations(runs: Sequence[tuple[str, Results]]) -> Section:
    rows = [(name, values) for name, found in runs for values in found.evaluations.values()]
    columns = list(dict.fromkeys(key for _, values in rows for key in values))
    return Section("evaluation", ["run", *columns], [[name, *map(values.get, columns)] for name, values in rows])


def _artifacts(runs: Sequence[tuple[str, Results]]) -> Section:
    columns = ["run", "artifact", "file", "bytes", "largest difference", "decisions agree", "metric", "PyTorch's"]
    rows = []
    for name, folder in ((name, folder) for name, found in runs for folder in export_folders(found.folder)):
        file = folder / EXPORT_MANIFEST
        manifest = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"artifacts": {}}
        monitor = manifest.get("monitor")
        for artifact, proof in manifest["artifacts"].items():
            where = f"{folder.name}/{proof.get('file')}"
            proved = [where, *map(proof.get, ("bytes", "largest_difference", "decision_agreement"))]
            scores = [(each.get("metrics") or {}).get(monitor) for each in (proof, manifest)]
            rows.append([name, artifact, *proved, *scores])
    return Section("artifacts", columns, rows)


def _warnings(folder: Path) -> list[str]:
    file = folder / LOG
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return list(dict.fromkeys(line.split(": ", 1)[-1] for line in lines if " WARNING " in line or " ERROR " in line))


def _configs(runs: Sequence[tuple[str, Results]]) -> Section:
    """Every key; what differs between the runs stands out, and stands first."""
    configs = [dict(flat(found.config)) for _, found in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = {key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)}
    rows = [
        [key, *(_value(config, key) for config in configs)]
        for key in sorted(keys, key=lambda key: key not in differing)
    ]
    return Section("config", ["key", *(name for name, _ in runs)], rows, marked=frozenset(differing))


def _value(config: dict[str, Any], key: str) -> str:
    value = config.get(key, "")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
