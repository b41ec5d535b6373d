"""The JSON Schema of the config, with which an editor completes and checks YAML files.

It is made of what `trainer.config.validate` itself reads: the declarations of the sections, the annotations of the
parts' parameters, and the comments of the options' files, which are the help texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args

from trainer.config import jobs, schema, sections
from trainer.config.groups import HYDRA_KEYS, OWN, Groups, groups_in, own_folder, working_folder
from trainer.config.help import option_summary
from trainer.config.parts import HYDRA_KEY_TYPES, key_annotation, read_signature
from trainer.config.validate import SYNTAX
from trainer.constraints.annotations import IsDuration, IsTime, fixed_items, item_of, metadata_of, numbers_of, origin_of
from trainer.durations import text_pattern, time_pattern
from trainer.errors import ConfigError
from trainer.files.atomic_io import create_folder, write_text
from trainer.shapes import to_json

Node = dict[str, Any]

_TITLE = "Config of trainer"
_LATER = {"$ref": "#/$defs/later"}
_TYPES: Mapping[object, str] = {int: "integer", float: "number", bool: "boolean", str: "string", NoneType: "null"}
_LENGTHS = {"string": "Length", "array": "Items", "object": "Properties"}
_ENTRIES: Mapping[str, type] = {"model.lora": sections.LoraKeys, "optimizer.overrides": sections.OverrideKeys}
"""Keys that contain a mapping, or a list of them, whose keys are declared."""


def write_schema(path: Path, group: str | None = None) -> None:
    """Write the schema of the config, with the options of the working directory, to a file; see `make_schema`."""
    create_folder(path.parent, ConfigError)
    write_text(path, schema_text(group) + "\n", ConfigError)


def schema_text(group: str | None = None) -> str:
    """Return the schema of the config, with the options of the working directory, as text; see `make_schema`."""
    return to_json(make_schema(groups_in([own_folder(), working_folder()]), group), indent=1, ensure_ascii=False)


def is_schema(path: Path) -> bool:
    """Return whether a file is a schema that `write_schema` has written."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("title") == _TITLE


def make_schema(groups: Groups, group: str | None = None) -> Node:
    """Return the JSON Schema (2020-12) of the config.

    Args:
        groups: The groups whose options it knows.
        group: It describes the file of an option of this group; None for a whole config or an experiment.
    """
    definitions: Node = {"later": _later(), "defaults": _defaults_list(groups)}
    for job_type in dict.fromkeys(jobs.JOBS.values()):
        for section in schema.sections(job_type).values():
            name = section.__name__
            prefix = next(key for key, each in schema.sections(job_type).items() if each is section)
            definitions[name] = _mapping(_declared_keys(section, f"{prefix}."))
        definitions[_verb_of(job_type)] = _job(job_type, groups)
    for name in groups.names():
        definitions |= _group(name, groups)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": _TITLE,
        "$comment": "Written by `trainer schema`; write it again after an update or a new option of your own.",
        "$ref": f"#/$defs/{'train' if group is None else f'{group} file'}",
        "$defs": definitions,
    }


def _verb_of(job_type: type) -> str:
    return next(verb for verb, each in jobs.JOBS.items() if each is job_type)


def _later() -> Node:
    text = "a value that the command line gives (???), or an interpolation (${...})"
    return {"description": text, "type": "string", "pattern": r"^\?\?\?$|\$\{"}


def _defaults_list(groups: Groups) -> Node:
    """Return the schema of a defaults list, which chooses the options."""
    required = {group for job_type in jobs.JOBS.values() for group in schema.required_groups(job_type)}
    choices: Node = {}
    for group in groups.names():
        options = _option_choice(group, groups, is_required=group in required)
        # An experiment overrides the option of the primary config, which lists the groups themselves.
        choices |= {f"override /{group}": options, group: options}
    hydra_or_package = r"^(override )?/?hydra/|@|^optional |\$\{"
    entry = {
        "type": "object",
        "properties": choices,
        "patternProperties": {hydra_or_package: {}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    text = "the options of the groups, such as `- override /loss: focal`; _self_ is the place of the file's own keys"
    return {"description": text, "type": "array", "items": {"anyOf": [{"type": "string"}, entry]}}


def _option_choice(group: str, groups: Groups, *, is_required: bool) -> Node:
    """Return the schema of the name of an option; editors show what each is for next to it."""
    summaries = dict.fromkeys(groups.options(group), "")
    for option in summaries:
        if file := groups.file(group, option):
            summaries[option] = option_summary(file.read_text(encoding="utf-8"))
    null = [] if is_required else [None]
    return {"enum": [*summaries, *null], "enumDescriptions": [*summaries.values(), *("none" for _ in null)]}


# Values


def value_schema(annotation: object) -> Node:
    """Return the schema of the values that an annotation allows; what it does not know allows every value."""
    origin, arguments = origin_of(annotation), get_args(annotation)
    if origin is Union:
        alternatives = [value_schema(item) for item in arguments]
        return {} if {} in alternatives else {"anyOf": _flat(alternatives)}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is Annotated:
        metadata = metadata_of(annotation)
        if any(isinstance(item, IsDuration) for item in metadata):
            return _duration(above_zero=bool(numbers_of(metadata, "gt")))
        if any(isinstance(item, IsTime) for item in metadata):
            return {"type": "string", "pattern": time_pattern(above_zero=bool(numbers_of(metadata, "gt")))}
        inner = value_schema(arguments[0])
        return inner | _limits(metadata, inner)
    if origin in _TYPES:
        return {"type": _TYPES[origin]}
    if origin is Mapping:
        names = value_schema(arguments[0]) if arguments else {}
        node = {"type": "object"} | ({"propertyNames": names} if names.keys() - {"type"} else {})
        inner = value_schema(item_of(annotation))
        return node | ({"additionalProperties": inner} if inner else {})
    if origin is not Sequence and origin is not tuple:
        return {}
    if (fixed := fixed_items(annotation)) is not None:
        items = {"prefixItems": [value_schema(item) for item in fixed]} if fixed else {}
        return {"type": "array", **items, "minItems": len(fixed), "maxItems": len(fixed)}
    inner = value_schema(item_of(annotation))
    return {"type": "array"} | ({"items": inner} if inner else {})


def _flat(alternatives: Sequence[Node]) -> list[Node]:
    return [item for node in alternatives for item in (node["anyOf"] if node.keys() == {"anyOf"} else [node])]


def _duration(*, above_zero: bool, may_be_share: bool = True) -> Node:
    text = {"type": "string", "pattern": text_pattern(above_zero=above_zero, may_be_share=may_be_share)}
    return {"anyOf": [{"type": "integer", "minimum": int(above_zero)}, text]}


def _limits(metadata: Sequence[object], inner: Node) -> Node:
    limits: Node = {}
    for name, keyword, strictest in (
        ("ge", "minimum", max),
        ("gt", "exclusiveMinimum", max),
        ("le", "maximum", min),
        ("lt", "exclusiveMaximum", min),
        ("multiple_of", "multipleOf", max),
    ):
        if numbers := numbers_of(metadata, name):
            limits[keyword] = strictest(numbers)
    for name, keyword, strictest in (("min_length", "min", max), ("max_length", "max", min)):
        if numbers := [number for number in numbers_of(metadata, name) if number]:
            nouns = [_LENGTHS[inner["type"]]] if inner.get("type") in _LENGTHS else _LENGTHS.values()
            limits |= {f"{keyword}{noun}": strictest(numbers) for noun in nouns}
    return limits


# Keys


def _key(path: str, annotation: object, help_texts: Mapping[str, str], default: object) -> Node:
    """Return the schema of a key: its help, its default, and its values or an interpolation."""
    node: Node = {"description": help_texts[path]} if help_texts.get(path) else {}
    if default != "???":
        node["default"] = default
    value = value_schema(annotation)
    if path == "train.duration":
        value = _duration(above_zero=True, may_be_share=False)
    if path in SYNTAX:
        value = {**value, "pattern": f"^({SYNTAX[path][0]})$"}
    if path in _ENTRIES:
        value = _with_entries(value, _mapping(_declared_keys(_ENTRIES[path], "")))
    if isinstance(default, Mapping) and default:
        value = _mapping_of_option(path, annotation, help_texts, default)
    if value in ({}, {"type": "string"}):
        return node | value
    return node | {"anyOf": _flat([value, _LATER])}


def _with_entries(value: Node, entry: Node) -> Node:
    if "anyOf" in value:
        return {"anyOf": [_with_entries(item, entry) for item in value["anyOf"]]}
    if value["type"] == "array":
        return value | {"items": {**entry, "required": ["match"], "minProperties": 2}}
    return entry if value["type"] == "object" else value


def _mapping_of_option(
    path: str, annotation: object, help_texts: Mapping[str, str], written: Mapping[str, Any]
) -> Node:
    """Return the schema of a mapping whose keys are those that the option's file writes."""
    alternatives = get_args(annotation) if origin_of(annotation) is Union else (annotation,)
    inner = next((item_of(item) for item in alternatives if origin_of(item) is Mapping), Any)
    node = _mapping({key: _key(f"{path}.{key}", inner, help_texts, default) for key, default in written.items()})
    others = [value_schema(item) for item in alternatives if origin_of(item) is not Mapping]
    if {} in others:
        return {key: value for key, value in node.items() if key != "type"}
    return {"anyOf": [node, *others]} if others else node


def _mapping(properties: Node, *, is_open: bool = False) -> Node:
    return {"type": "object", "properties": properties} | ({} if is_open else {"additionalProperties": False})


def _declared_keys(declaration: type, prefix: str) -> Node:
    """Return the schema of each key of a job, a section or a declaration of shared keys."""
    skipped = {*schema.sections(declaration), *schema.groups(declaration)}
    defaults = schema.defaults(declaration)
    help_texts = {f"{prefix}{name}": schema.doc(declaration, name) for name in defaults}
    return {
        name: _key(f"{prefix}{name}", annotation, help_texts, defaults[name])
        for name, annotation in schema.keys(declaration).items()
        if name not in skipped
    }


# Jobs


def _job(job_type: type, groups: Groups) -> Node:
    """Return the schema of the config of a verb."""
    properties: Node = {"defaults": {"$ref": "#/$defs/defaults"}, "hydra": {"description": "settings of Hydra"}}
    properties |= _declared_keys(job_type, "")
    for name, section in schema.sections(job_type).items():
        properties[name] = {"description": schema.doc(job_type, name), "$ref": f"#/$defs/{section.__name__}"}
    for group in schema.groups(job_type):
        is_required = group in schema.required_groups(job_type)
        properties[group] = {
            "description": schema.doc(job_type, group),
            "type": "object" if is_required else ["object", "null"],
            "if": {"required": ["_target_"]},
            "then": {"$ref": f"#/$defs/{group}"},
        }
    if not schema.groups(job_type):
        return _mapping(properties)
    if job_type is not jobs.TrainJob and issubclass(job_type, jobs.TrainJob):
        return _mapping(properties) | {"allOf": [{"$ref": "#/$defs/train/allOf/0"}]}
    conditions = [each for group in schema.groups(job_type) for each in _by_choice(job_type, group, groups)]
    return _mapping(properties) | {"allOf": [{"allOf": conditions}]}


def _by_choice(job_type: type, group: str, groups: Groups) -> Iterator[Node]:
    """Yield a condition for each option of a group: if it is the option of the config, the group has its keys.

    The option is the one that the file chooses itself, else the one of the task, else the default one.
    """

    def then(condition: Node, option: str | None) -> Node:
        return {"if": condition, "then": {"properties": {group: {"$ref": f"#/$defs/{_name(group, option)}"}}}}

    for option in groups.options(group):
        yield then({"$ref": f"#/$defs/choose {_name(group, option)}"}, option)
    not_chosen = {"not": {"$ref": f"#/$defs/choose {group}"}}
    default = _choices(groups.defaults(_verb_of(job_type)))
    if group == "task" or "task" not in default:
        yield then(not_chosen, default.get(group))
        return
    by_task: dict[str | None, list[str]] = {}
    for task in groups.options("task"):
        of_task = _choices(groups.defaults(f"task/{task}")).get(group, default.get(group))
        by_task.setdefault(of_task, []).append(task)
    for of_tasks, tasks in by_task.items():
        conditions: list[Node] = [{"$ref": f"#/$defs/choose {_name('task', task)}"} for task in tasks]
        conditions += [{"not": {"$ref": "#/$defs/choose task"}}] if default["task"] in tasks else []
        yield then({"allOf": [not_chosen, {"anyOf": conditions}]}, of_tasks)


def _choices(listed: Sequence[Any]) -> dict[str, str | None]:
    """Return the option of each group in a defaults list."""
    pairs = [pair for item in listed if isinstance(item, Mapping) for pair in item.items()]
    return {str(key).removeprefix("override ").removeprefix("/"): option for key, option in pairs}


# Groups


def _name(group: str, option: str | None) -> str:
    return f"{group}={'null' if option is None else option}"


def _group(group: str, groups: Groups) -> Node:
    """Return the definitions of a group: its options, the choice of each, a part, and the file of an option."""
    options = groups.options(group)
    keys = [group, f"/{group}", f"override {group}", f"override /{group}"]
    node: Node = {f"choose {group}": _choice(keys, {})}
    node |= {f"choose {_name(group, option)}": _choice(keys, {"const": option}) for option in options}
    job_type = next((each for each in jobs.JOBS.values() if group in schema.groups(each)), None)
    if job_type is None:
        return node | {f"{group} file": {"$ref": "#/$defs/train"}}
    shared = schema.shared_type(job_type, group)
    shared_keys = _declared_keys(shared, f"{group}.") if shared else {}
    conditions = []
    for option in options:
        target = groups.content(group, option).get("_target_")
        node[_name(group, option)] = _option(group, option, groups, shared_keys)
        is_target = {"properties": {"_target_": {"const": target}}, "required": ["_target_"]}
        conditions.append({"if": is_target, "then": {"$ref": f"#/$defs/{_name(group, option)}"}})
    if group not in schema.required_groups(job_type):
        node[_name(group, None)] = {"if": {"required": ["_target_"]}, "else": {"type": "null"}}
    node[group] = {"properties": shared_keys, "allOf": conditions}
    is_part = {"type": "object", "$ref": f"#/$defs/{group}", "required": ["_target_"]}
    others = {"$ref": "#/$defs/train"}
    node[f"{group} file"] = {"if": {"required": ["_target_"]}, "then": is_part, "else": others}
    return node


def _choice(keys: Sequence[str], option: Node) -> Node:
    items = [{"type": "object", "required": [key], "properties": {key: option}} for key in keys]
    return {"properties": {"defaults": {"contains": {"anyOf": items}}}, "required": ["defaults"]}


def _option(group: str, option: str, groups: Groups, shared_keys: Node) -> Node:
    """Return the schema of the keys of an option, which apply unless the part has another `_target_`."""
    content = groups.content(group, option)
    target = str(content.get("_target_"))
    signature, _ = read_signature(group, target)
    file = groups.file(group, option)
    comments = key_comments(file.read_text(encoding="utf-8")) if file else {}
    help_texts = {f"{group}.{path.removeprefix(f'{group}.')}": text for path, text in comments.items()}
    is_own = target.startswith(OWN)
    properties = dict(shared_keys)
    for key in HYDRA_KEYS - {"_target_"}:
        if not is_own:
            properties[key] = value_schema(HYDRA_KEY_TYPES[key])
        elif key in content:
            properties[key] = {"const": content[key]}
    properties["_target_"] = {"description": "class or function that makes the part", "const": target}
    for key in content.keys() - properties.keys():
        annotation = key_annotation(group, key, target, signature)
        properties[key] = _key(f"{group}.{key}", Any if annotation is None else annotation, help_texts, content[key])
    in_order = {key: properties[key] for key in [*content, *properties] if key in properties}
    another = {"properties": {"_target_": {"not": {"const": target}}}, "required": ["_target_"]}
    return {"if": another, "else": _mapping(in_order, is_open=not is_own)}


def key_comments(text: str) -> dict[str, str]:
    """Return the comment of every key of a YAML file by its dotted path."""
    comments: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = re.match(r"( *)([\w-]+):(?:(?:\s+(?:'[^']*'|\"[^\"]*\"|[^#'\"]*?))?\s*(?:#\s*(.*))?)$", line)
        if match is None:
            continue
        path = [entry for entry in path if entry[0] < len(match[1])]
        path.append((len(match[1]), match[2]))
        comments[".".join(name for _, name in path)] = match[3] or ""
    return comments
