"""The help of a verb: its keys with their defaults, its groups with their options."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from trainer.config import jobs, schema
from trainer.config.catalogue import Catalogue, catalogue, own_folder, working_folder

_HIDDEN = ("_target_", "_partial_", "_convert_", "defaults")

_FEW = 4
"""Of a group with so many options at most all are shown."""


def verb_help(verb: str, argv: list[str]) -> str:
    """The keys of a verb; of each group those of the option that the job of `argv` has.

    Where `argv` chooses none of a group with few, it also has what the others have besides.
    """
    kind = jobs.JOBS[verb]
    folders = catalogue([own_folder(), working_folder()])
    options = _default_options(verb, folders)
    chosen: set[str] = set()
    if any(_names_group(text, folders) for text in argv):
        folders, found, chosen = _composed(verb, [text for text in argv if text not in ("-h", "--help")])
        options |= found
    lines = [*_keys(kind), *_groups(verb, kind, folders, options, chosen), *_stored(kind)]
    return "\n".join(lines)


def _names_group(text: str, folders: Catalogue) -> bool:
    # With --config-dir there are groups that these folders do not have.
    return text.startswith("--config") or text.lstrip("+").partition("=")[0] in folders.groups()


def _composed(verb: str, argv: list[str]) -> tuple[Catalogue, dict[str, str], set[str]]:
    """The folders of a command line, the option of each group in its job, and the groups that it chooses itself.

    What is wrong with the command line is left out: who asks for help may not know better yet.
    """
    # Here, as Hydra takes longer to import than the rest of the help.
    from trainer.config.compose import compose, register_defaults
    from trainer.config.keys import group_faults
    from trainer.config.overrides import variants
    from trainer.config.request import read_request

    register_defaults()
    request, _ = read_request(verb, argv)
    known = (*schema.groups(request.kind), *jobs.bare_groups(request.kind))
    sound = [item for item in request.given.groups if not group_faults(item, request.kind, request.catalogue, known)]
    lines = [line for item in sound for line in variants(item, request.catalogue)[:1]]
    _, choices = compose(request.folder, request.name, [*request.to_compose(), *lines])
    options = {group: _shown(option) for group, option in choices.items()}
    return request.catalogue, options, {item.key_or_group for item in sound}


def _keys(kind: type) -> Iterator[str]:
    parts = {*schema.sections(kind), *schema.groups(kind)}
    own = {name: value for name, value in schema.defaults(kind).items() if name not in parts}
    yield from ["", "keys"]
    yield from _table("", own, kind)
    for name, section in schema.sections(kind).items():
        yield from ["", f"{name}: {schema.doc(kind, name)}"]
        yield from _table(f"{name}.", schema.defaults(section), section)


def _table(prefix: str, values: Mapping[str, Any], kind: type) -> Iterator[str]:
    rows = [(f"{prefix}{key}={_shown(value)}", schema.doc(kind, key)) for key, value in values.items()]
    width = max(len(left) for left, _ in rows)
    yield from (f"  {left:<{width}}  {doc}" for left, doc in rows)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _groups(
    verb: str, kind: type, folders: Catalogue, options: Mapping[str, str], chosen: Collection[str]
) -> Iterator[str]:
    for group in schema.groups(kind):
        option = options.get(group, "")
        yield from ["", f"{group}={option}: {schema.doc(kind, group)}; options: {', '.join(folders.options(group))}"]
        shown = [*_option(group, option, folders)]
        yield from shown
        # The options of a group that may be null say these themselves.
        if (shared := schema.shared_keys(kind, group)) and group in schema.needed_groups(kind):
            yield from _table(f"{group}.", schema.defaults(shared), shared)
        if group not in chosen:
            yield from _others(group, option, shown, folders)
    if example := _example(verb, kind, folders, _default_options(verb, folders)):
        yield from ["", f"{example} --help shows the keys of that option, and so with every group"]
    for group in jobs.bare_groups(kind):
        yield from ["", f"{group}: sets several keys at once; options: {', '.join(folders.options(group))}"]


def _others(group: str, default: str, shown: Sequence[str], folders: Catalogue) -> Iterator[str]:
    """What the other options of a group have besides, where they are few."""
    options = folders.options(group)
    for option in options if default in options and len(options) <= _FEW else ():
        if more := [line for line in _option(group, option, folders) if line not in shown]:
            yield f"  {group}={option} also has"
            yield from (f"  {line}" for line in more)


def _example(verb: str, kind: type, folders: Catalogue, defaults: Mapping[str, str]) -> str:
    """A command that chooses an option which is no default; empty where the verb has none."""
    others = (
        f"trainer {verb} {group}={option}"
        for group in schema.groups(kind)
        for option in folders.options(group)
        if option != defaults.get(group)
    )
    return next(others, "")


def _default_options(verb: str, folders: Catalogue) -> dict[str, str]:
    listed = folders.defaults(verb)
    pairs = (pair for item in listed if isinstance(item, Mapping) for pair in item.items())
    return {str(group): _shown(option) for group, option in pairs}


def _option(group: str, option: str, folders: Catalogue) -> Iterator[str]:
    """The lines of an option's file, comments included: it is written to be read."""
    file = folders.file(group, option)
    for line in _part(group, file.read_text(encoding="utf-8").splitlines()) if file else ():
        if not line.startswith((*_HIDDEN, "#")) and line.strip():
            nested = line.startswith((" ", "-"))
            yield f"    {line}" if nested else f"  {group}.{line}"


def _part(group: str, lines: Sequence[str]) -> list[str]:
    """The lines of a file that are of the part, where it is written for the whole configuration as where it is not."""
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


def _stored(kind: type) -> Iterator[str]:
    if sections := jobs.stored_sections(kind):
        names = " and ".join(f"{name}.<key>" for name in sections)
        yield from ["", f"{names} replace what the run was trained with, e.g. data.test=new.csv or loader.workers=2"]
