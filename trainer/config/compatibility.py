"""Compatibility of parts: attributes that parts declare in their sources are compared before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config import signatures
from trainer.config.groups import OWN, Groups
from trainer.config.metrics import declared_kind, metric_names, name_problem
from trainer.config.signatures import part_attribute
from trainer.constraints.annotations import literals
from trainer.errors import did_you_mean, format_error
from trainer.layout import expand_home
from trainer.validation_sets import by_split, named_sets, select_monitored, set_problem, validation_of
from trainer.weights_folder import count_positions

_CACHE = "onnx_cache"
"""The format of a decoder that reads token by token."""

UNKNOWN_METRIC = "must be a metric by which checkpoints of this task can be ranked"

SAMPLER_KEYS = "loader.sampler, loader.sampler_column and loader.weights"
SUM_WITHOUT_STATISTIC = "compares targets one by one, but the loss is a statistic of the whole batch"
MASKS_WITHOUT_STATISTIC = (
    "several dropout masks average the losses of targets, but the loss is a statistic of the batch"
)
_DROPOUT_REMEDY = "set model.head_dropout=0.1, or use perturb=awp"
SUM_REMEDY = "Use perturb=fgm or perturb=awp"

_TARGETS = {
    "class": "classes",
    "shares": "shares of classes",
    "multi_hot": "sets of labels",
    "values": "numbers",
    "views": "views of a sample",
    "similarity": "similarities",
    "spans": "spans of a text",
}
"""The types of targets in messages."""


def incompatible_targets(loss_targets: Collection[str], target: str) -> str:
    """Return the problem of a loss that does not support the type of the task's targets."""
    taken = " or ".join(_TARGETS.get(each, each) for each in loss_targets)
    return f"takes {taken} as targets, but the targets of the task are {_TARGETS.get(target, target)}"


def validate_compatibility(config: Mapping[str, Any], groups: Groups) -> Iterator[str]:
    """Yield the problems of parts that do not fit each other, as far as their sources declare it."""
    yield from _validate_targets(config, groups)
    yield from _validate_sequences(config, groups)
    yield from _validate_model(config, groups)
    yield from _validate_monitor(config)
    yield from _validate_causality(config, groups)
    yield from _validate_views(config)
    yield from _validate_span_text(config)
    yield from _validate_pruning(config)
    yield from _validate_sampler(config)
    yield from _validate_perturbation(config, groups)
    yield from _validate_head_dropout(config, groups)
    yield from validate_formats(config, groups)


def validate_new_job(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of a new job in what earlier versions accepted, so that a stored job may have them."""
    known, monitor = part_attribute(config, "task", "monitors"), value_at(config, "checkpoint.monitor")
    sets = named_sets(validation_of(config.get("data")))
    if monitor in sets and monitor in ("loss", *(known or ()), *metric_names(config.get("metrics"))):
        remedy = f"Write {monitor}/<metric> for the set, or {sets[0]}/{monitor} for the metric"
        yield format_error("checkpoint.monitor", "is a validation set and a metric", remedy, value=monitor)
    if value_at(config, "loader.weights") == {} and value_at(config, "loader.sampler") == "weighted":
        remedy = "Set loader.weights={<value>:<weight>}, or loader.sampler=shuffled"
        yield format_error("loader.weights", "gives every row the same weight", remedy, value={})
    yield from _validate_lengths(config)


def _validate_lengths(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problem of samples that are longer than a model of transformers allows."""
    longest, path = value_at(config, "task.max_length"), value_at(config, "model.path")
    if type(longest) is not int:
        return
    changes = value_at(config, "model.config")
    folder = Path(expand_home(path)) if isinstance(path, str) else None
    limit = None if folder is None else count_positions(folder, changes if isinstance(changes, Mapping) else {})
    if limit is not None and longest > limit:
        problem = f"must be at most {limit}, the number of positions of the model in model.path"
        yield format_error("task.max_length", problem, f"Set task.max_length={limit}", value=longest)


def padding_notes(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note about micro-batches that are larger than a step, whose rest is padding."""
    tokens, longest = value_at(config, "loader.tokens"), value_at(config, "task.max_length")
    batch_size = value_at(config, "train.batch_size")
    if type(tokens) is not int or type(longest) is not int or type(batch_size) is not int:
        return
    step = batch_size * longest
    if 0 < step < tokens:
        reason = f"a step has at most {step} (train.batch_size={batch_size}, task.max_length={longest})"
        yield f"loader.tokens={tokens}: {reason}, so the rest is padding; set loader.tokens={step} or less"


def value_at(config: object, key: str) -> Any:
    """Return the value of a dotted key, or None if there is none."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _validate_targets(config: Mapping[str, Any], groups: Groups) -> Iterator[str]:
    taken, targets = part_attribute(config, "loss", "targets"), _targets(config)
    for target, reason in targets.items() if taken else ():
        if target not in taken:
            declared = {option: _declared(groups, "loss", option, "targets") for option in groups.options("loss")}
            fitting = [option for option, values in declared.items() if {*targets} <= {*values}]
            if not part_attribute(config, "task", "tags_sequences"):
                fitting = [option for option in fitting if not _declared(groups, "loss", option, "needs_sequences")]
            problem = incompatible_targets(taken, target) + reason
            yield format_error("loss", problem, _use("loss", fitting), value=_name(config, "loss", groups))


def _use(group: str, fitting: Sequence[str]) -> str:
    """Return the remedy that names the options of a group that fit."""
    return f"Use {group}={fitting[0]}" if len(fitting) == 1 else f"Use one of {', '.join(fitting)}"


def _validate_sequences(config: Mapping[str, Any], groups: Groups) -> Iterator[str]:
    """Yield the problem of a loss of sequences of tags with a task that is known to have none."""
    if not part_attribute(config, "loss", "needs_sequences") or part_attribute(config, "task", "tags_sequences"):
        return
    if part_attribute(config, "task", "target") == "class":  # other targets are a problem of `_validate_targets`
        options = groups.options("task")
        fitting = [option for option in options if _declared(groups, "task", option, "tags_sequences")]
        problem = f"scores sequences of tags, but the task is {_name(config, 'task', groups)}"
        remedy = f"Use task={' or '.join(fitting)}, or loss=cross_entropy"
        yield format_error("loss", problem, remedy, value=_name(config, "loss", groups))


def _targets(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the types of the task's targets in evaluation and training, each with the reason for it."""
    target = part_attribute(config, "task", "target")
    keys = part_attribute(config, "task", "shares_by") or ()
    amounts = {key: value_at(config["task"], key) for key in keys}
    mixing = [f"task.{key}" for key, amount in amounts.items() if isinstance(amount, int | float) and amount > 0]
    targets = {target: ""} if target else {}
    return targets | ({"shares": f" because of {' and '.join(mixing)}"} if mixing else {})


def _validate_model(config: Mapping[str, Any], groups: Groups) -> Iterator[str]:
    pairs = (
        ("inputs", "inputs", "reads {}, but the inputs of the task are {}"),
        ("levels", "level", "has an output for each {}, but the task needs one for each {}"),
    )
    for declared, needed, problem in pairs:
        supported, value = part_attribute(config, "model", declared), part_attribute(config, "task", needed)
        if supported and value and value not in supported:
            options = groups.options("model")
            fitting = [option for option in options if value in _declared(groups, "model", option, declared)]
            text = problem.format(" or ".join(supported), value)
            yield format_error("model", text, _use("model", fitting), value=_name(config, "model", groups))


def _validate_monitor(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problem of a monitored metric that the task never has, whatever its data."""
    known, monitor = part_attribute(config, "task", "monitors"), value_at(config, "checkpoint.monitor")
    if isinstance(monitor, str):
        if set_problem(monitor, validation := validation_of(config.get("data"))) is not None:
            return
        monitor = select_monitored(monitor, list(by_split(validation)))[1]
    known = [*known, *metric_names(config.get("metrics"))] if known else []
    if known and isinstance(monitor, str) and monitor not in ("", "loss", *known):
        remedy = f"Add it to metrics: metrics=[{monitor}]"
        if name_problem(monitor, declared_kind(config), known) is not None:
            remedy = did_you_mean(monitor, ["loss", *known])
        yield format_error("checkpoint.monitor", UNKNOWN_METRIC, remedy, value=monitor)


def _validate_causality(config: Mapping[str, Any], groups: Groups) -> Iterator[str]:
    """A language model must not see the token it predicts; a masked one must see the tokens after it."""
    needed, causal = part_attribute(config, "task", "causal"), part_attribute(config, "model", "causal")
    if needed is None or causal is None or needed == causal:
        return
    problem = "sees the tokens that it must predict" if needed else "does not see the tokens after a masked token"
    remedy = "Use model=decoder" if needed else "Use model=text_encoder"
    yield format_error("model", problem, remedy, value=_name(config, "model", groups))


def _validate_span_text(config: Mapping[str, Any]) -> Iterator[str]:
    """Spans count the characters of one text: in several columns that are joined, their places would mean nothing."""
    if part_attribute(config, "task", "target") != "spans":
        return
    for key in ("data.text", "data.columns.text"):
        if isinstance(columns := value_at(config, key), Sequence) and not isinstance(columns, str) and len(columns) > 1:
            problem = "must be one column, because the places of spans are characters of one text"
            yield format_error(key, problem, f"Set {key}={columns[0]}", value=list(columns))


def _validate_views(config: Mapping[str, Any]) -> Iterator[str]:
    """Without supervision a text is compared with itself, and only dropout makes its two views different."""
    if value_at(config, "task.supervision") == "none":
        problem = "without dropout the two views of a text are equal, and task.supervision=none has no other views"
        yield from _validate_dropout(config, problem, "use task.supervision=pairs")


def _validate_dropout(config: Mapping[str, Any], problem: str, other_remedy: str) -> Iterator[str]:
    """Yield a problem if the model is known to have no dropout."""
    model = config.get("model")
    if not isinstance(model, Mapping):
        return
    is_known = part_attribute(config, "model", "inputs") is not None and "path" not in model
    if is_known and not any(value_at(model, key) for key in ("dropout", "lora.dropout", "head_dropout")):
        has_key = "dropout" in model
        remedy = f"{'Set it above 0' if has_key else 'Use a model with dropout'}, or {other_remedy}"
        key = "model.dropout" if has_key else "model"
        yield format_error(key, problem, remedy, value=model.get("dropout"))


def _validate_pruning(config: Mapping[str, Any]) -> Iterator[str]:
    prune, model = config.get("prune"), config.get("model")
    if not isinstance(prune, Mapping) or not isinstance(model, Mapping):
        return
    if model.get("lora") is not None:
        problem = "the adapters of model.lora would fill in the pruned weights when they are merged"
        yield format_error("prune", problem, "Leave out model.lora, or prune the trained run: trainer export prune=l1")
    axes, dim = _weight_axes(config), prune.get("dim")
    if isinstance(dim, int) and not -axes <= dim < axes:
        problem = f"must be an axis of weights with {axes} axes"
        yield format_error("prune.dim", problem, "Use 0 for outputs or 1 for inputs", value=dim)
    amount, smallest = prune.get("amount"), _smallest_weight(config)
    if isinstance(amount, int) and prune.get("targets") is None and smallest is not None and amount >= smallest:
        unit = "slices" if "dim" in prune else "elements"
        problem = f"must be less than {smallest}, the number of {unit} of the smallest weights of this model"
        yield format_error("prune.amount", problem, "Prune fewer, or name weights in prune.targets", value=amount)


def _validate_sampler(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of the keys that decide which samples an epoch has."""
    sampler, column, weights = (value_at(config, f"loader.{key}") for key in ("sampler", "sampler_column", "weights"))
    mix, source = value_at(config, "data.mix"), str(value_at(config, "data._target_"))
    if mix is not None and source.startswith(OWN) and part_attribute(config, "data", "row_noun") is None:
        problem = "needs a source whose training files you name"
        remedy = "Use data=files, data=lines or data=conll, or set data.mix=null"
        if part_attribute(config, "data", "mixes_splits"):
            yield from _validate_mixed_splits(config, mix)
        else:
            yield format_error("data.mix", problem, remedy)
    if weights is not None and sampler in ("shuffled", "balanced"):
        yield format_error("loader.weights", "has no effect here", "Set loader.sampler=weighted", value=weights)
    if weights is None and sampler == "weighted":
        remedy = "Set loader.weights={<value>:<weight>}, or to a column of numbers"
        yield format_error("loader.weights", "loader.sampler=weighted needs weights", remedy)
    if column is not None and sampler == "shuffled":
        remedy = "Set loader.sampler=balanced or weighted"
        yield format_error("loader.sampler_column", "has no effect here", remedy, value=column)
    if column is not None and sampler == "weighted" and isinstance(weights, str):
        remedy = "Set it to null"
        yield format_error("loader.sampler_column", "has no effect with a column of weights", remedy, value=column)
    named, key = (
        (weights, "weights") if sampler == "weighted" and isinstance(weights, str) else (column, "sampler_column")
    )
    reads = isinstance(named, str) and sampler in ("balanced", "weighted")
    labels = [value_at(config, f"data.{name}") for name in ("label", "columns.label")]
    if reads and named in labels and value_at(config, "data.corrections") is not None:
        problem = "the column has the labels without data.corrections"
        remedy = f"Leave out loader.{key}, so that the corrected labels count"
        yield format_error(f"loader.{key}", problem, remedy, value=named)
    by_class = sampler == "balanced" or (sampler == "weighted" and isinstance(weights, Mapping))
    target = str(value_at(config, "task._target_"))
    kind, level = (part_attribute(config, "task", name) for name in ("target", "level"))
    if by_class and column is None and target.startswith(OWN) and not (kind == "class" and level != "token"):
        problem = "the rows of this task have no single class"
        remedy = "Set loader.sampler_column=<column>, or loader.sampler=weighted loader.weights=<column of numbers>"
        yield format_error("loader.sampler", problem, remedy, value=sampler)


def _validate_mixed_splits(config: Mapping[str, Any], mix: object) -> Iterator[str]:
    """Yield the problems of shares for the training splits of a data set."""
    splits = value_at(config, "data.splits.train")
    if not isinstance(splits, list) or len(splits) < 2:
        remedy = "Set data.splits.train=[<split>,<split>], or data.mix=null"
        yield format_error("data.mix", "needs several splits in data.splits.train", remedy, value=mix)
    elif isinstance(mix, Mapping) and value_at(config, "data.folds") is None:  # folds train on validation rows, too
        known = [str(name) for name in splits]
        for name in (str(name) for name in mix):
            if name not in known:
                remedy = f"{did_you_mean(name, known)}. Leave it out, or add it to data.splits.train"
                yield format_error("data.mix", "names no split of data.splits.train", remedy, value=name)


def _validate_perturbation(config: Mapping[str, Any], groups: Groups) -> Iterator[str]:
    """Yield the problems of embeddings that the model lacks or does not train, and of two passes that are equal."""
    perturbs = part_attribute(config, "perturb", "perturbs")
    if perturbs == "outputs":
        yield from _validate_two_passes(config, groups)
    if perturbs != "embeddings" or value_at(config, "perturb.targets") is not None:
        return
    inputs = part_attribute(config, "model", "inputs")
    remedy = "Use perturb=awp, or name weights in perturb.targets"
    problem = None
    if inputs and "tokens" not in inputs:
        problem = f"moves the embeddings of tokens, but the model reads {' or '.join(inputs)}"
    elif value_at(config, "model.lora") is not None:
        problem = "moves the embeddings of tokens, but model.lora does not train them"
    if problem is not None:
        yield format_error("perturb", problem, remedy, value=_name(config, "perturb", groups))


def _validate_two_passes(config: Mapping[str, Any], groups: Groups) -> Iterator[str]:
    """Yield the problems of what compares the outputs of two dropout masks."""
    name, taken = _name(config, "perturb", groups), part_attribute(config, "perturb", "targets")
    for target in _targets(config) if taken else ():
        if target not in taken:
            yield format_error("perturb", incompatible_targets(taken, target), SUM_REMEDY, value=name)
    if _is_batch_statistic(config):
        yield format_error("perturb", SUM_WITHOUT_STATISTIC, SUM_REMEDY, value=name)
    # A trained model is read without the keys that do not change its outputs, so its dropout is not known.
    if value_at(config, "model.head_dropout") is not None:
        yield from _validate_dropout(config, "without dropout the two passes of a step are equal", _DROPOUT_REMEDY)


def _is_batch_statistic(config: Mapping[str, Any]) -> bool:
    """Return whether the loss is known to be a statistic of the whole batch."""
    by = part_attribute(config, "loss", "statistic_by") or {}
    values = {key: value_at(config, f"loss.{key}") for key in by}
    return part_attribute(config, "loss", "is_batch_statistic") is True or any(values[key] in by[key] for key in by)


def _missing_head(config: Mapping[str, Any], groups: Groups) -> tuple[str, str] | None:
    """Return why the model is known to have no head of its own, and the change that gives it one."""
    outputs_by = part_attribute(config, "task", "outputs_by")
    if outputs_by is not None and value_at(config, f"task.{outputs_by}") is None:
        return f"the model has no head, because task.{outputs_by} is null", f"Set task.{outputs_by}=128"
    if value_at(config, "model.features"):
        return None
    if value_at(config, "model.tie_embeddings") is True and part_attribute(config, "task", "causal") is True:
        return "the model uses its embeddings as the output layer and has no head of its own", (
            "Set model.tie_embeddings=false"
        )
    inputs, readable = part_attribute(config, "task", "inputs"), part_attribute(config, "model", "inputs") or ()
    is_own = str(value_at(config, "model._target_")).startswith(OWN)
    if is_own and inputs in readable and inputs not in (part_attribute(config, "model", "ends_with_head") or ()):
        return f"{_name(config, 'model', groups)} of {inputs} has no layer whose inputs could be dropped", (
            "Use another model"
        )
    return None


def _validate_head_dropout(config: Mapping[str, Any], groups: Groups) -> Iterator[str]:
    """Yield the problems of dropout in front of a head that the model lacks, and of several masks."""
    masks, key = value_at(config, "model.multi_sample_dropout"), "model.multi_sample_dropout"
    dropout = value_at(config, "model.head_dropout")
    lack = _missing_head(config, groups) if dropout else None
    if lack is not None:
        problem, change = lack
        remedy = f"{change}, or set model.head_dropout=0 {key}=1"
        yield format_error("model.head_dropout", problem, remedy, value=dropout)
    if not isinstance(masks, int) or masks == 1:
        return
    if dropout == 0:
        yield format_error(
            key, "all masks are equal without model.head_dropout", "Set model.head_dropout=0.3", value=masks
        )
    if part_attribute(config, "perturb", "perturbs") == "outputs":
        yield format_error(key, "does not support perturb=r_drop, which has two masks", f"Set {key}=1", value=masks)
    if _is_batch_statistic(config):
        yield format_error(key, MASKS_WITHOUT_STATISTIC, f"Set {key}=1", value=masks)


def _weight_axes(config: Mapping[str, Any]) -> int:
    """Return the most axes of a weight: four for 2-d convolutions, unless the model is known to read no images."""
    inputs = part_attribute(config, "model", "inputs") or ("images",)
    return 4 if "images" in inputs or "path" in config["model"] else 2


def _smallest_weight(config: Mapping[str, Any]) -> int | None:
    """Return the number of units of the smallest weight of a transformer, unless weights are pruned together."""
    prune, model = config["prune"], config["model"]
    dim, hidden = model.get("dim"), model.get("hidden")
    together = part_attribute(config, "prune", "PRUNES_TOGETHER")
    if together or "heads" not in model or not isinstance(dim, int) or not isinstance(hidden, int):
        return None
    return min(dim, hidden) * (1 if "dim" in prune else dim)


def validate_formats(config: Mapping[str, Any], groups: Groups) -> Iterator[str]:
    """Yield the problem of an export format that no model of the task can be written in."""
    task, formats = config.get("task"), value_at(config, "export.formats")
    target = str(task.get("_target_")) if isinstance(task, Mapping) else ""
    if not isinstance(formats, list) or _CACHE not in formats or not target.startswith(OWN):
        return
    if signatures.attribute(target, "causal") is not True:
        signature = signatures.read(str(value_at(config, "export._target_")))
        fitting = [name for name in literals(signature.annotations["formats"]) if name != _CACHE] if signature else []
        problem = f"{_CACHE} needs a causal language model, but the task is {_name(config, 'task', groups)}"
        yield format_error("export.formats", problem, f"Use some of {', '.join(fitting)}", value=formats)


def _declared(groups: Groups, group: str, option: str, name: str) -> Collection[str]:
    return signatures.attribute(str(groups.content(group, option).get("_target_")), name) or ()


def _name(config: Mapping[str, Any], group: str, groups: Groups) -> str:
    """Return the chosen option of a group, or the class if no option makes it."""
    target = str(config[group]["_target_"])
    return groups.option_of(group, target) or target.rsplit(".", 1)[-1]
