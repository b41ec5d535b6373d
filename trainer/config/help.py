"""The help of a verb: its keys with their defaults, its groups with their options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.config import jobs, schema
from trainer.config.catalogue import Catalogue, catalogue, own_folder, working_folder

_HIDDEN = ("_target_", "_partial_", "_convert_", "defaults")

_FEW = 4
"""Of a group with so many options at most all are shown."""


def verb_help(verb: str, argv: list[str]) -> str:
    """The keys of a verb; of each group those of the option that `argv` chooses, else of the default one.

    Where `argv` chooses none and there are few, it also has what the others have besides.
    """
    kind = jobs.JOBS[verb]
    folders = catalogue([own_folder(), working_folder()])
    chosen = dict(text.lstrip("+").split("=", 1) for text in argv if "=" in text)
    lines = [*_keys(kind), *_groups(verb, kind, folders, chosen), *_stored(kind)]
    return "\n".join(lines)


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


def _groups(verb: str, kind: type, folders: Catalogue, chosen: Mapping[str, str]) -> Iterator[str]:
    defaults = _default_options(verb, folders)
    for group in schema.groups(kind):
        option = chosen.get(group, defaults.get(group, ""))
        yield from ["", f"{group}={option}: {schema.doc(kind, group)}; options: {', '.join(folders.options(group))}"]
        shown = [*_option(group, option, folders)]
        yield from shown
        # The options of a group that may be null say these themselves.
        if (shared := schema.shared_keys(kind, group)) and group in schema.needed_groups(kind):
            yield from _table(f"{group}.", schema.defaults(shared), shared)
        if group not in chosen:
            yield from _others(group, option, shown, folders)
    if example := _example(verb, kind, folders, defaults):
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
    for line in file.read_text(encoding="utf-8").splitlines() if file else ():
        if not line.startswith((*_HIDDEN, "#")) and line.strip():
            nested = line.startswith((" ", "-"))
            yield f"    {line}" if nested else f"  {group}.{line}"


def _stored(kind: type) -> Iterator[str]:
    if sections := jobs.stored_sections(kind):
        names = " and ".join(f"{name}.<key>" for name in sections)
        yield from ["", f"{names} replace what the run was trained with, e.g. data.test=new.csv or loader.workers=2"]
