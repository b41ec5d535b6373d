"""Load given weights into a model: rename, compare and check them, and suggest a remedy if they do not fit."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from trainer.display import counted, list_some
from trainer.errors import ConfigError, did_you_mean, format_error, raise_if_any
from trainer.layout import TOKENIZER, Document
from trainer.weights_folder import LABELS, find_tokenizer, read_encoding, related_folders

_WEIGHTS: Final = "weights"
_RENAME: Final = "weights_rename"
_IGNORE: Final = "weights_ignore"
_MAX_NAMES: Final = 5
_MAX_ROWS: Final = 20
_MAX_PREFIXES: Final = 3
_MAX_PATTERNS: Final = 4
_MAX_CLASSES: Final = 3


@dataclass(frozen=True)
class LoadReport:
    """The result of loading weights; as a string, a line for the log.

    Attributes:
        loaded: Names in the model that were loaded.
        kept: Names in the model that keep their initial values.
        unused: Names in the file, after renaming, that the model does not have, or not in this shape.
    """

    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{counted(len(self.loaded), 'tensor')} loaded"]
        parts += [f"as initialized: {list_some(self.kept, _MAX_NAMES)}"] if self.kept else []
        parts += [f"not used: {list_some(self.unused, _MAX_NAMES)}"] if self.unused else []
        return "; ".join(parts)


@dataclass(frozen=True)
class Mismatch:
    """A name whose tensors differ; None if there is no tensor of this name on a side."""

    name: str
    in_file: str | None
    in_model: str | None


def fit_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], rename: Sequence[Sequence[str]], ignore: Sequence[str]
) -> LoadReport:
    """Load parameters and buffers in place; each keeps its dtype and device.

    A weight with several names in the model (tied weights) needs only one of them.

    Args:
        model: Not changed if an error is raised.
        tensors: Tensors by name.
        rename: Pairs of a regular expression and a replacement for its matches in the names of `tensors` (`re.sub`),
            applied one after the other.
        ignore: Patterns of names, with `*` for any characters. A matching name may be missing from `tensors`, unknown
            to the model, or of another shape.

    Raises:
        ConfigError: A name or a shape does not fit, with a table of mismatches and the likely remedy; or a pair or a
            pattern is invalid; or nothing would be loaded.
    """
    renamed = _renamed(tensors, rename)
    targets = {name: target for name, target in model.state_dict().items() if isinstance(target, Tensor)}
    _check_patterns(ignore, [*targets, *renamed])
    tied = _tied_names(targets)

    def mismatches_after(names: Mapping[str, str]) -> list[Mismatch]:
        mismatches = find_mismatches(targets, {names[name]: tensor for name, tensor in renamed.items()}, tied)
        return [item for item in mismatches if not any(fnmatchcase(item.name, pattern) for pattern in ignore)]

    mismatches = mismatches_after({name: name for name in renamed})
    if mismatches:
        remedy = suggest_remedy(mismatches, mismatches_after, renamed, targets, (rename, ignore))
        misfits = counted(len(mismatches), "name", "does", of=len(targets | renamed))
        problem = f"weights: {misfits} not fit.\n{format_table(mismatches)}\n  {remedy}."
        raise ConfigError(problem)
    ignored = {mismatch.name for mismatch in find_mismatches(targets, renamed, tied)}
    fitting = {name: tensor for name, tensor in renamed.items() if name not in ignored}
    if not fitting:
        raise ConfigError(format_error(_IGNORE, "leaves nothing to load", value=list(ignore)))
    _check_tied(fitting, tied)
    weights = {name for name, parameter in model.named_parameters(remove_duplicate=False)}
    if names := not_finite({name: tensor for name, tensor in fitting.items() if name in weights}):
        problem = f"{names[0]} contains NaN or an infinite number"
        raise ConfigError(format_error(_WEIGHTS, problem, "Use other weights"))
    # Not strict, because missing names are ignored on purpose; through torch, for modules with load hooks.
    model.load_state_dict(fitting, strict=False)
    filled = {same for name in fitting for same in tied[name]}
    return LoadReport(
        loaded=tuple(name for name in targets if name in filled),
        kept=tuple(name for name in targets if name not in filled),
        unused=tuple(name for name in renamed if name not in fitting),
    )


def find_mismatches(
    targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], tied: Mapping[str, Sequence[str]]
) -> list[Mismatch]:
    """Return the names that do not fit: the model's names in order, then names that the model does not have.

    Args:
        targets: The model's tensors by name.
        tensors: The given tensors by name.
        tied: All names of the same tensor, for each name in the model.
    """
    missing = [
        Mismatch(name, None, shape_of(target))
        for name, target in targets.items()
        if not any(same in tensors for same in tied[name])
    ]
    different = [
        Mismatch(name, shape_of(tensors[name]), shape_of(target))
        for name, target in targets.items()
        if name in tensors and not _is_compatible(tensors[name], target)
    ]
    unknown = [Mismatch(name, shape_of(tensor), None) for name, tensor in tensors.items() if name not in targets]
    return [*missing, *different, *unknown]


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors with NaN or an infinite number."""
    if not tensors:
        return []
    # One wait for the device, not one per tensor: this runs before every save.
    finite = torch.stack([torch.isfinite(tensor.detach()).all() for tensor in tensors.values()]).tolist()
    return [name for name, is_finite in zip(tensors, finite, strict=True) if not is_finite]


def _is_compatible(tensor: Tensor, target: Tensor) -> bool:
    # Integers for a floating-point weight come from a quantized file; without their scales they are meaningless.
    same_kind = tensor.is_floating_point() == target.is_floating_point()
    return tensor.shape == target.shape and tensor.is_complex() == target.is_complex() and same_kind


def _renamed(tensors: Mapping[str, Tensor], rename: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    names = {name: name for name in tensors}
    for number, pair in enumerate(rename, start=1):
        key = f"{_RENAME}: entry {number}"
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ConfigError(format_error(key, "must be [regular expression, replacement]", value=pair))
        try:
            pattern = re.compile(pair[0])
            changed = {name: pattern.sub(pair[1], current) for name, current in names.items()}
        except (re.error, IndexError) as error:
            problem = f"is not a valid regular expression with its replacement ({error})"
            raise ConfigError(format_error(key, problem, value=list(pair))) from error
        if not any(map(pattern.search, names.values())):
            remedy = f"The names are {list_some(list(names.values()), _MAX_NAMES)}"
            raise ConfigError(format_error(key, "matches no name", remedy, value=pair[0]))
        names = changed
    renamed: dict[str, Tensor] = {}
    for name, new in names.items():
        if new in renamed:
            both = [old for old, other in names.items() if other == new]
            raise ConfigError(format_error(_RENAME, f"gives {' and '.join(both[:2])} the same name", value=new))
        renamed[new] = tensors[name]
    return renamed


def _check_patterns(ignore: Sequence[str], names: list[str]) -> None:
    problems = [
        format_error(_IGNORE, "matches no name", did_you_mean(pattern, sorted(set(names))[:20]), value=pattern)
        for pattern in ignore
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    raise_if_any(*problems)


def _tied_names(targets: Mapping[str, Tensor]) -> dict[str, list[str]]:
    groups: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, target in targets.items():
        # Empty tensors share no memory.
        place = target.data_ptr() if target.numel() else name
        groups[place, target.shape, target.stride(), target.dtype].append(name)
    return {name: group for group in groups.values() for name in group}


def _check_tied(tensors: Mapping[str, Tensor], tied: Mapping[str, Sequence[str]]) -> None:
    for name, tensor in tensors.items():
        for same in tied[name]:
            if same in tensors and not torch.equal(tensor, tensors[same]):
                problem = f"{name} and {same} are one tensor in the model but two different tensors in the file"
                remedy = f"Rename one of them with {_RENAME} and ignore it"
                raise ConfigError(format_error(_WEIGHTS, problem, remedy))


# The message for weights that do not fit


def shape_of(tensor: Tensor) -> str:
    """Return a tensor's shape, followed by its dtype if it is not a floating-point type."""
    shape = str(tuple(tensor.shape))
    return shape if tensor.is_floating_point() else f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


def format_table(mismatches: Sequence[Mismatch]) -> str:
    """Return a table of names, shapes in the file and in the model, and the most similar name on the other side.

    The table has at most 20 rows.
    """
    missing = [mismatch.name for mismatch in mismatches if mismatch.in_file is None]
    unknown = [mismatch.name for mismatch in mismatches if mismatch.in_model is None]
    # Rows alternate between the sides; otherwise one side of a large model could fill the table.
    ranks = {id(mismatch): rank for side in _sides(mismatches) for rank, mismatch in enumerate(side)}
    shown = sorted(mismatches, key=lambda mismatch: ranks[id(mismatch)])[:_MAX_ROWS]
    rows = [("name", "in the file", "in the model", "")]
    for item in shown:
        others = unknown if item.in_file is None else missing if item.in_model is None else []
        similar = get_close_matches(item.name, others, n=1, cutoff=0.6)
        rows.append(
            (item.name, item.in_file or "-", item.in_model or "-", f"similar to {similar[0]}" if similar else "")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    more = [f"and {len(mismatches) - len(shown)} more"] if len(mismatches) > len(shown) else []
    return "\n".join(f"    {line}" for line in lines + more)


def suggest_remedy(
    mismatches: Sequence[Mismatch],
    mismatches_after: Callable[[Mapping[str, str]], list[Mismatch]],
    tensors: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    current: tuple[Sequence[Sequence[str]], Sequence[str]],
) -> str:
    """Return the keys that would load every tensor with a counterpart, as a sentence without a period.

    Args:
        mismatches: The names that do not fit.
        mismatches_after: Returns the names that do not fit after the file's names are replaced by others.
        tensors: The file's tensors by name.
        targets: The model's tensors by name.
        current: The current values of `weights_rename` and `weights_ignore`.
    """
    rename, ignore = current
    left, names = list(mismatches), set(tensors)
    pairs = [list(pair) for pair in rename]
    for old, new in _likely_prefixes(tensors, targets):
        changed = {name: new + name.removeprefix(old) if name.startswith(old) else name for name in tensors}
        if len(set(changed.values())) == len(changed) and len(after := mismatches_after(changed)) < len(left):
            left, names = after, set(changed.values())
            pairs = [*map(list, rename), [f"^{_escape(old)}", new]]
    fitting = (names & set(targets)) - {mismatch.name for mismatch in left}
    if not fitting:
        return "No name is in the model: the weights are of another model, or need model.weights_rename"
    keys = [_override(_RENAME, pairs)] if len(pairs) > len(rename) else []
    if not left:
        return f"To load all tensors, set {keys[0]}"
    keys.append(_override(_IGNORE, [*ignore, *_patterns([mismatch.name for mismatch in left], fitting)]))
    return f"To load what fits, set {' '.join(keys)}; ignored tensors keep their initial values or are not used"


def _override(name: str, value: object) -> str:
    return f"model.{name}='{json.dumps(value, separators=(',', ':'))}'"


def _sides(mismatches: Sequence[Mismatch]) -> list[list[Mismatch]]:
    sides: defaultdict[tuple[bool, bool], list[Mismatch]] = defaultdict(list)
    for mismatch in mismatches:
        sides[mismatch.in_file is None, mismatch.in_model is None].append(mismatch)
    return list(sides.values())


def _likely_prefixes(tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Return prefixes of the file's names with the prefixes that replace them in the model, the most frequent first.

    Each name in the model is paired with the names in the file that have the same shape and share the longest ending.
    """
    by_ending: defaultdict[tuple[str, torch.Size], list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        for ending in _endings(name):
            by_ending[ending, tensor.shape].append(name)
    votes: Counter[tuple[str, str]] = Counter()
    for name, target in targets.items():
        for ending in _endings(name):
            others = by_ending.get((ending, target.shape), ())
            pairs = {(other.removesuffix(ending), name.removesuffix(ending)) for other in others}
            if pairs:
                votes.update(pairs)
                break
    return [pair for pair, _ in votes.most_common(_MAX_PREFIXES + 1) if pair[0] != pair[1]][:_MAX_PREFIXES]


def _endings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _patterns(names: Sequence[str], fitting: set[str]) -> list[str]:
    """Return patterns of leading parts that match all `names` and none of the names that fit."""
    patterns: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        beginnings = (".".join(parts[:length]) + "." for length in range(1, len(parts)))
        unique = (start + "*" for start in beginnings if not any(other.startswith(start) for other in fitting))
        patterns[next(unique, name)] = None
    return list(patterns)[:_MAX_PATTERNS] + ["..."] * (len(patterns) > _MAX_PATTERNS)


def _escape(prefix: str) -> str:
    # In brackets, because a backslash has other meanings in shells, in YAML and in Hydra's grammar.
    return re.sub(r"([^\w])", r"[\1]", prefix)


# Warnings about weights that fit but were trained for other tokens or classes


def mismatch_warnings(
    weights: str,
    loaded: Mapping[str, tuple[int, ...]],
    files: Mapping[str, str],
    *,
    vocab_size: int | None,
    num_outputs: int | None,
) -> list[str]:
    """Return warnings about tensors that have the right shape but another meaning in this task.

    Args:
        weights: As in `find_tokenizer`.
        loaded: Shapes of the model's tensors that were loaded from the weights, by name, in the model's order.
        files: The task's artifact files, name to text.
        vocab_size: Size of the task's vocabulary.
        num_outputs: Number of outputs that the task needs.
    """
    learned: Document = {}
    for folder in related_folders(weights):
        learned = read_encoding(folder) | learned
    warnings = []
    embeddings = [name for name, shape in loaded.items() if len(shape) == 2 and shape[0] == vocab_size]
    tokens, own_tokens = _tokens(learned.get("tokenizer")), _tokens(files.get(TOKENIZER))
    different = sum(own_tokens.get(number) != token for number, token in tokens.items())
    if embeddings and own_tokens and different:
        name = embeddings[0]
        problem = f"{counted(different, 'token', 'is', of=len(tokens))} different here, and {name} has a row per token"
        remedy = (
            f"Set task.tokenizer={find_tokenizer(weights)} to use the tokenizer of the weights, or "
            f"{_leave_out(_layer_pattern(name))} to learn new rows"
        )
        warnings.append(format_error(_WEIGHTS, problem, remedy))
    heads = [name for name, shape in loaded.items() if shape and shape[0] == num_outputs]
    pairs = zip(learned.get("labels", []), json.loads(files.get(LABELS, "[]")), strict=False)
    renamed = [f"{theirs} is {ours} here" for theirs, ours in pairs if theirs != ours]
    if heads and renamed:
        head = _layer_pattern(heads[-1])
        problem = f"the classes of {head} have other names ({list_some(renamed, _MAX_CLASSES)})"
        remedy = f"If they are different classes, set {_leave_out(head)} to learn a new head"
        warnings.append(format_error(_WEIGHTS, problem, remedy))
    return warnings


def _tokens(text: str | None) -> dict[int, str]:
    """Return the tokens of a `tokenizer.json` by number; empty if it is missing or cannot be read."""
    if text is None:
        return {}
    try:
        return {number: token for token, number in Tokenizer.from_str(text).get_vocab().items()}
    except Exception:  # the library raises a bare Exception
        return {}


def _leave_out(pattern: str) -> str:
    """Return the keys that leave out tensors that would fit: under another name, which is ignored."""
    pair = [f"^{_escape(pattern.removesuffix('*'))}", "unused."]
    return f"{_override(_RENAME, [pair])} {_override(_IGNORE, [pattern, 'unused.*'])}"


def _layer_pattern(name: str) -> str:
    """Return a pattern that matches all tensors of the layer of a tensor."""
    layer = name.rpartition(".")[0]
    return f"{layer}.*" if layer else name
