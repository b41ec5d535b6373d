"""A command line to a checked job: every fault is found before anything heavy is loaded, and all are told at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from trainer.config import jobs, overrides, schema, sections
from trainer.config.catalogue import Catalogue
from trainer.config.check import checked_job, faults
from trainer.config.compose import apply, as_written, compose, plain, register_defaults
from trainer.config.inherited import with_tokenizer
from trainer.config.keys import Keys, group_faults, is_known, leaves
from trainer.config.overrides import is_sweep
from trainer.config.parts import value_faults, without_replaced
from trainer.config.paths import located, missing_data, missing_inputs, missing_parts
from trainer.config.request import Request, read_request
from trainer.config.resume import resumed
from trainer.config.stored import exported_config, load_stored_config, with_overrides
from trainer.config.trust import trusted
from trainer.errors import CheckpointError, ConfigError, DataError, format_error, raise_if_any

_Item = TypeVar("_Item")

_BY_ARTIFACTS = ("predict", "generate")
"""Verbs that a folder of artifacts is enough for."""


@dataclass(frozen=True)
class Plan:
    """A command line without a fault.

    Attributes:
        request: What it asks for.
        hydra_argv: The command line for Hydra.
        resumed: The configuration to go on with, for `resume=PATH`; there is nothing to compose then.
        notes: What a person should know before it starts.
    """

    request: Request
    hydra_argv: tuple[str, ...]
    resumed: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def job(
        self, config: DictConfig, choices: Mapping[str, str | None], run_dir: str | None
    ) -> tuple[jobs.Job, dict[str, Any]]:
        """The typed job of a configuration that Hydra composed, and the same as plain values.

        Args:
            config: The configuration, without Hydra's own.
            choices: The option of each group in it.
            run_dir: Where the job's run is kept when `run.dir` is not given; None for the usual place.

        Raises:
            ConfigError: All that is wrong with it.
        """
        values, unresolved = plain(config)
        raise_if_any(*unresolved)
        values = without_replaced(values, choices, self.request.given.paths(), self.request.catalogue)
        values, _ = with_tokenizer(values, self.request.given.paths())
        if run_dir is not None and isinstance(values.get("run"), dict) and values["run"].get("dir") is None:
            values["run"]["dir"] = run_dir
        return self.job_of(values)

    def job_of(self, values: Mapping[str, Any]) -> tuple[jobs.Job, dict[str, Any]]:
        """The typed job of plain values, and those in the order of the schema.

        Raises:
            ConfigError: All that is wrong with it.
        """
        request = self.request
        job = checked_job(located(values), Keys(request.kind, request.catalogue, values), stored_pairs(request))
        return job, {key: values[key] for key in schema.keys(request.kind)}


def check_command(verb: str, argv: Sequence[str]) -> Plan:
    """Checks what follows the verb.

    Raises:
        ConfigError: All that is wrong with it.
        CheckpointError: The run that is to be resumed cannot be used.
        DataError: Nothing else is wrong than that files of data are not there.
    """
    register_defaults()
    request, found = read_request(verb, argv)
    found += _sweep_faults(request)
    sound, wrong = _sound_groups(request)
    found += wrong
    plan = Plan(request, tuple(request.to_hydra()))
    options = request.command.options
    if options.info or options.hydra_help or options.shell_completion:
        return _unless(found, plan)
    path = _resume_path(request)
    if path is not None:
        config, notes, wrong = resumed(request, sound, path)
        return _unless([*found, *wrong], replace(plan, resumed=config, notes=tuple(notes)))
    notes = []
    missing: list[str] = []
    for groups in _one_at_a_time([overrides.variants(item, request.catalogue) for item in sound]):
        wrong, noted, absent = _faults_with(request, groups)
        found += wrong
        notes += noted
        missing += absent
    found += _stored_faults(request)
    if missing and not found:
        raise DataError(*dict.fromkeys(missing))
    _unless([*found, *missing], plan)
    _check_run(request)
    return replace(plan, notes=tuple(dict.fromkeys(notes)))


def _unless(found: Sequence[str], plan: Plan) -> Plan:
    raise_if_any(*dict.fromkeys(found))
    return plan


def _sweep_faults(request: Request) -> list[str]:
    given = request.given
    remedy = "A list is written [a,b]; --multirun (-m) runs a job for each"
    return [
        format_error(item.key_or_group, "several values make a sweep", remedy, value=item.get_value_string())
        for item in (*given.groups, *given.values)
        if is_sweep(item) and not request.command.multirun
    ]


def _sound_groups(request: Request) -> tuple[list[Override], list[str]]:
    """The choices of options that there are, and what is wrong with the others."""
    chosen = (*schema.groups(request.kind), *jobs.bare_groups(request.kind))
    sound: list[Override] = []
    found: list[str] = []
    for item in request.given.groups:
        wrong = group_faults(item, request.kind, request.catalogue, chosen)
        found += wrong
        sound += [] if wrong else [item]
    return sound, found


def _stored_faults(request: Request) -> list[str]:
    """What is wrong with changes of a run's own configuration, as far as that is known without the run."""
    known = schema.keys(sections.LoaderSection)
    tree = {"loader": schema.defaults(sections.LoaderSection)}
    keys = Keys(jobs.TrainJob, request.catalogue, tree)
    found: list[str] = []
    for item in request.given.stored:
        section, _, key = item.key_or_group.partition(".")
        if section == "loader" and key not in known:
            found.append(keys.unknown(item.key_or_group, item.value()))
        elif section == "loader":
            found += value_faults(item.key_or_group, item.value(), known[key])
    return found


def _check_run(request: Request) -> None:
    """Where another verb than `train` names a run: whether it can be used as the command line says."""
    if issubclass(request.kind, jobs.TrainJob):
        return
    values = {item.key_or_group: item.value() for item in request.given.values}
    run, trust = values.get("run"), values.get("trust")
    if isinstance(run, str):
        alone = exported_config(run) if request.verb in _BY_ARTIFACTS and values.get("backend") != "torch" else None
        stored = load_stored_config(run, key="run") if alone is None else alone
        if untrusted := trusted(stored, [str(package) for package in trust] if isinstance(trust, list) else []):
            raise CheckpointError(*untrusted)
        with_overrides(stored, stored_pairs(request))


def stored_pairs(request: Request) -> tuple[tuple[str, Any], ...]:
    """Full keys and values that a run's own configuration is to be read with."""
    return tuple((item.key_or_group, item.value()) for item in request.given.stored)


def _faults_with(request: Request, groups: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """What is wrong when these options are chosen, notes, and files of data that are not there."""
    try:
        config, choices = compose(request.folder, request.name, [*request.to_compose(), *groups])
    except ConfigError as error:
        return list(error.messages), [], []
    keys = Keys(request.kind, request.catalogue, as_written(config))
    wrong = {str(item.input_line): keys.faults(item) for item in request.given.values}
    found = [fault for messages in wrong.values() for fault in messages]
    notes: list[str] = []
    missing: list[str] = []
    good = [overrides.variants(item, Catalogue(())) for item in request.given.values if not wrong[str(item.input_line)]]
    for lines in _one_at_a_time(good):
        changed = config.copy()
        found += apply(changed, overrides.parse(lines)[0])
        values, unresolved = plain(changed)
        kept = without_replaced(values, choices, request.given.paths(), request.catalogue)
        dropped = [path for path in leaves(values) if not is_known(kept, path)]
        notes += [f"{', '.join(dropped)} left out: they belong to what _target_ replaces"] if dropped else []
        kept, followed = with_tokenizer(kept, request.given.paths())
        notes += followed
        found += unresolved
        # Hydra shows a configuration also where a value is still to be given.
        if not request.command.options.cfg:
            found += [*faults(kept, replace(keys, tree=kept)), *missing_parts(located(kept)), *missing_inputs(kept)]
            missing += missing_data(located(kept))
    return found, notes, missing


def _one_at_a_time(choices: Sequence[Sequence[_Item]]) -> list[list[_Item]]:
    """The first of each, and then every other one once, beside the first of the rest: a sum, not a product."""
    there = [items for items in choices if items]
    first = [items[0] for items in there]
    others = [
        [*first[:position], item, *first[position + 1 :]] for position, items in enumerate(there) for item in items[1:]
    ]
    return [first, *others]


def _resume_path(request: Request) -> str | None:
    values = [item.value() for item in request.given.values if item.key_or_group == "resume" and not is_sweep(item)]
    path = values[-1] if values and request.verb == "train" else None
    return path if isinstance(path, str) and path != "auto" else None
