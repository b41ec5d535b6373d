"""Every YAML in conf/ composes to a job without a fault and builds a part that works in a run."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.jobs import TINY, Recorded, working_in, write_data
from trainer.build.instantiate import locate, make, parameters
from trainer.build.training import build_training
from trainer.checkpoint.snapshot import Snapshot
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.schema import BARE_GROUPS, TrainJob
from trainer.config.stored import config_text, job_from_config
from trainer.loop import fit

CONF = Path(__file__).parent.parent / "conf"
FILES = sorted(file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.glob("**/*.yaml"))
GROUPS = ("task", "data", "model", "loss", "optimizer", "scheduler", "export")
OPTIONS = [name for name in FILES if "/" in name and name.split("/")[0] in (*GROUPS, *BARE_GROUPS)]
REST = {"train", "eval", "export", "verify", "hydra/output/runs"}
NEEDED = {"data/files": ["data.train=train.csv"]}


def test_every_file_is_an_option_or_known_otherwise() -> None:
    assert set(FILES) - set(OPTIONS) == REST
    assert len(OPTIONS) == 20


def job_of(*overrides: str) -> TrainJob:
    register_defaults()
    config, _ = compose(CONF, "train", list(overrides))
    values, unresolved = plain(config)
    assert unresolved == []
    return job_from_config(values)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[list[str]]:
    with working_in(tmp_path):
        yield write_data(tmp_path)


@pytest.mark.parametrize("option", OPTIONS)
def test_composes_without_a_fault(option: str) -> None:
    group, name = option.split("/")
    assert isinstance(job_of(f"{group}={name}", *NEEDED.get(option, [])), TrainJob)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.split("/")[0] in GROUPS])
def test_says_every_parameter_that_a_user_may_set(option: str) -> None:
    group, name = option.split("/")
    part = getattr(job_of(f"{group}={name}", *NEEDED.get(option, [])), group)
    wanted = {
        parameter.name
        for parameter in parameters(locate(group, part)).values()
        if parameter.default is parameter.empty and parameter.kind is parameter.KEYWORD_ONLY
    }

    assert {name.removesuffix("_steps") for name in wanted} - {"total"} <= part.keys()


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.split("/")[0] in GROUPS])
def test_builds_and_trains(option: str, data: list[str]) -> None:
    group, name = option.split("/")
    source = [] if group == "data" else data
    job = job_of(*source, *TINY, f"{group}={name}", *NEEDED.get(option, []), "train.duration=3", "train.eval_every=3")
    if group == "data":
        made = make("data", job.data)
        assert made.fingerprint
        assert {"train", "validation", "test"} == made.load().keys()
        return
    if group == "export":
        assert callable(make("export", job.export))
        return
    saved: list[Snapshot] = []
    report = Recorded()
    with ExitStack() as closing:
        built = build_training(
            job, config_text({}), saved.append, lambda findings: "", lambda length: report, None, closing
        )
        fit(built.run, built.state, lambda: False)

    assert built.state.step == 3
    assert all(torch.isfinite(parameter).all() for parameter in built.run.model.parameters())
    assert [snapshot.step for snapshot in saved][-1] == 3


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.split("/")[0] in BARE_GROUPS])
def test_changes_something(option: str) -> None:
    group, name = option.split("/")
    assert replace(job_of(f"{group}={name}")) != job_of()
