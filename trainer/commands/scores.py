"""The score of a checkpoint on a split: measured and kept, with what data it is of where that is not the run's own."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.builders.checkpointed import CheckpointedModel, select_split
from trainer.builders.data import build_encoded, build_split
from trainer.builders.model import choose_batching
from trainer.config.policy import differences
from trainer.config.stored import job_from_text
from trainer.data.quality import digest_of_rows, measure_quality
from trainer.errors import ConfigError, DataError
from trainer.evaluate import evaluate
from trainer.layout import EVALUATIONS
from trainer.precision import Precision, PrecisionName

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_SPLITS = frozenset({"train", "validation", "test"})
_NO_DATA = frozenset({"strict", "cache_dir"})
"""Keys of `data` that do not change what is read."""


def evaluate_split(
    trained: CheckpointedModel, split: str, rows: Dataset, precision: PrecisionName, changed: Mapping[str, Any]
) -> tuple[str, dict[str, float]]:
    """Loss and metrics on the rows of a split, also written to `eval/<name>.json` in the run folder.

    Args:
        trained: The model.
        split: Of its task's data.
        rows: The encoded rows of the split.
        precision: Of the forward pass.
        changed: What makes the rows other ones than the run's own, by full key; empty for its own.

    Returns:
        The name, which is the split's for the run's own rows and says which they are for others, and the values.
    """
    name, about = split, {"digest": digest_of_rows(rows)}
    if changed:
        name = f"{split}-{_label(split, changed)}-{about['digest'][:8]}"
        about["data"] = " ".join(f"{key}={value}" for key, value in changed.items())
    batches = trained.batches(rows, choose_batching(trained.job, trained.model))
    metrics = trained.task.metrics()
    arithmetic = Precision(precision, trained.device)
    values = evaluate(trained.model, trained.loss, batches, metrics, precision=arithmetic, device=trained.device)
    file = trained.folder / EVALUATIONS / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    document = {"split": split, "step": trained.step, "weights": trained.weights, "precision": precision}
    file.write_text(json.dumps(document | about | values, indent=1) + "\n", encoding="utf-8")
    return name, values


def other_data(trained: CheckpointedModel, split: str, rows: Dataset) -> dict[str, Any]:
    """What makes the rows of a split other ones than the run's own, by full key; empty where they are its own.

    The keys that were changed for this evaluation say it, unless the run has a score on the split: then the rows do.
    """
    changed = _changes(trained, split)
    known = _known_digest(trained.folder / EVALUATIONS / f"{split}.json")
    if known is None:
        return changed
    if known == digest_of_rows(rows):
        return {}
    return changed or {f"data.{split}": "changed since the run's own score"}


def _changes(trained: CheckpointedModel, split: str) -> dict[str, Any]:
    """The keys that the job reads its data by and the run did not, of those that this split depends on."""
    own = job_from_text(trained.config_text, trust=None)
    # A split with files of its own depends on no other one; training may lend rows to those without.
    alone = split != "train" and trained.job.data.get(split) is not None
    passed = _NO_DATA | ((_SPLITS | {"split"}) - {split} if alone else frozenset())
    found = differences(own.data, trained.job.data)
    changed = {f"data.{key}": new for key, _, new in found if key.partition(".")[0] not in passed}
    if own.loader.limit != trained.job.loader.limit:
        changed["loader.limit"] = trained.job.loader.limit
    return changed


def _known_digest(file: Path) -> str | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("digest")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else None


def _label(split: str, changed: Mapping[str, Any]) -> str:
    """A word for other rows, fit for the name of a file: that of their own file where one is named."""
    value = changed.get(f"data.{split}")
    first = value[0] if isinstance(value, list) and value else value
    stem = Path(str(first)).name.partition(".")[0] if f"data.{split}" in changed else ""
    return re.sub(r"[^\w-]+", "_", stem).strip("_") or "other"


def check_other(trained: CheckpointedModel, split: str, rows: Dataset) -> None:
    """Warns of what is wrong with rows that are not the run's own, such as rows that it was trained on.

    Raises:
        DataError: Something is, and the job is strict.
    """
    own = job_from_text(trained.config_text, trust=None)
    try:
        train = build_encoded(own, trained.task, fitted=True).splits["train"]
    except (ConfigError, DataError) as error:
        logger.warning("%s: not compared with the rows of training: %s", split, error.messages[0])
        return
    name = split if split != "train" else "data.train"
    faults = [line for line in measure_quality({"train": train, name: rows}).warnings() if line.startswith(f"{name}:")]
    if faults and trained.job.data.get("strict"):
        raise DataError(*(f"data.strict: {fault}" for fault in faults))
    for fault in faults:
        logger.warning(fault)


def result_rows(scores: Sequence[tuple[str, CheckpointedModel, dict[str, float]]]) -> tuple[list[str], list[list[Any]]]:
    """A table of evaluations, each under its name: its columns and rows."""
    names = list(scores[0][2])
    rows = [[name, trained.step, trained.weights, *values.values()] for name, trained, values in scores]
    return ["split", "step", "weights", *names], rows


def read_split(trained: CheckpointedModel, split: str) -> Dataset:
    """The encoded rows of a split of the job's data, which is read alone where it can be.

    Raises:
        ConfigError: There is no such split.
        DataError: The data cannot be used.
    """
    return select_split(build_split(trained.job, trained.task, split), split)
