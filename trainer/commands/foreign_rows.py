"""Rows that `trainer eval` gets from other data than the run's own: find them, name them, and warn of problems."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.stored import TRAINING_KEYS, differences, unchanged_job
from trainer.errors import ConfigError, DataError
from trainer.layout import EVALUATIONS, Document
from trainer.shapes import DocumentError, parse_json, read_bytes
from trainer.validation_sets import VALIDATION, by_split, file_stem, is_validation

if TYPE_CHECKING:
    from trainer.builders.checkpointed import CheckpointedModel
    from trainer.files.mapped import MappedRows

logger = logging.getLogger(__name__)

_SPLITS = frozenset({"train", "validation", "test"})
_NOT_DATA = frozenset({"strict", "cache_dir", "max_line_bytes", "max_expansion", "max_pixels"})
"""Keys of `data` that do not change the rows."""


def find_changed_keys(checkpointed: CheckpointedModel, split: str, rows: MappedRows) -> Document:
    """Return the keys that make the rows of a split differ from the run's own rows; empty for its own rows.

    If the run has a score on the split, the digest of its rows decides; else the keys changed for this evaluation do.
    """
    from trainer.data.quality import digest_of_rows

    changed = _changed_data_keys(checkpointed, split)
    known = _read_digest(checkpointed.folder / EVALUATIONS / f"{file_stem(split)}.json")
    if known is None:
        return changed
    if known == digest_of_rows(rows):
        return {}
    return changed or {f"data.{file_stem(split)}": "changed since the run's own score"}


def _changed_data_keys(checkpointed: CheckpointedModel, split: str) -> Document:
    """Return the changed keys on which the rows of a split depend, with their new values."""
    own = unchanged_job(checkpointed.config_text, checkpointed.job.trust, TRAINING_KEYS)
    job = checkpointed.job
    # A split with its own files does not depend on others; splits without files may take rows from training.
    files = by_split(job.data.get(VALIDATION)) if is_validation(split) else job.data
    is_independent = split != "train" and files.get(split) is not None
    ignored = _NOT_DATA | (_SPLITS | {"split"} if is_independent else frozenset())
    own_key = f"{file_stem(split)}."
    changed = {
        f"data.{key}": new
        for key, _, new in differences(own.data, job.data)
        if key.partition(".")[0] not in ignored or f"{key}.".startswith(own_key) or own_key.startswith(f"{key}.")
    }
    if own.loader.limit != job.loader.limit:
        changed["loader.limit"] = job.loader.limit
    return changed


def _read_digest(file: Path) -> str | None:
    try:
        digest: str = parse_json(read_bytes(file), {"digest": str})["digest"]
    except (OSError, DocumentError):
        return None
    return digest


def make_label(split: str, changed: Document) -> str:
    """Return a word for other rows that is valid in a file name: the name of their file if there is one."""
    key = f"data.{file_stem(split)}"
    value = changed.get(key)
    first = value[0] if isinstance(value, list) and value else value
    stem = Path(str(first)).name.partition(".")[0] if key in changed else ""
    return re.sub(r"[^\w-]+", "_", stem).strip("_") or "other"


def check_foreign_rows(checkpointed: CheckpointedModel, split: str, rows: MappedRows) -> None:
    """Warn of problems of rows that are not the run's own, such as rows that are in its training data.

    Raises:
        DataError: There are problems, and the job treats data problems as errors.
    """
    from trainer.builders.data import build_encoded
    from trainer.data.quality import measure_quality

    own = unchanged_job(checkpointed.config_text, checkpointed.job.trust, TRAINING_KEYS)
    try:
        train = build_encoded(own, checkpointed.task, fitted=True).splits["train"]
    except (ConfigError, DataError) as error:
        logger.warning("%s: cannot be compared with the training data: %s", split, error.messages[0])
        return
    name = split if split != "train" else "data.train"
    warnings = measure_quality({"train": train, name: rows}, checkpointed.task.target).warnings()
    problems = [warning for warning in warnings if warning.startswith(f"{name}:")]
    if problems and checkpointed.job.data.get("strict"):
        raise DataError(*(f"data.strict: {problem}" for problem in problems))
    for problem in problems:
        logger.warning(problem)
