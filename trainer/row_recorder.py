"""Records what a model says about each row of an evaluation; `trainer.predictions` describes the columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.deferred_logits import DeferredLogits
from trainer.distributed.ranks import Ranks
from trainer.predictions import MAX_CLASSES, TOP, Kind, format_span
from trainer.protocols import (
    Batch,
    HasAnswers,
    HasBatchStatistic,
    HasTagTransitions,
    LanguageModelTask,
    Loss,
    Target,
    Task,
    UsesInputs,
)
from trainer.spans import list_spans, list_targets, possible_spans
from trainer.targets import compute_loss, compute_row_losses, compute_scores
from trainer.task.embedding_metrics import mean_closeness, nearer_than_negatives, positive_ranks

if TYPE_CHECKING:
    import pyarrow

Write = Callable[["pyarrow.Table"], None]
Origins = Callable[[Sequence[int]], Mapping[str, Any]]
"""Returns the columns `file`, `line` and `input_digest` of the rows at some positions of a split."""

_KINDS: Final[dict[Target, Kind]] = {
    "class": "class",
    "shares": "class",
    "multi_hot": "labels",
    "values": "values",
    "views": "similarity",
    "similarity": "similarity",
    "spans": "spans",
}
_IGNORED = -100


def prediction_kind(task: Task) -> Kind:
    """Return the kind of a task's predictions."""
    if isinstance(task, LanguageModelTask):
        return "tokens"
    per_token = task.info().output_level == "token" and task.target == "class"
    return "tags" if per_token else _KINDS[task.target]


@dataclass(frozen=True)
class RowRecorder:
    """Turns the outputs of each batch into rows.

    Attributes:
        task: The fitted task.
        loss: The loss.
        schema: The columns.
        origins: Finds the file, the record and the digest of rows.
        write: Receives the rows of each batch.
        ranks_positives: Also record the ranks of the positives, which are known once all rows are.
        measures_closeness: Also record how close all other rows are. Both hold the rows in memory until `finish`, with
            their vectors.
    """

    task: Task
    loss: Loss
    schema: pyarrow.Schema
    origins: Origins
    write: Write
    ranks_positives: bool = False
    measures_closeness: bool = False
    _held: list[tuple[pyarrow.Table, Tensor]] = field(default_factory=list)

    def add(self, host: Batch, batch: Batch, output: Tensor | DeferredLogits) -> None:
        """Record a batch.

        Args:
            host: The batch before it was moved to the device.
            batch: The same on the device of the output.
            output: The model's output.
        """
        import pyarrow as pa

        if not host.num_samples:
            return
        assert host.target is not None, "a batch to evaluate needs a target"
        kind = prediction_kind(self.task)
        per_token = kind in ("tags", "tokens")
        parts = list(_split_samples(host, batch, output)) if per_token else []
        counts = self._count_targets(host.target, parts)
        columns: dict[str, Any] = {"row": list(host.ids), "num_targets": counts, **self.origins(host.ids)}
        columns |= self._losses(batch, output, parts, counts)
        if per_token and isinstance(self.loss, HasTagTransitions) and isinstance(output, Tensor):
            # All sequences of the batch together, which takes hardly longer than one.
            parts = list(_split_samples(host, batch, compute_scores(self.loss, output, batch.target)))
        columns |= self._token_answers(kind, parts) if per_token else self._answers(kind, host.target, output)
        arrays = [
            pa.nulls(len(host.ids), field.type)
            if (values := columns.get(field.name)) is None
            else values
            if isinstance(values, pa.Array)
            else pa.array(values, field.type)
            for field in self.schema
        ]
        rows = pa.Table.from_arrays(arrays, schema=self.schema)
        if self._holds_rows:
            assert isinstance(output, Tensor), "only token models defer their logits"
            self._held.append((rows, unit_views(output, host.target.shape[0])[:, :2].cpu()))
        else:
            self.write(rows)

    @property
    def _holds_rows(self) -> bool:
        return self.ranks_positives or self.measures_closeness

    def finish(self, ranks: Ranks) -> None:
        """Write the rows that waited for the vectors of all others; the processes that share the rows call it."""
        import pyarrow as pa

        if not self._holds_rows:
            return
        parts = ranks.gather(torch.cat([vectors for _, vectors in self._held]) if self._held else None)
        start = sum(len(part) for part in parts[: ranks.rank] if part is not None)
        vectors = torch.cat([part for part in parts if part is not None])
        columns = {}
        if self.ranks_positives:
            columns["rank"] = positive_ranks(vectors).int().numpy()
        if self.measures_closeness and len(vectors) > 1:
            columns["closeness"] = mean_closeness(vectors[:, 0]).numpy()
        for rows, _ in self._held:
            for name, values in columns.items():
                place = self.schema.get_field_index(name)
                own = pa.array(values[start : start + len(rows)], self.schema.field(name).type)
                rows = rows.set_column(place, self.schema.field(name), own)
            self.write(rows)
            start += len(rows)

    def _count_targets(self, target: Tensor, parts: Sequence[_Sample]) -> list[int]:
        """Return the number of targets of each sample."""
        if parts:
            return [int(self.loss.num_targets(part.host_target)) for part in parts]
        if int(self.loss.num_targets(target)) == target.numel():  # none is ignored
            return [target[:1].numel()] * len(target)
        return [int(self.loss.num_targets(target[row : row + 1])) for row in range(len(target))]

    def _losses(
        self, batch: Batch, output: Tensor | DeferredLogits, parts: Sequence[_Sample], counts: Sequence[int]
    ) -> dict[str, Any]:
        """Return the mean loss of each sample; `parts` are the samples of a token model, which differ in size."""
        loss = self.loss
        is_sum = not (isinstance(loss, HasBatchStatistic) and loss.is_batch_statistic)
        if not is_sum or (isinstance(loss, UsesInputs) and loss.needs_inputs):
            return {}
        assert batch.target is not None
        rows_are_samples = len(batch.target) == batch.num_samples
        if parts and not (rows_are_samples and isinstance(loss, HasTagTransitions)):
            sums = torch.stack([compute_loss(loss, part.output, replace(batch, target=part.target)) for part in parts])
        else:
            assert isinstance(output, Tensor), "only token models defer their logits"
            sums = compute_row_losses(loss, output, batch.target)
        values = sums.double().cpu().numpy() / np.maximum(counts, 1)
        return {"loss": values.astype(np.float32)}

    def _token_answers(self, kind: Kind, parts: Sequence[_Sample]) -> dict[str, Any]:
        """Return the tags of the words of each sample, and the number of right ones."""
        predicted = [part.predict(self.loss).cpu().numpy() for part in parts]
        targets = [part.host_target.flatten().numpy() for part in parts]
        kept = [target != _IGNORED for target in targets]
        right = [
            int((own & (guess == target)).sum()) for own, guess, target in zip(kept, predicted, targets, strict=True)
        ]
        if kind == "tokens":
            return {"num_right": right}
        names = self._names(int(parts[0].num_classes))
        return {
            "target": [[names[index] for index in target[own]] for own, target in zip(kept, targets, strict=True)],
            "prediction": [[names[index] for index in guess[own]] for own, guess in zip(kept, predicted, strict=True)],
            "num_right": right,
        }

    def _answers(self, kind: Kind, target: Tensor, output: Tensor | DeferredLogits) -> dict[str, Any]:
        assert isinstance(output, Tensor), "only token models defer their logits"
        scores = compute_scores(self.loss, output).float()
        if kind == "similarity":
            views = unit_views(scores, len(target))
            cosines = (views[:, 0] * views[:, 1]).sum(dim=-1).double().cpu().numpy()
            nearest = nearer_than_negatives(views).int().cpu().numpy() if views.shape[1] > 2 else None
            similarities = target.double().numpy() if target.ndim == 1 else None
            return {"prediction": cosines, "target": similarities, "num_right": nearest}
        answers = self.task.answers if isinstance(self.task, HasAnswers) else None
        if kind == "values":
            read = answers or _plain_values
            return {"target": read(target), "prediction": read(scores)}
        names = self._names(scores.shape[1])
        if kind == "spans":
            return _span_columns(scores, target, names)
        predicted: list[Any]
        actual: list[Any]
        if kind == "labels":
            probabilities = scores.sigmoid()
            predicted = answers(scores) if answers else _select_names(probabilities > 0.5, names)
            actual = _select_names(target > 0.5, names)
        else:
            probabilities = scores.softmax(dim=-1)
            predicted = answers(scores) if answers else [names[index] for index in scores.argmax(dim=-1).tolist()]
            classes = target.argmax(dim=-1) if target.is_floating_point() else target
            actual = [names[index] if index >= 0 else None for index in classes.tolist()]
        return {"target": actual, "prediction": predicted, **_probability_columns(probabilities)}

    def _names(self, num_classes: int) -> Sequence[str]:
        return self.task.info().class_names or [str(index) for index in range(num_classes)]


@dataclass(frozen=True)
class _Sample:
    """The output and the target of one sample, on the device, and the target on the host."""

    output: Tensor | DeferredLogits
    target: Tensor
    host_target: Tensor

    @property
    def num_classes(self) -> int:
        output = self.output
        return len(output.weight) if isinstance(output, DeferredLogits) else output.shape[-1]

    def predict(self, loss: Loss) -> Tensor:
        """Return the class with the largest score of each token."""
        if isinstance(self.output, DeferredLogits):
            chunks = self.output.chunks(self.target)
            return torch.cat([logits.argmax(dim=-1).flatten() for logits, _ in chunks])
        return compute_scores(loss, self.output).argmax(dim=-1).flatten()


def _split_samples(host: Batch, batch: Batch, output: Tensor | DeferredLogits) -> Iterator[_Sample]:
    """Yield the tokens of each sample."""
    assert host.target is not None
    assert batch.target is not None
    features = output.features if isinstance(output, DeferredLogits) else output

    def piece(part: Tensor) -> Tensor | DeferredLogits:
        return output._replace(features=part) if isinstance(output, DeferredLogits) else part

    # In packed rows with an output at every token, a sample is found by the positions of its tokens.
    if "token_index" in host.inputs and "output_index" not in host.inputs:
        flat, target, host_target = features.flatten(0, -2), batch.target.flatten(), host.target.flatten()
        for index in host.inputs["token_index"]:
            places = index[index >= 0]
            own = places.to(flat.device)
            yield _Sample(piece(flat[own]), target[own], host_target[places])
        return
    for number in range(len(host.target)):
        rows = slice(number, number + 1)
        yield _Sample(piece(features[rows]), batch.target[rows], host.target[rows])


def unit_views(output: Tensor, num_samples: int) -> Tensor:
    """Return the vectors of each sample with the length 1: (B * K, D) to (B, K, D)."""
    return F.normalize(output.float(), dim=-1).view(num_samples, -1, output.shape[-1])


def _plain_values(values: Tensor) -> list[Any]:
    rows = values.double().cpu().tolist()
    return [row[0] if len(row) == 1 else row for row in rows]


def _select_names(chosen: Tensor, names: Sequence[str]) -> list[list[str]]:
    return [[names[index] for index in np.flatnonzero(row).tolist()] for row in chosen.cpu().numpy()]


def _span_columns(scores: Tensor, target: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Return the spans of each row as texts: the target's (B, T, M), and the ones with scores (B, C, T, T) > 0."""
    possible = possible_spans(target)[:, None]
    predicted = [list_spans(each) for each in ((scores > 0).cpu() & possible).unbind()]
    actual = [list_targets(each, len(names)) for each in target]
    right = [len({*spans} & {*own}) for spans, own in zip(predicted, actual, strict=True)]
    answers = (
        [[format_span(first, last, names[index]) for first, last, index in row] for row in rows]
        for rows in (actual, predicted)
    )
    return {**dict(zip(("target", "prediction"), answers, strict=True)), "num_right": right}


def _probability_columns(probabilities: Tensor) -> dict[str, Any]:
    import pyarrow as pa

    columns: dict[str, Any] = {}
    if probabilities.shape[1] > MAX_CLASSES:
        probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
        probabilities, order = probabilities[:, :TOP], order[:, :TOP]
        columns["top_classes"] = list(order.int().cpu().numpy())
    values = probabilities.float().cpu().numpy()
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return {**columns, "probabilities": pa.ListArray.from_arrays(offsets, values.ravel())}


@contextmanager
def written_by_first(ranks: Ranks, schema: pyarrow.Schema, write: Write | None) -> Iterator[Write]:
    """Yield a function that takes rows; all rows reach the first process in order of rank as the block ends.

    Until then the rows of several processes are in temporary files, so memory does not grow with them.

    Args:
        ranks: The processes.
        schema: The columns.
        write: Receives the rows in the first process; None in the others.
    """
    import pyarrow as pa

    if ranks.size == 1:
        assert write is not None
        yield write
        return
    with ExitStack() as stack:
        file = stack.enter_context(TemporaryFile())
        writer = pa.ipc.new_stream(file, schema)
        yield writer.write_table
        writer.close()
        file.seek(0)
        batches = iter(pa.ipc.open_stream(file))
        for rank in range(ranks.size):
            while True:
                batch = next(batches, None) if ranks.rank == rank else None
                batch = ranks.gather(batch)[rank]
                if batch is None:
                    break
                if write is not None:
                    write(pa.Table.from_batches([batch], schema))
