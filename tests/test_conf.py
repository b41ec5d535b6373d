"""Every YAML file in conf/ composes to a valid job and makes a part that works in a run."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.support.jobs import TINY, Recorded, train, working_in, write_roles
from tests.support.sources import write_pretrained, write_sources
from trainer.builders.instantiate import instantiate, locate, parameters
from trainer.builders.training import build_training
from trainer.checkpoint.snapshot import Snapshot
from trainer.cli import VERBS
from trainer.config.compose import apply_overrides, compose, plain, register_defaults
from trainer.config.groups import Groups
from trainer.config.jobs import PRESET_GROUPS, TrainJob
from trainer.config.overrides import parse_overrides
from trainer.config.schema import option_keys
from trainer.config.sections import DataKeys
from trainer.config.signatures import attribute
from trainer.config.stored import config_text, job_from_config
from trainer.data import stdlib
from trainer.evaluate import metric_directions
from trainer.loop import fit
from trainer.run import RunOutputs

CONF = Path(__file__).parent.parent / "conf"
FILES = sorted(file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.glob("**/*.yaml"))
GROUPS = ("task", "data", "model", "loss", "optimizer", "scheduler", "prune", "perturb", "export")
OPTIONS = [name for name in FILES if "/" in name and name.split("/")[0] in (*GROUPS, *PRESET_GROUPS)]
REST = {*VERBS, "hydra/output/runs"}
REST |= {f"decode/{name}" for name in ("greedy", "beam", "sample", "beam_sample")}  # tests/decode/test_options.py
NEEDED = {
    "data/files": ["data.train=train.jsonl"],
    "data/lines": ["data.train=lines.txt"],
    "data/conll": ["data.train=tagged.conll"],
    "data/idx": ["data.folder=idx"],
    "experiment/mnist": ["data.folder=idx"],
    "data/imagefolder": ["data.root=images"],
    "data/hub": ["data.path=saved"],
    "loss/kl_distillation": ["loss.teacher=teacher"],
    "loss/crf": ["task=token_classification"],
    "model/lenet": ["data=idx", "data.folder=idx"],
    "model/pretrained": ["model.path=bert"],
    "model/pretrained_image": ["model.path=resnet"],
}
"""Values that have no default."""

TASK_OF_TARGET = {
    "class": [],
    "multi_hot": ["task=multilabel_classification"],
    "values": ["task=regression"],
    "views": ["task=sentence_embedding", "task.supervision=pairs"],
    "similarity": ["task=sentence_embedding", "task.supervision=scored"],
    "spans": ["task=span_classification"],
}
TASK_OF_INPUTS = {
    "tokens": [],
    "features": ["task=tabular_classification"],
    "images": ["task=image_classification"],
}
ROLES = {
    "stdlib_pairs": ("text", "text_pair", "label"),
    "stdlib_similar": ("text", "positive"),
    "stdlib_sizes": ("text", "value"),
    "stdlib_tokens": ("words", "tags"),
    "stdlib_spans": ("text", "spans"),
    "breast_cancer": ("features", "label"),
    "diabetes": ("features", "value"),
    "digits": ("image", "label"),
    "idx": ("image", "label"),
    "imagefolder": ("image", "label"),
    "lines": ("text",),
    "conll": ("words", "tags"),
}
SMALL = {
    "text_encoder": TINY[:4],
    "decoder": TINY[:4],
    "vit": ("model.dim=16", "model.depth=1", "model.heads=2", "model.hidden=16", "model.patch=4"),
    "mlp": (),
}
"""Overrides that make a model small, for the models that are not small by default."""

TEXT = ("task.vocab_size=200", "task.max_length=16")


def fitting(option: str) -> list[str]:
    """Return the overrides that an option needs: values without a default, a task that it fits."""
    group, name = option.split("/")
    target = Groups((CONF,)).content(group, name).get("_target_", "")
    fits = {"loss": ("targets", TASK_OF_TARGET), "model": ("inputs", TASK_OF_INPUTS)}
    if group not in fits:
        return list(NEEDED.get(option, []))
    name_of_attribute, tasks = fits[group]
    return [*tasks[attribute(target, name_of_attribute)[0]], *NEEDED.get(option, [])]


def test_every_file_is_an_option_or_listed_here() -> None:
    assert set(FILES) - set(OPTIONS) == REST
    assert len(OPTIONS) == 99


BY_DATA = ("image_classification", "token_classification", "sentence_embedding")
"""Tasks whose metrics depend on the data or on keys."""


@cache
def job_of(*overrides: str) -> TrainJob:
    """Return the job of choices of options and values; as in a command, only the choices are composed by Hydra."""
    register_defaults()
    chosen = [override for override in overrides if override.partition("=")[0] in (*GROUPS, *PRESET_GROUPS)]
    config, _ = compose(CONF, "train", chosen)
    parsed, problems = parse_overrides([override for override in overrides if override not in chosen])
    assert [*problems, *apply_overrides(config, parsed)] == []
    values, unresolved = plain(config)
    assert unresolved == []
    return job_from_config(values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a working directory with small data for every source and role, and the run of a teacher."""
    root = tmp_path_factory.mktemp("conf")
    with working_in(root):
        write_sources(root)
        write_pretrained(root)
        assert train(root / "teacher", *write_roles(root), "train.duration=2") == 0
        yield root


def in_groups(*groups: str) -> list[str]:
    return [option for option in OPTIONS if option.split("/")[0] in groups]


def failures(check: Callable[[str], None], options: Iterable[str]) -> dict[str, str]:
    """Return the error of each file of conf/ that does not pass a check."""
    errors = {}
    for option in options:
        try:
            check(option)
        except Exception as error:
            errors[f"conf/{option}.yaml"] = repr(error)
    return errors


def test_every_option_composes_to_a_valid_job() -> None:
    def check(option: str) -> None:
        job = job_of(option.replace("/", "="), *fitting(option))
        assert option.split("/")[0] in GROUPS or job != job_of(), "the preset changes nothing"

    assert failures(check, OPTIONS) == {}


def test_every_option_lists_the_required_parameters_of_its_part() -> None:
    def check(option: str) -> None:
        group, name = option.split("/")
        part = getattr(job_of(f"{group}={name}", *fitting(option)), group)
        required = {
            parameter.name.removesuffix("_steps")
            for parameter in parameters(locate(group, part)).values()
            if parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY
        }
        assert required - {"total"} <= part.keys()

    assert failures(check, in_groups(*GROUPS)) == {}
    assert callable(instantiate("export", job_of().export))


def test_every_source_loads_rows_with_the_roles_that_it_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Parsing all modules for each source takes seconds; tests/data/test_stdlib_docs.py reads all of them.
    monkeypatch.setattr(stdlib, "_TOPIC", {"asyncio": "networking", "email": "internet", "unittest": "development"})

    def search(*arguments: object) -> None:
        raise AssertionError("every row that is evaluated would search the folders again")

    def check(option: str) -> None:
        name = option.split("/")[1]
        roles = ROLES.get(name, ("text", "label"))
        source = instantiate("data", option_keys(job_of(f"data={name}", *fitting(option)).data, DataKeys))
        splits = source.load(roles)
        assert source.fingerprint
        assert {"train", "validation", "test"} == splits.keys()
        assert all({*roles, "row"} <= {*rows.column_names} for rows in splits.values())
        assert source.describe_row("train", splits["train"]["row"][0])
        with monkeypatch.context() as patch:
            for function in ("scandir", "listdir"):
                patch.setattr(os, function, search)
            assert source.describe_row("train", splits["train"]["row"][-1])

    assert failures(check, in_groups("data")) == {}


@pytest.mark.parametrize("group", ["task", "model", "loss", "optimizer", "scheduler", "prune", "perturb"])
def test_every_part_trains_on_small_data(group: str, folder: Path) -> None:
    def check(option: str) -> None:
        check_training(option, folder)

    assert failures(check, in_groups(group)) == {}


@pytest.mark.gpu
@pytest.mark.parametrize("group", ["task", "model", "loss"])
def test_every_part_repeats_to_the_last_bit_on_a_gpu(group: str, folder: Path) -> None:
    """No part needs `deterministic=false`: PyTorch would report an operation that is not deterministic."""

    def check(option: str) -> None:
        first, second = (check_training(option, folder, "device=cuda") for _ in range(2))
        for file, tensors in first.tensors.items():
            assert all(torch.equal(tensor, second.tensors[file][name]) for name, tensor in tensors.items()), file

    assert failures(check, in_groups(group)) == {}


def check_training(option: str, folder: Path, *overrides: str) -> Snapshot:
    """Train a small model with an option, check the run, and return its last checkpoint."""
    job = small_job(option, folder, *overrides)
    saved: list[Snapshot] = []
    report = Recorded()
    with ExitStack() as closing:
        built = build_training(job, config_text({}), RunOutputs(report, save=saved.append), None, closing)
        fit(built.run, built.state, lambda: False)

    assert built.state.step == 3
    # The config reads a task's metrics from its source; of some tasks the metrics depend on the data or on keys.
    declared = {"loss", *attribute(job.task["_target_"], "monitors")}
    actual = {*metric_directions(built.task.metrics())}
    assert actual <= declared
    assert actual == declared or job.task["_target_"].split(".")[2] in BY_DATA
    assert all(torch.isfinite(parameter).all() for parameter in built.run.model.parameters())
    assert [snapshot.step for snapshot in saved][-1] == 3
    (first, *_) = [values for event, _, values in report.events if event == "train"]
    assert first["grad_norm"] > 0
    return saved[-1]


def small_job(option: str, folder: Path, *overrides: str) -> TrainJob:
    """Return a job of three steps with an option on small data."""
    small, group = small_overrides(option, folder), option.split("/")[0]
    if group in ("task", "model"):  # on which defaults of other parts depend
        return job_of(*small, *overrides)
    # One composition serves the options of a group.
    part = getattr(job_of(option.replace("/", "="), *fitting(option)), group)
    others = [each for each in small if each.partition("=")[0].partition(".")[0] != group]
    return replace(job_of(*others, *overrides), **{group: part})


def small_overrides(option: str, folder: Path) -> list[str]:
    """Return the overrides for a run of three steps with an option on small data."""
    chosen = [option.replace("/", "="), *fitting(option)]
    composed = job_of(*chosen)
    is_table = "features" in composed.task["_target_"] or "tabular" in composed.task["_target_"]
    is_text = not is_table and "image" not in composed.task["_target_"]
    source = [*write_roles(folder), *TEXT] if is_text else []
    model = composed.model["_target_"].split(".")[2]
    lengths = ["train.duration=3", "train.eval_every=3", "train.batch_size=8", "train.log_every=1", "loader.limit=40"]
    return [*chosen, *source, *SMALL.get(model, ()), *lengths, "device=cpu"]
