"""Distillation: learning from the labels and from a teacher's probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.errors import format_error, raise_if_any
from trainer.loss.classification import at_least_float32, count_targets, flatten
from trainer.ranges import positive, share
from trainer.targets import check_classes


class KlDistillation(nn.Module):
    """Cross entropy with the labels, mixed with the divergence from a teacher's softened probabilities.

    Hinton et al. 2015, https://arxiv.org/abs/1503.02531. With the temperature T, the weight w and softmax(logits / T)
    as p of the teacher and q of the student, a row (..., C) of logits with the label y has

        (1 - w) * -log softmax(logits)[y]  +  w * T ** 2 * sum_c p[c] * log(p[c] / q[c])

    T ** 2 keeps the size of the second gradient as T changes. The divisor of a step counts labels.

    Args:
        teacher: Run folder of the teacher.
        temperature: T, above 0.
        weight: w, in [0, 1].
        ignore_index: The label whose row is left out of the sum and of the count.
        num_outputs: The classes, C, where the task knows them.
        teacher_model: The teacher: inputs of the model by name to logits (..., C). It is not part of this module: not
            trained, saved or moved with it.

    Raises:
        ConfigError: A value is out of range, or there is no teacher.
    """

    targets: ClassVar[tuple[str, ...]] = ("class",)
    needs_inputs: ClassVar[bool] = True

    def __init__(
        self,
        teacher: str,
        temperature: float,
        weight: float,
        ignore_index: int,
        num_outputs: int | None = None,
        teacher_model: Callable[[dict[str, Tensor]], Tensor] | None = None,
    ) -> None:
        super().__init__()
        no_model = format_error("teacher", "no model was loaded from it", "Name a run folder", value=teacher)
        raise_if_any(
            positive("temperature", temperature),
            share("weight", weight),
            no_model if teacher_model is None else None,
        )
        self.temperature = temperature
        self.weight = weight
        self.ignore_index = ignore_index
        self.num_outputs = num_outputs
        # Within a tuple, a module does not become a part of this one.
        self._teacher = (teacher_model,)

    @property
    def teacher_model(self) -> Callable[[dict[str, Tensor]], Tensor]:
        """The teacher."""
        (teacher,) = self._teacher
        assert teacher is not None
        return teacher

    def check(self, target: Tensor) -> None:
        """Raises RowError unless `target` holds classes or `ignore_index`."""
        check_classes(target, self.num_outputs, self.ignore_index)

    def forward(self, output: Tensor, target: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The sum over the labels: shape (), float32 (float64 for float64 logits).

        Args:
            output: The student's logits (..., C).
            target: Labels (...,).
            inputs: What the student was called with; the teacher is called with the same.

        Raises:
            ValueError: The logits are not those of the labels, or the teacher's have another shape.
        """
        (teacher,) = self._teacher
        assert teacher is not None
        with torch.no_grad():
            wanted = teacher(inputs)
        if wanted.shape != output.shape:
            shapes = f"the teacher's are {tuple(wanted.shape)}, the student's {tuple(output.shape)}"
            raise ValueError(f"teacher and student must give logits of one shape: {shapes}")
        logits, target = flatten(at_least_float32(output), target)
        wanted = wanted.to(logits.dtype).reshape(logits.shape)
        hard = F.cross_entropy(logits, target, ignore_index=self.ignore_index, reduction="sum")
        log_q = F.log_softmax(logits / self.temperature, dim=1)
        log_p = F.log_softmax(wanted / self.temperature, dim=1)
        soft = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=1)
        soft = soft.masked_fill(target == self.ignore_index, 0).sum()
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * soft

    def num_targets(self, target: Tensor) -> Tensor:
        """How many labels (...,) are not ignored: int64, shape ()."""
        return count_targets(target, self.ignore_index)
