"""Given weights into a model: renamed, compared name by name, and loaded in place."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError, did_you_mean, format_error, raise_if_any
from trainer.model.weights_advice import Misfit, shape_of, table, way_out

_RENAME: Final = "weights_rename"
_IGNORE: Final = "weights_ignore"
_SHOWN: Final = 5


@dataclass(frozen=True)
class Report:
    """What became of the weights; as a string, a line for the log.

    Attributes:
        loaded: Names of the model that were loaded.
        kept: Names of the model that keep their initial values.
        unused: Names of the file, renamed, that the model has no place for, or none of that shape.
    """

    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        parts += [f"as initialized: {_some(self.kept)}"] if self.kept else []
        parts += [f"not used: {_some(self.unused)}"] if self.unused else []
        return "; ".join(parts)


def fit_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], rename: Sequence[Sequence[str]], ignore: Sequence[str]
) -> Report:
    """Loads parameters and buffers in place, each in its own type and on its own device.

    A weight with several names in the model (tied weights) needs one of them.

    Args:
        model: Unchanged where an error is raised.
        tensors: Tensors by name.
        rename: Pairs of a regular expression and what replaces each of its matches (`re.sub`) in the names of
            `tensors`, one pair after the other.
        ignore: Patterns of names, `*` for any characters. For a name that fits one it is no fault to be missing from
            `tensors`, to be unknown to the model, or to have another shape there.

    Raises:
        ConfigError: A name or a shape does not fit, with a table of those and the likely remedy; a pair or a pattern is
            wrong; nothing at all is loaded.
    """
    renamed = _renamed(tensors, rename)
    targets = {name: target for name, target in model.state_dict().items() if isinstance(target, Tensor)}
    _check_patterns(ignore, [*targets, *renamed])
    tied = _tied(targets)

    def faults_after(names: Mapping[str, str]) -> list[Misfit]:
        found = find_misfits(targets, {names[name]: tensor for name, tensor in renamed.items()}, tied)
        return [misfit for misfit in found if not any(fnmatchcase(misfit.name, pattern) for pattern in ignore)]

    faults = faults_after({name: name for name in renamed})
    if faults:
        remedy = way_out(faults, faults_after, renamed, targets, (rename, ignore))
        problem = f"weights: {len(faults)} of {len(targets | renamed)} names do not fit.\n{table(faults)}\n  {remedy}."
        raise ConfigError(problem)
    ignored = {misfit.name for misfit in find_misfits(targets, renamed, tied)}
    fitting = {name: tensor for name, tensor in renamed.items() if name not in ignored}
    if not fitting:
        raise ConfigError(format_error(_IGNORE, "leaves nothing to load", value=list(ignore)))
    _check_tied(fitting, tied)
    # Not strict, as what is absent was accounted for; through torch, for the hooks of modules that have some.
    model.load_state_dict(fitting, strict=False)
    filled = {same for name in fitting for same in tied[name]}
    return Report(
        loaded=tuple(name for name in targets if name in filled),
        kept=tuple(name for name in targets if name not in filled),
        unused=tuple(name for name in renamed if name not in fitting),
    )


def find_misfits(
    targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], tied: Mapping[str, Sequence[str]]
) -> list[Misfit]:
    """The names that do not fit: those of the model in its order, then those that it does not have.

    Args:
        targets: The model's tensors by name.
        tensors: The given ones.
        tied: For each name of the model, all names of the same tensor.
    """
    missing = [
        Misfit(name, None, shape_of(target))
        for name, target in targets.items()
        if not any(same in tensors for same in tied[name])
    ]
    other = [
        Misfit(name, shape_of(tensors[name]), shape_of(target))
        for name, target in targets.items()
        if name in tensors and not _same_kind(tensors[name], target)
    ]
    unknown = [Misfit(name, shape_of(tensor), None) for name, tensor in tensors.items() if name not in targets]
    return [*missing, *other, *unknown]


def _same_kind(tensor: Tensor, target: Tensor) -> bool:
    # Integers for a floating weight are a quantized file: without its scales they mean nothing.
    whole = not tensor.is_floating_point(), not target.is_floating_point()
    return tensor.shape == target.shape and tensor.is_complex() == target.is_complex() and whole[0] == whole[1]


def _renamed(tensors: Mapping[str, Tensor], rename: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    names = {name: name for name in tensors}
    for number, pair in enumerate(rename, start=1):
        where = f"{_RENAME}: entry {number}"
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ConfigError(format_error(where, "must be [regular expression, replacement]", value=pair))
        try:
            pattern = re.compile(pair[0])
            changed = {name: pattern.sub(pair[1], shown) for name, shown in names.items()}
        except (re.error, IndexError) as error:
            raise ConfigError(format_error(where, f"is no regular expression ({error})", value=list(pair))) from error
        if not any(map(pattern.search, names.values())):
            raise ConfigError(
                format_error(where, "fits no name", f"There are {_some(list(names.values()))}", value=pair[0])
            )
        names = changed
    renamed: dict[str, Tensor] = {}
    for name, new in names.items():
        if new in renamed:
            both = [old for old, other in names.items() if other == new]
            raise ConfigError(format_error(_RENAME, f"gives {' and '.join(both[:2])} the same name", value=new))
        renamed[new] = tensors[name]
    return renamed


def _check_patterns(ignore: Sequence[str], names: list[str]) -> None:
    faults = [
        format_error(_IGNORE, "fits no name", did_you_mean(pattern, sorted(set(names))[:20]), value=pattern)
        for pattern in ignore
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    raise_if_any(*faults)


def _tied(targets: Mapping[str, Tensor]) -> dict[str, list[str]]:
    groups: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, target in targets.items():
        # An empty tensor has no memory to share.
        place = target.data_ptr() if target.numel() else name
        groups[place, target.shape, target.stride(), target.dtype].append(name)
    return {name: group for group in groups.values() for name in group}


def _check_tied(tensors: Mapping[str, Tensor], tied: Mapping[str, Sequence[str]]) -> None:
    for name, tensor in tensors.items():
        for same in tied[name]:
            if same in tensors and not torch.equal(tensor, tensors[same]):
                problem = f"{name} and {same} are one tensor in the model, and two different ones in the file"
                raise ConfigError(format_error("weights", problem, f"Rename one of them by {_RENAME}, and ignore it"))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
