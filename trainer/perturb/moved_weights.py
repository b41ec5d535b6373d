"""Weights that are moved to where the loss of a step is larger, so that the step also learns from the loss there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from trainer.constraints import NonEmptyStr, NonNegativeInt, Positive, validated
from trainer.errors import ConfigError, format_error, raise_if_any
from trainer.model.feature_extractor import FeatureExtractor
from trainer.model.finetuning import matching_parameters, no_match
from trainer.protocols import HasInputEmbeddings, PerturbsWeights


@dataclass(kw_only=True)
@validated()
class Move:
    """The arguments of every method that moves weights.

    Args:
        weight: Weight of the loss at the moved weights; the weight of the loss itself is 1.
        start_steps: Optimizer steps before the first move.
        targets: Patterns for names of the weights to move; None moves those that `perturbs` names.
    """

    weight: Positive
    start_steps: NonNegativeInt
    targets: Annotated[list[NonEmptyStr], MinLen(1)] | None


class MovedWeights:
    """Adds the gradient at moved weights to the gradient of a step: g(W) + weight * g(W + r).

    Each pass repeats the micro-batches of the step with the same random numbers, so r increases the very loss whose
    gradient it follows. The weights and the buffers are restored from copies, also after an error, so that nothing else
    ever reads moved weights: no update, no average, no checkpoint, no evaluation. A weight in shards is moved by the
    norms of the complete weight.

    Args:
        method: What moves a weight.
        model: The model, whose buffers (statistics of batch norm) only the pass at the weights themselves updates.
        weights: The weights to move, by name.

    Attributes:
        method: The same.
        weights: The same.
    """

    def __init__(self, method: PerturbsWeights, model: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
        self.method = method
        self.weights = dict(weights)
        self._model = model

    @property
    def passes(self) -> int:
        """The forward and backward passes of a step."""
        return 1 + self.method.moves

    def starts_at(self, step: int) -> bool:
        """Return whether the weights are moved at a step, counted from 0."""
        return step >= self.method.start_steps

    @torch.no_grad()
    def add_gradients(self, trained: Sequence[Tensor], compute: Callable[[], object], scale: float) -> None:
        """Add the gradients at moved weights to the gradients of the trained parameters.

        A weight without a gradient, because it is still frozen, does not move.

        Args:
            trained: The trained parameters, with the gradients of the mean loss of the step.
            compute: Sets the same gradients at the current weights; the parameters have none before.
            scale: The factor on the gradients, a power of 2.
        """
        moving = [weight for weight in self.weights.values() if weight.grad is not None]
        if not moving:
            return
        own = [parameter.grad for parameter in trained]
        gradients = [weight.grad for weight in moving]
        weights = [weight.detach().clone() for weight in moving]
        offsets = [torch.zeros_like(weight) for weight in weights]
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        try:
            for _ in range(self.method.moves):
                for position, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
                    assert gradient is not None
                    offsets[position] = self.method(weight, offsets[position], gradient / scale)
                    moving[position].copy_(weight + offsets[position])
                for parameter in trained:
                    parameter.grad = None
                with torch.enable_grad():
                    compute()
                gradients = [weight.grad for weight in moving]
        finally:
            for current, before in (*zip(moving, weights, strict=True), *buffers):
                current.copy_(before)
        for parameter, gradient in zip(trained, own, strict=True):
            if gradient is not None and parameter.grad is not None:
                gradient.add_(parameter.grad, alpha=self.method.weight)
            parameter.grad = gradient


def unit(gradient: Tensor) -> Tensor:
    """Return a gradient divided by its 2-norm; zeros if the norm is 0 or not finite, as if float16 overflows."""
    norm = torch.linalg.vector_norm(gradient)
    factor = torch.where(norm.isfinite() & (norm > 0), 1 / norm, torch.zeros_like(norm))
    return gradient.nan_to_num(0.0, 0.0, 0.0) * factor


def select_weights(method: PerturbsWeights, model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that a method moves, by name.

    Raises:
        ConfigError: A pattern matches nothing, or nothing that is trained could move.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if method.targets is not None:
        matches = [matching_parameters(model, pattern) for pattern in method.targets]
        raise_if_any(
            *(
                no_match(model, pattern, key="targets")
                for pattern, match in zip(method.targets, matches, strict=True)
                if not match
            )
        )
        chosen = [parameter for match in matches for parameter in match]
    elif method.perturbs == "embeddings":
        chosen = _embeddings(model)
    else:
        chosen = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    trained = {names[id(parameter)]: parameter for parameter in chosen if parameter.requires_grad}
    if not trained:
        frozen = ", ".join(names[id(parameter)] for parameter in chosen[:3])
        remedy = "Leave them out of model.freeze, or name trained weights in perturb.targets"
        raise ConfigError(format_error("targets", f"the weights to move are frozen: {frozen}", remedy))
    return trained


def _embeddings(model: nn.Module) -> list[nn.Parameter]:
    inner = model.backbone if isinstance(model, FeatureExtractor) else model
    if not isinstance(inner, HasInputEmbeddings):
        problem = f"{type(inner).__name__} does not say which of its weights are embeddings"
        remedy = "Name them: perturb.targets=[<name>], or use perturb=awp"
        raise ConfigError(format_error("targets", problem, remedy))
    return list(inner.get_input_embeddings().parameters())
