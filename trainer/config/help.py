"""The help page of a verb: its keys with their defaults, its groups with their options."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from trainer.config import jobs, schema
from trainer.config.groups import Groups, groups_in, own_folder, working_folder

_HIDDEN = ("_target_", "_partial_", "_convert_", "defaults")

_FEW = 4
"""Groups with at most this many options show the keys of all of them."""


def verb_help(verb: str, argv: list[str]) -> str:
    """Return the keys of a verb and, for each group, the keys of the option in the job of `argv`.

    A group with few options, if `argv` chooses none of them, also shows the additional keys of the other options.
    """
    job_type = jobs.JOBS[verb]
    folders = groups_in([own_folder(), working_folder()])
    options = _default_options(verb, folders)
    chosen: set[str] = set()
    if any(_names_group(text, folders) for text in argv):
        folders, composed, chosen = _composed(verb, [text for text in argv if text not in ("-h", "--help")])
        options |= composed
    lines = [*_keys(job_type), *_groups(verb, job_type, folders, options, chosen), *_stored(job_type)]
    return "\n".join(lines)


def _names_group(text: str, folders: Groups) -> bool:
    # --config-dir may add groups that these folders do not have.
    return text.startswith("--config") or text.lstrip("+").partition("=")[0] in folders.names()


def _composed(verb: str, argv: list[str]) -> tuple[Groups, dict[str, str], set[str]]:
    """Return the folders of a command line, the option of each group in its job, and the groups that it chooses itself.

    Errors of the command line are ignored: they are no reason to refuse help.
    """
    # Imported here, as Hydra takes longer to import than the rest of the help.
    from trainer.config.compose import compose, register_defaults
    from trainer.config.overrides import parse_command_line, validate_choice, variants

    register_defaults(jobs.JOBS[verb])
    line, _ = parse_command_line(verb, argv)
    known = (*schema.groups(line.job_type), *jobs.preset_groups(line.job_type))
    valid = [item for item in line.overrides.groups if not validate_choice(item, line.job_type, line.groups, known)]
    lines = [text for item in valid for text in variants(item, line.groups)[:1]]
    _, choices = compose(line.folder, line.config_name, [*line.hydra_overrides(), *lines])
    options = {group: schema.as_argument(option) for group, option in choices.items()}
    return line.groups, options, {item.key_or_group for item in valid}


def _keys(job_type: type) -> Iterator[str]:
    parts = {*schema.sections(job_type), *schema.groups(job_type)}
    own = {name: value for name, value in schema.defaults(job_type).items() if name not in parts}
    yield from ["", "keys"]
    yield from _table("", own, job_type)
    for name, section in schema.sections(job_type).items():
        yield from ["", f"{name}: {schema.doc(job_type, name)}"]
        yield from _table(f"{name}.", schema.defaults(section), section)


def _table(prefix: str, values: Mapping[str, Any], declared_in: type) -> Iterator[str]:
    rows = [
        (f"{prefix}{key}={schema.as_argument(value)}", schema.doc(declared_in, key)) for key, value in values.items()
    ]
    width = max(len(left) for left, _ in rows)
    yield from (f"  {left:<{width}}  {doc}" for left, doc in rows)


def _groups(
    verb: str, job_type: type, folders: Groups, options: Mapping[str, str], chosen: Collection[str]
) -> Iterator[str]:
    for group in schema.groups(job_type):
        option = options.get(group, "")
        yield from [
            "",
            f"{group}={option}: {schema.doc(job_type, group)}; options: {', '.join(folders.options(group))}",
        ]
        shown = [*_option(group, option, folders)]
        yield from shown
        # The options of a group that may be null list these keys themselves.
        if (shared := schema.shared_type(job_type, group)) and group in schema.required_groups(job_type):
            yield from _table(f"{group}.", schema.defaults(shared), shared)
        if group not in chosen:
            yield from _others(group, option, shown, folders)
    if example := _example(verb, job_type, folders, _default_options(verb, folders)):
        yield from ["", f"{example} --help shows the keys of that option; the same works for every group"]
    for group in jobs.preset_groups(job_type):
        yield from ["", f"{group}: presets that set several keys at once; options: {', '.join(folders.options(group))}"]


def _others(group: str, default: str, shown: Sequence[str], folders: Groups) -> Iterator[str]:
    """Yield the additional keys of the other options of a group with few options."""
    options = folders.options(group)
    for option in options if default in options and len(options) <= _FEW else ():
        if more := [line for line in _option(group, option, folders) if line not in shown]:
            yield f"  {group}={option} also has"
            yield from (f"  {line}" for line in more)


def _example(verb: str, job_type: type, folders: Groups, defaults: Mapping[str, str]) -> str:
    """Return a command that chooses an option which is not a default; empty if the verb has none."""
    others = (
        f"trainer {verb} {group}={option}"
        for group in schema.groups(job_type)
        for option in folders.options(group)
        if option != defaults.get(group)
    )
    return next(others, "")


def _default_options(verb: str, folders: Groups) -> dict[str, str]:
    listed = folders.defaults(verb)
    pairs = (pair for item in listed if isinstance(item, Mapping) for pair in item.items())
    return {str(group): schema.as_argument(option) for group, option in pairs}


def option_summary(text: str) -> str:
    """Return the comment at the start of an option's file, which says what the option is for; it may be empty."""
    comments = takewhile(lambda line: line.startswith("#") or not line.strip(), text.splitlines())
    words = [comment.removeprefix("#").strip() for comment in comments]
    return " ".join(each for each in words if each and not each.startswith(("@package", "yaml-language-server:")))


def _option(group: str, option: str, folders: Groups) -> Iterator[str]:
    """Yield the summary of an option, and the lines of its file with their comments, which are its help texts."""
    file = folders.file(group, option)
    if file is None:
        return
    text = file.read_text(encoding="utf-8")
    if summary := option_summary(text):
        yield f"  {summary}"
    for line in _part(group, text.splitlines()):
        if not line.startswith((*_HIDDEN, "#")) and line.strip():
            nested = line.startswith((" ", "-"))
            yield f"    {line}" if nested else f"  {group}.{line}"


def _part(group: str, lines: Sequence[str]) -> list[str]:
    """Return the lines of a file that belong to the part, even if the file is written for the whole config."""
    blocks: dict[str, list[str]] = {}
    top = ""
    for line in lines:
        if not line.startswith((" ", "-", "#")) and line.strip():
            top = line.partition(":")[0]
        blocks.setdefault(top, []).append(line)
    own = blocks.get(group, [])
    if any(line.strip().startswith("_target_") for line in own):
        return [line.removeprefix("  ") for line in own[1:]]
    return [line for name, block in blocks.items() if name != "defaults" for line in block]


def _stored(job_type: type) -> Iterator[str]:
    if sections := jobs.stored_sections(job_type):
        names = " and ".join(f"{name}.<key>" for name in sections)
        yield from ["", f"{names} replace the values of the run, such as data.test=new.csv or loader.workers=2"]
