"""A command line to a checked, typed job in one pass; all errors are reported together, before torch loads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from trainer.config import compose, jobs, overrides, schema, sections
from trainer.config.compatibility import padding_notes, validate_new_job
from trainer.config.groups import Groups
from trainer.config.keys import KnownKeys
from trainer.config.metrics import validate_metrics
from trainer.config.overrides import CommandLine, is_sweep, validate_choice
from trainer.config.parts import validate_value
from trainer.config.paths import describe_taken, inherit_tokenizer, locate_paths, missing_paths
from trainer.config.resume import compose_resumed, errors_without_run
from trainer.config.stored import exported_config, load_stored_config, override_problems
from trainer.config.sweep import Sweep, find_sweep
from trainer.config.trust import keep_references, literal_problems, resolve_environment, trust_problems
from trainer.config.validate import job_of, typed_job, validate_config
from trainer.documents import flatten
from trainer.errors import CheckpointError, ConfigError, DataError, TrainerError, format_error, raise_if_any
from trainer.layout import SWEEP, expand_home

_Item = TypeVar("_Item")

InputCheck = Callable[[Mapping[str, Any]], Iterable[str]]
"""Returns the problems of the values of a command that another module reads, such as the files of a prediction."""

_ARTIFACT_VERBS = ("predict", "generate")
"""Verbs that can run a folder of artifacts without its run."""


@dataclass(frozen=True)
class CheckedJob:
    """The one job of a command line.

    Attributes:
        job: The typed job.
        config: The same as plain values, in the order of the schema; names environment variables and not their values.
        hydra: The composed config with Hydra's own; None for a resumed run.
    """

    job: jobs.Job
    config: dict[str, Any]
    hydra: DictConfig | None = None


@dataclass(frozen=True)
class CheckedCommand:
    """A command line without errors.

    Attributes:
        line: The command line.
        single: Its one job; None if Hydra's own main must run, for a sweep or to show something.
        notes: What the user should know before it starts.
        sweep: The sweep with a name that it runs, if any.
    """

    line: CommandLine
    single: CheckedJob | None
    notes: tuple[str, ...] = ()
    sweep: Sweep | None = None

    def composed_job(
        self, composed: DictConfig, choices: Mapping[str, str | None], run_dir: str | None
    ) -> tuple[jobs.Job, dict[str, Any]]:
        """Return the typed job of a config that Hydra's main composed, and the same as plain values.

        Args:
            composed: The config, without Hydra's own.
            choices: The option of each group in it.
            run_dir: The run folder if `run.dir` is null; None for the default.

        Raises:
            ConfigError: All its errors.
        """
        line = self.line
        config, problems = compose.plain(composed)
        raise_if_any(*problems)
        config = compose.drop_replaced_keys(config, choices, line.overrides.keys(), line.groups)
        config, _ = inherit_tokenizer(config, line.overrides.keys())
        if run_dir is not None and isinstance(config.get("run"), dict) and config["run"].get("dir") is None:
            config["run"]["dir"] = run_dir
        known = KnownKeys(line.job_type, line.groups, config)
        job = typed_job(locate_paths(config, line.job_type), known, line.overrides.stored_pairs())
        written = keep_references(config, composed)
        raise_if_any(*_literal_problems(written, line))
        return job, _in_schema_order(written, line)


@dataclass
class _Findings:
    """The results of checking the jobs of a command line."""

    problems: list[str] = field(default_factory=list)
    missing_data: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    composed: DictConfig | None = None
    without_hydra: DictConfig | None = None
    config: dict[str, Any] = field(default_factory=dict)


def check_command(verb: str, argv: Sequence[str], check_inputs: InputCheck | None = None) -> CheckedCommand:
    """Check the command line after the verb.

    Raises:
        ConfigError: All its errors.
        CheckpointError: The run to resume or to read cannot be used.
        DataError: The only errors are files of data that do not exist.
    """
    compose.register_defaults(jobs.JOBS[verb])
    line, problems = overrides.parse_command_line(verb, argv)
    problems += _unintended_sweeps(line)
    choices, invalid = _valid_choices(line)
    problems += invalid
    if line.arguments.shows_hydra:
        _raise(problems)
        return CheckedCommand(line, None)
    if (path := line.resume_path()) is not None:
        if wrong := validate_value("resume", path, schema.keys(jobs.TrainJob)["resume"]):
            _raise([*problems, *wrong])
        try:
            config, changes, invalid, missing_data = compose_resumed(line, choices, path)
        except CheckpointError as error:
            further = [*problems, *errors_without_run(line, choices)]
            raise CheckpointError(*error.messages, *dict.fromkeys(further)) from error
        if missing_data and not (problems or invalid):
            raise DataError(*missing_data)
        _raise([*problems, *invalid, *missing_data])
        return CheckedCommand(line, _checked_job(config, line, None), tuple(changes))
    findings = _Findings(problems)
    for chosen in _one_at_a_time([overrides.variants(item, line.groups) for item in choices]):
        _check_jobs(line, chosen, findings, check_inputs)
    findings.problems += _validate_stored_overrides(line)
    findings.problems += _without_effect(line, findings.composed)
    run_error = _run_error(line)
    if findings.missing_data and not findings.problems:
        raise DataError(*dict.fromkeys([*findings.missing_data, *_taken_folder(verb, findings)]))
    if findings.problems:  # alone, the problem of the folder is an error of another type, which the verb raises
        unusable = () if run_error is None else run_error.messages
        _raise([*findings.problems, *findings.missing_data, *_taken_folder(verb, findings), *unusable])
    if run_error is not None:
        raise run_error
    notes = tuple(dict.fromkeys(findings.notes))
    assert findings.composed is not None
    sweep = find_sweep(line, findings.config)
    if line.arguments.needs_hydra or compose.is_sweep_by_default(findings.composed):
        return CheckedCommand(line, None, notes, sweep)
    assert findings.without_hydra is not None
    config = keep_references(findings.config, findings.without_hydra)
    _raise(_literal_problems(config, line))
    return CheckedCommand(line, _checked_job(config, line, findings.composed), notes)


def _taken_folder(verb: str, findings: _Findings) -> list[str]:
    """Return the message about a folder for the run that is taken; empty if there is none or it is reported already."""
    run = findings.config.get("run")
    folder = run.get("dir") if verb == "train" and isinstance(run, Mapping) else None
    if not isinstance(folder, str) or any(problem.startswith("run.dir: ") for problem in findings.problems):
        return []
    try:
        message = describe_taken("run.dir", Path(expand_home(folder)))
    except (OSError, ValueError):  # no path, which is reported elsewhere
        return []
    return [message] if message else []


def _raise(problems: Sequence[str]) -> None:
    raise_if_any(*dict.fromkeys(problems))


def _checked_job(config: Mapping[str, Any], line: CommandLine, hydra: DictConfig | None) -> CheckedJob:
    job = _typed(config, line.job_type, line.overrides.stored_pairs())
    return CheckedJob(job, _in_schema_order(config, line), hydra)


def _typed(
    config: Mapping[str, Any], job_type: jobs.JobType, stored_overrides: tuple[tuple[str, Any], ...]
) -> jobs.Job:
    resolved = resolve_environment(config, schema.texts(job_type))
    return job_of(locate_paths(resolved, job_type), job_type, stored_overrides)


def job_of_config(verb: str, config: Mapping[str, Any], stored_overrides: Iterable[Sequence[Any]]) -> jobs.Job:
    """Return the typed job of a config that another process has checked.

    Args:
        verb: The verb.
        config: The config, complete.
        stored_overrides: Full key and value of each change of a stored config.
    """
    pairs = tuple((str(key), value) for key, value in stored_overrides)
    return _typed(config, jobs.JOBS[verb], pairs)


def _literal_problems(config: Mapping[str, Any], line: CommandLine) -> list[str]:
    return literal_problems(config) if line.job_type is jobs.TrainJob else []


def _in_schema_order(config: Mapping[str, Any], line: CommandLine) -> dict[str, Any]:
    return {key: config[key] for key in schema.keys(line.job_type)}


def _unintended_sweeps(line: CommandLine) -> list[str]:
    remedy = "Write a list as [a,b], or run a job for each value with --multirun (-m)"
    return [
        format_error(item.key_or_group, "several values need a sweep", remedy, value=item.get_value_string())
        for item in (*line.overrides.groups, *line.overrides.values)
        if is_sweep(item) and not line.arguments.is_sweep
    ]


def _without_effect(line: CommandLine, composed: DictConfig | None) -> list[str]:
    """Return the problems of settings of a sweep on the command line of a single job."""
    if composed is None or line.arguments.needs_hydra or compose.is_sweep_by_default(composed):
        return []
    remedy = "Add --multirun (-m), or leave it out"
    return [
        format_error(item.key_or_group, "has no effect without a sweep", remedy, value=item.get_value_string())
        for item in line.overrides.hydra
        if item.key_or_group.startswith(("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweep"))
    ]


def _valid_choices(line: CommandLine) -> tuple[list[Override], list[str]]:
    """Return the choices of options that exist, and the problems of the others."""
    chosen = (*schema.groups(line.job_type), *jobs.preset_groups(line.job_type))
    valid: list[Override] = []
    problems: list[str] = []
    for item in line.overrides.groups:
        invalid = validate_choice(item, line.job_type, line.groups, chosen)
        # A file that cannot be read is named here; Hydra would not name it.
        invalid = invalid or line.groups.problems(item.key_or_group, item.value())
        problems += invalid
        valid += [] if invalid else [item]
    return valid, problems


def _check_jobs(line: CommandLine, chosen: Sequence[str], findings: _Findings, check_inputs: InputCheck | None) -> None:
    """Check the jobs with the given choices of options: one, or one for each value of a sweep."""
    try:
        composed = compose.compose_with_hydra(line.folder, line.config_name, [*line.hydra_overrides(), *chosen])
    except ConfigError as error:
        findings.problems += error.messages
        return
    choices = compose.choices_of(composed)
    tree = {key: value for key, value in compose.unresolved(composed).items() if key != "hydra"}
    tree |= _replaced_targets(tree, line.overrides.values)
    known = KnownKeys(line.job_type, line.groups, tree)
    valid: list[list[Override]] = []
    for item in line.overrides.values:
        problems = known.validate_override(item)
        findings.problems += problems
        valid += [] if problems else [_values_of(item)]
    jobs_of_sweep = _one_at_a_time(valid)
    for values in jobs_of_sweep:
        # Copies take most of the time of a check, and one job needs none.
        changed = composed.copy() if len(jobs_of_sweep) > 1 else composed
        findings.problems += compose.apply_overrides(changed, values)
        compose.record_overrides(changed, line.task_overrides())
        compose.publish_hydra_config(changed)
        findings.composed = changed
        findings.without_hydra = compose.without_hydra(changed)
        config, unresolved = compose.plain(findings.without_hydra)
        findings.problems += unresolved
        findings.config = _derive(config, choices, line, findings)
        # Hydra also shows a config that still lacks a value.
        if not line.arguments.options.cfg:
            known = KnownKeys(
                line.job_type, line.groups, findings.config, presets=compose.preset_files(choices, line.groups)
            )
            _check_config(findings.config, known, findings, check_inputs)


def _replaced_targets(tree: Mapping[str, Any], values: Sequence[Override]) -> dict[str, Any]:
    """Return the parts with a new `_target_`, which decides which keys there are."""
    targets = {
        item.key_or_group.removesuffix("._target_"): item.value()
        for item in values
        if item.key_or_group.endswith("._target_") and not is_sweep(item) and not item.is_delete()
    }
    parts = {name: tree[name] for name in targets if isinstance(tree.get(name), Mapping)}
    return {name: {**part, "_target_": targets[name]} for name, part in parts.items()}


def _values_of(override: Override) -> list[Override]:
    """Return an override once for each of its values."""
    if not is_sweep(override):
        return [override]
    return overrides.parse_overrides(overrides.variants(override, Groups(())))[0]


def _derive(
    config: Mapping[str, Any], choices: Mapping[str, str | None], line: CommandLine, findings: _Findings
) -> dict[str, Any]:
    """Return the config with the values that follow from others."""
    explicit = line.overrides.keys()
    kept = compose.drop_replaced_keys(config, choices, explicit, line.groups)
    # Compared as wholes: a name in a mapping may contain a dot, as the names of files in data.mix.
    known = dict(flatten(kept))
    dropped = [path for path, _ in flatten(config) if path not in known]
    if dropped:
        findings.notes.append(f"left out {', '.join(dropped)}, which belong to the replaced _target_")
    kept, notes = inherit_tokenizer(kept, explicit)
    findings.notes += notes
    return kept


def _check_config(
    config: Mapping[str, Any], known: KnownKeys, findings: _Findings, check_inputs: InputCheck | None
) -> None:
    problems = [*validate_config(config, known), *validate_new_job(config)]
    findings.problems += problems
    findings.notes += padding_notes(config)
    reported = {problem.partition(":")[0] for problem in problems}
    missing_data, missing = missing_paths(locate_paths(config, known.job_type), known.job_type, reported)
    findings.problems += missing
    findings.missing_data += missing_data
    if check_inputs is not None:
        findings.problems += check_inputs(config)


def _one_at_a_time(choices: Sequence[Sequence[_Item]]) -> list[list[_Item]]:
    """Return the first items together, then each other item once among the first items: a sum, not a product."""
    present = [items for items in choices if items]
    first = [items[0] for items in present]
    others = [
        [*first[:position], item, *first[position + 1 :]]
        for position, items in enumerate(present)
        for item in items[1:]
    ]
    return [first, *others]


def _validate_stored_overrides(line: CommandLine) -> list[str]:
    """Return the problems of changes of a run's config that show without the run."""
    keys = schema.keys(sections.LoaderSection)
    known = KnownKeys(jobs.TrainJob, line.groups, {"loader": schema.defaults(sections.LoaderSection)})
    problems: list[str] = []
    for path, value in line.overrides.stored_pairs():
        section, _, key = path.partition(".")
        if section == "loader" and key not in keys:
            problems.append(known.unknown(path, value))
        elif section == "loader":
            problems += validate_value(path, value, keys[key])
    return problems


def _run_error(line: CommandLine) -> TrainerError | None:
    """Return the error of a run that a verb other than `train` cannot use with this command line; None if it can."""
    # `--cfg` shows values without checking them, so that any text may stand in the place of a path.
    # A server reads artifacts only, which need no config.
    if issubclass(line.job_type, jobs.TrainJob | jobs.ServeJob) or line.arguments.options.cfg:
        return None
    values = {item.key_or_group: item.value() for item in line.overrides.values}
    run, trust = values.get("run"), values.get("trust")
    if not isinstance(run, str) or (line.verb == "report" and os.path.isfile(os.path.join(expand_home(run), SWEEP))):
        return None
    run = expand_home(run)
    may_be_artifacts = line.verb in _ARTIFACT_VERBS and values.get("backend") != "torch"
    try:
        exported = exported_config(run) if may_be_artifacts else None
        stored = load_stored_config(run, key="run") if exported is None else exported
    except TrainerError as error:
        return error
    packages = [str(package) for package in trust] if isinstance(trust, list) else []
    pairs = line.overrides.stored_pairs()
    problems, missing_data = override_problems(stored, pairs)
    problems += validate_metrics(stored | {"metrics": values.get("metrics")})
    # Verbs without `trust` only read a run. No observer is made to use a run that is trained.
    if "trust" in schema.keys(line.job_type) and (
        untrusted := trust_problems(stored | {"observers": []}, packages, [path for path, _ in pairs])
    ):
        return CheckpointError(*untrusted, *problems, *missing_data)
    if problems:
        return ConfigError(*problems, *missing_data)
    return DataError(*missing_data) if missing_data else None
