"""PyTorch and the artifacts over the same evaluation batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from trainer.errors import ProofError
from trainer.export.cases import Forward
from trainer.export.likeness import Likeness
from trainer.export.proof import difference, turned_into_proof_error
from trainer.protocols import Batch, Target, Task

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import MetricCollection


class Comparison:
    """What one artifact does on real data, beside PyTorch.

    Args:
        artifact: Its file name.
        forward: The artifact, loaded.
        metrics: Fresh metrics.
        tolerance: As in `proof.difference`.
        target: What the task's targets are, which says what an output decides.

    Attributes:
        largest_difference: Of any output.
        likeness: With PyTorch, over all outputs.
        failure: What ended its proof; it is not run any further.
    """

    def __init__(
        self, artifact: str, forward: Forward, metrics: MetricCollection, tolerance: float, target: Target
    ) -> None:
        self.largest_difference = 0.0
        self.likeness = Likeness(target)
        self.failure: ProofError | None = None
        self._artifact = artifact
        self._forward = forward
        self._metrics = metrics
        self._tolerance = tolerance

    def update(self, batch: Batch, where: str, expected: Tensor) -> None:
        """Runs one batch, whose output in PyTorch is `expected` (B, ..., C)."""
        if self.failure is not None:
            return
        assert batch.target is not None, "a proof needs targets"
        try:
            with turned_into_proof_error(self._artifact, f"fails {where}", "The file is removed"):
                got = self._forward(batch.inputs)
            apart = difference(self._artifact, where, batch.inputs, expected, got, self._tolerance)
        except ProofError as error:
            self.failure = error
            return
        self.largest_difference = max(self.largest_difference, apart)
        self._metrics.update(got, batch.target)
        self.likeness.update(expected, got, batch.target)

    def values(self) -> dict[str, float]:
        """The metrics of all batches."""
        return _computed(self._metrics)


def judging_metric(task: Task) -> str | None:
    """The metric that artifacts are judged by: what picks the task's best checkpoint, where that is the loss the first.

    None where the task has no metric: outputs are compared all the same.
    """
    names = [str(name) for name in task.metrics()]
    return task.monitor if task.monitor in names else next(iter(names), None)


class Evaluation:
    """The evaluation split, with what PyTorch makes of it.

    Args:
        batches: The split, padded, with targets; the same at each call.
        pytorch: The model.
        metrics: Fresh metrics.
        remembered: So many numbers of PyTorch's outputs are kept, so that it need not be run on their batches again.

    Attributes:
        metrics: PyTorch's; empty until the split has been run.
    """

    def __init__(
        self,
        batches: Callable[[], Iterable[Batch]],
        pytorch: Forward,
        metrics: MetricCollection,
        *,
        remembered: int,
    ) -> None:
        self.metrics: dict[str, float] = {}
        self._batches = batches
        self._pytorch = pytorch
        self._collection = metrics
        self._room = remembered
        self._outputs: list[Tensor] = []
        self._done = False

    def run(self, comparisons: Sequence[Comparison]) -> None:
        """Runs every artifact on every batch, beside PyTorch."""
        batch: Batch | None = None
        for number, batch in enumerate(self._batches()):
            assert batch.target is not None, "a proof needs targets"
            expected = self._outputs[number] if number < len(self._outputs) else self._pytorch(batch.inputs)
            if not self._done:
                self._collection.update(expected, batch.target)
                self._remember(number, expected)
            for comparison in comparisons:
                comparison.update(batch, f"in batch {number} of the evaluation split", expected)
        assert batch is not None, "a proof needs an evaluation split with samples"
        self.metrics = _computed(self._collection)
        self._done = True

    def _remember(self, number: int, output: Tensor) -> None:
        """Keeps the output of a batch if those of all before it are kept and there is room."""
        if number == len(self._outputs) and output.numel() <= self._room:
            self._room -= output.numel()
            self._outputs.append(output.clone())  # alone: it may be a part of something larger


def _computed(metrics: MetricCollection) -> dict[str, float]:
    """The values of metrics as plain numbers, by name."""
    return {name: value.item() for name, value in metrics.compute().items()}
