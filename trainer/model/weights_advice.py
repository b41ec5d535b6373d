"""What to do about weights that do not fit a model: a table of them, and the likeliest way out."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

import torch
from torch import Tensor

_ROWS: Final = 20
_CANDIDATES: Final = 3
_PATTERNS: Final = 4


@dataclass(frozen=True)
class Misfit:
    """A name whose tensors differ; None where there is none."""

    name: str
    in_file: str | None
    in_model: str | None


def shape_of(tensor: Tensor) -> str:
    """A tensor's shape; the type, too, where it is not a floating one."""
    shape = str(tuple(tensor.shape))
    return shape if tensor.is_floating_point() else f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


def table(misfits: Sequence[Misfit]) -> str:
    """Name, shape in the file, shape in the model, and the nearest name of the other side; 20 rows at most."""
    missing = [misfit.name for misfit in misfits if misfit.in_file is None]
    unknown = [misfit.name for misfit in misfits if misfit.in_model is None]
    # Those of both sides in turn: of a large model, each side alone would fill the table.
    ranks = {id(misfit): rank for side in _sides(misfits) for rank, misfit in enumerate(side)}
    shown = sorted(misfits, key=lambda misfit: ranks[id(misfit)])[:_ROWS]
    rows = [("name", "in the file", "in the model", "")]
    for misfit in shown:
        others = unknown if misfit.in_file is None else missing if misfit.in_model is None else []
        near = get_close_matches(misfit.name, others, n=1, cutoff=0.6)
        rows.append((misfit.name, misfit.in_file or "-", misfit.in_model or "-", f"near {near[0]}" if near else ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    more = [f"and {len(misfits) - len(shown)} more"] if len(misfits) > len(shown) else []
    return "\n".join(f"    {line}" for line in lines + more)


def way_out(
    misfits: Sequence[Misfit],
    misfits_after: Callable[[Mapping[str, str]], list[Misfit]],
    tensors: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    given: tuple[Sequence[Sequence[str]], Sequence[str]],
) -> str:
    """The keys that would let everything load that has a place, as a sentence without a full stop.

    Args:
        misfits: What does not fit.
        misfits_after: The names that do not fit when those of the file are replaced by others.
        tensors: The file's tensors by name.
        targets: The model's.
        given: The pairs of names and the patterns that the keys have already.
    """
    rename, ignore = given
    left, names = list(misfits), set(tensors)
    pairs = [list(pair) for pair in rename]
    for old, new in _prefixes(tensors, targets):
        changed = {name: new + name.removeprefix(old) if name.startswith(old) else name for name in tensors}
        if len(set(changed.values())) == len(changed) and len(after := misfits_after(changed)) < len(left):
            left, names = after, set(changed.values())
            pairs = [*map(list, rename), [f"^{_escaped(old)}", new]]
    fitting = (names & set(targets)) - {misfit.name for misfit in left}
    if not fitting:
        return "None of its names is one of the model's: it is of another model, or needs model.weights_rename"
    keys = [_key("weights_rename", pairs)] if len(pairs) > len(rename) else []
    if not left:
        return f"All fit with {keys[0]}"
    keys.append(_key("weights_ignore", [*ignore, *_patterns([misfit.name for misfit in left], fitting)]))
    return f"What fits is loaded with {' '.join(keys)}; what is ignored keeps its initial values, or is not used"


def _key(name: str, value: object) -> str:
    return f"model.{name}='{json.dumps(value, separators=(',', ':'))}'"


def _sides(misfits: Sequence[Misfit]) -> list[list[Misfit]]:
    sides: defaultdict[tuple[bool, bool], list[Misfit]] = defaultdict(list)
    for misfit in misfits:
        sides[misfit.in_file is None, misfit.in_model is None].append(misfit)
    return list(sides.values())


def _prefixes(tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Prefixes of the file's names and what the model has in their place, the most frequent first.

    Each of the model's names is paired with the names of the file that share the most of its end, and the shape.
    """
    ends: defaultdict[tuple[str, torch.Size], list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        for end in _ends(name):
            ends[end, tensor.shape].append(name)
    votes: Counter[tuple[str, str]] = Counter()
    for name, target in targets.items():
        for end in _ends(name):
            pairs = {(other.removesuffix(end), name.removesuffix(end)) for other in ends.get((end, target.shape), ())}
            if pairs:
                votes.update(pairs)
                break
    return [pair for pair, _ in votes.most_common(_CANDIDATES + 1) if pair[0] != pair[1]][:_CANDIDATES]


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _patterns(names: Sequence[str], fitting: set[str]) -> list[str]:
    """Patterns that fit all `names` and none of those that fit the model, by their first parts."""
    patterns: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        heads = (".".join(parts[:length]) + "." for length in range(1, len(parts)))
        free = (head + "*" for head in heads if not any(other.startswith(head) for other in fitting))
        patterns[next(free, name)] = None
    return list(patterns)[:_PATTERNS] + ["..."] * (len(patterns) > _PATTERNS)


def _escaped(prefix: str) -> str:
    # In brackets: a backslash means something else in every shell, in YAML and in Hydra's grammar.
    return re.sub(r"([^\w])", r"[\1]", prefix)
