from dataclasses import fields, is_dataclass
from typing import get_args

import pytest

from trainer.config import jobs, schema, sections
from trainer.constraints import fits_type
from trainer.protocols import Batching


@pytest.mark.parametrize("kind", [*jobs.JOBS.values(), *schema.sections(jobs.TrainJob).values()])
def test_every_default_fits_and_every_key_is_explained(kind: type) -> None:
    defaults = schema.defaults(kind)
    for name, annotation in schema.keys(kind).items():
        assert schema.doc(kind, name)
        if name not in {*schema.groups(kind), *schema.sections(kind)}:
            assert fits_type(defaults[name], annotation), name


def test_what_a_verb_alone_has_comes_before_what_it_shares() -> None:
    names = list(schema.keys(jobs.GenerateJob))
    assert names[:3] == ["run", "prompt", "output"]
    assert names[-5:] == ["trust", "checkpoint", "weights", "device", "precision"]
    assert [name for name in schema.defaults(jobs.GenerateJob) if name != "decode"] == names[:5] + names[-5:]


def test_what_is_in_no_section_is_no_key() -> None:
    assert "stored_overrides" not in schema.keys(jobs.EvalJob)
    assert all("doc" in item.metadata for item in fields(jobs.TrainJob))


def test_the_layouts_are_those_of_the_loader() -> None:
    annotation = schema.keys(sections.LoaderSection)["batching"]
    assert [name for name in get_args(Batching) if not fits_type(name, annotation)] == []
    assert annotation.count("'") + annotation.count('"') == 2 * len(get_args(Batching))


def test_a_job_of_defaults_is_typed_through_and_through() -> None:
    job = jobs.TrainJob()
    assert all(is_dataclass(getattr(job, name)) for name in schema.sections(jobs.TrainJob))
    assert schema.defaults(jobs.TrainJob)["train"]["batch_size"] == job.train.batch_size == 32
    job.trust.append("mine")
    assert jobs.TrainJob().trust == []
