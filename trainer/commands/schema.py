"""`trainer schema`: the JSON Schema of the config, for editors."""

from __future__ import annotations

from pathlib import Path

from trainer.config.groups import groups_in, own_folder, working_folder
from trainer.config.jobs import PRESET_GROUPS, SchemaJob
from trainer.config.json_schema import is_schema, schema_text, write_schema
from trainer.errors import ConfigError, did_you_mean, format_error
from trainer.files.atomic_io import refuse_to_replace
from trainer.layout import Document, expand_home


def run(job: SchemaJob, config: Document) -> None:
    """Print the schema, or write it to a file.

    Raises:
        ConfigError: There is no such group, or the file is no schema of this tool.
    """
    groups = groups_in([own_folder(), working_folder()]).names()
    if job.group is not None and job.group not in groups:
        raise ConfigError(
            format_error("group", "there is no such group", did_you_mean(job.group, groups), value=job.group)
        )
    if job.output is None:
        print(schema_text(job.group))
        return
    path = Path(expand_home(job.output))
    refuse_to_replace("output", path, force=job.force, is_own=is_schema)
    write_schema(path, job.group)
    target = path if path.is_absolute() else f"../{path.name}"
    group = job.group or "experiment"
    below = ", below # @package _global_" if group in PRESET_GROUPS else ""
    print(f"wrote {path}. Name it in a file of conf/{group}{below}:")
    print(f"# yaml-language-server: $schema={target}")
