from dataclasses import fields, is_dataclass
from typing import get_args

from trainer.config import jobs, schema, sections
from trainer.constraints.values import value_problems
from trainer.protocols import Batching


def test_every_default_is_valid_and_every_key_has_a_help_text() -> None:
    for job_type in [*jobs.JOBS.values(), *schema.sections(jobs.TrainJob).values()]:
        _check_defaults(job_type)


def _check_defaults(job_type: type) -> None:
    defaults = schema.defaults(job_type)
    for name, annotation in schema.keys(job_type).items():
        assert schema.doc(job_type, name)
        if name not in {*schema.groups(job_type), *schema.sections(job_type)}:
            assert value_problems(name, defaults[name], annotation) == []


def test_own_keys_come_before_shared_keys() -> None:
    names = list(schema.keys(jobs.GenerateJob))
    assert names[:3] == ["run", "prompt", "output"]
    shared = ["trust", "checkpoint", "weights", "device", "precision"]
    own = [name for name in names if name not in shared]
    assert names == own + shared
    assert [name for name in schema.defaults(jobs.GenerateJob) if name != "decode"] == names[: len(own) - 1] + shared


def test_fields_without_help_text_are_no_keys() -> None:
    assert "stored_overrides" not in schema.keys(jobs.EvalJob)
    assert all("doc" in item.metadata for item in fields(jobs.TrainJob))


def test_batching_options_are_the_layouts_of_the_loader() -> None:
    annotation = schema.keys(sections.LoaderSection)["batching"]
    # `loader.tokens` chooses `full_rows`.
    assert {*get_args(annotation), "full_rows"} == {*get_args(Batching)}


def test_default_job_has_typed_sections() -> None:
    job = jobs.TrainJob()
    assert all(is_dataclass(getattr(job, name)) for name in schema.sections(jobs.TrainJob))
    assert schema.defaults(jobs.TrainJob)["train"]["batch_size"] == job.train.batch_size == 32
    job.trust.append("mine")
    assert jobs.TrainJob().trust == []
