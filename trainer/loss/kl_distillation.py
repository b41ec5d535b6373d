"""Knowledge distillation from the labels and from a teacher's probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.constraints import Positive, Probability, RunPath, validated
from trainer.errors import ConfigError, format_error
from trainer.loss.classification import IGNORE_INDEX_RULES, count_not_ignored, flatten_rows, promote_to_float32
from trainer.targets import check_classes


class KlDistillation(nn.Module):
    """Cross entropy with the labels, mixed with the divergence from a teacher's softened probabilities.

    Hinton et al. 2015, https://arxiv.org/abs/1503.02531. With the temperature T, the weight w, the teacher's softmax p
    and the student's softmax q of logits / T, a row (..., C) of logits with the label y has the loss

        (1 - w) * -log softmax(logits)[y]  +  w * T ** 2 * sum_c p[c] * log(p[c] / q[c])

    T ** 2 keeps the size of the second gradient as T changes. `num_targets`, the divisor of a step, counts labels.

    Args:
        teacher: Run folder of the teacher.
        temperature: T, greater than 0.
        weight: w, in [0, 1].
        ignore_index: Label whose row is ignored in the sum and in the count.
        num_outputs: Number of classes C, if the task knows them.
        teacher_model: The teacher: model inputs by name to logits (..., C). It is not a submodule: it is not trained,
            saved or moved with this loss.

    Raises:
        ConfigError: There is no teacher.
    """

    targets: ClassVar[tuple[str, ...]] = ("class",)
    needs_inputs: ClassVar[bool] = True

    @validated(*IGNORE_INDEX_RULES)
    def __init__(
        self,
        teacher: RunPath,
        temperature: Positive,
        weight: Probability,
        ignore_index: int,
        num_outputs: int | None = None,
        teacher_model: Callable[[dict[str, Tensor]], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if teacher_model is None:
            raise ConfigError(
                format_error("teacher", "no model was loaded from it", "Name a run folder", value=teacher)
            )
        self.temperature = temperature
        self.weight = weight
        self.ignore_index = ignore_index
        self.num_outputs = num_outputs
        # A module inside a tuple is not registered as a submodule.
        self._teacher = (teacher_model,)

    @property
    def teacher_model(self) -> Callable[[dict[str, Tensor]], Tensor]:
        """The teacher: model inputs by name to logits (..., C)."""
        return self._teacher[0]

    def check(self, target: Tensor) -> None:
        """Raise RowError unless `target` contains only classes and `ignore_index`."""
        check_classes(target, self.num_outputs, self.ignore_index)

    def forward(self, output: Tensor, target: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Return the sum over the labels: shape (), float32 (float64 for float64 logits).

        Args:
            output: The student's logits (..., C).
            target: Labels (...,).
            inputs: The student's inputs, with which the teacher is called too.

        Raises:
            ValueError: The shapes of the logits, the labels and the teacher's logits do not fit.
        """
        with torch.no_grad():
            teacher_output = self.teacher_model(inputs)
        if teacher_output.shape != output.shape:
            shapes = f"the teacher's are {tuple(teacher_output.shape)}, the student's {tuple(output.shape)}"
            raise ValueError(f"teacher and student must return logits of one shape: {shapes}")
        logits, target = flatten_rows(promote_to_float32(output), target)
        teacher_logits = teacher_output.to(logits.dtype).reshape(logits.shape)
        hard = F.cross_entropy(logits, target, ignore_index=self.ignore_index, reduction="sum")
        log_q = F.log_softmax(logits / self.temperature, dim=1)
        log_p = F.log_softmax(teacher_logits / self.temperature, dim=1)
        soft = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=1)
        soft = soft.masked_fill(target == self.ignore_index, 0).sum()
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * soft

    def num_targets(self, target: Tensor) -> Tensor:
        """Count the labels (...,) that are not ignored: int64, shape ()."""
        return count_not_ignored(target, self.ignore_index)
