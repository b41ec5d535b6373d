"""A proposed training job as the file of an experiment, and the sizes that fit the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import yaml

from trainer.display import escape_controls

_BATCH = 32
"""The default of `train.batch_size`."""

_STEPS = 800
"""Steps after which a small model has usually learned a small data set."""

_PATIENCE_STEPS = 200
"""Steps without an improvement after which a small model has usually learned what it can."""

_MANY_STEPS = 1_500
"""Steps of an epoch from which on fewer epochs are enough, and one evaluation for each of them is too rare."""

_FEW_ROWS = 2_000
_MANY_ROWS = 20_000


@dataclass(frozen=True)
class Setting:
    """A key of the config with its value, and the reason for it."""

    key: str
    value: object
    comment: str = ""


@dataclass(frozen=True)
class Look:
    """A description of the data, in lines to print, and the job that fits the data.

    Attributes:
        lines: The lines to print.
        proposal: The job.
        num_rows: The rows that were looked at, or the things that `noun` names.
        noun: The plural of what is counted.
        other_targets: The columns that the job does not read and another job could predict.
    """

    lines: Sequence[str]
    proposal: Proposal
    num_rows: int
    noun: str = "rows"
    other_targets: Sequence[str] = ()


@dataclass(frozen=True)
class Proposal:
    """A training job.

    Attributes:
        summary: What the job does, as a sentence without its period.
        task: The option of the group `task`.
        data: The option of the group `data`.
        settings: The keys that differ from the defaults, in the order in which they are written.
        model: The option of the group `model`; None is the task's own.
        loss: The option of the group `loss`; None is the task's own.
        roles: The columns of each role that the task reads.
    """

    summary: str
    task: str
    data: str
    settings: Sequence[Setting]
    model: str | None = None
    loss: str | None = None
    roles: dict[str, list[str]] = field(default_factory=dict)

    def yaml(self, origin: str, schema: str | None) -> str:
        """Return the file of the experiment.

        Args:
            origin: What the proposal was made from, for the comment at its beginning.
            schema: The path of the schema of the config, relative to the file; None if there is none.
        """
        choices = {"task": self.task, "data": self.data, "model": self.model, "loss": self.loss}
        lines = ["# @package _global_"]  # Hydra reads it in the first line only
        lines += [f"# yaml-language-server: $schema={schema}"] if schema else []
        lines += ["", f"# {one_line(self.summary)}.", f"# Proposed by `trainer init` from {one_line(origin)}."]
        lines.append("defaults:")
        lines += [f"  - override /{group}: {option}" for group, option in choices.items() if option is not None]
        lines.append("  - _self_")
        section: list[str] = []
        for setting in self.settings:
            *path, key = setting.key.split(".")
            shared = next((i for i, pair in enumerate(zip(path, section, strict=False)) if pair[0] != pair[1]), None)
            depth = min(len(path), len(section)) if shared is None else shared
            if depth == 0:
                lines.append("")
            lines += [f"{'  ' * level}{path[level]}:" for level in range(depth, len(path))]
            comment = f"  # {one_line(setting.comment)}" if setting.comment else ""
            lines.append(f"{'  ' * len(path)}{key}: {_as_yaml(setting.value)}{comment}")
            section = path
        return "\n".join(lines) + "\n"


def _as_yaml(value: object) -> str:
    """Return a value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def one_line(text: str) -> str:
    """Return a text that stays a comment: names of columns and files may contain line ends and control characters."""
    return escape_controls(" ".join(text.split()))


def split_settings(num_rows: int) -> list[Setting]:
    """Return larger shares for the splits of few rows, as 10% would be too few to measure anything."""
    if num_rows >= 200:
        return []
    comment = f"{num_rows} rows are few: nothing is held out for a test"
    return [Setting("data.split.validation", 0.3 if num_rows < 50 else 0.2), Setting("data.split.test", 0, comment)]


def length_settings(num_rows: int, *, is_whole: bool = True) -> list[Setting]:
    """Return the length of the run and of a step, and when the run ends because it learns no more.

    Args:
        num_rows: The rows that were looked at.
        is_whole: There are no more rows.
    """
    batch = _BATCH if num_rows >= 500 else 8 if num_rows < 100 else 16
    epoch_steps = max(1, ceil(num_rows * 8 / 10 / batch))
    if epoch_steps >= _MANY_STEPS:
        epochs = 2 if is_whole else 1
        count = f"about {epochs * epoch_steps:,}" if is_whole else f"more than {num_rows * 8 // 10 // batch:,}"
        often = Setting("train.eval_every", 500, "steps, as an epoch is long")
        return [Setting("train.duration", f"{epochs}ep", f"{count} steps"), often]
    epochs = min(30, max(3, round(_STEPS / epoch_steps)))
    patience = max(2, ceil(_PATIENCE_STEPS / epoch_steps))
    can_end_early = patience < epochs - 1
    fewer = ", or fewer" if can_end_early else ""
    settings = [Setting("train.duration", f"{epochs}ep", f"about {epochs * epoch_steps:,} steps{fewer}")]
    if can_end_early:
        settings.append(Setting("train.patience", f"{patience}ep", "ends the run if nothing improves for this long"))
    if batch != _BATCH:
        settings.append(Setting("train.batch_size", batch))
    return settings


def length_limit(words: int) -> int:
    """Return a maximum number of tokens for texts of so many words: a power of 2 from 16 to 512."""
    return next((limit for limit in (16, 32, 64, 128, 256) if 1.5 * words + 2 <= limit), 512)


def model_sizes(model: str, num_rows: int) -> list[Setting]:
    """Return the sizes of a model and its learning rate, smaller for few rows."""
    small = [Setting("model.dropout", 0.3, "higher than the default: the rows are few")] if num_rows < _FEW_ROWS else []
    if small and model == "mlp":
        small.append(Setting("model.hidden", [64]))
    if small and model == "text_encoder":
        small.append(Setting("model.depth", 1))
    large = []
    if model == "text_encoder" and num_rows >= _MANY_ROWS and has_gpu():
        sizes = {"dim": 256, "depth": 4, "heads": 8, "hidden": 1024}
        large = [Setting(f"model.{key}", size) for key, size in sizes.items()]
        large[0] = Setting("model.dim", 256, "many rows, and this machine has a GPU: a larger model")
    return small if model == "mlp" else [*small, *large, Setting("optimizer.lr", 0.001 if large else 0.002)]


def has_gpu() -> bool:
    """Return whether this machine has an NVIDIA GPU, without loading torch."""
    return Path("/dev/nvidia0").exists()


def language_model_sizes() -> list[Setting]:
    """Return the sizes of a language model."""
    vocabulary = Setting("task.vocab_size", 2_000, "every token is scored at every position")
    return [vocabulary, Setting("model.depth", 2), Setting("optimizer.lr", 0.002)]


def image_settings(size: int | None) -> list[Setting]:
    """Return the settings of images; `size` is None if all have the same size."""
    sizes = [] if size is None else [Setting("task.size", size, "the images have several sizes")]
    return [*sizes, Setting("optimizer.lr", 0.002)]
