"""Which parameters an optimizer gets, and at what learning rate and weight decay each of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from torch import nn

from trainer.errors import did_you_mean, format_error, raise_if_any
from trainer.optimizer.overrides import overridden, override_faults

# Their tables and gains are matrices by shape alone: a row of a table that no batch uses would only shrink.
_UNDECAYED: Final = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
_FUSED_DEVICES: Final = frozenset({"cpu", "cuda", "mps"})
_LOSS: Final = "loss."
_DECAYS: Final = ["matrices", "all"]


def no_decay_names(module: nn.Module) -> frozenset[str]:
    """The names, as in `module.named_parameters()`, of the embeddings' and norms' own parameters.

    A parameter shared by an embedding and another layer (tied weights) counts as the embedding's.
    """
    found = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, _UNDECAYED)
        for parameter in part.parameters(recurse=False)
    }
    return frozenset(name for name, parameter in module.named_parameters() if id(parameter) in found)


def layer_indices(module: nn.Module) -> dict[str, int]:
    """The layer of each parameter, from the inputs (0) up, for `make_parameter_groups`.

    The stack is the `nn.ModuleList` or `nn.Sequential` with the most parameters that lies in no other: its entries are
    the layers 1, 2, ... (those without a parameter are passed over), what was registered before it is layer 0, what
    was registered after it is one layer above it. A module without such a list is one layer.

    Args:
        module: The job's `model` and, where it has parameters, its `loss`, which is of the highest layer.
    """
    names = [name for name, _ in module.named_parameters()]
    prefix = _stack(module)
    entries = {_entry(name, prefix): None for name in names if prefix is not None and name.startswith(prefix)}
    numbers = {entry: number for number, entry in enumerate(entries, start=1)}
    layers: dict[str, int] = {}
    outside = 0
    for name in names:
        if prefix is not None and name.startswith(prefix):
            layers[name] = numbers[_entry(name, prefix)]
            outside = len(numbers) + 1
        elif not name.startswith(_LOSS):
            layers[name] = outside
    last = max(layers.values(), default=0)
    return {name: layers.get(name, last) for name in names}


def hidden_matrix_names(module: nn.Module) -> frozenset[str]:
    """The names of the hidden matrices: what lies between a model's inputs and its outputs and has two axes.

    These are the matrices of the stack of `layer_indices`, or of the whole model where it has none, without embeddings.
    What comes after the stack, also a loss's own parameters, is the output; where nothing does, the last matrix is.
    """
    parameters = dict(module.named_parameters())
    no_decay = no_decay_names(module)
    prefix = _stack(module) or ""
    stack = [name for name in parameters if name.startswith(prefix) and not name.startswith(_LOSS)]
    matrices = [name for name in stack if parameters[name].ndim == 2 and name not in no_decay]
    if stack and stack[-1] == list(parameters)[-1]:
        matrices = matrices[:-1]
    return frozenset(matrices)


def make_parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float | None,
    weight_decay: float | None,
    no_decay: Collection[str],
    layers: Mapping[str, int],
    decay: Literal["matrices", "all"] = "matrices",
    layer_decay: float | None = None,
    overrides: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """The trainable parameters in groups of one learning rate and weight decay: those that decay, then the others.

    A parameter of layer l, counted from the inputs, is trained at lr * layer_decay ^ (last layer - l) (Clark et al.
    2020, https://arxiv.org/abs/2003.10555; Bao et al. 2021, https://arxiv.org/abs/2106.08254). Each group holds (name,
    parameter) pairs, which torch keeps apart as `params` and `param_names`; parameters keep their order.

    Args:
        named_parameters: All parameters of the job, a shared one once; a frozen one is in no group. One is not frozen.
        lr: The base learning rate; None, where an optimizer was given none, is in no group.
        weight_decay: The weight decay; None, where an optimizer was given none, is in no group.
        no_decay: Names of parameters that do not decay in spite of their shape; see `no_decay_names`.
        layers: The layer of each name; see `layer_indices`.
        decay: What decays: `matrices` spares biases, norms, embeddings and whatever else has fewer than two axes.
        layer_decay: Factor on the learning rate from each layer to the one below it, in (0, 1]; None is 1.
        overrides: Entries {match, lr, weight_decay}: what they set holds as it is for the parameters whose name,
            without the leading `model.`, fits the pattern `match`, `*` for any characters. The last match holds.

    Raises:
        ConfigError: A value is out of range, or an entry of `overrides` fits nothing.
    """
    named = list(named_parameters)
    _check(named, lr, decay, layer_decay, overrides)
    last = max(layers.values(), default=0)
    # Apart even where the weight decay is 0: a checkpoint knows its groups by their parameters.
    members: dict[tuple[bool, float | None, float | None], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        rate, weight = lr, weight_decay
        if lr is not None and layer_decay is not None:
            rate = lr * layer_decay ** (last - layers[name])
        spared = weight is not None and decay == "matrices" and (parameter.ndim < 2 or name in no_decay)
        if spared:
            weight = 0.0
        own = overridden(name, overrides)
        rate = own.get("lr", rate)
        if "weight_decay" in own:
            weight = own["weight_decay"]
            spared = weight == 0
        members.setdefault((spared, rate, weight), []).append((name, parameter))
    return [
        {
            "params": pairs,
            **{key: value for key, value in (("lr", rate), ("weight_decay", weight)) if value is not None},
        }
        for (_, rate, weight), pairs in sorted(members.items(), key=lambda item: item[0][0])
    ]


def can_fuse(groups: Iterable[dict[str, Any]]) -> bool:
    """Tell if one fused kernel can update all parameters: they are floating-point and on a supported device."""
    return all(
        parameter.is_floating_point() and parameter.device.type in _FUSED_DEVICES
        for group in groups
        for _, parameter in group["params"]
    )


def _stack(module: nn.Module) -> str | None:
    """What the names of the stack's parameters begin with."""
    sizes = {
        prefix: sum(parameter.numel() for parameter in part.parameters())
        for prefix, part in _lists("", module)
        if not prefix.startswith(_LOSS)
    }
    largest = max(sizes, key=lambda prefix: sizes[prefix], default=None)
    return largest if largest is not None and sizes[largest] else None


def _lists(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.ModuleList | nn.Sequential):
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from _lists(f"{prefix}{name}.", child)


def _entry(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).partition(".")[0]


def _check(
    named: list[tuple[str, nn.Parameter]],
    lr: float | None,
    decay: str,
    layer_decay: float | None,
    overrides: Sequence[Mapping[str, Any]],
) -> None:
    trainable = {name: parameter.requires_grad for name, parameter in named}
    assert any(trainable.values()), "there is nothing to optimize"
    problems = override_faults(overrides, trainable)
    if decay not in _DECAYS:
        problems.append(
            format_error("decay", f"must be {' or '.join(_DECAYS)}", did_you_mean(decay, _DECAYS), value=decay)
        )
    if layer_decay is not None and not 0 < layer_decay <= 1:
        problems.append(format_error("layer_decay", "must be above 0 and at most 1", value=layer_decay))
    if layer_decay is not None and lr is None:
        problems.append(format_error("layer_decay", "needs a learning rate to begin with", "Give optimizer.lr"))
    raise_if_any(*problems)
