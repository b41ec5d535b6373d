"""A new linear head on the outputs of inner modules of a model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError, did_you_mean, format_error, raise_if_any
from trainer.model.layers import Pooling, pool_samples
from trainer.model.modes import evaluation_mode
from trainer.model.summary import first_tensor
from trainer.protocols import HasPooling

_KEY: Final = "features"


class FeatureExtractor(nn.Module):
    """A linear head on the concatenated outputs of some modules, each pooled to one vector per sample.

    The shape of a module's output determines how it becomes (B, D):

    * (R, L, D), hidden states of tokens: pooled as the model pools its own tokens (its `pooling`; otherwise the first
      token if the model has a `class_token`, else the mean), over the tokens in `attention_mask` or `token_index`;
      hidden states of image patches (B, T, D) are pooled over all of them;
    * (B, D, H, W), feature maps of images: the mean over height and width;
    * (B, D): unchanged.

    Of a tuple or another collection, the first tensor is used; of a module that is called several times, the last
    output. The model's own output is not used, and parameters that no feature depends on are frozen.

    Source: Yosinski et al. 2014, https://arxiv.org/abs/1411.1792; concatenation of several layers after Peters et al.
    2018, https://arxiv.org/abs/1802.05365.

    Args:
        model: The model, which becomes the module `backbone`; the extractor's `forward` has the same parameters.
        names: Names of modules, for example `blocks.3`.
        num_outputs: Number of outputs, C; None returns the concatenated features (B, D).
        example: Inputs of the model, on its device, to determine the sizes of the features.

    Attributes:
        num_features: Width of the concatenated features, D.

    Raises:
        ConfigError: A module does not exist or has no suitable output, or the batch has no samples to pool.
    """

    ends_with_head: ClassVar[tuple[str, ...]] = ("tokens", "features", "images")

    def __init__(
        self, model: nn.Module, names: Sequence[str], num_outputs: int | None, example: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        _check(model, names, example)
        self.backbone = model
        self.names = tuple(names)
        self.pooling = _pooling_of(model)
        for name in self.names:
            module = cast(Any, model.get_submodule(name))
            module.kept = None
            module.register_forward_hook(_keep_output)
        self.num_features = self._dry_run(example)
        self.head = nn.Identity() if num_outputs is None else nn.Linear(self.num_features, num_outputs)
        parameter = next(model.parameters(), None)
        if parameter is not None:
            self.head.to(parameter.device)
        # Code that binds or exports inputs by name reads the signature of the model's own forward.
        self.forward = MethodType(_forward_like(model), self)

    def features(self, **inputs: Tensor) -> Tensor:
        """Return the concatenated pooled outputs of the modules, (B, D)."""
        return torch.cat([self._pool(output, inputs) for output in self._outputs(inputs)], dim=1)

    def _outputs(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        modules = [cast(Any, self.backbone.get_submodule(name)) for name in self.names]
        for module in modules:
            module.kept = []
        self.backbone(**inputs)
        outputs = [module.kept[-1] if module.kept else None for module in modules]
        for module in modules:
            # So copies of the model do not copy outputs, and recomputed checkpointed blocks do not keep them.
            module.kept = None
        for name, output in zip(self.names, outputs, strict=True):
            if not isinstance(output, Tensor):
                raise ConfigError(format_error(_KEY, "the module returns no tensor when the model runs", value=name))
        return cast(list[Tensor], outputs)

    def _pool(self, output: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        if output.ndim == 4:
            return output.mean(dim=(2, 3))
        if output.ndim == 3:
            mask, index = inputs.get("attention_mask"), inputs.get("token_index")
            if mask is None and index is None:
                mask = torch.ones(output.shape[:2], dtype=torch.bool, device=output.device)
            return pool_samples(output, mask, index, self.pooling)
        return output

    def _dry_run(self, example: Mapping[str, Tensor]) -> int:
        """Return the width of the features, and freeze parameters that they do not depend on."""
        devices = {tensor.device for tensor in example.values() if tensor.device.type == "cuda"}
        with evaluation_mode(self.backbone), torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
            outputs = self._outputs(example)
            _check_shapes(self.names, outputs, example)
            pooled = torch.cat([self._pool(output, example) for output in outputs], dim=1)
            _freeze_unused(self.backbone, pooled)
        return int(pooled.shape[1])


def _pooling_of(model: nn.Module) -> Pooling:
    if isinstance(model, HasPooling):
        return cast(Pooling, model.pooling)
    return "cls" if "class_token" in dict(model.named_parameters(recurse=False)) else "mean"


def _forward_like(model: nn.Module) -> Any:
    def forward(self: FeatureExtractor, *args: Tensor, **inputs: Tensor) -> Tensor:
        """Return outputs (B, C)."""
        if args:
            inputs = inspect.signature(self.forward).bind(*args, **inputs).arguments
        output: Tensor = self.head(self.features(**inputs))
        return output

    own = inspect.signature(model.forward)
    receiver = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    cast(Any, forward).__signature__ = own.replace(parameters=[receiver, *own.parameters.values()])
    return forward


def _keep_output(module: Any, inputs: object, output: object) -> None:
    if module.kept is not None:
        module.kept.append(first_tensor(output))


def _check(model: nn.Module, names: Sequence[str], example: Mapping[str, Tensor]) -> None:
    known = [name for name, _ in model.named_modules() if name]
    problems = [
        format_error(_KEY, "the model has no such module", _suggest(name, known), value=name)
        for name in names
        if name not in known
    ]
    if not names:
        problems.append(format_error(_KEY, "must name at least one module", _suggest("", known), value=list(names)))
    if len(set(names)) < len(names):
        problems.append(format_error(_KEY, "names a module twice", value=list(names)))
    if "output_index" in example:
        problems.append(format_error(_KEY, "needs a task with one output per sample, not per token"))
    raise_if_any(*problems)


def _suggest(name: str, known: list[str]) -> str:
    suggestion = did_you_mean(name, known)
    if suggestion.startswith("Known"):
        top = [other for other in known if "." not in other]
        suggestion = f"Known: {', '.join(top)} and the modules in them"
    return suggestion


def _check_shapes(names: Sequence[str], outputs: Sequence[Tensor], example: Mapping[str, Tensor]) -> None:
    rows = example.get("input_ids")
    first = example["token_index"] if "token_index" in example else next(iter(example.values()))
    problems = []
    for name, output in zip(names, outputs, strict=True):
        per_sample = output.ndim in (2, 4) or (output.ndim == 3 and rows is None)
        if per_sample and not (output.ndim == 4 and rows is not None):
            fits = output.shape[0] == first.shape[0]
        else:
            fits = output.ndim == 3 and rows is not None and output.shape[:2] == rows.shape
        if not (fits and output.is_floating_point()):
            shape = f"{tuple(output.shape)} {str(output.dtype).removeprefix('torch.')}"
            remedy = "Name modules that return floats (samples, D), (rows, tokens, D) or (samples, D, H, W) for images"
            problems.append(format_error(_KEY, f"{name} returns {shape}, which cannot be pooled", remedy))
    raise_if_any(*problems)


def _freeze_unused(model: nn.Module, pooled: Tensor) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = [None] * len(parameters)
    if pooled.requires_grad:
        gradients = list(torch.autograd.grad(pooled.sum(), parameters, allow_unused=True))  # type: ignore[arg-type]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
