"""Linear-chain conditional random field over the tags of a sequence."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.constraints import validated
from trainer.errors import ConfigError, format_error
from trainer.loss.classification import IGNORE_INDEX_RULES, count_not_ignored, promote_to_float32
from trainer.tags import TagTransitions, align_words, follows_scheme, forbid_transitions
from trainer.targets import check_classes


class Crf(nn.Module):
    """Negative log-likelihood of tag sequences (B, T) given the scores of the tags at each word (B, T, C).

        log sum_z exp(s(z)) - s(y)
        s(y) = start[y[1]] + sum_t output[t, y[t]] + sum_t between[y[t - 1], y[t]] + end[y[T]]

    Lafferty et al. 2001, "Conditional random fields"; Lample et al. 2016, https://arxiv.org/abs/1603.01360. The sum
    over all sequences z takes O(T C^2) by the forward algorithm, in log space. Each row is a sequence; its ignored
    positions are left out, so that the positions next to them become neighbors. `start`, `between` and `end` are
    trained with the model and start at 0, where the loss is the cross entropy. `num_targets`, the divisor of a step,
    counts tags, not sequences, so that the loss has the scale of the cross entropy.

    Metrics, predictions and artifacts use the most likely sequence of tags, see `trainer.tags.decode_tags`.

    Args:
        constraints: Allow only tag sequences of the scheme BIO, BIOES or BILOU in this search. The likelihood is not
            constrained, so that data that break the scheme can be trained on.
        ignore_index: Target that is ignored in the sum and in the count.
        num_outputs: Number of tags C, at least 2.
        class_names: Names of the tags, if the task has them.

    Raises:
        ConfigError: The task does not know its tags, or they follow no scheme.
    """

    targets: ClassVar[tuple[str, ...]] = ("class",)
    needs_sequences: ClassVar[bool] = True
    forbidden: TagTransitions | None

    @validated(*IGNORE_INDEX_RULES)
    def __init__(
        self,
        constraints: bool,
        ignore_index: int,
        num_outputs: int | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        if num_outputs is None or num_outputs < 2:
            problem = "needs a task that knows its tags, at least two"
            raise ConfigError(format_error("_target_", problem, "Use loss=cross_entropy", value=num_outputs))
        if constraints and not follows_scheme(class_names or ()):
            problem = "needs tags of the scheme BIO, BIOES or BILOU, in which B- begins each type that I- continues"
            raise ConfigError(format_error("constraints", problem, "Set loss.constraints=false", value=constraints))
        self.num_outputs = num_outputs
        self.ignore_index = ignore_index
        self.forbidden = forbid_transitions(class_names or ()) if constraints else None
        self.start = nn.Parameter(torch.zeros(num_outputs))
        self.between = nn.Parameter(torch.zeros(num_outputs, num_outputs))
        self.end = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the sequences: shape (), float32 (float64 for a float64 output)."""
        return self.row_terms(output, target).sum()

    def row_terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the term of each sequence: (B,).

        Raises:
            ValueError: The output does not have the scores of C tags at each position of a sequence.
        """
        if output.ndim != 3 or output.shape != (*target.shape, self.num_outputs):
            shapes = f"an output {tuple(output.shape)} and targets {tuple(target.shape)}"
            raise ValueError(f"{shapes} do not fit: they must be (B, T, {self.num_outputs}) and (B, T)")
        if not target.numel():
            return promote_to_float32(output).sum(dim=(1, 2))
        scores, valid, order = align_words(promote_to_float32(output), target != self.ignore_index)
        tags = target.gather(1, order).masked_fill(~valid, 0)
        start, between, end = (weight.to(scores.dtype) for weight in (self.start, self.between, self.end))
        lengths = valid.sum(dim=1)
        last = tags.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
        steps = scores.gather(2, tags[..., None])[..., 0]
        steps = torch.cat([steps[:, :1] + start[tags[:, :1]], steps[:, 1:] + between[tags[:, :-1], tags[:, 1:]]], dim=1)
        own = steps.masked_fill(~valid, 0).sum(dim=1) + end[last]
        total = start + scores[:, 0]
        for place in range(1, scores.shape[1]):
            following = (total[:, :, None] + between).logsumexp(dim=1) + scores[:, place]
            total = following.where(valid[:, place, None], total)
        return ((total + end).logsumexp(dim=1) - own).masked_fill(lengths == 0, 0)

    def tag_transitions(self) -> TagTransitions:
        """Return the scores of transitions for the search, with those that the constraints forbid."""
        learned = TagTransitions(*(weight.detach().float().clone() for weight in (self.start, self.between, self.end)))
        if self.forbidden is None:
            return learned
        return TagTransitions(*(weight + low.to(weight) for weight, low in zip(learned, self.forbidden, strict=True)))

    def num_targets(self, target: Tensor) -> Tensor:
        """Count the tags that are not ignored: int64, shape ()."""
        return count_not_ignored(target, self.ignore_index)

    def check(self, target: Tensor) -> None:
        """Raise RowError unless `target` contains only classes and `ignore_index`."""
        check_classes(target, self.num_outputs, self.ignore_index)
