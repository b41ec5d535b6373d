"""Every YAML in conf/ composes to a job without a fault and builds a part that works in a run."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.jobs import TINY, Recorded, train, working_in, write_roles
from tests.support.sources import write_pretrained, write_sources
from trainer.builders.instantiate import instantiate, locate, parameters
from trainer.builders.training import build_training
from trainer.checkpoint.store import Snapshot
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.groups import Groups
from trainer.config.jobs import PRESET_GROUPS, DataKeys, TrainJob
from trainer.config.schema import option_keys
from trainer.config.signatures import attribute
from trainer.config.stored import config_text, job_from_config
from trainer.evaluate import metric_directions
from trainer.loop import fit
from trainer.run import RunOutputs

CONF = Path(__file__).parent.parent / "conf"
FILES = sorted(file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.glob("**/*.yaml"))
GROUPS = ("task", "data", "model", "loss", "optimizer", "scheduler", "prune", "export")
OPTIONS = [name for name in FILES if "/" in name and name.split("/")[0] in (*GROUPS, *PRESET_GROUPS)]
REST = {"train", "eval", "export", "predict", "verify", "hydra/output/runs", "generate", "plan", "diff", "report"}
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
"""What makes a model small; the others are."""

TEXT = ("task.vocab_size=200", "task.max_length=16")


def fitting(option: str) -> list[str]:
    """What goes with an option: values without a default, a task that it serves."""
    group, name = option.split("/")
    target = Groups((CONF,)).content(group, name).get("_target_", "")
    fits = {"loss": ("targets", TASK_OF_TARGET), "model": ("inputs", TASK_OF_INPUTS)}
    if group not in fits:
        return list(NEEDED.get(option, []))
    wanted, tasks = fits[group]
    return [*tasks[attribute(target, wanted)[0]], *NEEDED.get(option, [])]


def test_every_file_is_an_option_or_known_otherwise() -> None:
    assert set(FILES) - set(OPTIONS) == REST
    assert len(OPTIONS) == 90


BY_DATA = ("image_classification", "token_classification", "sentence_embedding")
"""Tasks whose metrics follow from more than the task."""


def job_of(*overrides: str) -> TrainJob:
    register_defaults()
    config, _ = compose(CONF, "train", list(overrides))
    values, unresolved = plain(config)
    assert unresolved == []
    return job_from_config(values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with small data for every source and every role, and a run to learn from."""
    made = tmp_path_factory.mktemp("conf")
    with working_in(made):
        write_sources(made)
        write_pretrained(made)
        assert train(made / "teacher", *write_roles(made), "train.duration=2") == 0
        yield made


@pytest.mark.parametrize("option", OPTIONS)
def test_composes_without_a_fault(option: str) -> None:
    assert isinstance(job_of(option.replace("/", "="), *fitting(option)), TrainJob)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.split("/")[0] in GROUPS])
def test_says_every_parameter_that_a_user_may_set(option: str) -> None:
    group, name = option.split("/")
    part = getattr(job_of(f"{group}={name}", *fitting(option)), group)
    wanted = {
        parameter.name
        for parameter in parameters(locate(group, part)).values()
        if parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY
    }

    assert {name.removesuffix("_steps") for name in wanted} - {"total"} <= part.keys()


@pytest.mark.parametrize("name", [option.split("/")[1] for option in OPTIONS if option.startswith("data/")])
def test_a_source_gives_what_it_says(name: str, folder: Path) -> None:
    roles = ROLES.get(name, ("text", "label"))
    made = instantiate("data", option_keys(job_of(f"data={name}", *fitting(f"data/{name}")).data, DataKeys))
    splits = made.load(roles)

    assert made.fingerprint
    assert {"train", "validation", "test"} == splits.keys()
    assert all({*roles, "row"} <= {*rows.column_names} for rows in splits.values())
    assert made.describe_row("train", splits["train"]["row"][0])


def test_an_export_is_a_function_with_its_settings() -> None:
    assert callable(instantiate("export", job_of().export))


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if option.split("/")[0] in GROUPS and option[:4] not in ("data", "expo")]
)
def test_builds_and_trains(option: str, folder: Path) -> None:
    job = small_job(option, folder)
    saved: list[Snapshot] = []
    report = Recorded()
    with ExitStack() as closing:
        outlets = RunOutputs(report, save=saved.append)
        built = build_training(job, config_text({}), outlets, None, closing)
        fit(built.run, built.state, lambda: False)

    assert built.state.step == 3
    # What is read of the task before torch is loaded, and what there is; of some it depends on the data or on keys.
    told = {"loss", *attribute(job.task["_target_"], "monitors")}
    there = {*metric_directions(built.task.metrics())}
    assert there <= told
    assert there == told or job.task["_target_"].split(".")[2] in BY_DATA
    assert all(torch.isfinite(parameter).all() for parameter in built.run.model.parameters())
    assert [snapshot.step for snapshot in saved][-1] == 3
    (first, *_) = [values for event, _, values in report.events if event == "train"]
    assert first["grad_norm"] > 0


def small_job(option: str, folder: Path) -> TrainJob:
    """A job with an option on small data, of three steps."""
    return job_of(*small(option, folder))


def small(option: str, folder: Path) -> list[str]:
    """The overrides of such a job."""
    chosen = [option.replace("/", "="), *fitting(option)]
    composed = job_of(*chosen)
    embedded = "features" in composed.task["_target_"] or "tabular" in composed.task["_target_"]
    images = "image" in composed.task["_target_"]
    source = [] if embedded or images else write_roles(folder)
    text = [] if embedded or images else TEXT
    model = composed.model["_target_"].split(".")[2]
    lengths = ["train.duration=3", "train.eval_every=3", "train.batch_size=8", "train.log_every=1", "loader.limit=40"]
    return [*chosen, *source, *text, *SMALL.get(model, ()), *lengths, "device=cpu"]


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.split("/")[0] in PRESET_GROUPS])
def test_changes_something(option: str) -> None:
    group, name = option.split("/")
    assert replace(job_of(f"{group}={name}", *fitting(option))) != job_of()
