"""Shared parts of the losses over classes: class weights, label smoothing, focusing and ignored targets together.

Notation: C classes, class probabilities p (softmax of a row's logits), class weights w, label smoothing e, a target y.

    cross entropy   H = (1 - e) * w[y] * -log p[y]  +  e / C * sum_c w[c] * -log p[c]
    focal           (1 - p[y]) ** gamma * H
    poly            H  +  epsilon * w[y] * (1 - t)    with t = (1 - e) * p[y] + e / C, the sum over the classes of the
                                                      smoothed target times p

Label smoothing spreads the share e of the target over all classes (Szegedy et al. 2016,
https://arxiv.org/abs/1512.00567); the class weights enter its term as they do in torch. Focusing multiplies the
smoothed, weighted cross entropy and depends only on the probability of the target itself. With gamma = 0, epsilon = 0
or e = 0 the same code computes the plain cross entropy.

A target may also be shares s of the classes, for example of two images that were mixed. Its loss is the mean of the
loss over the classes, weighted by their shares: sum_y s[y] * loss(y). For the cross entropy this equals torch's cross
entropy with probabilities.

A target equal to `ignore_index` is ignored: its row adds nothing to the loss, the gradient or the count.

Normalization: a loss is the sum over the rows, and `num_targets` counts the targets that are not ignored. Torch's
weighted mean divides by the sum of their weights instead; with the count, a row's weight does not depend on the rest of
its batch. Weights that come from the training data have a mean of 1 over the training targets: the two divisors then
agree on average, and the learning rate keeps its meaning.

Weights of a class with n of the N training targets, if K classes occur:

    auto               N / (K * n), the inverse class frequency
    effective_number   proportional to (1 - b) / (1 - b ** n), b = 0.999, the inverse of the effective number of samples
                       (Cui et al. 2019, https://arxiv.org/abs/1901.05555), scaled to a mean of 1

A class that never occurs has the weight 1: it is never a training target, but it is part of the smoothing term.

Logits (..., C) have targets (...,): leading axes are flattened. Everything is computed in float32, or in float64 for
float64 logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.constraints import NonNegative, Rule
from trainer.errors import did_you_mean, format_error
from trainer.targets import by_class_name, check_classes, check_shares

Factors: TypeAlias = list[NonNegative] | Mapping[str | int | bool, NonNegative]
"""A factor for each class or label, at least 0: in the order of the classes, or by name."""
ClassWeights = Sequence[float] | Mapping[Any, float] | Literal["auto", "effective_number"] | None
IGNORE_INDEX_RULES: Final = (
    Rule(
        "ignore_index not in (0, 1)",
        key="ignore_index",
        problem="collides with a real class or label",
        remedy="Use a negative number",
    ),
)
WEIGHT_RULES: Final = (
    Rule("not isinstance(weight, list) or any(weight)", key="weight", problem="must have a value greater than 0"),
    Rule(
        "not isinstance(weight, dict) or any(weight[name] for name in weight)",
        key="weight",
        problem="must have a value greater than 0",
    ),
)
_BETA = 0.999
_MAX_NAMES = 20
_CHUNK_ELEMENTS = 2**23
"""Elements of a chunk of logits: 32 MiB in float32. A smaller chunk would stay in the cache, but each pass over a chunk
waits for all threads, and these waits dominate on a busy machine."""


class ClassTerms(NamedTuple):
    """The terms of the losses: one entry per row (B,), 0 if ignored, or per class (B, C) if the targets are shares.

    Attributes:
        nll: The negative log-likelihood -log p[y].
        weight: Returns the class weight w[y]; most losses do not need it.
        cross_entropy: The weighted, smoothed cross entropy H.
        shares: The targets (B, C) if they are shares.
    """

    nll: Tensor
    weight: Callable[[], Tensor]
    cross_entropy: Tensor
    shares: Tensor | None = None

    def weighted(self, values: Tensor) -> Tensor:
        """Return a loss's values, which have the shape of the terms, times the shares if the targets are shares."""
        return values if self.shares is None else self.shares * values


def compute_class_terms(
    output: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float, ignore_index: int
) -> ClassTerms:
    """Compute the terms of logits (..., C) with targets (...,), flattened, or of logits (B, C) with shares (B, C).

    Args:
        output: Logits (..., C).
        target: Classes (...,) or `ignore_index`, or shares if it is floating-point.
        weight: Class weights (C,), or None.
        label_smoothing: Share of the target spread over the classes, in [0, 1).
        ignore_index: Target that is ignored.

    Raises:
        ValueError: The shapes do not fit.
    """
    if target.is_floating_point():
        return _compute_share_terms(output, target, weight, label_smoothing)
    logits, classes = flatten_rows(output, target)
    num_classes = logits.shape[1]
    _check_num_weights(weight, num_classes)
    nll, smooth_nll = compute_nll(logits, classes, weight, ignore_index, smoothing=label_smoothing > 0)
    weigh = partial(_weigh_targets, classes, weight, ignore_index, nll.dtype)
    cross_entropy = nll if weight is None else weigh() * nll
    if smooth_nll is not None:
        share = label_smoothing / num_classes
        cross_entropy = (1 - label_smoothing) * cross_entropy + share * smooth_nll
    return ClassTerms(nll, weigh, cross_entropy)


def _weigh_targets(classes: Tensor, weight: Tensor | None, ignore_index: int, dtype: torch.dtype) -> Tensor:
    """Return the weight of each target (B,); 0 if it is ignored."""
    ignored = classes == ignore_index
    if weight is None:
        return (~ignored).to(dtype)
    return weight.to(dtype)[classes.masked_fill(ignored, 0)].masked_fill(ignored, 0)


def _compute_share_terms(output: Tensor, shares: Tensor, weight: Tensor | None, label_smoothing: float) -> ClassTerms:
    if output.ndim != 2 or output.shape != shares.shape:
        shapes = f"an output {tuple(output.shape)} and shares {tuple(shares.shape)}"
        raise ValueError(f"{shapes} do not fit: both must be (B, C)")
    _check_num_weights(weight, output.shape[1])
    nll = -promote_to_float32(output).log_softmax(dim=1)
    class_weight = torch.ones_like(nll) if weight is None else weight.to(nll.dtype).expand_as(nll)
    cross_entropy = class_weight * nll
    if label_smoothing > 0:
        smooth_loss = label_smoothing / output.shape[1] * cross_entropy.sum(dim=1, keepdim=True)
        cross_entropy = (1 - label_smoothing) * cross_entropy + smooth_loss
    return ClassTerms(nll, lambda: class_weight, cross_entropy, shares)


def _check_num_weights(weight: Tensor | None, num_classes: int) -> None:
    if weight is not None and weight.shape != (num_classes,):
        raise ValueError(f"{weight.numel()} class weights for an output of {num_classes} classes")


# Negative log-likelihood


def compute_nll(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, *, smoothing: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute each row's negative log-likelihood and its smoothing term, with a closed-form gradient.

    For logits x of C classes with p = softmax(x), a target y and class weights w,

        nll        = -log p[y]                  d nll / d x        = p - onehot(y)
        smooth_nll = -sum_c w[c] * log p[c]     d smooth_nll / d x = p * sum(w) - w

    Every loss over classes is a function of these two numbers per row, so autograd sees vectors (B,) and never stores a
    (B, C) tensor. Both passes process the rows in chunks and work in place: the only new tensor of size (B, C) is the
    gradient, while `torch.nn.functional.cross_entropy` makes three. Ignored rows are left out here too: on a small
    batch, an operation that autograd sees costs more than its work.

    Args:
        logits: (B, C), of any floating-point type.
        target: Classes (B,), or `ignore_index`.
        weight: Class weights w (C,); None for ones.
        ignore_index: Target whose row has terms and a gradient of 0.
        smoothing: Also compute `smooth_nll`, which takes another pass; else None is returned for it.

    Returns:
        `nll` and `smooth_nll`, both (B,), in float32 or in float64 for float64 logits.
    """
    apply: Any = _NegativeLogLikelihood.apply
    terms: tuple[Tensor, Tensor | None] = apply(logits, target, weight, ignore_index, smoothing)
    return terms


class _NegativeLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: bool
    ) -> tuple[Tensor, Tensor | None]:
        ignored = target == ignore_index
        index = target.masked_fill(ignored, 0).unsqueeze(1)
        ctx.save_for_backward(logits, index, weight, ignored)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        if len(logits) <= _rows_of_chunk(logits):
            nll, smooth_nll = _row_terms(torch.log_softmax(logits, 1, dtype=dtype), index, weight, smoothing=smoothing)
        else:
            nll = logits.new_empty(len(logits), dtype=dtype)
            smooth_nll = logits.new_empty(len(logits), dtype=dtype) if smoothing else None
            for chunk, workspace in _chunks(logits, dtype):
                log_p = torch.log_softmax(logits[chunk], 1, dtype=dtype, out=workspace)
                nll[chunk], smooth = _row_terms(log_p, index[chunk], weight, smoothing=smoothing)
                if smooth_nll is not None and smooth is not None:
                    smooth_nll[chunk] = smooth
        return nll.masked_fill_(ignored, 0), None if smooth_nll is None else smooth_nll.masked_fill_(ignored, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nll: Tensor, grad_smooth: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, index, weight, ignored = ctx.saved_tensors
        dtype = grad_nll.dtype
        grad_nll = grad_nll.masked_fill(ignored, 0).unsqueeze(1)
        grad_smooth = None if grad_smooth is None else grad_smooth.masked_fill(ignored, 0).unsqueeze(1)
        # Recomputing the softmax is cheaper than saving it: it is written to the memory of the gradient.
        if len(logits) <= _rows_of_chunk(logits):
            gradient = torch.softmax(logits, 1, dtype=dtype)
            _to_gradient(gradient, index, weight, grad_nll, grad_smooth)
            return gradient.to(logits.dtype), None, None, None, None
        gradient = torch.empty_like(logits)
        for chunk, workspace in _chunks(logits, dtype):
            same = dtype == logits.dtype
            p = torch.softmax(logits[chunk], 1, dtype=dtype, out=gradient[chunk] if same else workspace)
            smooth = None if grad_smooth is None else grad_smooth[chunk]
            _to_gradient(p, index[chunk], weight, grad_nll[chunk], smooth)
            if not same:
                gradient[chunk] = p
        return gradient, None, None, None, None


def _row_terms(log_p: Tensor, index: Tensor, weight: Tensor | None, *, smoothing: bool) -> tuple[Tensor, Tensor | None]:
    """Return `nll` and `smooth_nll` of log probabilities (B, C), which may be overwritten, and classes (B, 1)."""
    nll = -log_p.gather(1, index).squeeze(1)
    if not smoothing:
        return nll, None
    # Not a matrix product: autocast would round it.
    return nll, -(log_p if weight is None else log_p.mul_(weight.to(log_p.dtype))).sum(dim=1)


def _to_gradient(p: Tensor, index: Tensor, weight: Tensor | None, grad_nll: Tensor, grad_smooth: Tensor | None) -> None:
    """Replace probabilities (B, C) by the gradient of the logits, given classes and gradients of both terms, (B, 1)."""
    if grad_smooth is None:
        p.mul_(grad_nll)
    else:
        w = p.new_ones(1) if weight is None else weight.to(p.dtype)
        total = p.shape[1] if weight is None else w.sum()
        p.mul_(grad_nll + grad_smooth * total).addcmul_(grad_smooth, w, value=-1)
    p.scatter_(1, index, p.gather(1, index) - grad_nll)


def _rows_of_chunk(logits: Tensor) -> int:
    return max(1, _CHUNK_ELEMENTS // max(1, logits.shape[1]))


def _chunks(logits: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the rows, each with a workspace of its shape; all slices share the same memory."""
    num_rows, num_classes = logits.shape
    step = _rows_of_chunk(logits)
    workspace = logits.new_empty(min(step, num_rows), num_classes, dtype=dtype)
    for start in range(0, num_rows, step):
        yield slice(start, start + step), workspace[: num_rows - start]


# Outputs and targets


def flatten_rows(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Reshape outputs (..., C) and targets (...,) to (B, C) and (B,).

    Raises:
        ValueError: The target's shape is not the output's shape without its last axis.
    """
    if output.ndim == 0 or output.shape[:-1] != target.shape:
        shapes = f"an output {tuple(output.shape)} and a target {tuple(target.shape)}"
        raise ValueError(f"{shapes} do not fit: the output must be (..., C) and its target (...,)")
    return (output, target) if output.ndim == 2 else (output.reshape(-1, output.shape[-1]), target.reshape(-1))


def promote_to_float32(output: Tensor) -> Tensor:
    """Return a float64 output unchanged and any other output in float32."""
    return output if output.dtype == torch.float64 else output.float()


def count_not_ignored(target: Tensor, ignore_index: int) -> Tensor:
    """Count the entries of a target that are not ignored: int64, shape (), without a host sync."""
    return (target != ignore_index).sum()


def count_class_targets(target: Tensor, ignore_index: int) -> Tensor:
    """Count the targets that are not ignored, classes (...,) or rows of shares (B, C): int64, shape ()."""
    if target.is_floating_point():
        return torch.full((), len(target), dtype=torch.int64, device=target.device)
    return count_not_ignored(target, ignore_index)


def check_class_targets(target: Tensor, num_classes: int | None, ignore_index: int) -> None:
    """Raise RowError unless the targets are classes or shares."""
    if target.is_floating_point():
        check_shares(target, num_classes)
    else:
        check_classes(target, num_classes, ignore_index)


# Class weights


def infer_num_classes(class_counts: Sequence[int] | None, num_outputs: int | None) -> int | None:
    """Return the number of classes C, or None if the task does not know it."""
    return num_outputs if class_counts is None else len(class_counts)


def find_weight_problems(
    key: str,
    weights: ClassWeights,
    class_counts: Sequence[int] | None,
    num_classes: int | None,
    class_names: Sequence[str] | None = None,
) -> list[str]:
    """Return a message for each reason why the class weights do not fit the classes.

    Args:
        key: Name of the parameter.
        weights: One weight per class, in order or by name, or the rule that derives them from the counts.
        class_counts: Training targets of each class (C entries); None if the task does not count them.
        num_classes: Number of classes C; None if it is unknown.
        class_names: Names of the classes, in their order; None if they have none.
    """
    if weights is None:
        return []
    if isinstance(weights, Mapping):
        return _find_name_problems(key, weights, class_names)
    if (class_counts if isinstance(weights, str) else num_classes) is None:
        problem = "class weights need a task that counts its classes"
        return [format_error(key, problem, f"Use loss.{key}=null", value=weights)]
    if not isinstance(weights, str) and len(weights) != num_classes:
        problem = f"must have one value for each of the {num_classes} classes"
        remedy = f"Their order is {_list_names(class_names)}; or give them by name: {{NAME: VALUE}}"
        return [format_error(key, problem, remedy if class_names else "", value=weights)]
    return []


def _find_name_problems(key: str, weights: Mapping[Any, float], class_names: Sequence[str] | None) -> list[str]:
    """Return a message for each name that is missing or unknown."""
    if class_names is None:
        remedy = f"Give loss.{key} as a list, one value for each class"
        return [format_error(key, "the classes of this task have no names", remedy, value=dict(weights))]
    names = list(class_names)
    named, known = by_class_name(weights, names), set(names)
    unknown = [name for name in named if name not in known]
    problems = [format_error(f"{key}.{name}", "is not a class", did_you_mean(name, names)) for name in unknown]
    if missing := [name for name in names if name not in named]:
        remedy = f"The classes are {_list_names(names)}"
        problems.append(format_error(key, f"has no value for {_list_names(missing)}", remedy, value=dict(weights)))
    return problems


def _list_names(names: Sequence[str] | None) -> str:
    shown = list(names or ())
    return ", ".join(shown if len(shown) <= _MAX_NAMES else [*shown[:_MAX_NAMES], "..."])


def order_by_class(
    weights: Sequence[float] | Mapping[Any, float], class_names: Sequence[str] | None
) -> Sequence[float]:
    """Return one value per class, in the order of the classes; `find_weight_problems` must have found no problem."""
    if not isinstance(weights, Mapping):
        return weights
    by_name = by_class_name(weights, class_names or ())
    return [by_name[name] for name in class_names or ()]


def make_class_weights(
    weights: ClassWeights, class_counts: Sequence[int] | None, class_names: Sequence[str] | None = None
) -> Tensor | None:
    """Return the weights of the C classes, float32 (C,), or None; `find_weight_problems` must have found no problem."""
    if weights is None:
        return None
    if isinstance(weights, str):
        assert class_counts is not None, "checked by find_weight_problems"
        weights = _balance(class_counts, weights)
    return torch.tensor(order_by_class(weights, class_names), dtype=torch.float32)


def _balance(counts: Sequence[int], rule: str) -> list[float]:
    raw = [1 / (count if rule == "auto" else effective_number(count)) if count > 0 else 0.0 for count in counts]
    mass = math.fsum(count * weight for count, weight in zip(counts, raw, strict=True))
    return [sum(counts) * weight / mass if weight > 0 else 1.0 for weight in raw]


def effective_number(count: int) -> float:
    """Return the effective number of n samples, (1 - b ** n) / (1 - b), b = 0.999: near n for few, at most 1000."""
    return math.expm1(count * math.log(_BETA)) / (_BETA - 1)
