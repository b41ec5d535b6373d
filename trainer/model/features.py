"""A new head on what the inner modules of a model give."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError, did_you_mean, format_error, raise_if_any
from trainer.model.pooling import Pooling, pool_samples
from trainer.model.structure import first_tensor

_KEY: Final = "features"


class FeatureExtractor(nn.Module):
    """A linear head on the outputs of some modules of a model, each pooled to one vector a sample, side by side.

    What a module gives becomes (B, D) by its shape:

    * (R, L, D), hidden states of tokens: pooled as the model pools its own (its `pooling`; else the first one where it
      has a `class_token`; else the mean), over the tokens that `attention_mask` or `token_index` tells; those of images
      (B, T, D) over all of them;
    * (B, D, H, W), feature maps of images: the mean over height and width;
    * (B, D): as it is.

    Of a tuple or another collection the first tensor is taken, of a module that is called several times the last
    output. The model's own output is not used; its parameters that no feature depends on are not trained.

    Source: Yosinski et al. 2014, https://arxiv.org/abs/1411.1792; several layers side by side after Peters et al. 2018,
    https://arxiv.org/abs/1802.05365.

    Args:
        model: The model; `forward` takes what its `forward` does. It becomes the module `backbone`.
        names: Names of its modules, `blocks.3` for example.
        num_outputs: Columns of the output, C; None: the features side by side (B, D) are the output.
        example: Inputs of the model, on its device, of which the sizes of the features are learnt.

    Attributes:
        num_features: The width of all features together, D.

    Raises:
        ConfigError: There is no module of a name, it gives no features, or there are no samples to pool for.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], num_outputs: int | None, example: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        _check(model, names, example)
        self.backbone = model
        self.names = tuple(names)
        self.pooling = _pooling_of(model)
        for name in self.names:
            tapped = cast(Any, model.get_submodule(name))
            tapped.kept = None
            tapped.register_forward_hook(_keep)
        self.num_features = self._dry_run(example)
        self.head = nn.Identity() if num_outputs is None else nn.Linear(self.num_features, num_outputs)
        place = next(model.parameters(), None)
        if place is not None:
            self.head.to(place.device)
        # Whoever binds or exports inputs by name reads the signature of the model's own forward.
        self.forward = MethodType(_forward_like(model), self)

    def features(self, **inputs: Tensor) -> Tensor:
        """The pooled outputs of the modules side by side, (B, D)."""
        return torch.cat([self._pooled(output, inputs) for output in self._outputs(inputs)], dim=1)

    def _outputs(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        tapped = [cast(Any, self.backbone.get_submodule(name)) for name in self.names]
        for module in tapped:
            module.kept = []
        self.backbone(**inputs)
        outputs = [module.kept[-1] if module.kept else None for module in tapped]
        for module in tapped:
            # Neither does a copy of the model hold them, nor is kept what checkpointed blocks compute again.
            module.kept = None
        for name, output in zip(self.names, outputs, strict=True):
            if not isinstance(output, Tensor):
                raise ConfigError(format_error(_KEY, "gives no tensor where the model is run", value=name))
        return cast(list[Tensor], outputs)

    def _pooled(self, output: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        if output.ndim == 4:
            return output.mean(dim=(2, 3))
        if output.ndim == 3:
            mask, index = inputs.get("attention_mask"), inputs.get("token_index")
            if mask is None and index is None:
                mask = torch.ones(output.shape[:2], dtype=torch.bool, device=output.device)
            return pool_samples(output, mask, index, self.pooling)
        return output

    def _dry_run(self, example: Mapping[str, Tensor]) -> int:
        """The width of the features; what they do not depend on is taken out of training."""
        modes = {module: module.training for module in self.backbone.modules()}
        devices = {tensor.device for tensor in example.values() if tensor.device.type == "cuda"}
        self.backbone.eval()
        try:
            with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
                outputs = self._outputs(example)
                _check_shapes(self.names, outputs, example)
                pooled = torch.cat([self._pooled(output, example) for output in outputs], dim=1)
                _freeze_unreached(self.backbone, pooled)
        finally:
            for module, training in modes.items():
                module.training = training
        return int(pooled.shape[1])


def _pooling_of(model: nn.Module) -> Pooling:
    default = "mean" if getattr(model, "class_token", None) is None else "cls"
    return cast(Pooling, getattr(model, "pooling", default))


def _forward_like(model: nn.Module) -> Any:
    def forward(self: FeatureExtractor, *args: Tensor, **inputs: Tensor) -> Tensor:
        """Outputs (B, C)."""
        if args:
            inputs = inspect.signature(self.forward).bind(*args, **inputs).arguments
        output: Tensor = self.head(self.features(**inputs))
        return output

    own = inspect.signature(model.forward)
    receiver = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    cast(Any, forward).__signature__ = own.replace(parameters=[receiver, *own.parameters.values()])
    return forward


def _keep(module: Any, inputs: Any, output: Any) -> None:
    if module.kept is not None:
        module.kept.append(first_tensor(output))


def _check(model: nn.Module, names: Sequence[str], example: Mapping[str, Tensor]) -> None:
    known = [name for name, _ in model.named_modules() if name]
    faults = [
        format_error(_KEY, "the model has no such module", _near(name, known), value=name)
        for name in names
        if name not in known
    ]
    if not names:
        faults.append(format_error(_KEY, "must name one module at least", _near("", known), value=list(names)))
    if len(set(names)) < len(names):
        faults.append(format_error(_KEY, "names a module twice", value=list(names)))
    if "output_index" in example or ("sequence_ids" in example and "token_index" not in example):
        faults.append(format_error(_KEY, "are pooled to one vector a sample, and the task has outputs of tokens"))
    raise_if_any(*faults)


def _near(name: str, known: list[str]) -> str:
    found = did_you_mean(name, known)
    if found.startswith("Known"):
        top = [other for other in known if "." not in other]
        found = f"Known: {', '.join(top)} and what is in them"
    return found


def _check_shapes(names: Sequence[str], outputs: Sequence[Tensor], example: Mapping[str, Tensor]) -> None:
    rows = example.get("input_ids")
    first = example["token_index"] if "token_index" in example else next(iter(example.values()))
    faults = []
    for name, output in zip(names, outputs, strict=True):
        by_sample = output.ndim in (2, 4) or (output.ndim == 3 and rows is None)
        if by_sample and not (output.ndim == 4 and rows is not None):
            fits = output.shape[0] == first.shape[0]
        else:
            fits = output.ndim == 3 and rows is not None and output.shape[:2] == rows.shape
        if not (fits and output.is_floating_point()):
            problem = f"{name} gives {tuple(output.shape)} {str(output.dtype).removeprefix('torch.')}"
            wanted = "Wanted are floats (samples, D), (rows, tokens, D) or, of images, (samples, D, H, W)"
            faults.append(format_error(_KEY, f"{problem}, which cannot be pooled", wanted))
    raise_if_any(*faults)


def _freeze_unreached(model: nn.Module, pooled: Tensor) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reached = [None] * len(parameters)
    if pooled.requires_grad:
        reached = list(torch.autograd.grad(pooled.sum(), parameters, allow_unused=True))  # type: ignore[arg-type]
    for parameter, gradient in zip(parameters, reached, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
