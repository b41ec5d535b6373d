"""Write a part of the user's own: a module with a working example, its option, and a test that checks its contract."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import ConfigError
from trainer.files.atomic_io import create_folder, refuse_to_replace, write_text

_LOSS = '''"""A loss of your own. Train with it: trainer train loss=NAME"""

import torch
from torch import Tensor

from trainer.constraints import NonNegative


class CLASS:
    """Cross entropy in which a target with the probability p counts (1 - p) ** gamma."""

    targets = ("class",)  # the types of targets that it supports, see `Target` in trainer.protocols

    def __init__(self, gamma: NonNegative) -> None:
        self.gamma = gamma

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the targets (B,) of the outputs (B, C); the loop divides by their number."""
        output = output if output.dtype == torch.float64 else output.float()
        log_probability = output.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
        return -((1 - log_probability.exp()) ** self.gamma * log_probability).sum()

    def num_targets(self, target: Tensor) -> Tensor:
        """Return the number of terms of the sum."""
        return target.new_tensor(target.numel(), dtype=torch.int64)
'''

_MODEL = '''"""A model of your own. Train it: trainer train model=NAME"""

from torch import Tensor, nn

from trainer.constraints import BelowOne, Count


class CLASS(nn.Module):
    """The mean of the embeddings of a text's tokens, and a hidden layer.

    `vocab_size` and `num_outputs` are facts about the job: parameters with names of fields of `TaskInfo` are filled in.
    """

    inputs = ("tokens",)  # what it reads, see `Inputs` in trainer.protocols
    levels = ("sample",)  # one output for each sample
    packed = False  # it does not read packed rows, so batches are padded
    ends_with_head = ("tokens",)  # `head` makes the outputs: model.head_dropout works

    def __init__(self, vocab_size: int, num_outputs: int, dim: Count, dropout: BelowOne) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.hidden = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(dim, num_outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return outputs (B, C) of token ids (B, L) and a mask (B, L), which is 0 for padding."""
        mask = attention_mask.unsqueeze(-1).to(self.embedding.weight.dtype)
        mean = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1)
        output: Tensor = self.head(self.hidden(mean))
        return output
'''

_TASK = '''"""A task of your own. Train on it: trainer train task=NAME"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.constraints import HubPath
from trainer.task.supervised import fingerprint
from trainer.task.text_classification import TextClassification
from trainer.task.texts import MaxLength, VocabSize


class CLASS(TextClassification):
    """Text classification in which every number is read as the same one."""

    script = None  # the predict.py of text classification reads numbers as they are, so artifacts have none

    def __init__(
        self,
        *,
        same_numbers: bool,
        max_length: MaxLength,
        vocab_size: VocabSize,
        tokenizer: HubPath | None,
        lowercase: bool,
    ) -> None:
        super().__init__(max_length=max_length, vocab_size=vocab_size, tokenizer=tokenizer, lowercase=lowercase)
        self.same_numbers = same_numbers

    def fingerprint(self) -> str:
        """Return a digest of all that the encoding of a row depends on; encoded rows are cached under it."""
        return fingerprint("NAME/1", super().fingerprint(), self.same_numbers)

    def encode_inputs(self, rows: Mapping[str, Sequence[Any]]) -> Any:
        """Return the encoded inputs of rows, in training and in predictions."""
        if self.same_numbers:
            rows = {**rows, "text": [re.sub(r"\\d+", "0", text) for text in rows["text"]]}
        return super().encode_inputs(rows)
'''

_DATA = '''"""Data of your own. Train on it: trainer train data=NAME"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from trainer.constraints import Count
from trainer.data.cells import split_key
from trainer.data.splits import Sample, row_id, split_in_memory, split_row_id, split_schema

if TYPE_CHECKING:
    from datasets import Dataset

WORDS = {"fruit": ["apple", "cherry", "lemon", "pear"], "tool": ["axe", "drill", "hammer", "saw"]}


class CLASS:
    """Short texts with a label. Replace `_rows` by what reads your data."""

    def __init__(self, rows: Count) -> None:
        self.rows = rows

    def _rows(self) -> Iterator[dict[str, str]]:
        for number in range(self.rows):
            label = list(WORDS)[number % len(WORDS)]
            words = WORDS[label]
            yield {"text": f"number {number}: {words[number % 4]} or {words[number // 4 % 4]}", "label": label}

    @property
    def fingerprint(self) -> str:
        """Digest of the content: encoded rows are cached under it."""
        return blake2b(repr(list(self._rows())).encode(), digest_size=16).hexdigest()

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Return the splits with the columns of the roles that there are, and `row`."""
        names = [role for role in ("text", "label") if role in roles]
        samples = [Sample(row_id(0, number), row, split_key(row)) for number, row in enumerate(self._rows(), 1)]
        return split_in_memory(split_schema(names), samples, {"validation": 0.1, "test": 0.1})

    def describe_row(self, split: str, row: int) -> str:
        """Return the name of a row for messages."""
        return f"NAME, row {split_row_id(row)[1]}"

    def describe_role(self, role: str) -> str:
        """Return the name of a role for messages."""
        return f"the column {role} of data=NAME"
'''

_SCHEDULER = '''"""A schedule of your own. Train with it: trainer train scheduler=NAME"""

from trainer.constraints import Fraction


def NAME(step: int, *, warmup_steps: int, total_steps: int, floor: Fraction) -> float:
    """Return the factor on the base learning rate: linear to 1, then to `floor` as the square of what is left.

    Args:
        step: Optimizer steps done before this one.
        warmup_steps: Steps of the warmup: the key `warmup`, a duration.
        total_steps: Steps of the whole run; the job sets it.
        floor: The factor at the end.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    left = max(0, total_steps - step) / max(1, total_steps - warmup_steps)
    return floor + (1 - floor) * left**2
'''

_OPTIMIZER = '''"""An optimizer of your own. Train with it: trainer train optimizer=NAME"""

from typing import Any

import torch

from trainer.constraints import BelowOne, NonNegative, Positive


def NAME(
    params: list[dict[str, Any]], lr: Positive, momentum: BelowOne, weight_decay: NonNegative
) -> torch.optim.Optimizer:
    """Return an optimizer of the parameter groups, which have their own `lr` and `weight_decay`."""
    return torch.optim.RMSprop(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
'''

_METRIC = '''"""A metric of your own."""

import torch
from torch import Tensor
from torchmetrics import Metric


class CLASS(Metric):
    """The mean probability of the right class."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add probabilities (N, C) and classes (N,)."""
        self.total += preds.gather(1, target.unsqueeze(1)).sum()
        self.count += len(target)

    def compute(self) -> Tensor:
        """Return the mean over all rows."""
        return self.total / self.count
'''

_TEST = '''"""Check the contract of NAME: python -m pytest test_NAME.py"""

IMPORTS

from NAME import OBJECT
from trainer import testing


def test_contract() -> None:
    BODY
'''

PARTS: dict[str, tuple[str, str, str, str]] = {
    "loss": (
        _LOSS,
        "# Cross entropy in which sure targets count less.\n"
        "_target_: NAME.CLASS\ngamma: 2.0  # exponent of 1 - p, at least 0\n",
        "import torch",
        "testing.check_loss(CLASS(gamma=2.0), torch.randn(8, 3), torch.randint(3, (8,)))",
    ),
    "model": (
        _MODEL,
        "# For texts: the mean of the embeddings of the tokens, and a hidden layer.\n"
        "_target_: NAME.CLASS\ndim: 64  # width of the embeddings\ndropout: 0.1  # dropout probability, in [0, 1)\n",
        "import torch",
        'ids = torch.randint(20, (3, 6))\n    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}\n'
        "    testing.check_model(CLASS(vocab_size=20, num_outputs=4, dim=8, dropout=0.1), inputs)",
    ),
    "task": (
        _TASK,
        "# Text classification in which every number is read as the same one.\n"
        "defaults:\n  - text_classification\n  - _self_\n_target_: NAME.CLASS\n"
        "same_numbers: true  # read every number as 0\n",
        "",
        'columns = {"text": ["an apple", "2 saws", "3 pears", "an axe"], "label": ["fruit", "tool", "fruit", "tool"]}\n'
        '    options = {"max_length": 8, "vocab_size": 100, "tokenizer": None, "lowercase": True}\n'
        "    testing.check_task(lambda: CLASS(same_numbers=True, **options), columns)",
    ),
    "data": (
        _DATA,
        "# Short texts with a label, made up.\n_target_: NAME.CLASS\nrows: 400  # number of rows\n",
        "",
        'testing.check_source(lambda: CLASS(rows=200), ["text", "label"])',
    ),
    "scheduler": (
        _SCHEDULER,
        "# Linear warmup, then a quadratic decay.\n"
        "_target_: NAME.NAME\nwarmup: 5%  # length of the warmup: steps, epochs or a share of the run\n"
        "floor: 0.01  # factor on the learning rate at the end, in [0, 1]\n",
        "from functools import partial",
        "testing.check_schedule(partial(NAME, warmup_steps=5, total_steps=100, floor=0.01), 100)",
    ),
    "optimizer": (
        _OPTIMIZER,
        "# RMSprop with momentum.\n"
        "_target_: NAME.NAME\nlr: 0.001  # base learning rate, greater than 0\nmomentum: 0.9  # in [0, 1)\n"
        "weight_decay: 0.0  # L2 penalty, at least 0\n",
        "from functools import partial",
        "testing.check_optimizer(partial(NAME, lr=0.01, momentum=0.9, weight_decay=0.0))",
    ),
    "metric": (
        _METRIC,
        "",
        "import torch",
        "testing.check_metric(CLASS(), torch.rand(8, 3).softmax(1), torch.randint(3, (8,)))",
    ),
}
"""For each kind of part: its module, its option (a metric has none), and the imports and the body of its test."""


def write_part(group: str, name: str, *, force: bool) -> list[str]:
    """Write the files of a part in the working directory; return the lines to print.

    Raises:
        ConfigError: One of the files exists.
    """
    module, option, imports, body = PARTS[group]
    made = "".join(word.capitalize() for word in name.split("_"))
    test = _TEST.replace("IMPORTS\n\n", f"{imports}\n\n" if imports else "").replace("BODY", body)
    test = test.replace("OBJECT", "NAME" if "NAME.NAME" in option else "CLASS")
    files = {Path(f"{name}.py"): module, Path(f"test_{name}.py"): test}
    if option:
        files[Path("conf", group, f"{name}.yaml")] = option
    for file in files:
        refuse_to_replace("name", file, force=force)
    for file, text in files.items():
        create_folder(file.parent, ConfigError)
        write_text(file, text.replace("NAME", name).replace("CLASS", made), ConfigError)
    chosen = f"{group}={name}" if option else f"'metrics=[{{_target_: {name}.{made}}}]'"
    return [
        *(f"wrote {file}" for file in files),
        "next:",
        f"  python -m pytest test_{name}.py",
        f"  trainer train {chosen}",
    ]
