"""Values of parts that do not go together, or that no model can be made, pruned or trained with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.config import signatures
from trainer.config.bounds import is_number, value_at
from trainer.errors import format_error


def faults(config: Mapping[str, Any]) -> Iterator[str]:
    """A message for each; keys that are absent or of the wrong type are passed over."""
    yield from _shares(config)
    yield from _channels(config)
    yield from _supervision(config)
    yield from _sizes(config)
    yield from _weights(config)
    yield from _clusters(config)
    yield from _rates(config)
    yield from _pruned(config)


def _shares(config: Mapping[str, Any]) -> Iterator[str]:
    """Shares of the training files that are held out for splits without files of their own."""
    data = _section(config, "data")
    given = data.get("splits", data)
    split = {name: share for name, share in _section(data, "split").items() if is_number(share) and 0 <= share < 1}
    shares = {name: share for name, share in split.items() if name in given and not _is_given(given[name])}
    if sum(shares.values()) >= 1:
        yield format_error("data.split", "the shares leave nothing to train on", value=data["split"])
    if shares.get("validation") == 0:
        remedy = "Give a share, or data.validation"
        yield format_error(
            "data.split.validation", "a run needs a validation split", remedy, value=shares["validation"]
        )


def _is_given(value: Any) -> bool:
    return any(map(_is_given, value.values())) if isinstance(value, Mapping) else value is not None


def _channels(config: Mapping[str, Any]) -> Iterator[str]:
    channels = value_at(config, "task.channels")
    for key in ("task.mean", "task.std"):
        values = value_at(config, key)
        if isinstance(values, list) and channels == "auto":
            yield format_error(key, "needs a number of channels beside it", "Set task.channels", value=values)
        elif isinstance(values, list) and isinstance(channels, int) and len(values) != channels:
            yield format_error(key, f"must be auto, or one number for each of the {channels} channels", value=values)
    size = value_at(config, "task.size")
    if isinstance(size, list) and len(size) != 2:
        yield format_error("task.size", "must be auto, pixels, or a list of height and width", value=size)


def _supervision(config: Mapping[str, Any]) -> Iterator[str]:
    """What sentence embeddings are taught by."""
    supervision = value_at(config, "task.supervision")
    if not isinstance(supervision, str):
        return
    if value_at(config, "task.evaluate_pairs") is True and supervision != "none":
        problem = "is for task.supervision=none; all others are evaluated as they are trained"
        yield format_error("task.evaluate_pairs", problem, value=True)
    threshold = value_at(config, "task.threshold")
    if threshold is not None and supervision != "scored":
        yield format_error("task.threshold", "is for task.supervision=scored; no others read scores", value=threshold)
    model = _section(config, "model")
    if supervision == "none" and not _draws(model):
        key, remedy = ("model.dropout", "Set it above 0") if "dropout" in model else ("model", "Take one with dropout")
        problem = "without dropout the two views of a text are equal, and task.supervision=none has no others"
        yield format_error(key, problem, f"{remedy}, or take task.supervision=pairs", value=model.get("dropout"))


def _draws(model: Mapping[str, Any]) -> bool:
    """Whether a model computes something else each time it is trained, as far as the configuration tells."""
    target = str(model.get("_target_"))
    known = signatures.attribute(target, "inputs") is not None and "path" not in model
    return not known or bool(model.get("dropout")) or bool(value_at(model, "lora.dropout"))


def _sizes(config: Mapping[str, Any]) -> Iterator[str]:
    dim, heads = value_at(config, "model.dim"), value_at(config, "model.heads")
    if isinstance(dim, int) and isinstance(heads, int) and heads >= 1 and dim % heads:
        yield format_error("model.heads", f"must divide model.dim ({dim})", value=heads)
    if value_at(config, "model.hidden") == []:
        yield format_error("model.hidden", "must be one or more sizes of at least 1", value=[])


def _weights(config: Mapping[str, Any]) -> Iterator[str]:
    for key in ("loss.weight", "loss.pos_weight", "loss.alpha"):
        value = value_at(config, key)
        if isinstance(value, list) and not any(value):
            problem = "must not all be 0: nothing would be learnt" if value else "must not be empty"
            yield format_error(key, problem, value=value)
    ignored = value_at(config, "loss.ignore_index")
    if is_number(ignored) and ignored in (0, 1):
        problem = "is a target that means something"
        yield format_error("loss.ignore_index", problem, "Use a negative number", value=ignored)


def _clusters(config: Mapping[str, Any]) -> Iterator[str]:
    """Those of the adaptive softmax; without `cutoffs` there is one at least."""
    features, divided = value_at(config, "loss.in_features"), value_at(config, "loss.div_value")
    cutoffs = value_at(config, "loss.cutoffs")
    numbers = cutoffs if isinstance(cutoffs, list) else [1]
    if not all(isinstance(number, int) for number in numbers):
        return
    if not numbers or numbers != sorted(set(numbers)):
        remedy = "Use null for 5 % and 25 % of the classes"
        yield format_error("loss.cutoffs", "must be rising numbers of classes", remedy, value=cutoffs)
    elif is_number(divided) and isinstance(features, int) and 1 <= features < divided ** len(numbers):
        problem = f"leaves the last of {len(numbers)} clusters no feature of loss.in_features ({features})"
        yield format_error("loss.div_value", problem, "Use a smaller one, or fewer cutoffs", value=divided)


def _rates(config: Mapping[str, Any]) -> Iterator[str]:
    overrides = value_at(config, "optimizer.overrides")
    entries = overrides if isinstance(overrides, list) else []
    own = any(isinstance(entry, Mapping) and "lr" in entry for entry in entries)
    if value_at(config, "optimizer.lr") == "auto" and own:
        problem = "auto measures one rate for all, and optimizer.overrides sets others"
        yield format_error("optimizer.lr", problem, "Give a number, or leave lr out of the overrides", value="auto")


def _pruned(config: Mapping[str, Any]) -> Iterator[str]:
    prune, model = config.get("prune"), _section(config, "model")
    if not isinstance(prune, Mapping):
        return
    if model.get("lora") is not None:
        problem = "the adapters of model.lora would fill in what is pruned when they are merged"
        remedy = "Leave out model.lora, or prune the trained run: trainer export prune=l1"
        yield format_error("prune", problem, remedy)
    targets = prune.get("targets")
    if isinstance(targets, list) and not all(targets):
        yield format_error(
            "prune.targets", "holds a pattern that is empty", "Patterns are as blocks.0.*", value=targets
        )
    if targets == []:
        remedy = "Give patterns of names, or null for linear layers and convolutions but the head"
        yield format_error("prune.targets", "names nothing to prune", remedy, value=targets)
    axes, dim = _axes(model), prune.get("dim")
    if isinstance(dim, int) and not -axes <= dim < axes:
        yield format_error(
            "prune.dim", f"there is no such axis in weights of {axes}", "0 is outputs, 1 inputs", value=dim
        )
    amount, most = prune.get("amount"), _smallest(prune, model)
    if isinstance(amount, int) and targets is None and most is not None and amount >= most:
        unit = "slices" if "dim" in prune else "elements"
        problem = f"leaves nothing of the smallest weights of this model, which have {most} {unit}"
        yield format_error("prune.amount", problem, "Take less, or name weights in prune.targets", value=amount)


def _axes(model: Mapping[str, Any]) -> int:
    """The most axes that a weight has: those of 2-d convolutions, unless our own model reads no images."""
    inputs: Sequence[str] = signatures.attribute(str(model.get("_target_")), "inputs") or ("images",)
    return 4 if "images" in inputs or "path" in model else 2


def _smallest(prune: Mapping[str, Any], model: Mapping[str, Any]) -> int | None:
    """The units of the smallest weight of our own transformers, where each weight is pruned by itself."""
    dim, hidden = model.get("dim"), model.get("hidden")
    together = str(prune.get("_target_")) == "trainer.prune.global_magnitude.global_magnitude"
    if together or "heads" not in model or not isinstance(dim, int) or not isinstance(hidden, int):
        return None
    return min(dim, hidden) * (1 if "dim" in prune else dim)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}
