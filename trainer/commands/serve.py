"""`trainer serve`: answer rows over HTTP with an exported model."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

from trainer import __version__
from trainer.commands.run_folders import find_artifacts, find_run_folder, problem_of_folder
from trainer.config.jobs import ServeJob
from trainer.display import print_lines
from trainer.errors import CheckpointError, ConfigError, format_error, install
from trainer.layout import EXPORT_MANIFEST, Document

_BATCH_SIZE = 32
"""Rows of a batch that is neither set nor one of tables, whose rows take too little time for many batches."""


def run(job: ServeJob, config: Document) -> None:
    """Serve until SIGINT or SIGTERM; requests that were accepted are answered first.

    Raises:
        ConfigError: The address cannot be used, or the extra is not installed.
        CheckpointError: There is no proved artifact, it is damaged, or it does not answer in time.
        ProofError: The artifact does not give the golden answers on this machine.
    """
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        problem = f"needs the package {' and '.join(missing)}, which is not installed"
        raise ConfigError(format_error("serve", problem, install("serve")))
    from trainer.serve.app import Service
    from trainer.serve.batcher import Batcher, LoopBatcher
    from trainer.serve.model import ServedModel
    from trainer.serve.prediction import Limits
    from trainer.serve.server import Server, listen

    folder = _find_artifacts(job)
    listening = listen(job.host, job.port)
    with listening:
        model = ServedModel(folder, job.artifact, job.threads or 0, job.timeout)
        if not model.check():
            print_lines(f"note: {folder}: has no golden rows, so its answers were not compared on this machine.")
        if model.rule_note:
            print_lines(model.rule_note)
        # One thread encodes while the other computes.
        batch_size = job.batch_size or (job.max_rows if model.rows == "tables" else _BATCH_SIZE)
        batcher = Batcher(model.answer, batch_size, job.max_waiting, threads=2, length=model.length)
        quick_rows = model.count_quick_rows(batch_size)
        quick = LoopBatcher(model.answer, max(1, min(batch_size, quick_rows)))
        limits = Limits(job.max_rows, job.max_bytes, job.timeout, job.max_characters)
        service = Service(model, batcher, limits, __version__, quick=quick, quick_rows=quick_rows)

        def stop() -> None:
            service.is_stopping = True

        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print_lines(f"{folder / model.file}: http://{shown}:{port}  (Ctrl-C ends it)")
        started = time.monotonic()
        try:
            Server(service.app(), job.timeout, stop).run([listening])
        finally:
            batcher.close()
        print_lines(f"stopped after {time.monotonic() - started:.0f} s.")


def _find_artifacts(job: ServeJob) -> Path:
    """Return the folder of artifacts: `folder`, the one of a run, or the one that `run` itself names."""
    if job.folder is not None and job.run is not None:
        raise ConfigError(format_error("folder", "run names what is served, too", "Keep one", value=job.folder))
    if job.folder is not None:
        if not (Path(job.folder) / EXPORT_MANIFEST).is_file():
            problem = problem_of_folder(Path(job.folder), f"contains no {EXPORT_MANIFEST}")
            remedy = "Name a folder that trainer export has written, or a run with run=RUN"
            raise CheckpointError(format_error("folder", problem, remedy, value=job.folder))
        return Path(job.folder)
    if job.run is not None and (Path(job.run) / EXPORT_MANIFEST).is_file():
        return Path(job.run)
    return find_artifacts(find_run_folder(job.run))
