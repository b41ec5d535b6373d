"""The splits that the keys of a source ask for: files of their own, or shares of the training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from trainer.constraints import BelowOne, NonEmptyStr, Rule
from trainer.data.cells import GROUP, STRATUM, TIME
from trainer.validation_sets import file_stem

Shares: TypeAlias = Mapping[str, BelowOne]
"""The shares of `validation` and `test` that are held out from training, each in [0, 1)."""

GroupedShares: TypeAlias = Mapping[str, BelowOne | NonEmptyStr | None]
"""`Shares`, and the columns that decide the split of a row: in `group` the column whose values stay together, in
`time` a column of times, in `stratify` a column of classes; None without one."""

SPLIT_KEYS = Rule("sorted(split) == ['test', 'validation']", "split", "must have the keys validation and test")
GROUPED_SPLIT_KEYS = (
    Rule(
        "sorted(name for name in split if name not in ['group', 'time', 'stratify']) == ['test', 'validation']",
        "split",
        "must have the keys validation and test, and may have group, time and stratify",
    ),
    Rule(
        "all(isinstance(split[name], float) or isinstance(split[name], int) for name in split"
        " if name not in ['group', 'time', 'stratify'])",
        "split",
        "needs numbers in [0, 1) for validation and test",
    ),
    Rule("split['group'] is None or isinstance(split['group'], str)", "split.group", "must be the name of a column"),
    Rule("split['time'] is None or isinstance(split['time'], str)", "split.time", "must be the name of a column"),
    Rule(
        "split['stratify'] is None or isinstance(split['stratify'], str)",
        "split.stratify",
        "must be the name of a column",
    ),
    Rule(
        "split['stratify'] is None or (split['group'] is None and split['time'] is None)",
        "split.stratify",
        "shares of each class cannot be combined with groups or times",
        "Set data.split.stratify=null, or data.split.group=null and data.split.time=null",
    ),
)
TIME_RULE = Rule(
    "split['group'] is None or split['time'] is None"
    " or (validation is not None and (test is not None or split['test'] == 0))",
    "split.time",
    "a split by time cannot keep the rows of a group together",
    "Set data.split.group=null or data.split.time=null, or name files of each split",
)
"""The rule of a source with files about shares by group and by time."""
_SHARE_RULES = (
    Rule(
        "(split['validation'] if validation is None else 0) + (split['test'] if test is None else 0) < 1",
        "split",
        "leaves no rows for training",
        "Make the sum of data.split.validation and data.split.test less than 1",
    ),
    Rule(
        "validation is not None or split['validation'] > 0",
        "split.validation",
        "a run needs a validation split",
        "Set a share above 0, or name files in data.validation",
    ),
)
SPLIT_RULES = (SPLIT_KEYS, *_SHARE_RULES)
"""Rules of a source with the arguments `validation`, `test` and `split`."""
GROUPED_SPLIT_RULES = (*GROUPED_SPLIT_KEYS, *_SHARE_RULES)
"""The same for a source that can keep groups together."""


@dataclass(frozen=True)
class SplitLayout:
    """The splits of a source, and which of them are held out from the training data.

    Attributes:
        own: The data that the user named for `train`, `validation` and `test`; None for a held-out split.
        shares: The share of training, in [0, 1), of each split without data of its own.
        by_time: Hold out the newest rows, not those that a hash chooses.
        stratified: Hold out the shares of each class.
        grouped: Keep the rows of a group in one split.
    """

    own: Mapping[str, Any]
    shares: Mapping[str, float]
    by_time: bool = False
    stratified: bool = False
    grouped: bool = False

    @classmethod
    def from_arguments(cls, own: Mapping[str, Any], split: Mapping[str, Any]) -> SplitLayout:
        """Return the layout for constructor arguments that meet `SPLIT_RULES`."""
        # In one order, whatever the arguments' own: the shares are a part of fingerprints.
        with_files = {file_stem(name).partition(".")[0] for name, value in own.items() if value is not None}
        names = [name for name in ("validation", "test") if name in split and name not in with_files]
        shares = {name: float(split[name]) for name in names}
        by_time, stratified, grouped = (split.get(column) is not None for column in (TIME, STRATUM, GROUP))
        return cls(own, shares, by_time, stratified, grouped)

    def for_split(self, split: str) -> SplitLayout | None:
        """Return the layout with only this split; None if the split takes rows from another one or gives some."""
        if self.own.get(split) is None or (split == "train" and self.held_out):
            return None
        return SplitLayout({split: self.own[split]}, {})

    @property
    def names(self) -> list[str]:
        """All splits: those with data of their own and those with a share of training."""
        return [name for name in self.own if self.own[name] is not None or self.shares[name] > 0]

    @property
    def held_out(self) -> list[str]:
        """The splits that take rows of training."""
        return [name for name, share in self.shares.items() if share > 0]
