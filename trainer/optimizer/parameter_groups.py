"""The parameter groups of an optimizer: the learning rate and weight decay of each parameter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

from torch import nn

from trainer.constraints import NonNegative, Positive
from trainer.constraints.values import value_problems
from trainer.display import list_some
from trainer.errors import did_you_mean, format_error, raise_if_any

# Only by shape are their tables and gains matrices; weight decay would shrink table rows that no batch uses.
_NO_DECAY: Final = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
_FUSED_DEVICES: Final = frozenset({"cpu", "cuda", "mps"})
_LOSS: Final = "loss."
_DECAYS: Final = ["matrices", "all"]
_ANNOTATIONS: Final = {"lr": Positive, "weight_decay": NonNegative}
_FORM: Final = "Write {match: <pattern of names>, lr: ..., weight_decay: ...} with at least one of the values"
_MODEL: Final = "model."
_NUM_SUGGESTIONS: Final = 3

ParameterGroup = dict[str, Any]
"""The parameters and options of a group, as PyTorch's optimizers take them."""


def no_decay_names(module: nn.Module) -> frozenset[str]:
    """Return the names, as in `module.named_parameters()`, of the parameters of embeddings and norms.

    A parameter shared by an embedding and another layer (tied weights) counts as the embedding's.
    """
    members = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, _NO_DECAY)
        for parameter in part.parameters(recurse=False)
    }
    return frozenset(name for name, parameter in module.named_parameters() if id(parameter) in members)


def layer_indices(module: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter by name, counted from the inputs (0) up, for `make_parameter_groups`.

    The stack is the outermost `nn.ModuleList` or `nn.Sequential` with the most parameters. Its entries with parameters
    are the layers 1, 2, ...; parameters registered before it are layer 0, parameters registered after it are one layer
    above it. A module without such a list is one layer.

    Args:
        module: The job's `model` and, if it has parameters, its `loss`, which belongs to the highest layer.
    """
    names = [name for name, _ in module.named_parameters()]
    prefix = _find_stack(module)
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
    """Return the names of the hidden matrices: parameters with two axes between a model's inputs and its outputs.

    These are the matrices of the stack (see `layer_indices`), or of the whole model if it has no stack, without
    embeddings. Parameters after the stack, including the loss's own, are the output layer; without any, the last matrix
    of the stack is the output layer.
    """
    parameters = dict(module.named_parameters())
    no_decay = no_decay_names(module)
    prefix = _find_stack(module) or ""
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
) -> list[ParameterGroup]:
    """Group the trainable parameters by learning rate and weight decay: first those that decay, then the others.

    The learning rate of layer l, counted from the inputs, is lr * layer_decay ^ (last layer - l) (Clark et al. 2020,
    https://arxiv.org/abs/2003.10555; Bao et al. 2021, https://arxiv.org/abs/2106.08254). Each group has (name,
    parameter) pairs, which torch stores as `params` and `param_names`; parameters keep their order.

    Args:
        named_parameters: All parameters of the job, shared ones once; frozen ones are skipped, at least one is not.
        lr: Base learning rate; with None, groups get no `lr` and the optimizer's default applies.
        weight_decay: Weight decay; with None, groups get no `weight_decay` and the optimizer's default applies.
        no_decay: Names of parameters that never decay, whatever their shape; see `no_decay_names`.
        layers: Layer of each parameter by name; see `layer_indices`.
        decay: Parameters that decay: `matrices` excludes biases, norms, embeddings and all others with fewer than two
            axes; `all` excludes none.
        layer_decay: Factor on the learning rate from each layer to the one below it, in (0, 1]; None is 1.
        overrides: Entries {match, lr, weight_decay}. They set the values of the parameters whose name, without the
            leading `model.`, matches the pattern `match` (`*` for any characters). The last match takes precedence.

    Raises:
        ConfigError: A value is out of range, or an entry of `overrides` matches no parameter.
    """
    named = list(named_parameters)
    _check(named, lr, decay, layer_decay, overrides)
    last = max(layers.values(), default=0)
    # Two groups even if the weight decay is 0: a checkpoint identifies its groups by their parameters.
    members: dict[tuple[bool, float | None, float | None], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        rate = lr if lr is None or layer_decay is None else lr * layer_decay ** (last - layers[name])
        exempt = weight_decay is not None and decay == "matrices" and (parameter.ndim < 2 or name in no_decay)
        weight = 0.0 if exempt else weight_decay
        own = find_override(name, overrides)
        if "weight_decay" in own:
            weight = own["weight_decay"]
            exempt = weight == 0
        members.setdefault((exempt, own.get("lr", rate), weight), []).append((name, parameter))
    in_order = sorted(members.items(), key=lambda item: item[0][0])
    return [_make_group(pairs, rate, weight) for (_, rate, weight), pairs in in_order]


def _make_group(pairs: list[tuple[str, nn.Parameter]], lr: float | None, weight_decay: float | None) -> ParameterGroup:
    options = {"lr": lr, "weight_decay": weight_decay}
    return {"params": pairs, **{name: value for name, value in options.items() if value is not None}}


def can_fuse(groups: Iterable[ParameterGroup]) -> bool:
    """Return whether one fused kernel can update all parameters: they are floating-point and on a supported device."""
    return all(
        parameter.is_floating_point() and parameter.device.type in _FUSED_DEVICES
        for group in groups
        for _, parameter in group["params"]
    )


def _find_stack(module: nn.Module) -> str | None:
    """Return the prefix of the names of the stack's parameters, or None without a stack."""
    sizes = {
        prefix: sum(parameter.numel() for parameter in part.parameters())
        for prefix, part in _find_lists("", module)
        if not prefix.startswith(_LOSS)
    }
    largest = max(sizes, key=lambda prefix: sizes[prefix], default=None)
    return largest if largest is not None and sizes[largest] else None


def _find_lists(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.ModuleList | nn.Sequential):
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from _find_lists(f"{prefix}{name}.", child)


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
    problems = find_override_problems(overrides, trainable)
    if decay not in _DECAYS:
        problems.append(
            format_error("decay", f"must be {' or '.join(_DECAYS)}", did_you_mean(decay, _DECAYS), value=decay)
        )
    if layer_decay is not None and not 0 < layer_decay <= 1:
        problems.append(format_error("layer_decay", "must be greater than 0 and at most 1", value=layer_decay))
    if layer_decay is not None and lr is None:
        problems.append(format_error("layer_decay", "needs a base learning rate", "Set optimizer.lr"))
    raise_if_any(*problems)


# Overrides


def find_override(name: str, overrides: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the `lr` and `weight_decay` that `overrides` set for a parameter; for each key, the last match wins."""
    values: dict[str, float] = {}
    for entry in overrides:
        if fnmatchcase(_displayed(name), entry["match"]):
            values.update({key: float(entry[key]) for key in _ANNOTATIONS if key in entry})
    return values


def find_override_problems(overrides: Sequence[object], trainable: Mapping[str, bool]) -> list[str]:
    """Return a message for each problem: malformed entries, and patterns that match no trainable parameter.

    Args:
        overrides: The entries as the user wrote them.
        trainable: For each parameter's name, False if it is frozen.
    """
    displayed = {_displayed(name): free for name, free in trainable.items()}
    problems: list[str] = []
    for number, entry in enumerate(overrides, start=1):
        key = f"overrides: entry {number}"
        problems += _entry_problems(key, entry)
        if isinstance(entry, Mapping) and _is_pattern(entry.get("match")):
            problems += _match_problems(f"{key}, match", entry["match"], displayed)
    return problems


def _is_pattern(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _entry_problems(key: str, entry: object) -> Iterator[str]:
    if not isinstance(entry, Mapping):
        yield format_error(key, "must be a mapping", _FORM, value=entry)
        return
    known = ["match", *_ANNOTATIONS]
    unknown = [name for name in entry if name not in known]
    for name in unknown:
        yield format_error(key, "has an unknown key", did_you_mean(str(name), known), value=name)
    if not unknown and not any(name in entry for name in _ANNOTATIONS):
        yield format_error(key, "sets no value", _FORM)
    for name, annotation in _ANNOTATIONS.items():
        if name in entry:
            yield from value_problems(f"{key}, {name}", entry[name], annotation)
    if not _is_pattern(pattern := entry.get("match")):
        remedy = "Use blocks.0.* or *.bias, for example"
        yield format_error(f"{key}, match", "must be a pattern of parameter names", remedy, value=pattern)


def _match_problems(key: str, pattern: str, trainable: Mapping[str, bool]) -> Iterator[str]:
    matched = [name for name in trainable if fnmatchcase(name, pattern)]
    if not matched:
        yield format_error(key, "matches no parameter", _suggest_names(pattern, list(trainable)), value=pattern)
    elif not any(trainable[name] for name in matched):
        yield format_error(key, "matches only frozen parameters", value=pattern)


def _suggest_names(pattern: str, names: list[str]) -> str:
    similar = get_close_matches(pattern.strip("*"), names, n=_NUM_SUGGESTIONS, cutoff=0.5)
    if similar:
        return f"Similar names: {', '.join(similar)}"
    return f"The names are {list_some(names, _NUM_SUGGESTIONS)}"


def _displayed(name: str) -> str:
    """Return a parameter's name as users see it, without the leading `model.`."""
    return name.removeprefix(_MODEL)
