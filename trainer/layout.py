"""Names of the files and folders that make up a run, a checkpoint and a folder of exported artifacts.

runs/<run>/                     the run folder
  config.yaml  metrics.jsonl  trainer.log  report.html  README.md  lr_range.json  decision.json  .lock
  tensorboard/  trackers.json
  data/<split>.parquet          rows that were passed in memory
  logs/rank-1.log               warnings of the second process of a run on several devices
  checkpoints/step-00000930/    state.json  task.json  config.yaml  MANIFEST.json  *.safetensors
  diverged/step-00000930/       report.json  batch.safetensors  config.yaml
  eval/<split>.json             <split>.predictions.parquet
  model/                        the best weights
  export/                       the artifacts  task.json  tokenizer.json  manifest.json
  export-pruned-<method>/       artifacts of a pruned copy of the model
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

Document = dict[str, Any]
"""The object in a JSON or YAML file; the module that reads the file knows the keys."""

RUNS: Final = Path("runs")
"""Default parent of run folders, relative to the working directory."""

SWEEPS: Final = Path("sweeps")
"""Default parent of the folders of sweeps with a name, relative to the working directory."""

SWEEP: Final = "sweep.json"
"""The config that the jobs of a sweep share, and its jobs."""

STUDY: Final = "study.db"
"""The trials of a search, as Optuna stores them."""

OUT_OF_FOLD: Final = "out_of_fold.parquet"
LABEL_ERRORS: Final = "label_errors.csv"
"""In the folder of a sweep over folds: predictions of every row by models that were not trained on it; suspect rows."""

TABLE: Final = "table.csv"

CONFIG: Final = "config.yaml"
"""The resolved configuration: in a run folder, in each checkpoint and in the folder of a divergence."""

METRICS: Final = "metrics.jsonl"
LOG: Final = "trainer.log"
RANK_LOGS: Final = "logs"
"""Folder of `rank-<N>.log`: the warnings of the processes after the first one, if they have some."""

REPORT: Final = "report.html"
COMPARISON: Final = "comparison.html"
"""The page about a run and others; the page about the run alone stays."""
CARD: Final = "README.md"
"""The model card of a run. It names files relative to the run folder, which has the layout of a repository on a hub."""

LR_RANGE: Final = "lr_range.json"
DECISION_RULE: Final = "decision.json"
"""Thresholds and temperature that were found after training, with the origin of the weights that they belong to."""

LOCK: Final = ".lock"
TENSORBOARD: Final = "tensorboard"
TRACKERS: Final = "trackers.json"
"""The ids of the runs in trackers, so that a resumed run goes on in them."""

CHECKPOINTS: Final = "checkpoints"
DATA: Final = "data"
"""Folder of the rows in memory that a run was trained or evaluated on, as Parquet files."""

STATE: Final = "state.json"
"""Position, score, random generators and versions of a checkpoint."""

TASK: Final = "task.json"
"""State of the fitted task (labels, tokenizer): in a checkpoint and next to the artifacts."""

TRANSITIONS: Final = "transitions.json"
"""Scores of transitions between tags, next to the artifacts of a model with a CRF."""

GOLDEN_ROWS: Final = "golden.json"
GOLDEN_ARRAYS: Final = "golden.npz"
GOLDEN_TENSORS: Final = "golden.pt"
"""Samples with their predictions next to the artifacts; the model's inputs and output for them, twice."""

PREDICT_FORMATS: Final = ("onnx", "onnx_fp16", "onnx_int8")
"""The export formats that can predict from rows, in order of preference."""

PREDICT_SCRIPT: Final = "predict.py"
"""The command next to the artifacts, and the key of their `task.json` that names the modules which it loads."""

CHECKPOINT_MANIFEST: Final = "MANIFEST.json"
"""Sizes and checksums of a checkpoint's files."""

EVALUATIONS: Final = "eval"
MODEL: Final = "model"

DIVERGED: Final = "diverged"
DIVERGENCE_REPORT: Final = "report.json"
DIVERGENCE_BATCH: Final = "batch.safetensors"

EXPORT: Final = "export"
PRUNED_EXPORT: Final = f"{EXPORT}-pruned-"
"""Prefix of the folders with the artifacts of pruned copies of the model."""

EXPORT_MANIFEST: Final = "manifest.json"
"""Proofs, timings, versions and checksums of exported artifacts. Written last, so a folder without it is incomplete."""

ONNX: Final = "model.onnx"
ONNX_CACHE: Final = "decoder_with_cache.onnx"
"""A language model's decoder with its key-value cache as inputs and outputs: the artifact `onnx_cache`."""

TOKENIZER: Final = "tokenizer.json"


def expand_home(path: str) -> str:
    """Return a path with the home folder in place of `~` or `~user` at its beginning; any other text stays as it is."""
    return path if "\0" in path else os.path.expanduser(path)


def step_name(step: int) -> str:
    """Return the name of a step's folder, in `checkpoints/` and in `diverged/`: `step-00000930`."""
    return f"step-{step:08d}"


def export_folders(run: Path) -> list[Path]:
    """Return the artifact folders in a run folder: the model's own first, then the folders of pruned copies."""
    return [folder for folder in (run / EXPORT, *sorted(run.glob(f"{PRUNED_EXPORT}*"))) if folder.is_dir()]
