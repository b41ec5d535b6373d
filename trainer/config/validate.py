"""Validation of a whole config: every error at once, and the typed job of a config without errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from trainer.config import jobs, schema, sections, signatures
from trainer.config.compatibility import validate_compatibility, value_at
from trainer.config.devices import validate_devices
from trainer.config.foreign_names import foreign_value
from trainer.config.groups import OWN
from trainer.config.keys import KnownKeys
from trainer.config.metrics import validate_metrics
from trainer.config.parts import validate_entry, validate_part, validate_value
from trainer.constraints.annotations import literals
from trainer.constraints.values import character_problems, fits_type
from trainer.durations import FORMS, LENGTH_FORMS, Duration, parse
from trainer.errors import did_you_mean, format_error, install, raise_if_any
from trainer.validation_sets import SPLIT_PATTERN, is_image_set, name_problems, named_sets, set_problem, validation_of

_MAX_RUN_NAME = 200
"""A folder's name may have 255 bytes; the date, the time and a number come before and after this one."""

SYNTAX = {
    "device": (r"auto|cpu|mps|cuda(:\d{1,3})?", "must be auto, cpu, cuda, cuda:N or mps"),
    "checkpoint": (r"best|last|step-\d+", "must be best, last or step-N"),
    "start": (r"step-\d+", "must be step-N"),
    "split": (SPLIT_PATTERN, "must be train, test, validation or validation/<name>"),
}
_OF_SCIKIT_LEARN = frozenset({"breast_cancer", "diabetes", "digits"})

_FREEZE = "An entry is a pattern of parameter names, or {match: <pattern>, until: <duration>}"
_OVERRIDE = "An entry is {match: <pattern of names>, lr: ..., weight_decay: ...}, with at least one of the values"


def typed_job(
    config: Mapping[str, Any], known: KnownKeys, stored_overrides: tuple[tuple[str, Any], ...] = ()
) -> jobs.Job:
    """Return the typed job of a config.

    Raises:
        ConfigError: All its errors.
    """
    raise_if_any(*dict.fromkeys(validate_config(config, known)))
    return job_of(config, known.job_type, stored_overrides)


def job_of(config: Mapping[str, Any], job_type: type, stored_overrides: tuple[tuple[str, Any], ...] = ()) -> jobs.Job:
    """Return the typed job of a config that has been validated."""
    sections = schema.sections(job_type)
    values = {name: sections[name](**config[name]) if name in sections else config[name] for name in config}
    if jobs.stored_sections(job_type):
        values["stored_overrides"] = stored_overrides
    job: jobs.Job = job_type(**values)
    return job


def validate_config(config: Mapping[str, Any], known: KnownKeys) -> list[str]:
    """Return every error of a config of plain values: unknown keys, types, ranges, combinations."""
    keys = schema.keys(known.job_type)
    sections = schema.sections(known.job_type)
    problems = [known.unknown(key, value) for key, value in config.items() if key not in keys]
    for name, annotation in keys.items():
        value = config.get(name)
        if name in schema.groups(known.job_type):
            problems += validate_part(name, value, known)
        elif name in sections:
            problems += _validate_section(name, value, sections[name], known)
        elif name not in config:
            problems.append(format_error(name, "is missing"))
        else:
            problems += validate_value(name, value, annotation)
    problems += character_problems(config)
    # One message per key: a value of the wrong type or out of range is not judged further.
    reported = {problem.partition(":")[0] for problem in problems}
    further = [*_validate_own_keys(config, known), *validate_compatibility(config, known.groups)]
    return [*problems, *(problem for problem in further if problem.partition(":")[0] not in reported)]


def _validate_section(name: str, section: object, section_type: type, known: KnownKeys) -> list[str]:
    keys = schema.keys(section_type)
    if not isinstance(section, Mapping):
        remedy = f"Its keys are {', '.join(keys)}"
        if fitting := [key for key, annotation in keys.items() if section in literals(annotation)]:
            form = section if fits_type(section, keys[fitting[0]]) else f"[{section}]"
            remedy = f"Set {name}.{fitting[0]}={form}"
        return [format_error(name, "must be a section", remedy, value=section)]
    problems = [known.unknown(f"{name}.{key}", value) for key, value in section.items() if key not in keys]
    problems += [format_error(f"{name}.{key}", "is missing") for key in keys if key not in section]
    for key, value in section.items():
        problems += validate_value(f"{name}.{key}", value, keys[key]) if key in keys else []
    return problems


# Keys of jobs and sections, and the entries of their lists and mappings


def _validate_own_keys(config: Mapping[str, Any], known: KnownKeys) -> Iterator[str]:
    """Yield the problems that the types do not cover; keys that are absent or of the wrong type are skipped."""
    flat = {
        f"{top}.{key}": item
        for top, value in config.items()
        if isinstance(value, Mapping)
        for key, item in value.items()
    }
    flat |= config
    yield from validate_syntax(flat)
    yield from validate_devices(config)
    yield from _validate_prediction(flat)
    yield from _validate_folds(flat)
    yield from _validate_sets(config)
    yield from _validate_intervals(flat)
    yield from _validate_token_budget(flat)
    yield from _validate_phases(flat)
    yield from _validate_freeze(config)
    yield from validate_metrics(config)
    if flat.get("logger.histograms") is not None and flat.get("logger.tensorboard") is False:
        problem = "histograms are written for TensorBoard, which logger.tensorboard=false turns off"
        yield format_error("logger.histograms", problem, "Set it to null", value=flat["logger.histograms"])
    yield from _validate_trackers(value_at(config, "logger.trackers"))
    yield from _validate_source(value_at(config, "data._target_"))
    yield from _validate_classes(config, "metrics", known)
    yield from _validate_classes(config, "observers", known)
    yield from _validate_lora(value_at(config, "model.lora"))
    yield from _validate_renames(value_at(config, "model.weights_rename"))
    yield from _validate_overrides(config)


def validate_syntax(flat: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of texts that must have a form: devices, checkpoints, splits, names of folders."""
    for key, (pattern, problem) in SYNTAX.items():
        value = flat.get(key)
        if isinstance(value, str) and not re.fullmatch(pattern, value):
            here = foreign_value(key, value)
            yield format_error(key, problem, "" if here is None else f"Set {key}={here}", value=value)
    for key, remedy in (("run.name", "Set run.dir for a path"), ("sweep.name", "Leave out the path")):
        name = flat.get(key)
        if isinstance(name, str) and (not name or "/" in name or "\\" in name or name in (".", "..")):
            yield format_error(key, "must be the name of a folder", remedy, value=name)
        if isinstance(name, str) and len(name.encode(errors="replace")) > _MAX_RUN_NAME:
            yield format_error(key, f"must have at most {_MAX_RUN_NAME} bytes", value=name)
    if flat.get("resume") == "auto" and "run.name" in flat and flat["run.name"] is None and not flat.get("run.dir"):
        yield format_error("resume", "auto needs a run with a fixed folder", "Set run.name", value="auto")


def _validate_folds(flat: Mapping[str, Any]) -> Iterator[str]:
    folds, fold = flat.get("data.folds"), flat.get("data.fold")
    if isinstance(fold, int) and fold > 0 and "data.folds" in flat and folds is None:
        yield format_error("data.fold", "needs data.folds", "Set data.folds=5, or leave data.fold out", value=fold)
    if isinstance(fold, int) and isinstance(folds, int) and fold >= folds:
        yield format_error("data.fold", f"must be less than data.folds, which is {folds}", value=fold)
    split = flat.get("data.split")
    if folds is not None and isinstance(split, Mapping) and split.get("time") is not None:
        remedy = "Set data.folds=null or data.split.time=null"
        yield format_error("data.folds", "folds would mix rows of all times (data.split.time)", remedy, value=folds)


def _validate_sets(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of several named validation sets, of the sources that can have them."""
    data = config.get("data")
    if not isinstance(data, Mapping) or not str(data.get("_target_")).startswith(OWN):
        return
    validation = validation_of(data)
    yield from name_problems(validation, "data.splits.validation" if "splits" in data else "data.validation")
    if (problem := set_problem(value_at(config, "checkpoint.monitor"), validation)) is not None:
        yield problem
    if is_image_set(validation) and signatures.attribute(str(data["_target_"]), "row_noun") is not None:
        problem = "two sets of the names images and labels would be one set of image files"
        yield format_error("data.validation", problem, "Rename one of them", value=validation)
    if named_sets(validation) and data.get("folds") is not None:
        remedy = "Set data.folds=null, or name one validation set"
        yield format_error("data.folds", "folds replace several validation sets", remedy, value=data["folds"])


def _validate_prediction(flat: Mapping[str, Any]) -> Iterator[str]:
    if "neighbours" in flat and "corpus" in flat and (flat["neighbours"] is None) != (flat["corpus"] is None):
        missing, present = ("corpus", "neighbours") if flat["corpus"] is None else ("neighbours", "corpus")
        remedy = "Set both, such as neighbours=5 corpus=my.txt"
        yield format_error(missing, f"must be set together with {present}", remedy, value=None)
    if flat.get("backend") != "onnx":
        return
    if flat.get("precision") not in (None, "fp32"):
        problem = "has no effect on artifacts, which have their own number format"
        yield format_error("precision", problem, "Use fp32", value=flat["precision"])
    if flat.get("device") not in (None, "auto", "cpu"):
        yield format_error("device", "artifacts run only on the CPU", "Use auto or cpu", value=flat["device"])


def _validate_intervals(flat: Mapping[str, Any]) -> Iterator[str]:
    length = parse(flat.get("train.duration"))
    if length is not None and length.unit == "%":
        problem = "cannot be a share of the run, because it is the length of the run"
        yield format_error("train.duration", problem, LENGTH_FORMS, value=flat["train.duration"])
    batch_size, accumulate = flat.get("train.batch_size"), flat.get("train.accumulate")
    if isinstance(batch_size, int) and isinstance(accumulate, int) and 1 <= batch_size < accumulate:
        problem = f"must not be greater than train.batch_size ({batch_size}), which it divides into micro-batches"
        yield format_error("train.accumulate", problem, value=accumulate)
    if accumulate == "auto" and flat.get("devices", 1) not in (1, "auto"):
        problem = "is found on one device, but devices is not 1"
        yield format_error("train.accumulate", problem, "Set a number", value="auto")


def _validate_token_budget(flat: Mapping[str, Any]) -> Iterator[str]:
    tokens, longest = flat.get("loader.tokens"), flat.get("task.max_length")
    if not isinstance(tokens, int) or tokens < 1:
        return
    target = flat.get("task._target_")
    if isinstance(target, str) and target.startswith(OWN) and (longest is None or "sentence_embedding" in target):
        problem = "needs a task whose samples are one sequence of tokens each"
        yield format_error("loader.tokens", problem, "Set loader.tokens=null", value=tokens)
    elif isinstance(longest, int) and tokens < longest:
        problem = f"a sample may have more tokens (task.max_length is {longest})"
        yield format_error("loader.tokens", problem, f"Set loader.tokens={longest} or more", value=tokens)
    if flat.get("loader.batching", "packed") != "packed":
        problem = "needs packed batches if loader.tokens is set"
        yield format_error("loader.batching", problem, "Set loader.batching=packed", value=flat["loader.batching"])
    if flat.get("train.accumulate", 1) != 1:
        problem = "must be 1 if loader.tokens is set, which determines the micro-batches"
        yield format_error("train.accumulate", problem, "Set train.accumulate=1", value=flat["train.accumulate"])


def _validate_phases(flat: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of the phases of a schedule that are too long for the run."""
    length = parse(flat.get("train.duration"))
    durations = {key: parse(flat.get(f"scheduler.{key}")) for key in ("warmup", "decay")}
    shares = {
        key: _share_of_run(duration, length)
        for key, duration in durations.items()
        if duration is not None and _is_comparable(duration, length)
    }
    for key, share in shares.items():
        path = f"scheduler.{key}"
        if key == "warmup" and flat.get("scheduler.three_phase") is True and share > 0.5:
            problem = "must be at most half of the run if scheduler.three_phase is true"
            yield format_error(path, problem, value=flat[path])
        elif share > 1:
            problem = f"must not be longer than the run (train.duration is {flat['train.duration']})"
            yield format_error(path, problem, value=flat[path])
    if len(shares) == 2 and sum(shares.values()) > 1 >= max(shares.values()):
        phases = f"{flat['scheduler.warmup']} and {flat['scheduler.decay']}"
        yield format_error("scheduler", "warmup and decay together must not be longer than the run", value=phases)


def _is_comparable(phase: Duration, length: Duration | None) -> bool:
    return phase.unit == "%" or (length is not None and length.unit == phase.unit and length.amount > 0)


def _share_of_run(phase: Duration, length: Duration | None) -> float:
    if phase.unit == "%":
        return float(phase.amount) / 100
    assert length is not None
    return float(phase.amount / length.amount)


def _validate_freeze(config: Mapping[str, Any]) -> Iterator[str]:
    entries = value_at(config, "model.freeze")
    if not isinstance(entries, list):
        return
    for number, entry in enumerate(entries, start=1):
        path = f"model.freeze: entry {number}"
        pattern = entry.get("match") if isinstance(entry, Mapping) else entry
        if isinstance(entry, Mapping) and set(entry) != {"match", "until"}:
            yield format_error(path, "must have match and until", _FREEZE, value=entry)
        elif not isinstance(pattern, str) or not pattern:
            yield format_error(path, "must be a pattern of parameter names", _FREEZE, value=entry)
        elif isinstance(entry, Mapping) and parse(entry["until"]) is None:
            yield format_error(f"{path}, until", "must be a duration", FORMS, value=entry["until"])
    if "*" in entries and not _may_train_frozen(config):
        yield format_error("model.freeze", "leaves nothing to train", "Leave out the head, for example", value=entries)


def _may_train_frozen(config: Mapping[str, Any]) -> bool:
    """Return whether anything is trained if the whole model is frozen: a new head, adapters, weights of the loss."""
    loss = config.get("loss")
    target = str(loss.get("_target_")) if isinstance(loss, Mapping) else ""
    has_weights = not target.startswith(OWN) or "in_features" in (loss or {})
    return has_weights or bool(value_at(config, "model.features")) or value_at(config, "model.lora") is not None


def _validate_trackers(trackers: object) -> Iterator[str]:
    for name in dict.fromkeys(trackers if isinstance(trackers, list) else []):
        if name in ("wandb", "mlflow", "swanlab") and find_spec(name) is None:
            problem = f"needs the package {name}, which is not installed"
            yield format_error("logger.trackers", problem, install(name), value=name)


def _validate_source(target: object) -> Iterator[str]:
    name = str(target).removeprefix("trainer.data.").partition(".")[0]
    if name in _OF_SCIKIT_LEARN and find_spec("sklearn") is None:
        problem = "is part of the package scikit-learn, which is not installed"
        yield format_error("data", problem, install("examples"), value=name)


def _validate_classes(config: Mapping[str, Any], key: str, known: KnownKeys) -> Iterator[str]:
    """Yield the problems of the classes of your own in a list: they must exist and have their arguments."""
    entries = config.get(key)
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        target = entry.get("_target_") if isinstance(entry, Mapping) else None
        if isinstance(target, str):
            names = ("name",) if key == "metrics" else ()
            yield from validate_entry(f"{key}.{number}", entry, known, names)
        elif key == "observers":
            problem, remedy = "must be an observer", "An entry is {_target_: <class>, <key>: <value>, ...}"
            yield format_error(f"{key}.{number}", problem, remedy, value=entry)


def _validate_lora(lora: object) -> Iterator[str]:
    if not isinstance(lora, Mapping):
        return
    keys = schema.keys(sections.LoraKeys)
    for key, value in lora.items():
        if key in keys:
            yield from validate_value(f"model.lora.{key}", value, keys[key])
        else:
            yield format_error(f"model.lora.{key}", "unknown key", did_you_mean(str(key), list(keys)), value=value)
    if find_spec("peft") is None:
        yield format_error("model.lora", "needs the package peft, which is not installed", install("lora"))


def _validate_renames(pairs: object) -> Iterator[str]:
    for number, pair in enumerate(pairs if isinstance(pairs, list) else [], start=1):
        path = f"model.weights_rename: entry {number}"
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(item, str) for item in pair):
            yield format_error(path, "must be [regular expression, replacement]", value=pair)
            continue
        try:
            re.sub(pair[0], pair[1], "")
        except (re.error, IndexError) as error:
            yield format_error(path, f"is not a valid regular expression ({error})", value=pair)


def _validate_overrides(config: Mapping[str, Any]) -> Iterator[str]:
    entries = value_at(config, "optimizer.overrides")
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        return
    keys = schema.keys(sections.OverrideKeys)
    for number, entry in enumerate(entries, start=1):
        path = f"optimizer.overrides: entry {number}"
        for key in (key for key in entry if key not in keys):
            yield format_error(path, "has an unknown key", did_you_mean(str(key), list(keys)), value=key)
        if "match" not in entry:
            yield format_error(f"{path}, match", "is missing", _OVERRIDE)
        if entry.keys() <= {"match"}:
            yield format_error(path, "sets nothing", _OVERRIDE)
        for key in (key for key in keys if key in entry):
            yield from validate_value(f"{path}, {key}", entry[key], keys[key])
    if value_at(config, "optimizer.lr") == "auto" and any("lr" in entry for entry in entries):
        problem = "auto measures one learning rate for all parameters, but optimizer.overrides sets others"
        yield format_error("optimizer.lr", problem, "Set a number, or leave lr out of the overrides", value="auto")
