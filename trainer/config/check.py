"""A whole configuration: everything that is wrong with it, or the typed job that it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trainer.config import jobs, pairing, rules, schema
from trainer.config.keys import Keys
from trainer.config.parts import part_faults, value_faults
from trainer.errors import format_error, raise_if_any


def faults(config: Mapping[str, Any], keys: Keys) -> list[str]:
    """Every fault of a configuration of plain values: unknown keys, types, ranges, combinations."""
    known = schema.keys(keys.kind)
    sections = schema.sections(keys.kind)
    found: list[str] = [keys.unknown(key, value) for key, value in config.items() if key not in known]
    for name, annotation in known.items():
        value = config.get(name)
        if name in schema.groups(keys.kind):
            found += part_faults(name, value, keys)
        elif name in sections:
            found += _section_faults(name, value, sections[name], keys)
        elif name not in config:
            found.append(format_error(name, "is needed"))
        else:
            found += value_faults(name, value, annotation)
    # One message a key: a part's own declarations come first.
    reported = {fault.partition(":")[0] for fault in found}
    further = [fault for fault in rules.faults(config) if fault.partition(":")[0] not in reported]
    return [*found, *further, *pairing.faults(config, keys.catalogue)]


def _section_faults(name: str, section: Any, kind: type, keys: Keys) -> Iterable[str]:
    known = schema.keys(kind)
    if not isinstance(section, Mapping):
        return [format_error(name, "must be a section", f"Its keys are {', '.join(known)}", value=section)]
    found = [keys.unknown(f"{name}.{key}", value) for key, value in section.items() if key not in known]
    found += [format_error(f"{name}.{key}", "is needed") for key in known if key not in section]
    for key, value in section.items():
        found += value_faults(f"{name}.{key}", value, known[key]) if key in known else []
    return found


def checked_job(config: Mapping[str, Any], keys: Keys, stored_overrides: tuple[tuple[str, Any], ...] = ()) -> jobs.Job:
    """The typed job of a configuration.

    Raises:
        ConfigError: All that is wrong with it.
    """
    raise_if_any(*dict.fromkeys(faults(config, keys)))
    sections = schema.sections(keys.kind)
    values = {name: sections[name](**config[name]) if name in sections else config[name] for name in config}
    if jobs.stored_sections(keys.kind):
        values["stored_overrides"] = stored_overrides
    job: jobs.Job = keys.kind(**values)
    return job
