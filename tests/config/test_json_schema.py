"""The JSON Schema and the checker of the config give the same verdicts."""

import json
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from omegaconf._utils import get_yaml_loader

from tests.support.jobs import write_csv
from trainer.cli import main
from trainer.config.command import check_command
from trainer.config.groups import Groups
from trainer.config.json_schema import make_schema
from trainer.durations import parse, parse_time, text_pattern, time_pattern
from trainer.errors import ConfigError, TrainerError

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(file.relative_to(CONF) for file in CONF.rglob("*.yaml") if file.parent != CONF / "hydra" / "output")

CANNOT_SAY = {
    r"must be (an integer|a duration), got -?\d+\.0\.": "1.0 is an integer in JSON, a float in YAML",
    r"does not exist|no such file or folder": "the schema does not know the disk",
    r"needs a value": "the command line may give the value",
    r": needs data\.|: takes .* as targets|must have a value greater than 0|must divide|collides with a real class"
    r"|without model\.head_dropout": "relations are expressions",
    r"must be the name of a folder": "the characters of a name are checked by a function",
}
"""Problems that only the checker finds: a pattern of their messages, and why a schema cannot say them."""

VALUES = (True, -1, 0, 3, 0.5, 1e6, None, "word", "3ep", "150%", "", [], [1], ["a"], {}, {"a": 1})


@cache
def schema() -> dict[str, Any]:
    document = make_schema(Groups((CONF,)))
    jsonschema.Draft202012Validator.check_schema(document)
    return document


def errors(file: Path, document: object) -> list[str]:
    """Return what the schema finds in a file of conf/."""
    group = file.parent.as_posix()
    name = file.stem if group == "." else f"{group} file"
    validator = jsonschema.Draft202012Validator({**schema(), "$ref": f"#/$defs/{name}"})
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def load(file: Path) -> Any:
    return yaml.load((CONF / file).read_text(), Loader=get_yaml_loader())


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_of_conf_is_valid(file: Path) -> None:
    assert errors(file, load(file)) == []


def problems(file: Path, document: object) -> set[str]:
    """Return what the checker finds in a changed file of conf/, as an option of the working directory."""
    is_global = (CONF / file).read_text().startswith("# @package _global_")
    changed = Path("conf", file.parent, "changed.yaml")
    changed.parent.mkdir(parents=True, exist_ok=True)
    first_lines = "# @package _global_\n# yaml-language-server: $schema=../schema.json\n"  # as docs/extending.md shows
    changed.write_text((first_lines if is_global else "") + yaml.safe_dump(document, sort_keys=False))
    Groups.content.__globals__["_loaded"].cache_clear()
    verb = "generate" if file.parent.name == "decode" else "train"
    try:
        check_command(verb, [f"{file.parent}=changed"])
    except ConfigError as error:
        return set(error.messages)
    except TrainerError:
        return set()
    return set()


def keys_of(file: Path) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield the path and the schema of each key that a file of conf/ may set."""
    definitions = schema()["$defs"]
    document = load(file)
    if "_target_" in document:
        content = definitions[f"{file.parent}={file.stem}"]["else"]["properties"]
        yield from (((name,), node) for name, node in content.items() if not name.startswith("_"))
        return
    for name, node in definitions["train"]["properties"].items():
        section = node.get("$ref", "").rpartition("/")[2]
        if section in definitions and section != "defaults":
            yield from (((name, key), inner) for key, inner in definitions[section]["properties"].items())
        elif "if" in node:
            options = [option for option in definitions if option.startswith(f"{name}=") and "null" not in option]
            keys = definitions[options[len(document) % len(options)]]["else"]["properties"]
            yield from (((name, key), inner) for key, inner in keys.items() if not key.startswith("_"))
        elif name not in ("defaults", "hydra"):
            yield (name,), node


def limits_of(node: dict[str, Any]) -> list[Any]:
    """Return test values for the schema of a key: each option, each limit, and the values next to a limit."""
    values: list[Any] = []
    for each in (node, *node.get("anyOf", ())):
        names = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
        values += [each[name] + step for name in names if name in each for step in (-1, -0.5, 0, 0.5, 1)]
        values += [*each["enum"], f"{each['enum'][0]}x"] if "enum" in each else []
    return [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]


def mutation(number: int) -> tuple[Path, Any, str]:
    """Return a file of conf/, its content with one change, and the change."""
    chosen = random.Random(number)
    file = chosen.choice([file for file in FILES if file.parent.name not in ("", "decode")])
    document = load(file)
    keys = list(keys_of(file))
    limited = [(path, node) for path, node in keys if limits_of(node)] or keys
    how = number % 4
    if how == 0 or not keys:
        holder = chosen.choice([document, *(value for value in document.values() if isinstance(value, dict))])
        holder["unheard_of"] = 1
        return file, document, "unheard_of"
    if how == 1 and "defaults" in document:
        group = chosen.choice(["loss", "model", "scheduler", "prune", "task"])
        option = chosen.choice([*Groups((CONF,)).options(group), "unheard_of", None])
        listed = [item for item in document["defaults"] if item != {f"override /{group}": None}]
        document["defaults"] = [{f"override /{group}": option}, *(x for x in listed if f"override /{group}" not in x)]
        return file, document, f"override /{group}={option}"
    path, node = chosen.choice(limited if how == 2 else keys)
    value = chosen.choice(limits_of(node) if how == 2 and limits_of(node) else VALUES)
    holder = document
    for name in path[:-1]:
        holder = holder.setdefault(name, {})
    holder[path[-1]] = value
    return file, document, f"{'.'.join(path)}={value!r}"


@cache
def problems_before(file: Path) -> set[str]:
    return problems(file, load(file))


def verdicts(number: int) -> tuple[str, set[str], list[str]]:
    """Return a change, what the checker finds new that a schema can say, and what the schema finds."""
    file, document, change = mutation(number)
    new = problems(file, document) - problems_before(file)
    found = {each for each in new if not any(re.search(pattern, each) for pattern in CANNOT_SAY)}
    return f"{file}: {change}", found, errors(file, document)


def different(numbers: range) -> tuple[list[Any], int]:
    results = [verdicts(number) for number in numbers]
    return [result for result in results if bool(result[1]) != bool(result[2])], sum(bool(r[2]) for r in results)


def test_the_schema_and_the_checker_agree_on_changed_files() -> None:
    wrong, num_invalid = different(range(8))
    assert wrong == []
    assert num_invalid > 0


@pytest.mark.slow
def test_the_schema_and_the_checker_agree_on_200_changed_files() -> None:
    wrong, num_invalid = different(range(200))
    assert wrong == []
    assert 60 < num_invalid < 180


@pytest.mark.parametrize("above_zero", [True, False])
@pytest.mark.parametrize("may_be_share", [True, False])
def test_the_pattern_of_durations_accepts_what_the_checker_parses(above_zero: bool, may_be_share: bool) -> None:
    texts = [
        "0st",
        "00.0ep",
        "5st",
        "2.0st",
        "2.5st",
        "3ep",
        "0.5ep",
        "0%",
        "10%",
        "0100.0%",
        "100.5%",
        "101%",
        "0.05%",
    ]
    texts += ["", "3", "ep", "-3ep", "3 ep", ".5ep", "5.ep", "3epx", "1e3st"]
    pattern = text_pattern(above_zero=above_zero, may_be_share=may_be_share)
    for text in texts:
        duration = parse(text)
        allowed = duration is not None and (duration.amount > 0 or not above_zero)
        assert bool(re.search(pattern, text)) == (allowed and (may_be_share or not text.endswith("%"))), text


def test_the_help_texts_and_ranges_are_in_the_schema() -> None:
    definitions = schema()["$defs"]
    learning_rate = definitions["optimizer=adamw"]["else"]["properties"]["lr"]
    assert learning_rate["description"] == "base learning rate, greater than 0"
    assert {"type": "number", "exclusiveMinimum": 0} in learning_rate["anyOf"]
    columns = definitions["data=files"]["else"]["properties"]["columns"]
    assert columns["anyOf"][0]["properties"]["text_pair"]["description"] == "second text"
    assert definitions["TrainSection"]["properties"]["batch_size"]["default"] == 32


def test_editors_show_what_each_option_is_for() -> None:
    choices = schema()["$defs"]["defaults"]["items"]["anyOf"][1]["properties"]
    for group, node in choices.items():
        summaries = dict(zip(node["enum"], node["enumDescriptions"], strict=True))
        assert all(re.match(r"[A-Z0-9].*\.$", text) for option, text in summaries.items() if option), group
    assert "For rare classes or labels:" in dict(zip(*choices["override /loss"].values(), strict=True))["focal"]


def test_options_of_the_working_directory_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    Path("conf/loss").mkdir(parents=True)
    Path("mine.py").write_text("class Mine:\n    def __init__(self, margin: float = 1.0) -> None: ...\n")
    Path("conf/loss/mine.yaml").write_text("_target_: mine.Mine\nmargin: 0.5  # how far\n")
    assert main(["schema"]) == 0
    definitions = json.loads(capsys.readouterr().out)["$defs"]
    assert "mine" in definitions["defaults"]["items"]["anyOf"][1]["properties"]["override /loss"]["enum"]
    assert definitions["loss=mine"]["else"]["properties"]["margin"]["description"] == "how far"


def test_a_file_of_the_schema_is_replaced_and_any_other_file_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert [main(["schema", "output=conf/schema.json"]) for _ in range(2)] == [0, 0]
    assert "# @package _global_:\n# yaml-language-server: $schema=../schema.json\n" in capsys.readouterr().out
    assert json.loads(Path("conf/schema.json").read_text())["$ref"] == "#/$defs/train"
    assert main(["schema", "group=loss", "output=conf/loss.json"]) == 0
    assert "in a file of conf/loss:\n# yaml-language-server: $schema=../loss.json\n" in capsys.readouterr().out
    assert json.loads(Path("conf/loss.json").read_text())["$ref"] == "#/$defs/loss file"
    Path("notes.json").write_text("{}")
    assert main(["schema", "output=notes.json"]) == 2
    assert Path("notes.json").read_text() == "{}"
    assert main(["schema", "output=notes.json", "force=true"]) == 0
    assert main(["schema", "group=los"]) == 2
    assert "Did you mean loss?" in capsys.readouterr().err


def test_the_schema_that_init_writes_accepts_the_experiment_that_it_writes() -> None:
    write_csv(Path("my.csv"))
    assert main(["init", "my.csv"]) == 0
    experiment = Path("conf/experiment/my.yaml")
    assert "# yaml-language-server: $schema=../schema.json" in experiment.read_text()
    validator = jsonschema.Draft202012Validator(json.loads(Path("conf/schema.json").read_text()))
    assert list(validator.iter_errors(yaml.load(experiment.read_text(), Loader=get_yaml_loader()))) == []


@pytest.mark.parametrize("above_zero", [True, False])
def test_the_pattern_of_times_accepts_what_the_checker_parses(above_zero: bool) -> None:
    texts = ["0s", "0d0.0h", "30s", "1.5h", "1h30m", "1d1s", "30m1h", "", "4", "h", "-4h", "4 h", "1.h", ".5h", "4hx"]
    for text in texts:
        seconds = parse_time(text)
        allowed = seconds is not None and (seconds > 0 or not above_zero)
        assert (re.search(time_pattern(above_zero=above_zero), text) is not None) == allowed, text
